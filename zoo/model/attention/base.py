"""Attention: the base of all kinds, and the base of those that take a softmax over scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import PositiveInt

from zoo.kernels.base import Ask
from zoo.model.lending import LentKeys, Loan
from zoo.model.position.base import Position
from zoo.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.attention.indexer import Indexer
    from zoo.model.step import Step, Weights


class Blocks(NamedTuple):
    """Attention between blocks of `size` tokens: the first and the last see all and are seen by all, the others see
    themselves and their two neighbours. A text of at most `whole_until` tokens sees itself whole."""

    size: int
    whole_until: int


class Sight(NamedTuple):
    """The keys that a query sees, of those that causality shows it; unless anything is given, all."""

    window: int | None = None
    """The window W: a causal query sees W keys, itself included; others see W to either side."""
    ahead: int | None = None
    """How far a query that sees both ways sees ahead, where that is not as far as back."""
    chunk: int | None = None
    """C where positions are cut into chunks of C and a token sees those of its own chunk only."""
    blocks: Blocks | None = None
    """How a token sees blocks of tokens."""
    rate: int = 1
    """How many consecutive tokens one of the keys that are cached is made of."""
    near: int = 0
    """The window W of tokens that a query sees, itself included, beside keys that are made of several."""


class Passes(NamedTuple):
    """The passes that an attention can compute as one."""

    ragged: bool = True
    """Whether rows of unequal length can be computed in one pass with a cache."""
    varlen: bool = True
    """Whether rows of any length, end to end, cost no more than each by itself."""
    split: bool = False
    """Whether ranks can have some of a row's tokens each."""
    loops: bool = False
    """Whether a long pass is a loop over parts of the row."""


class MemoryReading(NamedTuple):
    """How an attention reads an encoder's output in place of the tokens."""

    width: int | None = None
    """The width of the encoder's output, where stated; None for the width of the attention's own stream."""
    merges: bool = False
    """Whether the layer's own attention reads it, beside the tokens."""
    fault: str = ""
    """Which of its fields means nothing there, and what would do."""
    check: Callable[[Attention], None] = lambda attention: None
    """Raises ValueError where it does not go together with the layer's attention to tokens."""


class Attention(Spec, axis="attention"):
    """Mix tokens: attention over keys, or a recurrence over earlier tokens."""

    needs_block: ClassVar[str] = ""  # the one kind of block that it has a place in, if any will not do

    extras: ClassVar[tuple[str, ...]] = ()
    """What it reads that comes with the input, of `step.extra`: "global", which tokens are global [B, T], and "types",
    their types [B, T]."""

    gives: ClassVar[tuple[str, ...]] = (LentKeys.name,)

    @property
    def passes(self) -> Passes:
        """The passes that it can compute as one."""
        return Passes(loops=bool(self.state()))

    @property
    def memory(self) -> MemoryReading | None:
        """How it reads an encoder's output in cross-attention; None where it cannot."""
        return None

    @property
    def sight(self) -> Sight:
        """The keys that a query sees."""
        return Sight()

    @property
    def chooser(self) -> Indexer | None:
        """The indexer that selects the keys which a query attends to; None where it attends to all that it sees."""
        return None

    def attended(self) -> dict[str, tuple[int, ...]]:
        """List what attention reads of each token's cache, in its own layer or in its lender's."""
        return self.cache()

    @property
    def loan(self) -> Loan | None:
        """The layer whose keys and values it reads in place of own ones, or whose values beside own ones."""
        return None

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.loan is None else (LentKeys.name,)

    @property
    def score_heads(self) -> int:
        """Heads that a bias on the scores is made for."""
        return 0

    @property
    def positioning(self) -> Position | None:
        """The position scheme that acts inside attention, if any."""
        return None

    @property
    def rotary_width(self) -> int:
        """Channels of a head that a position scheme may rotate."""
        return 0

    @property
    def summed(self) -> int:
        """Values of a token that the ranks of tensor parallelism add up amid it."""
        return 0

    def prepare(self, m: Weights | None, step: Step) -> None:
        """Put into `step.extra` what all layers of this kind share in one forward pass. `m` are the weights of the
        model's position scheme, None where each layer has its own."""

    def ask(self, dtype: str, **features: Any) -> Ask | None:
        """Describe the attention that a kernel must compute; None for a mixer that uses no kernel. `features` are the
        fields of Ask that depend on the pass: those of the Mask, and whether there are gradients."""
        return None

    def decode_ask(self, dtype: str, new: int, **features: Any) -> Ask | None:
        """The Ask of `new` tokens that come after those in a cache."""
        return self.ask(dtype, **features)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        """Mix tokens: x [B, T, D] to [B, T, D]."""
        raise NotImplementedError


class SoftmaxAttention(Attention):
    """Base of the kinds that take a softmax over the scores of keys: what position schemes and kernels ask of them."""

    n_heads: PositiveInt
    """Number of query heads."""
    position: Position
    """Position scheme inside attention: it rotates queries and keys, or adds a bias to their scores."""

    @property
    def score_heads(self) -> int:
        return self.n_heads

    @property
    def positioning(self) -> Position:
        return self.position

    @property
    def rotary_width(self) -> int:
        return self.head_widths[0]

    @property
    def head_widths(self) -> tuple[int, int]:
        """Channels of a head's queries and keys, and of its values."""
        raise NotImplementedError

    def core_flops(self, pairs: int) -> int:
        return 2 * self.n_heads * sum(self.head_widths) * pairs  # QKᵀ and PV

    def ask(self, dtype: str, **features: Any) -> Ask:
        if self.sight.rate > 1:  # which keys are seen is drawn, those of several tokens beside those of one
            features |= {"chosen": True, "window": None, "documents": False, "padding": False, "short_q": True}
        width, v_width = self.head_widths
        return Ask(
            dtype=dtype,
            head_dim=width,
            v_head_dim=v_width,
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            bias=self.position.bias_kind,
            **features,
        )

    def decode_ask(self, dtype: str, new: int, **features: Any) -> Ask:
        ask = self.ask(dtype, **features)
        if self.sight.rate == 1 or new > 1:
            return ask
        chooses = self.chooser is not None  # else one token sees all keys of several that there are, without a mask
        return replace(ask, causal=chooses, chosen=chooses)

    def attend(self, m: Weights, step: Step, q: Tensor, k: Tensor, v: Tensor, scale: float, **scores: Any) -> Tensor:
        """Attend with the bias of this layer: its own where its position scheme has weights in every layer, else the
        one that all layers share. q [B, T, H, C] → [B, T, H, Cv]; `scores` are softcap and sinks."""
        own = (self.position, m.position) if self.position.per_layer else None
        return step.attend(q, k, v, scale, own, **scores)


class MultiHead(SoftmaxAttention):
    """Base of the kinds whose heads have queries, keys and values of one width."""

    head_dim: PositiveInt
    """Channels of a head."""

    @property
    def head_widths(self) -> tuple[int, int]:
        return self.head_dim, self.head_dim

    def core_flops(self, pairs: int) -> int:
        return 4 * self.n_heads * self.head_dim * pairs  # QKᵀ and PV

    def check_shared_position(self) -> None:
        """Raises ValueError for a position scheme with weights in every layer."""
        if self.position.per_layer:
            found = f"position '{self.position.kind}' with weights in every layer"
            raise ValueError(f"{self.kind} has no place for them, found {found} (one for all layers)")

    def project(self, parts: tuple[Any, Any, Any], x: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values [B, T, H, C] of x [B, T, D] by three products, the first two rotated."""
        q, k, v = (part(x).unflatten(-1, (self.n_heads, self.head_dim)) for part in parts)
        return self.position.rotate(q, step.tables), self.position.rotate(k, step.tables), v


def check_multiple(spec: Spec, name: str, of: str) -> None:
    """Raises ValueError where one field of a Spec is no multiple of another."""
    if getattr(spec, name) % getattr(spec, of):
        raise ValueError(f"{name}={getattr(spec, name)} is not a multiple of {of}={getattr(spec, of)}")
