# B batch, T queries, S keys, H heads, K kv heads, C width of a query
"""Attention by the difference of two softmax maps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.kernels.base import AttentionQuery
from zoo.lazy import Tensor, torch
from zoo.model.attention.base import SoftmaxAttention, check_multiple
from zoo.model.norm import WholeNorm
from zoo.spec import READ, DrawnValues, Linear, Sized, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights

VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


class Differential(SoftmaxAttention, kind="differential"):
    """Differential attention (Ye et al., 2024): (softmax(q1·k1ᵀ) − λ·softmax(q2·k2ᵀ))·v, normalised in each head and
    multiplied by 1 − λ_init.

    λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init, where the vectors λ_q1 … λ_k2 are shared by all heads. Each head has
    two queries and two keys, and a value twice as wide.
    """

    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v"),)

    n_kv_heads: PositiveInt
    """Number of heads of keys and values, each of which serves a group of query heads."""
    head_dim: PositiveInt
    """Channels of a head's queries and keys. A head's value has twice as many."""
    norm: WholeNorm
    """Norm of a head's output."""
    lambda_init: float = 0.8
    """Constant λ_init. In the paper it grows with depth, 0.8 − 0.6·exp(−0.3·l) in layer l from 0 on, or is 0.8 in every
    layer."""
    bias: bool = False
    """Whether the projections have a bias."""

    def __post_init__(self) -> None:
        check_multiple(self, "n_heads", "n_kv_heads")
        self.position.check(self.head_dim)

    @property
    def head_widths(self) -> tuple[int, int]:
        return self.head_dim, 2 * self.head_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return {
            "q": Linear(d_model, 2 * q, self.bias, segments=(q, q)),
            "k": Linear(d_model, 2 * kv, self.bias, role=READ, segments=(kv, kv)),
            "v": Linear(d_model, 2 * kv, self.bias, role=READ, segments=(kv, kv)),
            **{name: Weight((self.head_dim,), init=DrawnValues(0.1)) for name in VECTORS},
            "norm": Sized(self.norm, 2 * self.head_dim),
            "o": Linear(2 * q, d_model, self.bias, residual=True),
            **({"position": self.position} if self.position.per_layer else {}),
        }

    def shard(self, ranks: int) -> Differential:
        return split(self, ranks, equal=("n_heads",), shared=("n_kv_heads",))

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {"k": (2 * self.n_kv_heads, self.head_dim), "v": (self.n_kv_heads, 2 * self.head_dim)}

    def core_flops(self, pairs: int) -> int:
        return 4 * self.n_heads * sum(self.head_widths) * pairs  # QKᵀ and PV, of two maps

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        return replace(super().ask(dtype, **features), n_kv_heads=self.n_kv_heads)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        turn = partial(self.position.rotate, tables=step.tables)
        q = turn(m.q(x).unflatten(-1, (2 * self.n_heads, self.head_dim)))  # B T 2H C
        k = turn(m.k(x).unflatten(-1, (2 * self.n_kv_heads, self.head_dim)))  # B T 2K C
        v = m.v(x).unflatten(-1, (2, self.n_kv_heads, self.head_dim)).transpose(2, 3).flatten(3)  # B T K 2C
        k, v = step.remember(k=k, v=v)
        first, second = (
            self.attend(m, step, each, keys, v, self.head_dim**-0.5)
            for each, keys in zip(q.split(self.n_heads, 2), k.split(self.n_kv_heads, -2), strict=True)
        )
        y = first - self._weigh(m).to(second.dtype) * second  # B T H 2C
        return m.o((m.norm(y) * (1 - self.lambda_init)).flatten(-2))  # B T D

    def _weigh(self, m: Weights) -> Tensor:
        """Compute λ, the factor of the second map."""
        q1, k1, q2, k2 = (getattr(m, name).float() for name in VECTORS)
        return torch.exp((q1 * k1).sum()) - torch.exp((q2 * k2).sum()) + self.lambda_init
