# B batch, T tokens, H heads, K key width, V value width
"""The mLSTM: a matrix memory with exponential gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import F, Tensor, torch
from zoo.model.attention.base import Attention
from zoo.model.attention.linear import scan_linear
from zoo.model.attention.recurrent import NOTHING, check_causal, exactly, find_running_maximum, starts
from zoo.model.norm import LayerNorm
from zoo.spec import Linear, Sized, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class MLSTM(Attention, kind="mlstm"):
    """mLSTM (Beck et al., 2024, xLSTM; Beck et al., 2025, xLSTM 7B).

    With q, k [H, K], v [H, V] and, for each head, ĩ = x·W_i + b_i and f̃ = x·W_f + b_f,

        C ← σ(f̃)·C + e^ĩ·k⊗v [H, K, V],   n ← σ(f̃)·n + e^ĩ·k,
        h = Cᵀq / max(|nᵀq|, 1),   out = (norm(h) ⊙ σ(x·W_o))·W_out.

    q is divided by √K, and `norm` is a LayerNorm over each head.

    So that e^ĩ cannot overflow, C and n are stored divided by e^m, where m ← max(m + ln σ(f̃), ĩ) starts from 0. n is
    stored as the last column of C. The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "gate"), ("i", "f"))

    n_heads: PositiveInt
    """Number of heads, H."""
    head_k_dim: PositiveInt
    """Channels K of a head's queries and keys."""
    head_v_dim: PositiveInt
    """Channels V of a head's values."""
    gate_softcap: PositiveFloat | None = 15.0
    """Bound c of the logits of input and forget gates, c·tanh(·/c); null for none."""
    bias: bool = False
    """Whether the projections of q, k, v and o, W_out and the norm have a bias."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the output's norm, added to the variance under its root."""
    eps: PositiveFloat = 1e-6
    """Epsilon, added to the divisor of a head's output h."""
    chunk_size: PositiveInt = 64
    """Chunk length of the recurrence, in tokens; affects only speed."""

    def parts(self, d_model: int) -> dict[str, Any]:
        key, value, heads = self.n_heads * self.head_k_dim, self.n_heads * self.head_v_dim, self.n_heads
        return {
            "q": Linear(d_model, key, self.bias),
            "k": Linear(d_model, key, self.bias),
            "v": Linear(d_model, value, self.bias),
            "gate": Linear(d_model, value, self.bias),
            "i": Linear(d_model, heads, precise=True),
            "f": Linear(d_model, heads, precise=True),
            "i_bias": Weight((heads,), init=-10.0),
            "f_bias": Weight((heads,), init=_spread_forget),
            "norm": Sized(LayerNorm(eps=self.norm_eps, bias=self.bias, heads=heads), self.head_v_dim),
            "out": Linear(value, d_model, self.bias, residual=True),
        }

    def shard(self, ranks: int) -> MLSTM:
        return split(self, ranks, equal=("n_heads",))

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"ssm": (self.n_heads, self.head_k_dim, self.head_v_dim + 1), "peak": (self.n_heads,)}

    def state_flops(self) -> int:
        return 4 * self.n_heads * self.head_k_dim * (self.head_v_dim + 1)  # writing k⊗v and k, and reading with q

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        q, k, v = (each.unflatten(-1, (self.n_heads, -1)) for each in (m.q(x), m.k(x), m.v(x)))  # B T H K|V
        i, f = m.i(x), m.f(x)  # B T H
        with exactly(x):
            q, k, v = q.float() * self.head_k_dim**-0.5, k.float(), v.float()
            i, f = self._cap(i.float() + m.i_bias.float()), self._cap(f.float() + m.f_bias.float())
            y = step.along_rows(self._recall, q, k, v, i, -F.softplus(-f))
        y = m.norm(y.to(x.dtype)).flatten(-2) * m.gate(x).float().sigmoid()
        return m.out(y.to(x.dtype))  # B T D

    def _recall(self, step: Step, q: Tensor, k: Tensor, v: Tensor, i: Tensor, log: Tensor) -> Tensor:
        """Run the recurrence over q, k, v [B, T, H, K|V], input gates i and log decays [B, T, H]: [B, T, H, V]."""
        log, i, peaks = self._stabilise(log, i, step)
        written = torch.cat((v, torch.ones_like(v[..., :1])), -1)
        y = scan_linear(q, k * i[..., None], written, log, step, self.chunk_size)
        step.hold(peak=peaks[:, -1])
        y, total = y.split([self.head_v_dim, 1], -1)
        return y / (torch.maximum(total.abs(), (-peaks).exp()[..., None]) + self.eps)

    def _cap(self, gate: Tensor) -> Tensor:
        return gate if self.gate_softcap is None else self.gate_softcap * (gate / self.gate_softcap).tanh()

    def _stabilise(self, log: Tensor, i: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs of the recurrence of C/e^m, each [B, T, H]: log decays, factors of the keys, and m."""
        peak = step.state("peak")
        peak = i.new_zeros(i.shape[0], self.n_heads) if peak is None else peak
        if step.real is not None:  # padding leaves the state unchanged
            real = step.real[..., None]
            log, i = log * real, torch.where(real, i, NOTHING)
        if step.documents is None:
            peaks = find_running_maximum(i, log, peak)
            before = torch.cat((peak[:, None], peaks[:, :-1]), 1)
        else:
            fresh = starts(step.documents)[..., None]  # B T 1: there m starts from 0
            new = torch.where(fresh, torch.maximum(i.detach(), log.detach()), i)
            peaks = find_running_maximum(new, torch.where(fresh, NOTHING, log), peak)
            before = torch.where(fresh, 0.0, torch.cat((peak[:, None], peaks[:, :-1]), 1))
        return log + (before - peaks), (i - peaks).exp(), peaks


def _spread_forget(tensor: Tensor) -> None:
    """Fill b_f [H] evenly from 3 to 6: memories of about 20 to 400 tokens (Beck et al., 2024)."""
    tensor.copy_(torch.arange(tensor.shape[0], device=tensor.device) * (3 / max(tensor.shape[0] - 1, 1)) + 3)
