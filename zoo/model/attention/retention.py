# B batch, T tokens, H heads, K key width, V value width
"""Multi-scale retention: linear attention with rotated keys and a fixed decay for each head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import F, torch
from zoo.model.attention.base import Attention
from zoo.model.attention.linear import scan_linear
from zoo.model.attention.recurrent import check_causal, exactly
from zoo.model.norm import LayerNorm, WholeNorm
from zoo.model.position.base import Position
from zoo.spec import Buffer, Linear, Sized, split

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Retention(Attention, kind="retention"):
    """Multi-scale retention (Sun et al., 2023, RetNet).

    With q, k [H, K], rotated by `position`, v [H, V] and γ = 1 − 2^(−4−h) for head h of 1 … H,

        S ← γ·S + k⊗v [H, K, V],   y = Sᵀq/√K,   out = (norm(y) ⊙ silu(x·W_g))·W_out.

    The slopes −ln γ are a saved buffer, so that a rank of tensor parallelism has those of its own heads. The recurrence
    is computed in float32.
    """

    causal: ClassVar[bool | None] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "gate"),)

    n_heads: PositiveInt
    """Number of heads, H."""
    head_k_dim: PositiveInt
    """Channels K of a head's queries and keys."""
    head_v_dim: PositiveInt
    """Channels V of a head's values."""
    position: Position
    """Position scheme that rotates q and k, as xPos does (Sun et al., 2022), whose scale the decay takes over."""
    norm: WholeNorm = LayerNorm(eps=1e-5, weight=False, bias=False)
    """Norm of each head's output y: the paper's GroupNorm."""
    chunk_size: PositiveInt = 64
    """Chunk length of the recurrence, in tokens; changes speed alone."""

    def __post_init__(self) -> None:
        if self.position.inside and not self.position.rotates:
            raise ValueError(f"position: '{self.position.kind}' changes scores, and retention has none (rope, or none)")
        self.position.check(self.head_k_dim)

    @property
    def positioning(self) -> Position:
        return self.position

    @property
    def rotary_width(self) -> int:
        return self.head_k_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        key, value = self.n_heads * self.head_k_dim, self.n_heads * self.head_v_dim
        return {
            "q": Linear(d_model, key),
            "k": Linear(d_model, key),
            "v": Linear(d_model, value),
            "gate": Linear(d_model, value),
            "slopes": Buffer((self.n_heads,), init=_fill_slopes),
            "norm": Sized(self.norm, self.head_v_dim),
            "out": Linear(value, d_model, residual=True),
        }

    def shard(self, ranks: int) -> Retention:
        return split(self, ranks, equal=("n_heads",))

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"ssm": (self.n_heads, self.head_k_dim, self.head_v_dim)}

    def state_flops(self) -> int:
        return 4 * self.n_heads * self.head_k_dim * self.head_v_dim  # writing k⊗v, and reading with q

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        q, k, v = (each.unflatten(-1, (self.n_heads, -1)) for each in (m.q(x), m.k(x), m.v(x)))  # B T H K|V
        q, k = self.position.rotate(q, step.tables), self.position.rotate(k, step.tables)
        with exactly(x):
            log = -m.slopes.float().expand(*x.shape[:2], -1)  # B T H
            S = step.state("ssm")
            S = v.new_zeros(x.shape[0], *self.state()["ssm"], dtype=torch.float32) if S is None else S
            length = min(self.chunk_size, x.shape[1])
            y, S = scan_linear(q.float() * self.head_k_dim**-0.5, k.float(), v.float(), log, S, step, length)
            step.hold(ssm=S)
        y = m.norm(y.to(x.dtype)) * F.silu(m.gate(x).unflatten(-1, (self.n_heads, -1)).float())
        return m.out(y.flatten(-2).to(x.dtype))  # B T D


def _fill_slopes(tensor: Tensor) -> None:
    """Fill [H] with −ln(1 − 2^(−5−h)), h = 0 … H − 1."""
    tensor.copy_(-(-(2.0 ** (-5 - torch.arange(tensor.shape[0], device=tensor.device)))).log1p())
