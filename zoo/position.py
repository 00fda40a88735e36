# B batch, T queries, S keys, H heads, C head width, R rotated width, D model width
"""How a model knows where a token stands: at the embedding (learned, sinusoidal) or inside attention (RoPE, ALiBi)."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

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

    @property
    def per_layer(self) -> bool:
        """Whether every layer holds this scheme's weights for itself, rather than the model for all."""
        return False

    @property
    def padding_id(self) -> int | None:
        """The token id that positions do not count, where it is ids that say what is padding (RoBERTa)."""
        return None

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

    def bias(self, m: Any, n_heads: int, queries: Any, keys: Any, causal: bool) -> Any:
        """What is added to the scores [B | 1, H, T, S], from the columns of queries [T] and keys [S]; or None. `m` holds
        the scheme's weights."""
        return None

    def check(self, head_dim: int) -> None:
        """Raises ValueError when heads of this width cannot be rotated."""


class NoPosition(Position, kind="none"):
    """No positions: a causal mask alone tells order (NoPE; Kazemnejad et al., 2023)."""


class Learned(Position, kind="learned"):
    """A trained vector for each position, added to the embedding (GPT-2, BERT).

    The table has `offset` rows before that of position 0 (OPT and BART: 2). With `skip_id` positions count the tokens
    that are not this one, and those that are stand at position -1 (RoBERTa: its padding id, offset by one more).
    """

    max_seq_len: PositiveInt
    offset: NonNegativeInt = 0
    skip_id: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if self.skip_id is not None and not self.offset:
            raise ValueError("skip_id puts skipped tokens at position -1, and the table begins at 0 (offset: 1 or more)")

    @property
    def limit(self) -> int | None:
        return self.max_seq_len

    @property
    def padding_id(self) -> int | None:
        return self.skip_id

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"table": Embedding(self.max_seq_len + self.offset, d_model)}

    def embed(self, m: Any, x: Any, positions: Any) -> Any:
        return x + m.table(positions + self.offset if self.offset else positions)


class Sinusoidal(Position, kind="sinusoidal"):
    """Fixed sines and cosines added to the embedding (Vaswani et al., 2017, §3.5): interleaved as there, or all sines
    and then all cosines (tensor2tensor; Marian, Pegasus)."""

    theta: PositiveFloat = 10000.0
    interleaved: bool = True

    def embed(self, m: Any, x: Any, positions: Any) -> Any:
        width = x.shape[-1]
        steps = torch.arange(0, width, 2, device=x.device, dtype=torch.float32)
        angles = positions[..., None].float() * self.theta ** (-steps / width)
        waves = (angles.sin(), angles.cos())
        both = torch.stack(waves, -1).flatten(-2) if self.interleaved else torch.cat(waves, -1)
        return x + both[..., :width].to(x.dtype)


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

    def check(self, width: int) -> None:
        """Raises ValueError when it cannot turn so many channels."""

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


class LongRopeScaling(Scaling, kind="longrope"):
    """A divisor for each pair: `short_factor` up to the trained length, `long_factor` beyond (Ding et al., 2024; Phi-3).

    Each row takes those of its own length, so that a row that grows past the trained length turns anew (see
    DynamicScaling). `magnitude` is √(1 + ln(max / trained) / ln(trained)) unless `attention_factor` says otherwise.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_seq_len: PositiveInt
    max_seq_len: PositiveInt
    attention_factor: float | None = None

    @property
    def stable_until(self) -> int | None:
        return None if self.short_factor == self.long_factor else self.original_max_seq_len

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        factor = self.max_seq_len / self.original_max_seq_len
        return math.sqrt(1 + math.log(factor) / math.log(self.original_max_seq_len)) if factor > 1 else 1.0

    def check(self, width: int) -> None:
        for name in ("short_factor", "long_factor"):
            if len(getattr(self, name)) != width // 2:
                found = len(getattr(self, name))
                raise ValueError(f"{name} has {found} numbers, {width} rotated channels have {width // 2} pairs")

    def frequencies(self, width: int, theta: float, length: Any, device: Any) -> Any:
        short, long = (
            torch.tensor(each, device=device, dtype=torch.float32) for each in (self.short_factor, self.long_factor)
        )
        exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
        divisor = torch.where((length > self.original_max_seq_len)[..., None], long, short)  # B 1 R/2
        return 1.0 / (divisor * theta**exponents)


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
        if self.scaling is not None:
            self.scaling.check(width)

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

    For H not a power of two, `slopes` says which: "lower" takes those of the next lower power, then every other one of
    the power above (the paper's code, BLOOM); "upper" every other one of the next higher power, then the rest (MPT).
    The bias is multiplied by `scale` (Falcon: 1/√head_dim). With `rounded` slope × key position is in bfloat16, as
    Falcon was trained.
    """

    max_bias: PositiveFloat = 8.0
    slopes: Literal["lower", "upper"] = "lower"
    scale: PositiveFloat = 1.0
    rounded: bool = False

    @property
    def biases(self) -> bool:
        return True

    def slopes_of(self, n_heads: int) -> list[float]:
        """The slope of each head."""

        def series(count: int) -> list[float]:
            return [2 ** (-self.max_bias * (head + 1) / count) for head in range(count)]

        if self.slopes == "upper":
            every = series(2 ** math.ceil(math.log2(n_heads)))
            return every[:n_heads] if len(every) == n_heads else [*every[1::2], *every[::2]][:n_heads]
        whole = 2 ** math.floor(math.log2(n_heads))
        return series(whole) + series(2 * whole)[::2][: n_heads - whole]

    def bias(self, m: Any, n_heads: int, queries: Any, keys: Any, causal: bool) -> Any:
        slopes = torch.tensor(self.slopes_of(n_heads), device=keys.device, dtype=torch.float32)[:, None, None]
        if self.rounded:  # by key: softmax does not see what a query's own place would add
            low = torch.bfloat16
            return (slopes.to(low) * keys.to(low)).float() * self.scale  # H 1 S
        distance = (queries[:, None] - keys[None, :]).abs().float()
        return -slopes * distance * self.scale  # H T S


class T5Buckets(Position, kind="t5"):
    """A learned bias a head for each bucket of distances: near ones singly, far ones by their logarithm, all beyond
    `max_distance` together (Raffel et al., 2020, §2.1).

    Half of the buckets are for later keys where a token sees both ways. One table serves all layers (T5), or with
    `layerwise` each has its own (UMT5).
    """

    n_heads: PositiveInt
    n_buckets: PositiveInt = 32
    max_distance: PositiveInt = 128
    layerwise: bool = False

    def __post_init__(self) -> None:
        if self.n_buckets < 4 or self.n_buckets % 2 or self.max_distance <= self.n_buckets // 2:
            found = f"n_buckets={self.n_buckets}, max_distance={self.max_distance}"
            raise ValueError(f"{found} (an even number of buckets from 4 up, and max_distance more than half of it)")

    @property
    def biases(self) -> bool:
        return True

    @property
    def per_layer(self) -> bool:
        return self.layerwise

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"table": Embedding(self.n_buckets, self.n_heads)}

    def buckets(self, distance: Any, causal: bool) -> Any:
        """The bucket of each distance key − query [T, S]."""
        count, later = self.n_buckets, 0
        if causal:
            distance = -distance.clamp(max=0)
        else:
            count //= 2
            later = (distance > 0).long() * count
            distance = distance.abs()
        exact = count // 2
        far = (distance.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact) * (count - exact)
        return later + torch.where(distance < exact, distance, (exact + far.long()).clamp(max=count - 1))

    def bias(self, m: Any, n_heads: int, queries: Any, keys: Any, causal: bool) -> Any:
        buckets = self.buckets(keys[None, :] - queries[:, None], causal)  # T S
        return m.table(buckets).permute(2, 0, 1)[None]  # 1 H T S
