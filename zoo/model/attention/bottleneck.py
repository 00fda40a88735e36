# B batch, T queries, S keys, H heads, C head width, D model width, W width of the bottleneck
"""Softmax attention whose queries and keys read a narrower vector than its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor
from zoo.model.attention.base import MultiHead, Passes
from zoo.model.norm import WholeNorm
from zoo.spec import READ, Linear, Sized, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class BottleneckAttention(MultiHead, kind="bottleneck"):
    """Multi-head attention whose queries and keys read norm(x·W_reduce), and whose values read x itself (Sun et al.,
    2020, MobileBERT)."""

    passes: ClassVar[Passes] = Passes(split=True)  # type: ignore[misc]
    needs_block: ClassVar[str] = "bottleneck"
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k"),)

    width: PositiveInt
    """Channels of the bottleneck, which queries and keys read, and of the output."""
    norm: WholeNorm
    """Norm of x·W_reduce."""
    bias: bool = False
    """Whether the projections have a bias."""

    def __post_init__(self) -> None:
        self.position.check(self.head_dim)

    def parts(self, d_model: int) -> dict[str, Any]:
        inner = self.n_heads * self.head_dim
        return {
            "reduce": Linear(d_model, self.width, self.bias),
            "reduce_norm": Sized(self.norm, self.width),
            "q": Linear(self.width, inner, self.bias),
            "k": Linear(self.width, inner, self.bias, role=READ),
            "v": Linear(d_model, inner, self.bias, role=READ),
            "o": Linear(inner, self.width, self.bias, residual=True),
            **({"position": self.position} if self.position.per_layer else {}),
        }

    def shard(self, ranks: int) -> BottleneckAttention:
        return split(self, ranks, equal=("n_heads",))  # the bottleneck's vector is shared by all heads

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.n_heads, self.head_dim) for name in "kv"}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        narrow, heads = m.reduce_norm(m.reduce(x)), (self.n_heads, self.head_dim)
        q, k = (self.position.rotate(part(narrow).unflatten(-1, heads), step.tables) for part in (m.q, m.k))  # B T H C
        k, v = step.remember(k=k, v=m.v(x).unflatten(-1, heads))
        return m.o(self.attend(m, step, q, k, v, self.head_dim**-0.5).flatten(-2))  # B T W
