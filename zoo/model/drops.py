# B rows, T tokens, D model width, M rows of experts, F hidden units, L layers
"""Draw the random values of a training pass: dropout, stochastic depth, routers' draws. Each is a hash of its row,
token, layer, place in the layer and channel, so that neither the size of batches nor the mesh changes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zoo.kernels.drop import GOLDEN, AttentionDropout, draw_uniform, drop_values, mix, take_high
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.distributed.experts import Visit
    from zoo.distributed.seam import ContextSeam, Seam
    from zoo.model.step import Inputs

PLACES = ("embedding", "attention", "cross", "ffn", "units", "chances", "cross chances", "experts")
PLACES += ("dense", "second_attention", "second_dense")
STACKED = tuple(f"ffn_{number}" for number in range(15))
"""Names of a layer's feed-forwards before its last."""
PLACES += STACKED
"""Places in a tower where values are dropped or drawn: its input, the output of each branch, hidden units, attention
probabilities, routers' experts, and the further attentions and feed-forwards of a layer."""
KEYS = {place: ((number + 1) * GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63) for number, place in enumerate(PLACES)}
SKIPS = GOLDEN ^ 1  # makes draws of left-out branches differ from those of dropped channels


@dataclass(frozen=True)
class Dropping:
    """Dropout rates of a tower in training (`zoo.training.dropout`), and the seed of its draws."""

    seed: int
    """Seed of dropout and of routers' draws."""
    width: int
    """Channels of the widest tensor that is dropped or drawn."""
    attention: float = 0.0
    """Share of attention's probabilities that are dropped."""
    residual: float = 0.0
    """Share of the channels of a branch's output that are dropped."""
    embedding: float = 0.0
    """Share of the channels of the first layer's input that are dropped."""
    ffn: float = 0.0
    """Share of a feed-forward's hidden units that are dropped."""
    layers: float = 0.0
    """Share of rows in which a branch of the last layer is left out (stochastic depth). Earlier layers' shares are in
    proportion to their depth."""

    def begin(self, inputs: Inputs, seam: Seam, context: ContextSeam) -> Drops:
        """Make the hash keys of a pass from the rows' numbers in the run or, without these, from random numbers of
        torch's generator."""
        ids = inputs.input_ids
        numbers = inputs.row_numbers
        if numbers is None:
            numbers = torch.randint(1 << 62, ids.shape[:1]).to(ids.device)
        rows = mix(numbers * GOLDEN + (self.seed - (1 << 63)))  # B
        tokens = mix(rows[:, None] + torch.arange(ids.shape[1], device=ids.device) * GOLDEN)  # B T
        tokens = context.own(tokens)
        own = seam.own(tokens)
        assert own is not None
        keys = ids.shape[1] + (0 if inputs.memory is None else inputs.memory.shape[1])
        columns = mix(torch.arange(max(self.width, keys), device=ids.device) * GOLDEN)
        return Drops(self, rows, tokens, own, columns, seam.rank)


@dataclass(frozen=True)
class Drops:
    """The hash keys of a pass: of its `rows` [B], of the `tokens` [B, T] that sub-layers on this rank compute, of the
    rank's `own` tokens of the stream [B, T'], and of `columns` (channels, heads, or a query's keys).

    Within a layer, `layer` is the layer's key, and `skipped` the rate at which its branches are left out. `rank` is the
    rank of tensor parallelism. Keys are tensors, because Inductor may compute an arange inside the hash wrong (torch
    2.13, on a CPU).
    """

    dropping: Dropping
    rows: Tensor
    tokens: Tensor
    own: Tensor
    columns: Tensor
    rank: int = 0
    layer: Tensor | None = None
    skipped: Tensor | None = None

    @property
    def attention(self) -> bool:
        """Whether attention probabilities are dropped."""
        return self.dropping.attention > 0

    def for_layers(self, depth: int, numbers: Sequence[int] | None = None) -> list[Drops]:
        """Make the Drops of each layer of a tower that is `depth` layers deep, or only of the layers `numbers`. They
        differ in tensors only, so that equal layers compile once."""
        counted = torch.arange(1, depth + 1, device=self.rows.device)
        keys, rates = mix(counted).unbind(), (self.dropping.layers * counted / depth).unbind()
        return [
            replace(self, layer=keys[at], skipped=rates[at]) for at in (range(depth) if numbers is None else numbers)
        ]

    def for_place(self, place: str) -> Drops:
        """Make the Drops of a layer's second attention or feed-forward, at one of PLACES."""
        return replace(self, tokens=mix(self.tokens + KEYS[place]))

    def for_rows(self, tokens: Tensor, experts: Tensor) -> Drops:
        """Make the Drops of a mixture's rows [M], each of one token at one of its experts."""
        return replace(self, tokens=mix(self.tokens.flatten()[tokens] + (experts + 1) * GOLDEN))

    def bring(self, visit: Visit) -> Drops:
        """Make the Drops of the rows that all ranks send to the experts of this rank."""
        return replace(self, tokens=visit.bring(self.tokens))

    def drop_embedding(self, x: Tensor) -> Tensor:
        """Drop channels of the first layer's input [B, T', D]."""
        rate = self.dropping.embedding
        return self._drop(x, self.own, "embedding", rate) if rate else x

    def drop_branch(self, y: Tensor, place: str, whole: bool) -> Tensor:
        """Drop channels of a branch's output y [B, T, D] and, in some rows, the whole output (stochastic depth). If
        `whole`, y has all tokens that are computed here, else only the rank's own."""
        if self.dropping.residual:
            y = self._drop(y, self.tokens if whole else self.own, place, self.dropping.residual)
        if self.dropping.layers:
            assert self.skipped is not None
            chance = take_high(self._key(self.rows ^ SKIPS, place)).double() / (1 << 32) + 0.5
            kept = (chance >= self.skipped).float() / (1 - self.skipped)
            y = y * kept.to(y.dtype)[:, None, None]
        return y

    def drop_units(self, h: Tensor) -> Tensor:
        """Drop hidden units [B, T, F], or [M, F] of experts. Under tensor parallelism F counts the rank's own units."""
        rate = self.dropping.ffn
        return self._drop(h, self.tokens, "units", rate, self.rank * h.shape[-1]) if rate else h

    def draw_experts(self, scores: Tensor, count: int) -> Tensor:
        """Draw `count` uniform numbers in 0 to 1 for each token, by which a router samples experts: [B, T, count]."""
        return draw_uniform(self._key(self.tokens, "experts")[..., None], self.columns[:count])

    def drop_attention(self, heads: int, crosses: bool) -> AttentionDropout | None:
        """Make the dropout of attention probabilities for `heads` heads on this rank; None without dropout."""
        if not self.attention:
            return None
        place = "cross chances" if crosses else "chances"
        own = self.columns[self.rank * heads : (self.rank + 1) * heads]
        return AttentionDropout(self.dropping.attention, self._key(self.tokens, place), own, self.columns)

    def _drop(self, x: Tensor, keys: Tensor, place: str, rate: float, first: int = 0) -> Tensor:
        return drop_values(x, self._key(keys, place)[..., None], self.columns[first : first + x.shape[-1]], rate)

    def _key(self, keys: Tensor, place: str) -> Tensor:
        within = keys + KEYS[place]
        return mix(within if self.layer is None else within + self.layer)
