# B batch, T tokens, H heads, C head width, D model width, Q width of what queries are made of
"""Choose the keys that attention reads: the indexers of sparse attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.kernels.choosing import choose_blocks, choose_keys
from zoo.lazy import Tensor, torch
from zoo.model.attention.compressor import Compressor
from zoo.model.attention.entries import ENTRY_TABLES
from zoo.model.attention.tempering import Tempering
from zoo.model.channels import Channel, Fault, Shadows
from zoo.model.norm import LayerNorm, RMSNorm, WholeNorm
from zoo.model.position.base import Position
from zoo.model.position.rotary import rotate_part
from zoo.model.step import CHOICE
from zoo.spec import Linear, Sized, Spec, hold_whole, split
from zoo.spec.sharding import divisors

if TYPE_CHECKING:
    from zoo.kernels.view.slots import SlotMapping
    from zoo.model.context import ForwardContext
    from zoo.model.step import Step, Weights
    from zoo.model.tower import Tower


Rotate = Callable[["Tensor"], Any]


class ChosenKeys(Channel, name=CHOICE):
    """The keys chosen by the last layer with an indexer of its own, for the layers that reuse this choice."""

    staying: ClassVar[str] = "layers take the choice of keys of one before them"

    @classmethod
    def lends(cls, tower: Tower, kind: str) -> bool:
        return False  # a mask of bits, which pricing leaves out

    @classmethod
    def trace(cls, at: Shadows) -> None:
        return None

    @classmethod
    def find_faults(cls, tower: Tower) -> Iterator[Fault]:
        """Yield a fault for the first layer that reuses a choice if no layer before it chooses, or if the layer that
        chooses has another top_k."""
        made, choosers = None, {name: block.attention.chooser for name, block in tower.blocks.items()}
        for place, name in enumerate(tower.pattern if any(each is not None for each in choosers.values()) else ()):
            chooser, path = choosers[name], ("blocks", name, "attention", "indexer")
            if chooser is None or chooser.owns:
                made = chooser or made
            elif made is None:
                found = f"is shared, and no layer before layer {place} has an indexer of its own"
                yield path, f"{found} (kind: lightning)"
                return
            elif made.most_keys != chooser.most_keys:
                found = f"is {chooser.most_keys}, the layer that chooses takes {made.most_keys}"
                yield (*path, "top_k"), f"{found} (the same for both)"
                return


class Indexer(Spec, axis="indexer", default="lightning"):
    """Choose the keys that a query attends to, among the keys that the mask shows. Pricing counts all visible keys for
    the indexer, and the chosen ones for attention."""

    owns: ClassVar[bool] = True  # whether it chooses by itself, rather than reusing an earlier layer's choice
    gives: ClassVar[tuple[str, ...]] = (CHOICE,)

    @property
    def most_keys(self) -> int:
        """Maximum number of keys that are chosen for a query. With `adds_tail` the query attends to a few more."""
        raise NotImplementedError

    @property
    def granule(self) -> int:
        """Number of consecutive keys that are chosen together."""
        return 1

    @property
    def adds_tail(self) -> bool:
        """Whether a query also attends to its own incomplete group of `granule` keys."""
        return False

    @property
    def pooled(self) -> int:
        """Number of tokens that make one key of the indexer."""
        return 1

    def list_parts(self, d_model: int, q_width: int) -> dict[str, Any]:
        """List the indexer's weights by name, which the attention adds to its own parts. x is `d_model` wide, the input
        of the indexer's queries is `q_width` wide. The weights are not trained, because a choice has no gradient
        (DeepSeek trains them by a separate loss)."""
        return {name: replace(part, learns=False) for name, part in self.weights(d_model, q_width).items()}

    def weights(self, d_model: int, q_width: int) -> dict[str, Any]:
        """Return the indexer's weights by name, before `list_parts` marks them as not trained."""
        return {}

    def attended(self) -> dict[str, tuple[int, ...]]:
        """List the cached tensors that the indexer reads for each key that it scores: name → shape."""
        return self.cache()

    def check(self, position: Position, width: int, n_heads: int) -> None:
        """Raises ValueError if the indexer cannot rotate `width` channels as the attention's position scheme does, or
        cannot choose for `n_heads` heads."""

    def prepare(self, context: ForwardContext, step: Step, slots: SlotMapping | None, rotate: Rotate) -> None:
        """Add to `step.extra` the values that the indexers of all layers of a kind share in a pass; nothing by default.
        `rotate` makes the rotary tables of positions [1, E]."""

    shard = hold_whole  # unless a kind divides its heads

    def choose(self, m: Weights, x: Tensor, latent: Tensor, step: Step, n_heads: int) -> None:
        """Choose keys and narrow the step's mask to them. `m` are the weights of the attention, which has `n_heads`
        heads. x [B, T, D] is the attention's input, `latent` [B, T, Q] the input of its queries."""
        raise NotImplementedError


def check_indexer(attention: Any, rotated: int, apart: Sequence[str]) -> None:
    """Raises ValueError if the indexer of `attention` chooses compressed entries instead of tokens, or cannot serve
    heads whose position scheme rotates up to `rotated` channels. Also raises it if one of the attention's fields
    `apart` is given: these fields limit the keys, but an indexer chooses among all."""
    indexer = attention.indexer
    if indexer is None:
        return
    for name in apart:
        if (found := getattr(attention, name)) is not None:
            raise ValueError(f"{name}={found} beside an indexer, which chooses among all keys (one of them)")
    indexer.check(attention.position, rotated, attention.n_heads)
    if isinstance(indexer, EntryIndexer):
        raise ValueError(f"indexer: '{indexer.kind}' chooses among entries, not tokens (lightning, or attention: csa)")


def check_rotation(indexer: TopKIndexer | NormedIndexer, position: Position, width: int) -> None:
    """Raises ValueError if an indexer's heads have fewer channels than attention rotates (`width`, unless `position`
    states fewer), or if the indexer states how to rotate and `position` rotates nothing."""
    if position.rotates and indexer.head_dim < (getattr(position, "rotary_dim", None) or width):
        raise ValueError(f"indexer.head_dim={indexer.head_dim} has fewer channels than are rotated ({width} or more)")
    stated = next((name for name in ("interleaved", "rotates_last") if getattr(indexer, name, False)), None)
    if stated is not None and not position.rotates:
        raise ValueError(f"indexer.{stated}: position '{position.kind}' rotates nothing (rope, or leave it out)")


class TopKIndexer(Indexer):
    """Base of the lightning indexers: choose the keys k of highest Σ_h w_h·relu(q_h·k), where q = latent·W_q and w =
    x·W_w. The keys have their own cache."""

    n_heads: PositiveInt = 64
    """Number of the indexer's heads, whose scores are added up."""
    head_dim: PositiveInt = 128
    """Channels of a head's queries, and of the keys."""
    top_k: PositiveInt = 2048
    """Maximum number of keys that are chosen for a query."""

    @property
    def most_keys(self) -> int:
        return self.top_k

    def weights(self, d_model: int, q_width: int) -> dict[str, Any]:
        return {
            "index_q": Linear(q_width, self.n_heads * self.head_dim),
            "index_weights": Linear(d_model, self.n_heads, precise=True),
        }

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {"index": (self.head_dim,)}

    def core_flops(self, pairs: int) -> int:
        return 2 * self.n_heads * (self.head_dim + 1) * pairs

    def choose(self, m: Weights, x: Tensor, latent: Tensor, step: Step, n_heads: int) -> None:
        with torch.no_grad():
            q = self.make_queries(m, latent, step)
            (k,) = step.remember(index=self.make_keys(m, x, step))
            step.choose(self.picker(m), k, q, m.index_weights(x))

    def make_queries(self, m: Weights, latent: Tensor, step: Step) -> Tensor:
        """Make queries [B, T, H, C] of the latent [B, T, Q]."""
        return m.index_q(latent).unflatten(-1, (self.n_heads, self.head_dim))

    def make_keys(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        """Compute the keys to cache [B, T|E, C] from x [B, T, D]. The kind `pooled` puts a gate after each key: [B, T,
        2·C]."""
        raise NotImplementedError

    def picker(self, m: Weights) -> Any:
        """Return the function of `zoo.kernels.choosing` that chooses keys, with this indexer's settings bound."""
        return partial(choose_keys, top_k=self.top_k)


class LightningIndexer(TopKIndexer, kind="lightning"):
    """The lightning indexer (DeepSeek-V3.2, 2025), with one key k = norm(x·W_k) per token.

    As many channels of q and k are rotated as in attention, by the same angles.
    """

    norm: WholeNorm = LayerNorm(eps=1e-6)
    """Norm of the keys."""
    interleaved: bool = False
    """Whether the rotated pairs are neighbouring channels (GLM-5, 2026), rather than one channel of each half."""
    rotates_last: bool = False
    """Whether the last channels are rotated, rather than the leading ones (Hy4, 2026)."""
    input_norm: WholeNorm | None = None
    """Norm of the latent from which queries are made."""
    tempering: Tempering | None = None
    """Tempering: a factor of the queries that grows with position (Mistral Large 4, 2026)."""

    def __post_init__(self) -> None:
        if self.tempering is not None and not self.tempering.by_head:
            found = f"'{self.tempering.kind}' scales all heads of a query alike, which changes no choice"
            raise ValueError(f"tempering: {found} (scalable_softmax)")

    def weights(self, d_model: int, q_width: int) -> dict[str, Any]:
        return {
            **super().weights(d_model, q_width),
            **({"index_input_norm": Sized(self.input_norm, q_width)} if self.input_norm else {}),
            **(self.tempering.list_parts(self.n_heads, "index_") if self.tempering else {}),
            "index_k": Linear(d_model, self.head_dim),
            "index_norm": Sized(self.norm, self.head_dim),
        }

    def check(self, position: Position, width: int, n_heads: int) -> None:
        check_rotation(self, position, width)

    def make_queries(self, m: Weights, latent: Tensor, step: Step) -> Tensor:
        q = super().make_queries(m, m.index_input_norm(latent) if self.input_norm else latent, step)
        if self.tempering is not None:
            assert step.positions is not None
            q = self.tempering.temper(m, q, step.positions, "index_")
        return rotate_part(q, step.tables, self.interleaved, self.rotates_last)

    def make_keys(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        k = m.index_norm(m.index_k(x))[:, :, None]  # B T 1 C
        return rotate_part(k, step.tables, self.interleaved, self.rotates_last)[:, :, 0]


class NormedIndexer(Indexer):
    """Base of the indexers that compare normalised queries q = norm(x·W_q) with keys x·W_k that all heads share."""

    n_heads: PositiveInt
    """Number of the indexer's heads."""
    head_dim: PositiveInt = 128
    """Channels of a head's queries, and of the keys."""
    norm: WholeNorm = RMSNorm()
    """Norm of each head's query, and of the keys."""

    def weights(self, d_model: int, q_width: int) -> dict[str, Any]:
        return {
            "index_q": Linear(q_width, self.n_heads * self.head_dim),
            "index_k": Linear(d_model, self.head_dim),
            "index_q_norm": Sized(self.norm, self.head_dim),
            "index_k_norm": Sized(self.norm, self.head_dim),
        }

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {"index": (self.head_dim,)}

    def core_flops(self, pairs: int) -> int:
        return 2 * self.n_heads * self.head_dim * pairs


class BlockIndexer(NormedIndexer, kind="blocks"):
    """The block indexer (MiniMax-M3, 2026): choose the `top_blocks` blocks with the highest q·k in them, always
    including the `local_blocks` newest that a query sees. Each indexer head chooses for its share of the attention's
    heads.

    q = norm(x·W_q), one key k = norm(x·W_k) per token. Rotation and cache are those of the lightning indexer. Blocks
    are counted from a text's start, so that neither padding nor a document in front moves them (in the reference
    padding does).
    """

    causal: ClassVar[bool | None] = True  # the newest block is the query's own

    n_heads: PositiveInt = 4
    """Number of the indexer's heads, a divisor of the attention's. Each chooses keys for an equal share of the
    attention's heads."""
    block_size: PositiveInt = 128
    """Number of keys in a block."""
    top_blocks: PositiveInt = 16
    """Maximum number of blocks that a query attends to."""
    local_blocks: PositiveInt = 1
    """Number of blocks that are always chosen: the newest that a query sees."""
    interleaved: bool = False
    """Whether the rotated pairs are neighbouring channels, rather than one channel of each half."""

    def __post_init__(self) -> None:
        if self.local_blocks > self.top_blocks:
            found = f"local_blocks={self.local_blocks} are always chosen"
            raise ValueError(f"{found}, and top_blocks={self.top_blocks} are all there are (as many, or fewer)")

    @property
    def most_keys(self) -> int:
        return self.top_blocks * self.block_size

    @property
    def granule(self) -> int:
        return self.block_size

    def check(self, position: Position, width: int, n_heads: int) -> None:
        check_rotation(self, position, width)
        if n_heads % self.n_heads:
            found = f"indexer.n_heads={self.n_heads} does not divide n_heads={n_heads}"
            raise ValueError(f"{found} ({divisors(n_heads)} would do)")

    def shard(self, ranks: int) -> BlockIndexer:
        return split(self, ranks, equal=("n_heads",))

    def choose(self, m: Weights, x: Tensor, latent: Tensor, step: Step, n_heads: int) -> None:
        with torch.no_grad():
            q = m.index_q_norm(m.index_q(latent).unflatten(-1, (self.n_heads, self.head_dim)))  # B T G C
            k = m.index_k_norm(m.index_k(x))[:, :, None]  # B T 1 C
            q, k = (rotate_part(each, step.tables, self.interleaved) for each in (q, k))
            (k,) = step.remember(index=k[:, :, 0])
            how = {"size": self.block_size, "count": self.top_blocks, "local": self.local_blocks, "n_heads": n_heads}
            step.choose(partial(choose_blocks, **how), k, q)


class EntryIndexer(TopKIndexer, kind="entries"):
    """The lightning indexer over compressed entries (DeepSeek-V4, 2026): choose among the entries that a query sees.

    The last channels of queries and keys are rotated as attention's are.
    """

    causal: ClassVar[bool | None] = True

    top_k: PositiveInt = 512
    """Maximum number of entries that a query attends to."""
    compressor: Compressor
    """Compressor that makes the indexer's keys: one for each of attention's entries, with separate weights."""
    interleaved: bool = False
    """Whether the rotated pairs are neighbouring channels, rather than one channel of each half."""

    def weights(self, d_model: int, q_width: int) -> dict[str, Any]:
        return super().weights(d_model, q_width) | self.compressor.list_parts(d_model, self.head_dim, "index_")

    def check(self, position: Position, width: int, n_heads: int) -> None:
        check_rotation(self, position, width)

    def make_queries(self, m: Weights, latent: Tensor, step: Step) -> Tensor:
        return rotate_part(super().make_queries(m, latent, step), step.tables, self.interleaved, last=True)

    def make_keys(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        k = self.compressor.compress(m, x, step, "index_")[:, :, None]  # B E 1 C
        return rotate_part(k, step.extra[ENTRY_TABLES], self.interleaved, last=True)[:, :, 0]


class Shared(Indexer, kind="shared"):
    """Reuse the choice of the nearest earlier layer with its own indexer (GLM-5, 2026): no weights and no cache."""

    owns: ClassVar[bool] = False
    takes: ClassVar[tuple[str, ...]] = (CHOICE,)
    gives: ClassVar[tuple[str, ...]] = ()

    top_k: PositiveInt
    """Number of keys that a query attends to; must equal `top_k` of the layer whose choice is reused."""

    @property
    def most_keys(self) -> int:
        return self.top_k

    def choose(self, m: Weights, x: Tensor, latent: Tensor, step: Step, n_heads: int) -> None:
        step.take_choice()
