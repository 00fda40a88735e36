# B batch, T tokens, D model width, H heads, K head width, L chunk length
"""RWKV-7's time mix: a generalised delta rule with separate vectors for removing and for writing."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.attention.base import Attention
from zoo.model.attention.delta import carry_chunks, unit_length
from zoo.model.attention.recurrent import (
    check_causal,
    check_chunk_size,
    check_width,
    chunked,
    exactly,
    make_decays,
    open_state,
    pick_length,
    scan_tokens,
    shift_tokens,
    starts,
)
from zoo.model.attention.rwkv import mix, spread_mix
from zoo.model.lending import LentKeys, Loan
from zoo.model.norm import LayerNorm
from zoo.spec import Linear, Sized, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights

SLOWEST = math.exp(-0.5)
"""Largest value of −ln(decay) for a token. So a decay is at least exp(−e^(−1/2)) = 0.545, large enough to divide by."""


TINY = 1e-24
"""Number added to the squared norm of a vector before the division: the published code's bound of the norm, squared."""

MIXED = ("r", "k", "v", "decay", "rate", "gate")
"""Projections whose inputs are each a separate mix of a token with the token before it."""


class RWKV7(Attention, kind="rwkv7"):
    """Time mix of RWKV-7 (Peng et al., 2025, "Goose").

    Six mixtures of x with the token before it, x + (x' − x)·µ, give r, k, v [H, K] and, through low-rank products
    W_a·W_b, the decay w = exp(−e^(−1/2)·σ(tanh(x·W_a)·W_b + b)), the rate a = σ(x·W_a·W_b + b) and the gate g =
    σ(x·W_a)·W_b. With κ = ξ ⊙ k, L2-normalised in each head, and k̃ = k ⊙ (1 + (a − 1) ⊙ α),

        S ← diag(w)·S − (a ⊙ κ)⊗(Sᵀκ) + k̃⊗v [H, K, K],   y = Sᵀr,   out = (g ⊙ (norm(y) + (r·(ρ ⊙ k̃))·v))·W_out.

    `norm` is a LayerNorm over each head. The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True

    d_model: PositiveInt
    """Width of the residual stream, stated because the state's size follows from it."""
    n_heads: PositiveInt
    """Number of heads, H."""
    head_dim: PositiveInt = 64
    """Channels K of a head."""
    decay_rank: PositiveInt = 64
    """Rank of the product that gives the decay w."""
    rate_rank: PositiveInt = 64
    """Rank of the product that gives the rate a."""
    gate_rank: PositiveInt = 128
    """Rank of the product that gives the gate g."""
    value_rank: PositiveInt | None = None
    """Rank of the share σ(x·W_a·W_b + b) by which v moves towards another layer's values. Given with `values_from`."""
    values_from: str | None = None
    """Name of a kind of layer: v moves towards the values of the last layer of that kind before this one. In the paper
    every layer but the first takes the first layer's values."""
    norm_eps: PositiveFloat = 6.4e-4
    """Epsilon of the output's norm, added to the variance under its root."""
    chunk_size: PositiveInt = 16
    """Chunk length of the recurrence, in tokens, a power of two; affects only speed."""

    def __post_init__(self) -> None:
        check_chunk_size(self.chunk_size)
        if (self.value_rank is None) != (self.values_from is None):
            found = f"value_rank={self.value_rank} values_from={self.values_from}"
            raise ValueError(f"{found}: a rank is of the mix with another layer's values (both, or neither)")

    @property
    def d_inner(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def loan(self) -> Loan | None:  # type: ignore[override]
        return None if self.values_from is None else Loan(self.values_from, "values_from", ("n_heads", "head_dim"))

    def parts(self, d_model: int) -> dict[str, Any]:
        check_width(self.d_model, d_model)
        inner, low = self.d_inner, partial(Linear, precise=True)
        mixed = (
            {}
            if self.value_rank is None
            else {
                "value_a": Linear(d_model, self.value_rank),
                "value_b": Linear(self.value_rank, inner),
                "value": Weight((inner,), init=1.0),
            }
        )
        return {
            **{f"mix_{name}": Weight((d_model,), init=spread_mix) for name in MIXED},
            **{name: Linear(d_model, inner) for name in "rkv"},
            "decay_a": low(d_model, self.decay_rank),
            "decay_b": low(self.decay_rank, inner),
            "decay": Weight((inner,), init=_spread_decays),
            "rate_a": low(d_model, self.rate_rank),
            "rate_b": low(self.rate_rank, inner),
            "rate": Weight((inner,)),
            "gate_a": Linear(d_model, self.gate_rank),
            "gate_b": Linear(self.gate_rank, inner),
            **mixed,
            "key_scale": Weight((inner,), init=0.85),  # ξ
            "key_rate": Weight((inner,), init=1.0),  # α
            "bonus": Weight((self.n_heads, self.head_dim)),  # ρ
            "norm": Sized(LayerNorm(eps=self.norm_eps, heads=self.n_heads), self.head_dim),
            "out": Linear(inner, d_model, residual=True),
        }

    def shard(self, ranks: int) -> RWKV7:
        return split(self, ranks, equal=("n_heads",))  # the token shift is over whole tokens on every rank

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"shift": (self.d_model,), "ssm": (self.n_heads, self.head_dim, self.head_dim)}

    def state_flops(self) -> int:
        return 8 * self.n_heads * self.head_dim**2  # recalling with κ, two writes, reading with r

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        before, heads = shift_tokens(x, step, "shift"), (self.n_heads, self.head_dim)
        mixed = [mix(before, x, getattr(m, f"mix_{name}")) for name in MIXED]  # B T D each
        r, k, v = m.r(mixed[0]), m.k(mixed[1]), m.v(mixed[2])
        step.give(LentKeys.name, (v,))
        if self.values_from is not None:
            (first,) = step.read(LentKeys.name)
            v = v + (first - v) * (m.value_b(m.value_a(mixed[2])) + m.value.to(x.dtype)).sigmoid()
        decay, rate = m.decay_b(m.decay_a(mixed[3]).tanh()), m.rate_b(m.rate_a(mixed[4]))
        gate = m.gate_b(m.gate_a(mixed[5]).sigmoid())
        with exactly(x):
            log = (-SLOWEST * (decay.float() + m.decay.float()).sigmoid()).unflatten(-1, heads)  # B T H K
            a, k = (rate.float() + m.rate.float()).sigmoid(), k.float()
            removed = unit_length((k * m.key_scale.float()).unflatten(-1, heads), TINY)
            k = (k * (1 + (a - 1) * m.key_rate.float())).unflatten(-1, heads)
            r, v = r.float().unflatten(-1, heads), v.float().unflatten(-1, heads)
            y = step.along_rows(self._scan, r, k, v, removed, a.unflatten(-1, heads) * removed, log)
            y = m.norm(y) + (r * k * m.bonus.float()).sum(-1, keepdim=True) * v
        return m.out((y.flatten(-2) * gate.float()).to(x.dtype))  # B T D

    def _scan(self, step: Step, r: Tensor, k: Tensor, v: Tensor, c: Tensor, e: Tensor, log: Tensor) -> Tensor:
        S = open_state(step, "ssm", v, *self.state()["ssm"])
        y, S = _scan(r, k, v, c, e, log, S, step, pick_length(self.chunk_size, log))
        step.hold(ssm=S)
        return y


def _scan(
    r: Tensor, k: Tensor, v: Tensor, c: Tensor, e: Tensor, log: Tensor, S: Tensor, step: Step, length: int
) -> tuple[Tensor, Tensor]:
    """Run S ← exp(log)·S − e⊗(Sᵀc) + k⊗v, y = Sᵀr over tokens, in chunks of `length` or, with the eager kernel, one by
    one. All are [B, T, H, K] except S [B, H, K, K]. Returns y and the last S.

    Sᵀc reads S before its decay. Dividing c by exp(log) gives the same result from S after the decay, as the delta rule
    reads it.
    """
    if step.real is not None:  # padding leaves the state unchanged
        real = step.real[..., None, None]
        k, e, log = k * real, e * real, log * real
    fresh = None if step.documents is None else starts(step.documents)  # B T
    c = c * (-log).exp()
    if step.kernel == "eager" or v.shape[1] == 1:
        return scan_tokens(_write, r, log, S, fresh, k, v, c, e)
    tokens, decays = v.shape[1], make_decays(log, fresh, length)
    r, k, v, c, e = (chunked(each, length).transpose(2, 3) for each in (r, k, v, c, e))  # B N H L K
    # Token i writes n_i = −(c_i's recall of the state before the chunk and of the writes of tokens j < i).
    sides = torch.cat((-(decays.compare(c, k).tril(-1) @ v), c * decays.entering), -1)
    solved = torch.linalg.solve_triangular(decays.compare(c, e), sides, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], c.shape[-1]], -1)
    added = (k * decays.leaving).mT @ v
    reading, inside, writing = r * decays.entering, decays.compare(r, e), (e * decays.leaving).mT
    y, S = carry_chunks(values, keys, reading, inside, writing, decays.across, S, added)
    y = y + decays.compare(r, k) @ v
    return y.transpose(2, 3).flatten(1, 2)[:, :tokens], S


def _write(S: Tensor, key: Tensor, value: Tensor, recall: Tensor, remove: Tensor) -> Tensor:
    """Write a token's value to the decayed S, and subtract the part of S that the token's c recalls."""
    written = torch.cat((value, -(recall @ S)), 1)  # B·H 2 K
    return torch.baddbmm(S, torch.cat((key, remove), 1).mT, written)


def _spread_decays(tensor: Tensor) -> None:
    """Fill [C] with −6.5 + 5·(c/(C − 1))^0.85 for channel c, from 0 on: the first layer's initial values in the
    published code."""
    places = torch.arange(tensor.shape[0], device=tensor.device) / max(tensor.shape[0] - 1, 1)
    tensor.copy_(-6.5 + 5 * places**0.85)
