# B batch, T queries, S keys, H heads, C head width, R rotated width, D model width
"""How a model knows where a token stands: at the embedding (learned, sinusoidal) or inside attention (RoPE, ALiBi)."""

from __future__ import annotations

import math
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import torch
from zoo.spec import Embedding, Spec


class Position(Spec, axis="position"):
    """Every hook does nothing by default; a choice fills in the ones it needs."""

    @property
    def limit(self) -> int | None:
        """The longest sequence there are positions for, or None."""
        return None

    @property
    def stable_until(self) -> int | None:
        """The row length beyond which earlier tokens turn again, so that nothing of them can be kept; None for
        never."""
        return None

    @property
    def biases(self) -> bool:
        """Whether `bias` gives anything."""
        return False

    def embed(self, m: Any, x: Any, positions: Any) -> Any:
        """x [B, T, D] with the positions [B, T] added."""
        return x

    def tables(self, positions: Any, head_dim: int, dtype: Any, length: Any = None) -> Any:
        """What `rotate` needs for these positions [B, T]; computed once per forward. `length` [B, 1]: tokens in the
        row."""
        return None

    def rotate(self, x: Any, tables: Any) -> Any:
        """x [B, T, H, C] rotated."""
        return x

    def bias(self, n_heads: int, queries: Any, keys: Any) -> Any:
        """What is added to the scores [B | 1, H, T, S], from the columns of queries [T] and keys [S]; or None."""
        return None

    def check(self, head_dim: int) -> None:
        """Raises ValueError when heads of this width cannot be rotated."""


class NoPosition(Position, kind="none"):
    """No positions: a causal mask alone tells order (NoPE; Kazemnejad et al., 2023)."""


class Learned(Position, kind="learned"):
    """A trained vector for each position, added to the embedding (GPT-2, BERT)."""

    max_seq_len: PositiveInt

    @property
    def limit(self) -> int | None:
        return self.max_seq_len

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"table": Embedding(self.max_seq_len, d_model)}

    def embed(self, m: Any, x: Any, positions: Any) -> Any:
        return x + m.table(positions)


class Sinusoidal(Position, kind="sinusoidal"):
    """Fixed sines and cosines, interleaved, added to the embedding (Vaswani et al., 2017, §3.5)."""

    theta: PositiveFloat = 10000.0

    def embed(self, m: Any, x: Any, positions: Any) -> Any:
        width = x.shape[-1]
        steps = torch.arange(0, width, 2, device=x.device, dtype=torch.float32)
        angles = positions[..., None].float() * self.theta ** (-steps / width)
        waves = torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)[..., :width]
        return x + waves.to(x.dtype)


# ---------------------------------------------------------------- rotary


class Scaling(Spec, axis="rope_scaling"):
    """How rotary frequencies change to reach beyond the length they were trained at."""

    @property
    def stable_until(self) -> int | None:
        return None

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0

    def frequencies(self, width: int, theta: float, length: Any, device: Any) -> Any:
        """Radians per position of each rotated pair [width / 2], or [B, 1, width / 2] when they depend on the row."""
        return _frequencies(width, theta, device)


class LinearScaling(Scaling, kind="linear"):
    """Positions divided by `factor` (Chen et al., 2023, position interpolation)."""

    factor: PositiveFloat

    def frequencies(self, width: int, theta: float, length: Any, device: Any) -> Any:
        return _frequencies(width, theta, device) / self.factor


class DynamicScaling(Scaling, kind="dynamic"):
    """A base that grows with the row once it passes the trained length (dynamic NTK; bloc97 and emozilla, 2023).

    Each row takes its own length, padding left out. Beyond the trained length all tokens turn with every new one, so
    a cache
    of them would drift from the full forward (by whole logits in the reference implementation): it is refused there.
    """

    factor: PositiveFloat
    original_max_seq_len: PositiveInt

    @property
    def stable_until(self) -> int | None:
        return self.original_max_seq_len

    def frequencies(self, width: int, theta: float, length: Any, device: Any) -> Any:
        trained = float(self.original_max_seq_len)
        stretch = self.factor * length.clamp(min=trained).float() / trained - (self.factor - 1)  # B 1
        base = theta * stretch ** (width / (width - 2))
        exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
        return 1.0 / base[..., None] ** exponents  # B 1 R/2


class YarnScaling(Scaling, kind="yarn"):
    """Slow pairs interpolated, fast ones kept, a ramp between (YaRN; Peng et al., 2023).

    `magnitude` is 0.1·ln(factor) + 1 unless `attention_factor`, or the pair `mscale` and `mscale_all_dim`
    (DeepSeek), says otherwise.
    """

    factor: PositiveFloat
    original_max_seq_len: PositiveInt
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, scale: float) -> float:
        return 0.1 * scale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def frequencies(self, width: int, theta: float, length: Any, device: Any) -> Any:
        low, high = self._pair_of(self.beta_fast, width, theta), self._pair_of(self.beta_slow, width, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        pairs = torch.arange(width // 2, device=device, dtype=torch.float32)
        ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)  # 0 keeps the frequency, 1 interpolates it
        kept = _frequencies(width, theta, device)
        return kept / self.factor * ramp + kept * (1 - ramp)

    def _pair_of(self, turns: float, width: int, theta: float) -> float:
        """The pair that turns this often over the trained length."""
        return width * math.log(self.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(theta))


class Llama3Scaling(Scaling, kind="llama3"):
    """Long wavelengths divided by `factor`, short ones kept, a blend between (Llama 3.1; Meta, 2024)."""

    factor: PositiveFloat
    original_max_seq_len: PositiveInt
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must exceed low_freq_factor={self.low_freq_factor}"
            )

    def frequencies(self, width: int, theta: float, length: Any, device: Any) -> Any:
        kept = _frequencies(width, theta, device)
        turns = self.original_max_seq_len * kept / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = blend.clamp(0, 1)
        return (1 - blend) * kept / self.factor + blend * kept


class RoPE(Position, kind="rope"):
    """Rotary embedding (Su et al., 2021), the two halves of a head as the pairs; `interleaved` pairs neighbours
    (GPT-J).

    `rotary_dim` rotates only that many leading channels of each head.
    """

    theta: PositiveFloat = 10000.0
    rotary_dim: PositiveInt | None = None
    interleaved: bool = False
    scaling: Scaling | None = None

    @property
    def stable_until(self) -> int | None:
        return None if self.scaling is None else self.scaling.stable_until

    def check(self, head_dim: int) -> None:
        width = self.rotary_dim or head_dim
        if width % 2 or width > head_dim:
            raise ValueError(
                f"rope turns pairs of channels: rotary_dim={width} must be even and at most head_dim={head_dim}"
            )

    def tables(self, positions: Any, head_dim: int, dtype: Any, length: Any = None) -> Any:
        width, device = self.rotary_dim or head_dim, positions.device
        if self.scaling is None:
            frequencies, magnitude = _frequencies(width, self.theta, device), 1.0
        else:
            frequencies = self.scaling.frequencies(width, self.theta, length, device)
            magnitude = self.scaling.magnitude
        angles = positions[..., None].float() * frequencies  # B T R/2
        cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
        return cos.to(dtype)[:, :, None], sin.to(dtype)[:, :, None]  # B T 1 R/2

    def rotate(self, x: Any, tables: Any) -> Any:
        cos, sin = tables
        width = 2 * cos.shape[-1]
        turned, kept = (x, None) if width == x.shape[-1] else x.split((width, x.shape[-1] - width), -1)
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return turned if kept is None else torch.cat((turned, kept), -1)


def _frequencies(width: int, theta: float, device: Any) -> Any:
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    return 1.0 / theta**exponents


# ---------------------------------------------------------------- bias


class ALiBi(Position, kind="alibi"):
    """Scores fall linearly with distance, at a slope of each head's own (Press et al., 2021): 2^(−8h/H), h = 1…H.

    For H not a power of two, the slopes of the next lower power, then every other one of the power above.
    """

    max_bias: PositiveFloat = 8.0

    @property
    def biases(self) -> bool:
        return True

    def slopes(self, n_heads: int) -> list[float]:
        whole = 2 ** math.floor(math.log2(n_heads))
        first = [2 ** (-self.max_bias * (h + 1) / whole) for h in range(whole)]
        between = [2 ** (-self.max_bias * (h + 1) / (2 * whole)) for h in range(0, 2 * whole, 2)]
        return first + between[: n_heads - whole]

    def bias(self, n_heads: int, queries: Any, keys: Any) -> Any:
        slopes = torch.tensor(self.slopes(n_heads), device=keys.device, dtype=torch.float32)
        distance = (queries[:, None] - keys[None, :]).abs().float()
        return -slopes[:, None, None] * distance  # H T S
