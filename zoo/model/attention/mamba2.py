# B batch, T tokens, S state size, H heads, P head width, G groups, R heads a group, N chunks of L tokens
"""Mamba-2: a selective state space with one decay rate per head."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from zoo.errors import ConfigError
from zoo.lazy import F, Tensor, torch
from zoo.model.activation import PlainActivation, SiLU
from zoo.model.attention.base import Attention, check_multiple
from zoo.model.attention.recurrent import (
    check_causal,
    chunked,
    convolve,
    exactly,
    make_decays,
    open_state,
    spread_rates,
    spread_steps,
    starts,
)
from zoo.model.norm import divide_by_rms
from zoo.spec import Conv, Linear, Weight, split
from zoo.spec.sharding import divisors

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Mamba2(Attention, kind="mamba2"):
    """State space duality (Dao and Gu, 2024): one decay rate per head, so that a chunk of tokens is computed by a few
    matrix products.

    One projection of the input gives z, x, B, C and Δ; x [H, P], B and C [G, S] pass the convolution and `activation`.
    With Δ = softplus(Δ + dt_bias), clamped to [`dt_min`, `dt_max`], and A = −exp(A_log),

        h ← exp(Δ·A)·h + (Δ·x)⊗B [H, P, S],   y = h·C + D·x,   out = norm(y ⊙ silu(z))·W_out.

    `norm` is an RMS norm over groups of channels. The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True

    n_heads: PositiveInt
    """Number of heads H of the state space."""
    head_dim: PositiveInt
    """Channels P of a head. n_heads·head_dim is the inner width, 2·d_model in the paper."""
    d_state: PositiveInt = 128
    """State size S of each channel."""
    d_conv: PositiveInt = 4
    """Width of the causal convolution of x, B and C, in tokens."""
    n_groups: PositiveInt = 1
    """Number of groups of heads, G. The heads of a group share B and C."""
    bias: bool = False
    """Whether the input projection has a bias, and also W_out unless `out_bias` is given."""
    conv_bias: bool = True
    """Whether the convolution has a bias."""
    activation: PlainActivation = SiLU()
    """Activation of the convolution's output."""
    norm_eps: PositiveFloat | None = 1e-5
    """Epsilon of the output's norm, added to the mean square under its root; null leaves the norm out."""
    norm_before_gate: bool = False
    """Whether the norm comes before the gate: norm(y) ⊙ silu(z)."""
    norm_groups: PositiveInt | None = None
    """Number of equal groups of channels that are normalised separately; `n_groups` unless given."""
    out_bias: bool | None = None
    """Whether W_out has a bias; the value of `bias` unless given."""
    multipliers: tuple[float, float, float, float, float] | None = None
    """Constant factors of the input projection's outputs z, x, B, C and Δ: multipliers of µP (Falcon-H1, 2025)."""
    dt_min: NonNegativeFloat = 0.0
    """Lower bound of Δ."""
    dt_max: PositiveFloat | None = None
    """Upper bound of Δ; null for none."""
    chunk_size: PositiveInt = 64
    """Chunk length of the recurrence, in tokens; affects only speed."""

    def __post_init__(self) -> None:
        check_multiple(self, "n_heads", "n_groups")
        if self.norm_groups is not None and self.d_inner % self.norm_groups:
            raise ValueError(f"n_heads·head_dim={self.d_inner} is not a multiple of norm_groups={self.norm_groups}")
        if self.norm_eps is None and (self.norm_before_gate or self.norm_groups is not None):
            raise ValueError("norm_before_gate and norm_groups need a norm, and norm_eps is null (give it, as 1e-5)")
        if self.dt_max is not None and self.dt_max <= self.dt_min:
            raise ValueError(f"dt_max={self.dt_max} must be above dt_min={self.dt_min}")

    @property
    def d_inner(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def d_mixed(self) -> int:
        """Number of convolved channels: the channels of x, B and C."""
        return self.d_inner + 2 * self.n_groups * self.d_state

    def parts(self, d_model: int) -> dict[str, Any]:
        inner, mixed, heads, width = self.d_inner, self.d_mixed, self.n_heads, self.n_groups * self.d_state
        xBC = (inner, width, width)
        out_bias = self.bias if self.out_bias is None else self.out_bias
        return {
            "in_proj": Linear(d_model, inner + mixed + heads, self.bias, segments=(inner, *xBC, heads)),  # z, xBC, Δ
            "conv": Conv(mixed, mixed, self.d_conv, groups=mixed, bias=self.conv_bias, segments=xBC),
            "dt_bias": Weight((heads,), init=spread_steps),
            "A_log": Weight((heads,), init=partial(spread_rates, low=1.0, high=16.0)),
            "D": Weight((heads,), init=1.0),
            **({} if self.norm_eps is None else {"norm": Weight((inner,), init=1.0)}),
            "out_proj": Linear(inner, d_model, out_bias, residual=True),
        }

    def shard(self, ranks: int) -> Mamba2:
        """Return the part of one rank: some of the heads. Each group of the norm lies on one rank; if there is only one
        group, it spans all ranks. Raises ConfigError if several groups cannot be spread evenly over the ranks."""
        own = split(self, ranks, equal=("n_heads",), shared=("n_groups", "norm_groups"))
        groups = self.norm_groups or self.n_groups
        if self.norm_eps is None or groups % ranks == 0:
            return own
        if groups > 1:
            would = divisors(groups)
            raise ConfigError(f"tp: {ranks} does not divide the {groups} groups of the norm ({would} would do)")
        return Mamba2Shard(**{field.name: getattr(own, field.name) for field in own.fields()})

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.d_conv - 1, self.d_mixed), "ssm": (self.n_heads, self.head_dim, self.d_state)}

    def state_flops(self) -> int:
        return 4 * self.d_inner * self.d_state  # writing the outer product of Δ·x and B, and reading with C

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        z, mixed, dt = self._multiplied(m.in_proj(x)).split([self.d_inner, self.d_mixed, self.n_heads], -1)
        mixed = self.activation.apply(convolve(m.conv, mixed, step))
        with exactly(x):
            width = self.n_groups * self.d_state
            u, B, C = mixed.float().split([self.d_inner, width, width], -1)
            u = u.unflatten(-1, (self.n_heads, self.head_dim))  # B T H P
            B, C = (each.unflatten(-1, (self.n_groups, self.d_state)) for each in (B, C))  # B T G S
            dt = F.softplus(dt.float() + m.dt_bias.float()).clamp(self.dt_min, self.dt_max)  # B T H
            y = step.along_rows(partial(self._scan, m), u, dt, B, C)
            y = self._gated((y + m.D.float()[:, None] * u).flatten(-2), z.float(), m)
        return m.out_proj(y.to(z.dtype))  # B T D

    def _scan(self, m: Weights, step: Step, u: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Run the recurrence over u [B, T, H, P], dt [B, T, H] and B, C [B, T, G, S]: [B, T, H, P]."""
        if step.real is not None:
            dt = dt * step.real[..., None]  # no time passes
        fresh = None if step.documents is None else starts(step.documents)  # B T
        h = open_state(step, "ssm", u, *self.state()["ssm"])
        log = dt * -m.A_log.float().exp()  # B T H
        inputs = (u * dt[..., None], log, B, C, h, fresh)
        eager = step.kernel == "eager" or u.shape[1] == 1
        y, h = _scan_heads(*inputs) if eager else _scan_chunks(*inputs, min(self.chunk_size, u.shape[1]))
        step.hold(ssm=h)
        return y

    def _multiplied(self, y: Tensor) -> Tensor:
        """Multiply the input projection's outputs z, x, B, C and Δ [B, T, …] by `multipliers`."""
        if self.multipliers is None:
            return y
        width = self.n_groups * self.d_state
        parts = y.split([self.d_inner, self.d_inner, width, width, self.n_heads], -1)
        return torch.cat([part * by for part, by in zip(parts, self.multipliers, strict=True)], -1)

    def _gated(self, y: Tensor, z: Tensor, m: Weights) -> Tensor:
        """Apply gate and norm [B, T, E], in float32."""
        if not self.norm_before_gate:
            y = y * F.silu(z)
        if self.norm_eps is not None:
            groups = y.unflatten(-1, (self.norm_groups or self.n_groups, -1))
            y = self._divide(groups, self.norm_eps, m).flatten(-2) * m.norm.float()
        return y * F.silu(z) if self.norm_before_gate else y

    def _divide(self, groups: Tensor, eps: float, m: Weights) -> Tensor:
        return divide_by_rms(groups, None, eps)


class Mamba2Shard(Mamba2):
    """The part of a Mamba-2 that one rank holds: some of the heads, with one norm over the channels of all ranks."""

    summed: ClassVar[int] = 1  # the mean square

    def _divide(self, groups: Tensor, eps: float, m: Weights) -> Tensor:
        mean = m.seam.all_reduce(groups.square().mean(-1, keepdim=True)) / m.seam.size
        return groups * (mean + eps).rsqrt()


def _scan_heads(x: Tensor, log: Tensor, B: Tensor, C: Tensor, h: Tensor, fresh: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the recurrence token by token: x [B, T, H, P], log [B, T, H], B, C [B, T, G, S], h [B, H, P, S]. Returns y
    [B, T, H, P] and the last h."""
    batch, tokens, heads, width = x.shape
    B, C = (each.repeat_interleave(heads // each.shape[2], 2) for each in (B, C))  # B T H S
    decay = (log.exp() if fresh is None else log.exp() * ~fresh[..., None])[..., None]  # B T H 1
    h, reads = h.flatten(0, 1), []  # B·H P S
    each_token = (each.transpose(1, 2).flatten(0, 1).unbind(1) for each in (x, decay, B, C))  # B·H, … each
    for new, left, write, read in zip(*each_token, strict=True):
        h = torch.baddbmm(left[..., None] * h, new[..., None], write[:, None])
        reads.append(h @ read[..., None])  # B·H P 1
    y = torch.stack(reads, 1).view(batch, heads, tokens, width).transpose(1, 2)
    return y, h.unflatten(0, (batch, heads))


def _scan_chunks(
    x: Tensor, log: Tensor, B: Tensor, C: Tensor, h: Tensor, fresh: Tensor | None, length: int
) -> tuple[Tensor, Tensor]:
    """Run the recurrence in chunks: attention inside each, a state between them (Dao and Gu, 2024, section 6)."""
    tokens, groups = x.shape[1], B.shape[2]
    decays = make_decays(log, fresh, length)
    x, B, C = chunked(x, length), chunked(B, length).transpose(2, 3), chunked(C, length).transpose(2, 3)  # B N G L S
    x = x.transpose(2, 3).unflatten(2, (groups, -1))  # B N G R L P
    scores = (C @ B.mT)[:, :, :, None] * decays.pairs.unflatten(2, (groups, -1))  # B N G R L L
    y = scores @ x
    written = (x * decays.leaving.unflatten(2, (groups, -1))).mT @ B[:, :, :, None]  # B N G R P S
    written, across, entering = written.flatten(2, 3), decays.across, []
    for left, new in zip(across.unbind(1), written.unbind(1), strict=True):
        entering.append(h)
        h = left * h + new
    held = torch.stack(entering, 1).unflatten(2, (groups, -1))  # B N G R P S
    y = y + (C[:, :, :, None] @ held.mT) * decays.entering.unflatten(2, (groups, -1))
    y = y.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, :tokens]  # B T H P
    return y, h
