"""Attention: the base of all kinds, and the base of the kinds that take a softmax over scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import PositiveInt

from zoo.kernels.base import AttentionQuery
from zoo.lazy import Tensor
from zoo.model.lending import LentKeys, Loan
from zoo.model.position.base import Position
from zoo.spec import Spec
from zoo.spec.sharding import divisors

if TYPE_CHECKING:
    from zoo.model.attention.indexer import Indexer
    from zoo.model.step import Step, Weights


class BlockPattern(NamedTuple):
    """Pattern of block-sparse attention in blocks of `size` tokens. The first and the last block see and are seen by
    all tokens; every other block sees itself and its two neighbours. A text of at most `whole_until` tokens is attended
    in full."""

    size: int
    whole_until: int


class Sight(NamedTuple):
    """Limits on the keys that a query may attend to, in addition to causality. The defaults hide none."""

    window: int | None = None
    """Window W: a causal query sees W keys, itself included; a bidirectional one sees W keys to either side."""
    ahead: int | None = None
    """Number of later keys that a bidirectional query sees; None for as many as `window`."""
    chunk: int | None = None
    """Chunk size C: positions are cut into chunks of C, and a token sees its own chunk only."""
    blocks: BlockPattern | None = None
    """Block-sparse pattern; None for none."""
    rate: int = 1
    """Number of consecutive tokens for which one key is cached: 1, or more with compressed keys."""
    near: int = 0
    """Number of single tokens that a query sees in addition to compressed keys, itself included; 0 without compressed
    keys."""


class Passes(NamedTuple):
    """Which batches an attention can compute in one pass."""

    ragged: bool = True
    """Whether rows of unequal length can be computed in one pass with a cache."""
    varlen: float = math.inf
    """Maximum number of new tokens per row at which concatenated rows (varlen) cost no more than separate rows; 0 if
    rows cannot be concatenated."""
    split: bool = False
    """Whether context parallelism may divide the tokens of a row among ranks."""
    loops: bool = False
    """Whether a pass over a long row is a Python loop over parts of it. Prices are then extrapolated from shorter rows,
    and an exported graph reads one token at a time, because the number of iterations would be fixed in it."""


class MemoryReading(NamedTuple):
    """How an attention reads an encoder's output."""

    width: int | None = None
    """Width of the encoder's output; None for the width of the attention's own stream."""
    own_sublayer: bool = True
    """True if the cross-attention is a sub-layer of its own. False if the layer's self-attention reads the encoder's
    output next to its tokens."""
    fault: str = ""
    """Error message if a field of this attention is of no use in cross-attention; empty otherwise."""
    check: Callable[[Attention], None] = lambda attention: None
    """Function that raises ValueError if the layer's self-attention, its argument, cannot be combined with this
    cross-attention."""


class Attention(Spec, axis="attention"):
    """Mix tokens: attention over keys, or a recurrence over earlier tokens."""

    needs_block: ClassVar[str] = ""  # the only kind of block that can hold it; empty for any

    extras: ClassVar[tuple[str, ...]] = ()
    """Inputs that the attention reads from `step.extra`: "global" (which tokens are global, [B, T]), "types" (token
    types, [B, T])."""

    memory: ClassVar[MemoryReading | None] = None
    """How this attention reads an encoder's output in cross-attention; None if it cannot."""
    loan: ClassVar[Loan | None] = None
    """The tensors borrowed from another layer: keys and values in place of this layer's own, or values to mix with its
    own. None if nothing is borrowed."""
    positioning: ClassVar[Position | None] = None
    """The position scheme that acts inside attention, if any."""
    score_heads: ClassVar[int] = 0
    """Number of heads for which a position scheme may make a bias on the scores; 0 if scores take no bias."""
    rotary_width: ClassVar[int] = 0
    """Channels of a head that a position scheme may rotate."""
    summed: ClassVar[int] = 0
    """Number of values per token that tensor-parallel ranks all-reduce inside the mixer, such as the mean square of a
    norm."""

    gives: ClassVar[tuple[str, ...]] = (LentKeys.name,)

    @property
    def passes(self) -> Passes:
        """Which batches this attention can compute in one pass."""
        return Passes(loops=bool(self.state()))

    @property
    def sight(self) -> Sight:
        """Limits on the keys that a query may attend to, in addition to the causal mask."""
        return Sight()

    @property
    def chooser(self) -> Indexer | None:
        """The indexer that selects the keys which a query attends to; None if a query attends to all that it sees."""
        return None

    def attended(self) -> dict[str, tuple[int, ...]]:
        """Map the names of the cached tensors that this layer reads to their shapes per token. They are its own tensors
        or, if it reads another layer's keys and values, the tensors of that layer."""
        return self.cache()

    @property
    def takes(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.loan is None else (LentKeys.name,)

    def prepare(self, m: Weights | None, step: Step) -> None:
        """Add to the step the values that all layers of this kind share in one forward pass: entries of `step.extra`,
        or a new `step.keys`. The default adds nothing. `m` are the weights of the model's position scheme, or None if
        each layer has its own."""

    def ask(self, dtype: str, **features: Any) -> AttentionQuery | None:
        """Return the AttentionQuery that a kernel must compute; None for a mixer that uses no kernel. `features` are
        the fields of AttentionQuery that depend on the pass: the Mask's features, and whether there are gradients."""
        return None

    def decode_ask(self, dtype: str, new: int, **features: Any) -> AttentionQuery | None:
        """Return the AttentionQuery of `new` tokens that follow cached tokens."""
        return self.ask(dtype, **features)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        """Mix tokens: x [B, T, D] to [B, T, D]."""
        raise NotImplementedError


class PlainHeads(Attention):
    """Base of the kinds that take a softmax over the scores of heads of one width, without a position scheme."""

    n_heads: PositiveInt
    """Number of heads."""
    head_dim: PositiveInt
    """Channels of a head."""

    def core_flops(self, pairs: int) -> int:
        return 4 * self.n_heads * self.head_dim * pairs  # QKᵀ and PV

    def ask(self, dtype: str, **features: Any) -> AttentionQuery | None:
        width = {"head_dim": self.head_dim, "v_head_dim": self.head_dim}
        return AttentionQuery(dtype=dtype, **width, n_heads=self.n_heads, n_kv_heads=self.n_heads, **features)


class SoftmaxAttention(Attention):
    """Base of the kinds that take a softmax over query-key scores. It declares what position schemes and kernels need
    to know."""

    n_heads: PositiveInt
    """Number of query heads."""
    position: Position
    """Position scheme inside attention: it rotates queries and keys, or adds a bias to their scores."""

    @property
    def score_heads(self) -> int:  # type: ignore[override]
        return self.n_heads

    @property
    def positioning(self) -> Position:  # type: ignore[override]
        return self.position

    @property
    def rotary_width(self) -> int:  # type: ignore[override]
        return self.head_widths[0]

    @property
    def head_widths(self) -> tuple[int, int]:
        """Channels of a head's queries and keys, and of its values."""
        raise NotImplementedError

    def core_flops(self, pairs: int) -> int:
        return 2 * self.n_heads * sum(self.head_widths) * pairs  # QKᵀ and PV

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        if self.sight.rate > 1:  # its mask is a tensor: single tokens and keys of several in one row
            features |= {"chosen": True, "window": None, "documents": False, "padding": False, "short_q": True}
        width, v_width = self.head_widths
        return AttentionQuery(
            dtype=dtype,
            head_dim=width,
            v_head_dim=v_width,
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            bias=self.position.bias_kind,
            **features,
        )

    def decode_ask(self, dtype: str, new: int, **features: Any) -> AttentionQuery:
        ask = self.ask(dtype, **features)
        if self.sight.rate == 1 or new > 1:
            return ask
        chooses = self.chooser is not None  # if not, a single token sees all compressed keys, without a mask
        return replace(ask, causal=chooses, chosen=chooses)

    def attend(self, m: Weights, step: Step, q: Tensor, k: Tensor, v: Tensor, scale: float, **scores: Any) -> Tensor:
        """Attend with the position bias: q [B, T, H, C] → [B, T, H, Cv]. The bias is this layer's own if its position
        scheme has weights in every layer, else all layers share one. `scores` are the arguments softcap, sinks and read
        of `Step.attend`."""
        own = (self.position, m.position) if self.position.per_layer else None
        return step.attend(q, k, v, scale, own, **scores)


class MultiHead(SoftmaxAttention):
    """Base of the kinds whose queries, keys and values all have heads of one width, `head_dim`."""

    head_dim: PositiveInt
    """Channels of a head."""

    @property
    def head_widths(self) -> tuple[int, int]:
        return self.head_dim, self.head_dim

    def core_flops(self, pairs: int) -> int:
        return 4 * self.n_heads * self.head_dim * pairs  # QKᵀ and PV

    def check_shared_position(self) -> None:
        """Raises ValueError if the position scheme has weights in every layer."""
        if self.position.per_layer:
            found = f"position '{self.position.kind}' with weights in every layer"
            raise ValueError(f"{self.kind} has no place for them, found {found} (one for all layers)")

    def project(self, parts: tuple[Any, Any, Any], x: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Project x [B, T, D] to queries, keys and values [B, T, H, C] by the three `parts`, and rotate queries and
        keys."""
        q, k, v = (part(x).unflatten(-1, (self.n_heads, self.head_dim)) for part in parts)
        return self.position.rotate(q, step.tables), self.position.rotate(k, step.tables), v


def check_multiple(spec: Spec, name: str, of: str) -> None:
    """Raises ValueError if the field `name` of a Spec is not a multiple of its field `of`."""
    if getattr(spec, name) % getattr(spec, of):
        found = f"{name}={getattr(spec, name)} is not a multiple of {of}={getattr(spec, of)}"
        raise ValueError(f"{found} ({of}: {divisors(getattr(spec, name))} would do)")
