# B batch, T tokens, H heads, K key width, V value width, L chunk length
"""Linear attention with a decay: lightning attention, and gated linear attention."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import F, Tensor, torch
from zoo.model.activation import PlainActivation, SiLU
from zoo.model.attention.base import Attention
from zoo.model.attention.recurrent import (
    check_causal,
    check_chunk_size,
    chunked,
    exactly,
    make_decays,
    open_state,
    pick_length,
    scan_tokens,
    starts,
)
from zoo.model.norm import RMSNorm, WholeNorm, divide_by_rms
from zoo.spec import Buffer, Linear, Sized, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Lightning(Attention, kind="lightning"):
    """Lightning attention (Qin et al., 2024; MiniMax-01, 2025): linear attention whose decay is fixed for each head.

    q, k and v [H, K] pass `activation`. With the slopes of ALiBi, s = decay_scale·2^(−8h/H) for head h of 1 … H,

        S ← exp(−s)·S + k⊗v [H, K, K],   y = Sᵀq,   out = (norm(y) ⊙ σ(x·W_g))·W_out.

    `norm` is an RMS norm over all heads together. The slopes are a saved buffer, so that a rank of tensor parallelism
    has the slopes of its own heads. The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "gate"),)

    n_heads: PositiveInt
    """Number of heads, H."""
    head_dim: PositiveInt
    """Channels K of a head's queries, keys and values."""
    activation: PlainActivation = SiLU()
    """Activation of q, k and v."""
    decay_scale: PositiveFloat = 1.0
    """Factor of the slopes. In MiniMax-01 it falls from the first layer to the last."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the output's norm, added to the mean square under its root."""
    chunk_size: PositiveInt = 64
    """Chunk length of the recurrence, in tokens; affects only speed."""

    @property
    def d_inner(self) -> int:
        return self.n_heads * self.head_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        inner = self.d_inner
        return {
            "q": Linear(d_model, inner),
            "k": Linear(d_model, inner),
            "v": Linear(d_model, inner),
            "gate": Linear(d_model, inner),
            "slopes": Buffer((self.n_heads,), init=partial(_fill_slopes, scale=self.decay_scale)),
            "norm": Weight((inner,), init=1.0),
            "out": Linear(inner, d_model, residual=True),
        }

    def shard(self, ranks: int) -> Lightning:
        """Return the part of one rank: some of the heads, with one norm over the channels of all ranks."""
        own = split(self, ranks, equal=("n_heads",))
        return LightningShard(**{field.name: getattr(own, field.name) for field in own.fields()})

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"ssm": (self.n_heads, self.head_dim, self.head_dim)}

    def state_flops(self) -> int:
        return 4 * self.n_heads * self.head_dim**2  # writing the outer product of k and v, and reading with q

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        heads = (self.n_heads, self.head_dim)
        q, k, v = (self.activation.apply(each).unflatten(-1, heads) for each in (m.q(x), m.k(x), m.v(x)))  # B T H K
        with exactly(x):
            q, k, v = q.float(), k.float(), v.float()
            log = -m.slopes.float().expand(*x.shape[:2], -1)  # B T H
            y = scan_linear(q, k, v, log, step, self.chunk_size)
            y = self._divide(y.flatten(-2), m) * m.norm.float()
        return m.out((y * m.gate(x).float().sigmoid()).to(x.dtype))  # B T D

    def _divide(self, y: Tensor, m: Weights) -> Tensor:
        return divide_by_rms(y, None, self.norm_eps)


class LightningShard(Lightning):
    """Lightning attention with the heads of one tensor-parallel rank."""

    summed: ClassVar[int] = 1  # the mean square

    def _divide(self, y: Tensor, m: Weights) -> Tensor:
        mean = m.seam.all_reduce(y.square().mean(-1, keepdim=True)) / m.seam.size
        return y * (mean + self.norm_eps).rsqrt()


def _fill_slopes(tensor: Tensor, scale: float) -> None:
    """Fill [H] with the slopes scale·2^(−8h/H), h = 1 … H (Press et al., 2022, ALiBi)."""
    places = torch.arange(1, tensor.shape[0] + 1, device=tensor.device) / tensor.shape[0]
    tensor.copy_(scale * 2.0 ** (-8 * places))


class GatedLinear(Attention):
    """Base of gated linear attention, in which keys and values may have different head widths: S ← α ⊙ S + k⊗v [H, K,
    V], y = Sᵀq/√K, out = (norm(y) ⊙ silu(x·W_g))·W_out, with q, k [H, K], v [H, V] and a decay α.

    The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True

    n_heads: PositiveInt
    """Number of heads, H."""
    head_k_dim: PositiveInt
    """Channels K of a head's queries and keys."""
    head_v_dim: PositiveInt
    """Channels V of a head's values."""
    norm: WholeNorm
    """Norm of each head's output y."""
    chunk_size: PositiveInt = 64
    """Chunk length of the recurrence, in tokens; affects only speed."""

    def parts(self, d_model: int) -> dict[str, Any]:
        key, value = self.n_heads * self.head_k_dim, self.n_heads * self.head_v_dim
        return {
            "q": Linear(d_model, key),
            "k": Linear(d_model, key),
            "v": Linear(d_model, value),
            "gate": Linear(d_model, value),
            **self._list_decays(d_model),
            "norm": Sized(self.norm, self.head_v_dim),
            "out": Linear(value, d_model, residual=True),
        }

    def _list_decays(self, d_model: int) -> dict[str, Any]:
        raise NotImplementedError

    def _decay(self, m: Weights, x: Tensor) -> Tensor:
        """Compute the decay's logarithm for x [B, T, D]: [B, T, H], or [B, T, H, K] for each channel of the keys."""
        raise NotImplementedError

    def _turn(self, x: Tensor, step: Step) -> Tensor:
        """Rotate queries or keys [B, T, H, K], if this kind rotates them."""
        return x

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"ssm": (self.n_heads, self.head_k_dim, self.head_v_dim)}

    def state_flops(self) -> int:
        return 4 * self.n_heads * self.head_k_dim * self.head_v_dim  # writing k⊗v, and reading with q

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        q, k, v = (each.unflatten(-1, (self.n_heads, -1)) for each in (m.q(x), m.k(x), m.v(x)))  # B T H K|V
        q, k, log = self._turn(q, step), self._turn(k, step), self._decay(m, x)
        with exactly(x):
            y = scan_linear(q.float() * self.head_k_dim**-0.5, k.float(), v.float(), log, step, self.chunk_size)
        y = m.norm(y.to(x.dtype)) * F.silu(m.gate(x).unflatten(-1, (self.n_heads, -1)).float())
        return m.out(y.flatten(-2).to(x.dtype))  # B T D


class GLA(GatedLinear, kind="gla"):
    """Gated linear attention (Yang et al., 2023): a decay for each channel of the keys, which depends on the token.

    With q, k [H, K], v [H, V] and α = σ(x·W_a·W_b + bias)^(1/temperature) [H, K],

        S ← α ⊙ S + k⊗v [H, K, V],   y = Sᵀq/√K,   out = (norm(y) ⊙ silu(x·W_g))·W_out.

    α scales the rows of S.
    """

    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "gate", "a"),)

    gate_rank: PositiveInt = 16
    """Rank of the decay's product W_a·W_b."""
    temperature: PositiveFloat = 16.0
    """Temperature of the decay α, the divisor of ln α: a higher one forgets less."""
    norm: WholeNorm = RMSNorm(eps=1e-5)
    """Norm of each head's output y."""
    chunk_size: PositiveInt = 64
    """Chunk length of the recurrence, in tokens, a power of two; affects only speed."""

    def __post_init__(self) -> None:
        check_chunk_size(self.chunk_size)

    def _list_decays(self, d_model: int) -> dict[str, Any]:
        return {
            "a": Linear(d_model, self.gate_rank, precise=True),
            "b": Linear(self.gate_rank, self.n_heads * self.head_k_dim, bias=True, precise=True),
        }

    def _decay(self, m: Weights, x: Tensor) -> Tensor:
        a = m.b(m.a(x)).unflatten(-1, (self.n_heads, -1))
        with exactly(x):
            return -F.softplus(-a.float()) / self.temperature

    def shard(self, ranks: int) -> GLA:
        return split(self, ranks, equal=("n_heads",))  # W_a is of all heads


def scan_linear(q: Tensor, k: Tensor, v: Tensor, log: Tensor, step: Step, most: int) -> Tensor:
    """Run S ← decay·S + k⊗v, y = Sᵀq over tokens, in chunks of at most `most` tokens or, with the eager kernel, one by
    one.

    q, k [B, T, H, K], v [B, T, H, V] float32; log is the logarithm of the decay, [B, T, H] or, for a decay of each key
    channel, [B, T, H, K]. Returns y [B, T, H, V] and updates the step's state "ssm" [B, H, K, V]. Padding leaves the
    state unchanged; a packed document starts from an empty state.
    """
    return step.along_rows(partial(_scan_linear, most), q, k, v, log)


def _scan_linear(most: int, step: Step, q: Tensor, k: Tensor, v: Tensor, log: Tensor) -> Tensor:
    S = open_state(step, "ssm", v, v.shape[2], k.shape[-1], v.shape[-1])
    if step.real is not None:
        k, log = k * step.real[..., None, None], log * step.real.view(*step.real.shape, *[1] * (log.dim() - 2))
    fresh = None if step.documents is None else starts(step.documents)  # B T
    if step.kernel == "eager" or v.shape[1] == 1:
        y, S = scan_tokens(lambda S, key, value: torch.baddbmm(S, key.mT, value), q, log, S, fresh, k, v)
        step.hold(ssm=S)
        return y
    tokens, length = v.shape[1], pick_length(most, log)
    decays = make_decays(log, fresh, length)
    q, k, v = (chunked(each, length).transpose(2, 3) for each in (q, k, v))  # B N H L K|V
    y, reading, writing = decays.compare(q, k) @ v, q * decays.entering, (k * decays.leaving).mT @ v
    entered = []
    for left, new in zip(decays.across.unbind(1), writing.unbind(1), strict=True):
        entered.append(S)
        S = left * S + new
    y = y + reading @ torch.stack(entered, 1)
    step.hold(ssm=S)  # must come last: the previous state is a view of the cache
    return y.transpose(2, 3).flatten(1, 2)[:, :tokens]  # B T H V
