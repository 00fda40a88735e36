"""Define the base class of layouts: how one quantised weight is stored in a file, and how it is dequantised.

A method (`methods`) has one layout (GPTQ) or several (compressed-tensors). A layout dequantises a few rows at a time,
so that a stack of experts is never whole in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from zoo.checkpoint.tensor_files import Header, Shape
from zoo.errors import CheckpointError
from zoo.lazy import Tensor, torch

ReadTensor = Callable[[Header], "Tensor"]

ROOM = 2**22
"""Maximum number of values in float32 at once, unless a single row has more."""


class QuantisedLayout:
    """One quantised weight. It is found by a tensor whose name is a stem plus one of `marks`. The weight's tensors are
    named by the stem plus an end from `ends` (by role); the dequantised weight is named by the stem plus `target`. The
    tensor of role `weight` is of one of the dtypes `stored`, if these are named.

    The initialiser sets `shape`, the shape of the weight, from headers. It may set `grain`: rows are dequantised in
    multiples of `grain`.
    """

    marks: ClassVar[tuple[str, ...]]
    ends: ClassVar[Mapping[str, str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    stored: ClassVar[tuple[str, ...]] = ()
    target: ClassVar[str] = ".weight"
    shape: Shape
    grain: int = 1

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        raise NotImplementedError

    @classmethod
    def fits(cls, parts: Mapping[str, Header]) -> bool:
        """Whether the tensors of a stem, by role, have this layout, judged by names and dtypes."""
        there = all(role in parts for role in cls.ends if role not in cls.optional)
        return there and (not cls.stored or parts["weight"].dtype in cls.stored)

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        """Dequantise rows `start` to `stop` - 1 of the weight to float32."""
        raise NotImplementedError

    def decode(self, held: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Dequantise the weight, rounded once from float32 to `dtype`."""
        return fill_rows(self.shape, self.grain, dtype, partial(self.rows, held))


def fill_rows(shape: Shape, grain: int, dtype: torch.dtype, rows: Callable[[int, int], Tensor]) -> Tensor:
    """Make a tensor of `dtype` from `rows(start, stop)`, which gives float32 values. Each call asks for a multiple of
    `grain` rows, of about ROOM values."""
    made = torch.empty(shape, dtype=dtype)
    width = max(1, made[:1].numel())
    step = max(grain, ROOM // width // grain * grain)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        made[start:stop] = rows(start, stop)
    return made


def refuse(header: Header, fault: str, hint: str) -> CheckpointError:
    """Make the error for a tensor that does not fit its layout."""
    return CheckpointError(f"{header.file}: {header.name}: {fault} ({hint})")


# ---------------------------------------------------------------- scales and bits


def spread_blocks(scales: Tensor, shape: Shape, block: tuple[int, int]) -> Tensor:
    """Repeat the scale of each block over its values: [.., R, C] to [.., rows, columns] of `shape`.

    A matrix of 4 × 6 in blocks of 2 × 4 has 2 × 2 scales; the value at (3, 5) has the last scale.
    """
    rows = scales.repeat_interleave(block[0], -2)[..., : shape[-2], :]
    return rows.repeat_interleave(block[1], -1)[..., : shape[-1]]


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """Unpack `count` unsigned numbers of `bits` bits from a stream of int32 words, [.., W] to int32 [.., count]. The
    stream begins with the lowest bit of the first word; a number may straddle two words."""
    mask = (1 << bits) - 1
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        return ((words.unsqueeze(-1) >> shifts) & mask).flatten(-2)[..., :count]
    places = torch.arange(count) * bits
    wide = torch.nn.functional.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, 1))
    word, shift = places // 32, places % 32
    both = wide[..., word] | (wide[..., word + 1] << 32)
    return ((both >> shift) & mask).to(torch.int32)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Split bytes into two numbers of 4 bits each, low bits first: [.., B] to int64 [.., 2 B]."""
    whole = packed.view(torch.uint8).to(torch.int64)
    return torch.stack([whole & 15, whole >> 4], -1).flatten(-2)
