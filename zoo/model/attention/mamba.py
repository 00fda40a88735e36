# B batch, T tokens, E inner width, S state size, H heads
"""Mamba: a selective state space."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.errors import refuse
from zoo.lazy import F, Tensor, torch
from zoo.model.activation import PlainActivation, SiLU
from zoo.model.attention.base import Attention
from zoo.model.attention.recurrent import (
    check_causal,
    check_width,
    convolve,
    exactly,
    open_state,
    scan_channels,
    spread_steps,
    starts,
)
from zoo.model.norm import WholeNorm
from zoo.spec import Conv, Linear, Sized, Weight
from zoo.spec.sharding import uneven

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Mamba(Attention, kind="mamba"):
    """A selective state space, whose step, input and output depend on the token (Gu and Dao, 2023).

    u = act(conv(x·W)) has E = expand·d_model channels. Projections of u give B and C [S], and Δ = softplus(u·W_Δ + b).
    With A = −exp(A_log),

        h ← exp(Δ·A) ⊙ h + (Δ ⊙ u)⊗B [E, S],   y = h·C + D ⊙ u,   out = (y ⊙ silu(z))·W_out.

    The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True

    d_model: PositiveInt
    """Width of the residual stream, stated because the state's size follows from it."""
    expand: PositiveInt = 2
    """Inner channels for each channel of the residual stream: E = expand·d_model."""
    heads: PositiveInt = 1
    """Number of equal groups of inner channels. Each makes B, C and Δ only from its own channels (Glorioso et al.,
    2024, Zamba)."""
    d_state: PositiveInt = 16
    """State size S of each inner channel."""
    d_conv: PositiveInt = 4
    """Width of the causal convolution, in tokens."""
    dt_rank: PositiveInt | None = None
    """Width between the two projections that make Δ, in channels; ⌈d_model/16⌉ unless given."""
    bias: bool = False
    """Whether the input and the output projection have a bias."""
    conv_bias: bool = True
    """Whether the convolution has a bias."""
    activation: PlainActivation = SiLU()
    """Activation of the convolution's output."""
    inner_norm: WholeNorm | None = None
    """Norm of B, of C and of the vector that Δ is projected from (Jamba; without a weight, Falcon Mamba)."""

    def __post_init__(self) -> None:
        if self.expand * self.d_model % self.heads:
            raise ValueError(
                f"heads={self.heads} do not divide expand·d_model={self.expand * self.d_model} (a divisor)"
            )

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        return math.ceil(self.d_model / 16) if self.dt_rank is None else self.dt_rank

    @property
    def by_head(self) -> bool:
        """Whether each head makes B, C and Δ only from its own channels."""
        return self.heads > 1

    @property
    def held(self) -> int:
        """Number of heads that one rank holds."""
        return self.heads

    def parts(self, d_model: int) -> dict[str, Any]:
        check_width(self.d_model, d_model)
        inner, rank, state = self.d_inner, self.rank, self.d_state
        parts: dict[str, Any] = {
            "in_proj": Linear(d_model, 2 * inner, self.bias, segments=(inner, inner)),  # u and z
            "conv": Conv(inner, inner, self.d_conv, groups=inner, bias=self.conv_bias),
            **self._list_projections(),
            "dt_bias": Weight((inner,), init=spread_steps),
            "A_log": Weight((inner, state), init=count_rates),
            "D": Weight((inner,), init=1.0),
            "out_proj": Linear(inner, d_model, self.bias, residual=True),
        }
        if self.inner_norm:
            parts |= {"dt_norm": Sized(self.inner_norm, rank)}
            parts |= {name: Sized(self.inner_norm, state) for name in ("B_norm", "C_norm")}
        return parts

    def _list_projections(self) -> dict[str, Any]:
        """List the projections to Δ, B and C, and from Δ to channels; grouped convolutions of width 1 if `by_head`."""
        inner, rank, heads = self.d_inner, self.rank, self.held
        out = rank + 2 * self.d_state
        if self.by_head:
            return {
                "x_proj": Conv(inner, heads * out, 1, groups=heads),
                "dt_proj": Conv(heads * rank, inner, 1, groups=heads),
            }
        return {"x_proj": Linear(inner, out, precise=True), "dt_proj": Linear(rank, inner, precise=True)}

    def shard(self, ranks: int) -> Mamba:
        """Return the part of one rank: 1/`ranks` of the expand·d_model channels. With one head, B, C and the projection
        of Δ are summed over all ranks. With several heads, each head lies on one rank. Raises ConfigError unless
        `ranks` divides the number of channels (one head) or of heads (several heads)."""
        name = "heads" if self.by_head else "d_inner"
        refuse(uneven(name, getattr(self, name), ranks))
        return MambaShard(**{field.name: getattr(self, field.name) for field in self.fields()}, ranks=ranks)

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.d_conv - 1, self.d_inner), "ssm": (self.d_inner, self.d_state)}

    def state_flops(self) -> int:
        return 4 * self.d_inner * self.d_state  # writing the outer product of Δ·u and B, and reading with C

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        u, z = m.in_proj(x).chunk(2, -1)  # B T E
        u = self.activation.apply(convolve(m.conv, u, step))
        mixed = m.x_proj(u).unflatten(-1, (self.held, -1)) if self.by_head else m.seam.all_reduce(m.x_proj(u))
        dt, B, C = mixed.split([self.rank, self.d_state, self.d_state], -1)  # B T (H) …
        if self.inner_norm:
            dt, B, C = m.dt_norm(dt), m.B_norm(B), m.C_norm(C)
        dt = dt.flatten(2) if self.by_head else dt
        dt = m.dt_proj(dt).float() + m.dt_bias.float()  # B T E
        with exactly(x):
            u = u.float()
            y = step.along_rows(partial(self._scan, m), u, F.softplus(dt), B.float(), C.float())
            y = (y + m.D.float() * u) * F.silu(z.float())
        return m.out_proj(y.to(z.dtype))  # B T D

    def _scan(self, m: Weights, step: Step, u: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Run the recurrence over u, dt [B, T, E] and B, C [B, T, (H), S]: [B, T, E]."""
        if step.real is not None:
            dt = dt * step.real[..., None]  # no time passes
        fresh = None if step.documents is None else starts(step.documents)  # B T
        h = open_state(step, "ssm", dt, self.d_inner, self.d_state)
        scan = _scan_tokens if step.kernel == "eager" or u.shape[1] == 1 else _scan_spans
        scan = partial(_scan_heads_apart, scan, self.held) if self.by_head else scan
        y, h = scan(dt * u, dt, -m.A_log.float().exp(), B, C, h, fresh)
        step.hold(ssm=h)
        return y


class MambaShard(Mamba):
    """The part of a Mamba that one of `ranks` ranks holds: some of the expand·d_model channels and, of several heads,
    the heads of these channels."""

    ranks: int = 1
    """Number of ranks among which the channels are divided."""

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model // self.ranks

    @property
    def held(self) -> int:
        return self.heads // self.ranks if self.by_head else 1

    @property
    def summed(self) -> int:  # type: ignore[override]
        return 0 if self.by_head else self.rank + 2 * self.d_state  # Δ, B and C


def count_rates(tensor: Tensor) -> None:
    """Fill A_log [E, S] with log(1 … S) in every channel: S4D-Real (Gu et al., 2022)."""
    tensor.copy_(torch.arange(1, tensor.shape[-1] + 1, device=tensor.device).log().expand(tensor.shape))


def _scan_tokens(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence token by token: x, dt [B, T, E], A [E, S], B, C [B, T, S], h [B, E, S]. Returns y [B, T, E]
    and the last h."""
    begins = [None] * x.shape[1] if fresh is None else fresh.unbind(1)
    reads = []
    for new, time, write, read, start in zip(*(each.unbind(1) for each in (x, dt, B, C)), begins, strict=True):
        decay = (time[..., None] * A).exp()  # B E S
        if start is not None:
            decay = decay * ~start[:, None, None]
        h = torch.baddbmm(decay * h, new[..., None], write[:, None])
        reads.append((h @ read[..., None]).squeeze(-1))  # B E
    return torch.stack(reads, 1), h


SPAN = 64
"""Number of tokens whose states [E, S] are in memory at once if no gradients are needed. On a CPU no value of 32 … 512
is faster."""


def _scan_spans(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence in spans of SPAN tokens, each by about 2·√SPAN sequential steps. Shapes are as in
    `_scan_tokens`."""
    spans = [each.split(SPAN, 1) for each in (x, dt, B, C)]
    begins = [None] * len(spans[0]) if fresh is None else fresh.split(SPAN, 1)
    reads = []
    for new, time, write, read, start in zip(*spans, begins, strict=True):
        decay = (time[..., None] * A).exp()  # B L E S
        if start is not None:
            decay = decay * ~start[..., None, None]
        states = scan_channels(decay, new[..., None] * write[:, :, None], h, math.isqrt(new.shape[1] - 1) + 1)
        reads.append((states @ read[..., None]).squeeze(-1))  # B L E
        h = states[:, -1]
    return torch.cat(reads, 1), h


def _scan_heads_apart(
    scan: Any, heads: int, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run `scan`, Mamba's recurrence, separately for each head: x, dt [B, T, E], A [E, S], B, C [B, T, H, S], h [B, E,
    S]. Returns y [B, T, E] and the last h."""
    channels = (each.chunk(heads, dim) for each, dim in ((x, -1), (dt, -1), (A, 0), (h, 1)))
    each_head = zip(*channels, B.unbind(2), C.unbind(2), strict=True)
    found = [scan(new, time, rate, write, read, held, fresh) for new, time, rate, held, write, read in each_head]
    return torch.cat([y for y, _ in found], -1), torch.cat([held for _, held in found], 1)
