# B batch, T tokens, H value heads, G key heads, K key width, V value width, N chunks, L chunk length
"""The gated delta rule: a state that is written with what it does not recall yet."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import F, torch
from zoo.model.activation import PlainActivation, SiLU
from zoo.model.attention.base import Attention
from zoo.model.attention.recurrent import (
    Decays,
    check_causal,
    chunked,
    convolve,
    exactly,
    spread_rates,
    spread_steps,
    starts,
)
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import Conv, Linear, Sized, Weight, split

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights

EPS = 1e-6  # under the root of a query's or key's length, as in the reference


class GatedDelta(Attention, kind="gated_delta"):
    """Gated DeltaNet (Yang, Kautz and Hatamizadeh, 2024; Qwen3-Next).

    q, k [G, K] and v [H, V] pass a convolution and `activation`; q and k are made 1 long, and q is multiplied by 1/√K.
    A key head serves H/G value heads. With α = exp(−exp(A_log)·softplus(a + dt_bias)) and β = σ(b), of the token,

        S ← α·S,   S ← S + k⊗(β·(v − Sᵀk)) [H, K, V],   y = Sᵀq,   out = (norm(y) ⊙ silu(z))·W_out,

    `norm` being over each value head. `chunk_size` changes speed alone. The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "z", "b", "a"),)

    n_k_heads: PositiveInt
    n_v_heads: PositiveInt
    head_k_dim: PositiveInt
    head_v_dim: PositiveInt
    d_conv: PositiveInt = 4
    conv_bias: bool = False
    activation: PlainActivation = SiLU()
    norm: WholeNorm = RMSNorm(eps=1e-6)
    chunk_size: PositiveInt = 64

    def __post_init__(self) -> None:
        if self.n_v_heads % self.n_k_heads:
            raise ValueError(f"n_v_heads={self.n_v_heads} is not a multiple of n_k_heads={self.n_k_heads}")

    @property
    def d_key(self) -> int:
        return self.n_k_heads * self.head_k_dim

    @property
    def d_value(self) -> int:
        return self.n_v_heads * self.head_v_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        key, value, heads = self.d_key, self.d_value, self.n_v_heads
        mixed = 2 * key + value
        return {
            "q": Linear(d_model, key),
            "k": Linear(d_model, key),
            "v": Linear(d_model, value),
            "z": Linear(d_model, value),
            "b": Linear(d_model, heads, precise=True),
            "a": Linear(d_model, heads, precise=True),
            "conv": Conv(mixed, mixed, self.d_conv, groups=mixed, bias=self.conv_bias, segments=(key, key, value)),
            "dt_bias": Weight((heads,), init=spread_steps),
            "A_log": Weight((heads,), init=partial(spread_rates, low=0.0, high=16.0)),
            "norm": Sized(self.norm, self.head_v_dim),
            "out": Linear(value, d_model, residual=True),
        }

    def shard(self, ranks: int) -> GatedDelta:
        return split(self, ranks, equal=("n_v_heads",), shared=("n_k_heads",))

    def state(self) -> dict[str, tuple[int, ...]]:
        mixed = 2 * self.d_key + self.d_value
        return {"conv": (self.d_conv - 1, mixed), "ssm": (self.n_v_heads, self.head_k_dim, self.head_v_dim)}

    def state_flops(self) -> int:
        return 6 * self.n_v_heads * self.head_k_dim * self.head_v_dim  # recalling with k, writing, reading with q

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        mixed = convolve(m.conv, torch.cat((m.q(x), m.k(x), m.v(x)), -1), step)
        z, b, a = m.z(x).unflatten(-1, (self.n_v_heads, -1)), m.b(x), m.a(x)  # B T H V, B T H, B T H
        with exactly(x):
            q, k, v = self.activation.apply(mixed).float().split([self.d_key, self.d_key, self.d_value], -1)
            v = v.unflatten(-1, (self.n_v_heads, -1))  # B T H V
            q, k = self._heads(q) * self.head_k_dim**-0.5, self._heads(k)  # B T H K
            beta = b.float().sigmoid()  # B T H
            log = -m.A_log.float().exp() * F.softplus(a.float() + m.dt_bias.float())  # B T H
            if step.real is not None:
                beta, log = beta * step.real[..., None], log * step.real[..., None]  # nothing written, nothing lost
            fresh = None if step.documents is None else starts(step.documents)  # B T
            S = step.state("ssm")
            S = v.new_zeros(x.shape[0], *self.state()["ssm"]) if S is None else S
            inputs = (q, k, v, beta, log, S, fresh)
            eager = step.kernel == "eager" or x.shape[1] == 1
            y, S = _scan_tokens(*inputs) if eager else _scan_chunks(*inputs, min(self.chunk_size, x.shape[1]))
            step.hold(ssm=S)
        y = m.norm(y.to(z.dtype)) * F.silu(z.float())
        return m.out(y.flatten(-2).to(z.dtype))  # B T D

    def _heads(self, x: Tensor) -> Tensor:
        """Queries or keys [B, T, G·K], each 1 long, for the value heads they serve: [B, T, H, K]."""
        x = x.unflatten(-1, (self.n_k_heads, -1))
        x = x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()
        return x.repeat_interleave(self.n_v_heads // self.n_k_heads, 2)


def _scan_tokens(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log: Tensor, S: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The recurrence token by token: q, k [B, T, H, K], v [B, T, H, V], beta, log [B, T, H], S [B, H, K, V]. Gives y
    [B, T, H, V] and the last S."""
    batch, tokens, heads, width = v.shape
    alpha = log.exp() if fresh is None else log.exp() * ~fresh[..., None]  # B T H
    S, reads = S.flatten(0, 1), []  # B·H K V
    rows = (each.transpose(1, 2).flatten(0, 1)[:, :, None] for each in (q, k, v, beta[..., None], alpha[..., None]))
    for query, key, value, much, left in zip(*(each.unbind(1) for each in rows), strict=True):  # B·H 1 K|V|1
        S = S * left
        S = torch.baddbmm(S, key.mT, (value - key @ S) * much)
        reads.append(query @ S)
    y = torch.stack(reads, 1).view(batch, heads, tokens, width).transpose(1, 2)
    return y, S.unflatten(0, (batch, heads))


def _scan_chunks(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log: Tensor, S: Tensor, fresh: Tensor | None, length: int
) -> tuple[Tensor, Tensor]:
    """The recurrence in chunks (Yang et al., 2024, "Parallelizing linear transformers with the delta rule").

    What a chunk's tokens write depends on what its earlier ones wrote: (I + A)·W = β·v − β·(k decayed)·S, A being
    strictly lower triangular. It is solved for both right sides before the states are known.
    """
    tokens = v.shape[1]
    decays = Decays(chunked(log, length), None if fresh is None else chunked(fresh, length))
    q, k, v = (chunked(each, length).transpose(2, 3) for each in (q, k, v))  # B N H L K|V
    beta = chunked(beta, length).transpose(2, 3)[..., None]  # B N H L 1
    entering = decays.entering[..., None]
    system = beta * (k @ k.mT) * decays.pairs  # B N H L L: its diagonal is taken for ones
    sides = torch.cat((beta * v, beta * entering * k), -1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], -1)
    inside, reading = (q @ k.mT) * decays.pairs, q * entering
    writing, across, reads = (k * decays.leaving[..., None]).mT, decays.across, []
    each_chunk = (each.unbind(1) for each in (values, keys, reading, inside, writing, across))
    for value, key, read, near, write, left in zip(*each_chunk, strict=True):
        new = value - key @ S  # B H L V
        reads.append(read @ S + near @ new)
        S = left * S + write @ new
    y = torch.stack(reads, 1).transpose(2, 3).flatten(1, 2)[:, :tokens]  # B T H V
    return y, S
