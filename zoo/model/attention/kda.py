# B batch, T tokens, H heads, K head width
"""Kimi Delta Attention: the delta rule with a decay for each channel of the keys."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from zoo.lazy import F, Tensor, torch
from zoo.model.activation import PlainActivation, SiLU
from zoo.model.attention.base import Attention
from zoo.model.attention.delta import scan_delta, unit_length
from zoo.model.attention.recurrent import (
    check_causal,
    check_chunk_size,
    convolve,
    exactly,
    spread_rates,
    spread_steps,
)
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import Conv, Linear, Sized, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class KDA(Attention, kind="kda"):
    """Kimi Delta Attention (Kimi Team, 2025, Kimi Linear).

    q, k and v [H, K] pass a convolution and `activation`; q and k are L2-normalised, and q is multiplied by 1/√K. With
    β = σ(x·W_b) [H] and α = exp(−exp(A_log)·softplus(x·W_fa·W_fb + dt_bias)) [H, K], where A_log is one number per
    head,

        S ← α ⊙ S,   S ← S + k⊗(β·(v − Sᵀk)) [H, K, K],   y = Sᵀq,   out = (norm(y) ⊙ σ(x·W_ga·W_gb))·W_out.

    α scales the rows of S. The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "b", "f_a", "g_a", "f", "g"),)

    n_heads: PositiveInt
    """Number of heads, H."""
    head_dim: PositiveInt
    """Channels K of a head's queries, keys and values."""
    d_conv: PositiveInt = 4
    """Width of the causal convolution of q, k and v, in tokens."""
    activation: PlainActivation = SiLU()
    """Activation of the convolution's output."""
    norm: WholeNorm = RMSNorm(eps=1e-5)
    """Norm of each head's output y."""
    low_rank: bool = True
    """Whether decay and output gate are each projected by two matrices, with K channels between them. If false, one
    matrix W_f replaces W_fa·W_fb, and W_g replaces W_ga·W_gb."""
    lower_bound: Annotated[float, Field(lt=0)] | None = None
    """Lower bound of the decay's logarithm ln α, below 0: α = exp(lower_bound·σ(exp(A_log)·(x·W_f + dt_bias))) (Ling 3,
    2026). null for no bound."""
    chunk_size: PositiveInt = 64
    """Chunk length of the recurrence, in tokens, a power of two; affects only speed."""

    def __post_init__(self) -> None:
        check_chunk_size(self.chunk_size)

    @property
    def d_inner(self) -> int:
        return self.n_heads * self.head_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        inner, width = self.d_inner, self.head_dim
        gates = {
            "f_a": Linear(d_model, width, precise=True),
            "f_b": Linear(width, inner, precise=True),
            "g_a": Linear(d_model, width),
            "g_b": Linear(width, inner),
        }
        whole = {"f": Linear(d_model, inner, precise=True), "g": Linear(d_model, inner)}
        return {
            "q": Linear(d_model, inner),
            "k": Linear(d_model, inner),
            "v": Linear(d_model, inner),
            "b": Linear(d_model, self.n_heads, precise=True),
            **(gates if self.low_rank else whole),
            "conv": Conv(3 * inner, 3 * inner, self.d_conv, groups=3 * inner, segments=(inner, inner, inner)),
            "dt_bias": Weight((inner,), init=spread_steps),
            "A_log": Weight((self.n_heads,), init=partial(spread_rates, low=1.0, high=16.0)),
            "norm": Sized(self.norm, width),
            "out": Linear(inner, d_model, residual=True),
        }

    def shard(self, ranks: int) -> KDA:
        return split(self, ranks, equal=("n_heads",))  # all heads share W_fa and W_ga

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.d_conv - 1, 3 * self.d_inner), "ssm": (self.n_heads, self.head_dim, self.head_dim)}

    def state_flops(self) -> int:
        return 6 * self.n_heads * self.head_dim**2  # recalling with k, writing, reading with q

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        heads = (self.n_heads, self.head_dim)
        mixed = convolve(m.conv, torch.cat((m.q(x), m.k(x), m.v(x)), -1), step)
        b, f = m.b(x), m.f_b(m.f_a(x)) if self.low_rank else m.f(x)
        with exactly(x):
            q, k, v = (
                part.unflatten(-1, heads) for part in self.activation.apply(mixed).float().chunk(3, -1)
            )  # B T H K
            q, k = unit_length(q) * self.head_dim**-0.5, unit_length(k)
            log = self._decay((f.float() + m.dt_bias.float()).unflatten(-1, heads), m)  # B T H K
            y = scan_delta(q, k, v, b.float().sigmoid(), log, step, self.chunk_size)
        gate = m.g_b(m.g_a(x)) if self.low_rank else m.g(x)
        y = m.norm(y.to(mixed.dtype)) * gate.unflatten(-1, heads).float().sigmoid()
        return m.out(y.flatten(-2).to(mixed.dtype))  # B T D

    def _decay(self, f: Tensor, m: Weights) -> Tensor:
        """Compute ln α [B, T, H, K] of f, the projection of the tokens plus dt_bias."""
        rate = m.A_log.float().exp()[:, None]  # H 1
        return -rate * F.softplus(f) if self.lower_bound is None else self.lower_bound * (rate * f).sigmoid()
