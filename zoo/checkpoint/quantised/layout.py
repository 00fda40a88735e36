"""The base of a layout: how one quantised weight lies in a file, and its values as floats.

A layout is what a registry of methods (`methods`) combines: GPTQ has one, compressed-tensors several. It reads a few
rows at a time, so that a stack of experts is never whole in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.checkpoint.files import Header, Shape
from zoo.errors import CheckpointError
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

ROOM = 2**22
"""Most values that are in float32 at once, unless a single row has more."""


class Layout:
    """One quantised weight. `marks` are the ends of a tensor's name by which such a weight is known; before it stands
    the stem, to which `ends` adds the names of all its tensors, and `target` that of the weight.

    The initialiser sets `shape`, that of the weight, from headers; and `grain`, a number of rows that may be read apart
    from others. `rows` gives values in float32.
    """

    marks: ClassVar[tuple[str, ...]]
    ends: ClassVar[Mapping[str, str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    target: ClassVar[str] = ".weight"
    shape: Shape
    grain: int = 1

    def __init__(
        self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: Callable[[Header], Tensor]
    ) -> None:
        raise NotImplementedError

    @classmethod
    def fits(cls, parts: Mapping[str, Header]) -> bool:
        """Whether the tensors around a mark are of this layout, as far as names and dtypes tell."""
        return all(role in parts for role in cls.ends if role not in cls.optional)

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        """The rows from `start` to before `stop` of the weight, in float32."""
        raise NotImplementedError

    def decode(self, held: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The weight, rounded to `dtype` once."""
        return fill_rows(self.shape, self.grain, dtype, partial(self.rows, held))


def fill_rows(shape: Shape, grain: int, dtype: torch.dtype, rows: Callable[[int, int], Tensor]) -> Tensor:
    """Make a tensor of what `rows` gives in float32, as many at a time as there is room for: `grain` or a multiple."""
    made = torch.empty(shape, dtype=dtype)
    width = max(1, made[:1].numel())
    step = max(grain, ROOM // width // grain * grain)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        made[start:stop] = rows(start, stop)
    return made


def refuse(header: Header, fault: str, hint: str) -> CheckpointError:
    """The error of a tensor that cannot be read as its layout has it."""
    return CheckpointError(f"{header.file}: {header.name}: {fault} ({hint})")


# ---------------------------------------------------------------- scales and bits


def spread_blocks(scales: Tensor, shape: Shape, block: tuple[int, int]) -> Tensor:
    """Repeat the scale of each block over its values: [.., R, C] to [.., rows, columns] of `shape`.

    A matrix of 4 × 6 in blocks of 2 × 4 has 2 × 2 scales; its scale at (3, 5) is the last. The blocks at the end may be
    cut off.
    """
    rows = scales.repeat_interleave(block[0], -2)[..., : shape[-2], :]
    return rows.repeat_interleave(block[1], -1)[..., : shape[-1]]


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """Unpack `count` numbers of `bits` bits from the int32 words of the last dimension: a stream that begins with the
    lowest bit of the first word. A number may lie in two words. [.., W] to int32 [.., count], from 0 on."""
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
    """Split bytes into two numbers of 4 bits each, the lower one first: [.., B] to int64 [.., 2 B]."""
    whole = packed.view(torch.uint8).to(torch.int64)
    return torch.stack([whole & 15, whole >> 4], -1).flatten(-2)
