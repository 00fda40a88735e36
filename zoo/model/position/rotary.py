# B batch, T tokens, H heads, C head width, R rotated width
"""Rotary position embedding (RoPE), and scalings of its frequencies for longer contexts."""

from __future__ import annotations

import functools
import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Le
from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.position.base import Position
from zoo.model.position.constants import keep_constant, place_constants
from zoo.spec import Buffer, Spec, Weight
from zoo.spec.faults import make_refusals

if TYPE_CHECKING:
    from zoo.model.step import Weights


class Scaling(Spec, axis="rope_scaling"):
    """Scale RoPE's frequencies to reach beyond the trained length."""

    reads_length: ClassVar[bool] = False
    """Whether frequencies or magnitude depend on how many tokens a row or document has."""
    stable_until: ClassVar[int | None] = None
    """As of a position scheme."""
    magnitude: ClassVar[float] = 1.0
    """Factor of cosines and sines."""

    def magnitude_of(self, length: Tensor | None) -> Any:
        """Compute the factor of cosines and sines. `length` is the length of each row [B, 1], or of each token's
        document [B, T]. Returns a number or, if the factor depends on the length, [B, 1|T, 1]."""
        return self.magnitude

    def check(self, width: int) -> None:
        """Raises ValueError if the scaling cannot rotate `width` channels."""

    def frequencies(self, width: int, theta: float, length: Tensor | None, device: torch.device) -> Tensor:
        """Compute the radians per position of each rotated pair [width / 2] or, if they depend on the length, [B, 1|T,
        width / 2]. If the scheme `reads_length`, `length` is the length of each row [B, 1], or of each token's packed
        document [B, T]."""
        return _frequencies(width, theta, device)


class LinearScaling(Scaling, kind="linear"):
    """Positions divided by a constant (Chen et al., 2023, position interpolation)."""

    factor: PositiveFloat
    """Divisor of the positions."""

    def frequencies(self, width: int, theta: float, length: Tensor | None, device: torch.device) -> Tensor:
        return _frequencies(width, theta, device) / self.factor


class DynamicScaling(Scaling, kind="dynamic"):
    """A base that grows with the length of a row beyond the trained length (dynamic NTK; bloc97 and emozilla, 2023).

    The length of a row excludes padding. Beyond the trained length every new token changes the rotation of all tokens.
    A cache is refused there: its keys in deeper layers are made of outputs under earlier rotations.
    """

    reads_length: ClassVar[bool] = True

    factor: PositiveFloat
    """Factor f of the base's growth: for a row of T tokens the base is theta·(f·T/L − (f − 1))^(R/(R − 2)), L being the
    trained length."""
    original_max_seq_len: PositiveInt
    """Trained length, in tokens."""

    @property
    def stable_until(self) -> int | None:  # type: ignore[override]
        return self.original_max_seq_len

    def frequencies(self, width: int, theta: float, length: Tensor | None, device: torch.device) -> Tensor:
        assert length is not None  # `reads_length` is True
        trained = float(self.original_max_seq_len)
        growth = self.factor * length.clamp(min=trained).float() / trained - (self.factor - 1)  # B 1
        base = theta * growth ** (width / (width - 2))
        exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
        return 1.0 / base[..., None] ** exponents  # B 1 R/2


class YarnScaling(Scaling, kind="yarn"):
    """Interpolate the frequencies of slow pairs, keep those of fast ones, and ramp between both (YaRN; Peng et al.,
    2023). Cosines and sines are multiplied by `attention_factor`, or by a factor made of `mscale` and
    `mscale_all_dim`."""

    factor: PositiveFloat
    """Divisor of the slow pairs' frequencies."""
    original_max_seq_len: PositiveInt
    """Trained length, in tokens."""
    beta_fast: PositiveFloat = 32.0
    """Number of turns in the trained length from which on a pair keeps its frequency."""
    beta_slow: PositiveFloat = 1.0
    """Number of turns in the trained length up to which a pair is interpolated."""
    attention_factor: float | None = None
    """Factor of cosines and sines; 0.1·ln(factor) + 1 unless given."""
    mscale: float | None = None
    """The a in the factor (0.1·a·ln(factor) + 1) / (0.1·b·ln(factor) + 1) of cosines and sines (DeepSeek-V2, 2024).
    Given only together with `mscale_all_dim`, the b."""
    mscale_all_dim: float | None = None
    """The b in `mscale`'s factor. DeepSeek also multiplies attention's scores by (0.1·b·ln(factor) + 1)². Attention's
    `scale` must state this: the square ÷ √(width of a head)."""
    truncate: bool = True
    """Whether the ends of the ramp are rounded outwards to whole pairs."""

    def __post_init__(self) -> None:
        if bool(self.mscale) != bool(self.mscale_all_dim):
            found = f"mscale={self.mscale}, mscale_all_dim={self.mscale_all_dim}"
            raise ValueError(f"{found}: one counts only beside the other (give both, or attention_factor)")
        if self.mscale and self.attention_factor is not None:
            found = f"attention_factor={self.attention_factor} stands in place of mscale={self.mscale}"
            raise ValueError(f"{found} (one of them)")

    @property
    def magnitude(self) -> float:  # type: ignore[override]
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, scale: float) -> float:
        return 0.1 * scale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def frequencies(self, width: int, theta: float, length: Tensor | None, device: torch.device) -> Tensor:
        low, high = self._pair_of(self.beta_fast, width, theta), self._pair_of(self.beta_slow, width, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        pairs = torch.arange(width // 2, device=device, dtype=torch.float32)
        ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)  # 0 keeps the frequency, 1 interpolates it
        kept = _frequencies(width, theta, device)
        return kept / self.factor * ramp + kept * (1 - ramp)

    def _pair_of(self, turns: float, width: int, theta: float) -> float:
        """Find the pair that makes `turns` turns over the trained length."""
        return width * math.log(self.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(theta))


class Llama3Scaling(Scaling, kind="llama3"):
    """Divide the frequencies of long wavelengths by `factor`, keep those of short ones, and blend both between (Llama
    3.1; Meta, 2024)."""

    factor: PositiveFloat
    """Divisor of the slow pairs' frequencies."""
    original_max_seq_len: PositiveInt
    """Trained length, in tokens."""
    low_freq_factor: PositiveFloat = 1.0
    """Number of turns in the trained length up to which a pair's frequency is divided by all of `factor`."""
    high_freq_factor: PositiveFloat = 4.0
    """Number of turns in the trained length from which on a pair keeps its frequency."""

    def __post_init__(self) -> None:
        if self.high_freq_factor < self.low_freq_factor:
            found = f"high_freq_factor={self.high_freq_factor}, low_freq_factor={self.low_freq_factor}"
            raise ValueError(f"{found} (the high one must not be below the low one)")

    def frequencies(self, width: int, theta: float, length: Tensor | None, device: torch.device) -> Tensor:
        kept = _frequencies(width, theta, device)
        turns = self.original_max_seq_len * kept / (2 * math.pi)
        ramp = self.high_freq_factor - self.low_freq_factor
        past = turns - self.low_freq_factor
        blend = (past / ramp).clamp(0, 1) if ramp else (past > 0).float()
        return (1 - blend) * kept / self.factor + blend * kept


class ProportionalScaling(Scaling, kind="proportional"):
    """Rotate only the first `share` of the pairs. Pairs and angles are as in heads that are rotated whole (Gemma 4,
    2026)."""

    share: Annotated[float, Ge(0), Le(1)]
    """Share of the pairs that are rotated, between 0 and 1."""
    factor: PositiveFloat = 1.0
    """Divisor of the frequencies."""

    def frequencies(self, width: int, theta: float, length: Tensor | None, device: torch.device) -> Tensor:
        every = _frequencies(width, theta, device)
        turned = torch.arange(every.shape[-1], device=device) < int(self.share * width // 2)
        return torch.where(turned, every / self.factor, 0.0)


class LongRopeScaling(Scaling, kind="longrope"):
    """A divisor of each pair's frequency: `short_factor` up to the trained length, `long_factor` beyond (Ding et al.,
    2024; Phi-3).

    Each row takes the divisors of its own length: in a row that grows past the trained length all tokens rotate anew,
    and a cache is refused (see DynamicScaling).
    """

    reads_length: ClassVar[bool] = True

    short_factor: tuple[float, ...]
    """Divisor of each pair's frequency, in rows up to the trained length."""
    long_factor: tuple[float, ...]
    """Divisor of each pair's frequency, in longer rows."""
    original_max_seq_len: PositiveInt
    """Trained length, in tokens."""
    max_seq_len: PositiveInt
    """Longest sequence, in tokens: with the trained length it gives the default of `attention_factor`."""
    attention_factor: float | None = None
    """Factor of cosines and sines; √(1 + ln(max_seq_len / L) / ln(L)) unless given, L being the trained length."""
    long_attention_factor: float | None = None
    """Factor of cosines and sines beyond the trained length, if different (Phi-3.5-MoE, 2024)."""

    @property
    def stable_until(self) -> int | None:  # type: ignore[override]
        same = self.short_factor == self.long_factor and self.long_attention_factor is None
        return None if same else self.original_max_seq_len

    def magnitude_of(self, length: Tensor | None) -> Any:
        if self.long_attention_factor is None:
            return self.magnitude
        assert length is not None  # `reads_length` is True
        long = torch.full_like(length, self.long_attention_factor, dtype=torch.float32)
        return torch.where(length > self.original_max_seq_len, long, self.magnitude)[..., None]

    @property
    def magnitude(self) -> float:  # type: ignore[override]
        if self.attention_factor is not None:
            return self.attention_factor
        factor = self.max_seq_len / self.original_max_seq_len
        return math.sqrt(1 + math.log(factor) / math.log(self.original_max_seq_len)) if factor > 1 else 1.0

    def check(self, width: int) -> None:
        counts = {"short_factor": len(self.short_factor), "long_factor": len(self.long_factor)}
        pairs = f"{width} rotated channels have {width // 2} pairs (one for each)"
        faults = [  # paths within the attention, which calls this method
            (("position", "scaling", name), f"has {count} numbers, and {pairs}")
            for name, count in counts.items()
            if count != width // 2
        ]
        if faults:
            raise make_refusals(type(self), faults)

    def frequencies(self, width: int, theta: float, length: Tensor | None, device: torch.device) -> Tensor:
        assert length is not None  # `reads_length` is True
        short, long = (place_constants(each, device) for each in (self.short_factor, self.long_factor))
        exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
        divisor = torch.where((length > self.original_max_seq_len)[..., None], long, short)  # B 1 R/2
        return 1.0 / (divisor * theta**exponents)


class RoPE(Position, kind="rope"):
    """Rotary position embedding (Su et al., 2021): pair i of a head's channels turns by theta^(−2i/R) radians per
    position, where R is the rotated width."""

    inside: ClassVar[bool] = True  # type: ignore[misc]

    theta: PositiveFloat = 10000.0
    """Base of the frequencies theta^(−2i/R)."""
    rotary_dim: PositiveInt | None = None
    """Leading channels of each head that are rotated, R; all channels unless given."""
    spacing: PositiveInt | None = None
    """Denominator R of the exponent, if not the rotated width: one less for GPT-NeoX models that round an odd share of
    a head up."""
    interleaved: bool = False
    """Whether the pairs are neighbouring channels (GPT-J), rather than one channel of each half of the rotated ones."""
    scaling: Scaling | None = None
    """Scaling of the frequencies, to reach beyond the trained length."""
    reverse: bool = False
    """Whether the angle is negative (nanochat)."""
    stored: bool = False
    """Whether the frequencies are saved with the weights and loaded from files: ESM-2's were rounded to float16, which
    shows after some hundred tokens."""
    learned: bool = False
    """Whether each frequency is multiplied by exp(α), with one α per pair for all layers, 0 at the start of training
    (Mistral Large 4, 2026, LeRoPE)."""

    def __post_init__(self) -> None:
        if self.learned and self.rotary_dim is None:
            raise ValueError("learned trains a factor for each pair of rotary_dim, which is not stated (head_dim)")
        if self.stored and (self.rotary_dim is None or self.scaling is not None):
            found = "no rotary_dim" if self.rotary_dim is None else f"scaling '{self.scaling.kind}'"  # type: ignore[union-attr]
            raise ValueError(f"stored saves a frequency for each pair of rotary_dim, unscaled; found {found}")

    @property
    def stable_until(self) -> int | None:  # type: ignore[override]
        return None if self.scaling is None else self.scaling.stable_until

    @property
    def reads_length(self) -> bool:  # type: ignore[override]
        return self.scaling is not None and self.scaling.reads_length

    def check(self, head_dim: int) -> None:
        width = self.rotary_dim or head_dim
        if width % 2 or width > head_dim:
            raise ValueError(
                f"rope turns pairs of channels: rotary_dim={width} must be even and at most head_dim={head_dim}"
            )
        if self.spacing not in (None, width, width - 1):
            raise ValueError(f"spacing={self.spacing} is for another number of pairs ({width} or {width - 1} would do)")
        if self.scaling is not None:
            self.scaling.check(width)

    def parts(self, d_model: int) -> dict[str, Any]:
        pairs = ((self.rotary_dim or 0) // 2,)
        return {
            **({"frequencies": Buffer(pairs, init=self._fill)} if self.stored else {}),
            **({"alpha": Weight(pairs)} if self.learned else {}),
        }

    def _fill(self, frequencies: Tensor) -> None:
        width = self.spacing or 2 * len(frequencies)
        frequencies.copy_(_frequencies(width, self.theta, frequencies.device))

    def tables(
        self,
        positions: Tensor,
        head_dim: int,
        dtype: torch.dtype,
        length: Tensor | None = None,
        m: Weights | None = None,
    ) -> Any:
        width, device = self.spacing or self.rotary_dim or head_dim, positions.device
        if self.scaling is None:
            make, magnitude = partial(_frequencies, width, self.theta, device), 1.0
        else:
            make = partial(self.scaling.frequencies, width, self.theta, length, device)
            magnitude = self.scaling.magnitude_of(length)
        key = self.scaling, width, self.theta
        if self.stored:
            assert m is not None
            frequencies = m.frequencies.float()
        else:
            frequencies = make() if self.reads_length else keep_constant(key, device, make)
        if self.learned:
            assert m is not None
            frequencies = frequencies * m.alpha.float().exp()
        angles = positions[..., None].float() * frequencies  # B T R/2
        cos, sin = angles.cos() * magnitude, angles.sin() * (-magnitude if self.reverse else magnitude)
        return cos.to(dtype)[:, :, None], sin.to(dtype)[:, :, None]  # B T 1 R/2

    def rotate(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        return rotate_part(x, tables, self.interleaved)


def rotate_part(x: Tensor, tables: tuple[Tensor, Tensor] | None, interleaved: bool, last: bool = False) -> Tensor:
    """Rotate the first channels of x [B, T, H, C], or with `last` its last channels, by cosines and sines. The tables
    determine how many channels. Without tables, return x."""
    if tables is None:
        return x
    rest = x.shape[-1] - 2 * tables[0].shape[-1]
    if not rest:
        return turn(x, *tables, interleaved)
    if last:
        kept, turned = x.split((rest, x.shape[-1] - rest), -1)
        return torch.cat((kept, turn(turned, *tables, interleaved)), -1)
    turned, kept = x.split((x.shape[-1] - rest, rest), -1)
    return torch.cat((turn(turned, *tables, interleaved), kept), -1)


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate pairs of channels of x [..., R] by angles with these cosines and sines [..., R/2]. Pairs are neighbouring
    channels if `interleaved`, else channels R/2 apart."""
    plain = cos.requires_grad or torch.compiler.is_compiling()  # learned angles need a gradient too
    if x.requires_grad and torch.is_grad_enabled() and not plain:
        return _turning().apply(x, cos, sin, interleaved)
    return turn_pairs(x, cos, sin, interleaved)


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Compute the rotation of `turn` by operations that autograd differentiates."""
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    pair = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
    return torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)


@functools.cache
def _turning() -> Any:
    """Make the autograd function on first use, so that pricing a model does not import torch."""

    class Turning(torch.autograd.Function):
        """Rotation whose backward is the inverse rotation. Plain autograd would zero-fill two halves and add them."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
            ctx.save_for_backward(cos, sin)
            ctx.interleaved, ctx.dtype = interleaved, x.dtype
            return turn_pairs(x, cos, sin, interleaved)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            cos, sin = ctx.saved_tensors
            return turn_pairs(g, cos, -sin, ctx.interleaved).to(ctx.dtype), None, None, None

    return Turning


def _frequencies(width: int, theta: float, device: torch.device) -> Tensor:
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    return 1.0 / theta**exponents
