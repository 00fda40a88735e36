"""How many rows flex_attention's blocks may have, so that a GPU's shared memory holds them.

Torch has one choice of blocks for a generation of GPUs, made on its largest: for wide heads, in float32, or on a card
for desks, what it compiles may not start ("out of resource: shared memory"). Here it is told of smaller ones then.
"""

from __future__ import annotations

from typing import Any

SHARED = {
    **{(7, 0): 96, (7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99},
    **{(9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227, (12, 0): 99, (12, 1): 99},
}
"""KiB of shared memory that a thread block may have, by compute capability (CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability")."""

LEAST = 99
"""The same of a GPU that is not in SHARED."""

TUNED = {"float32": 384, "bfloat16": 256, "float16": 256}
"""Rows as long as the widest head that torch's own blocks hold together, at most."""

DECODED = 80
"""Rows of keys and values that its kernel for one query holds, beside those of the query's heads."""

SPARE = 16 * 1024
"""Bytes that biases and masks take."""

EDGES = {"float32": (32, 16), "bfloat16": (64, 32, 16), "float16": (64, 32, 16)}
"""Rows of a block, the largest first; triton multiplies no fewer than 16. Larger ones of float32 compile for long."""

FORWARD, BACKWARD = 2, 4
"""Blocks that lie in shared memory at once: of queries and of keys or values; those and their gradients."""


def too_large(dtype: str, widths: tuple[int, int], grad: bool, capability: tuple[int, int] | None) -> str | None:
    """Why heads of these widths cannot be had on a GPU of this compute capability, or None."""
    room = _room(capability)
    if _edge(dtype, widths, BACKWARD if grad else FORWARD, room):
        return None
    found = " and ".join(str(each) for each in dict.fromkeys(widths))
    what = f"heads of {found} channels in {dtype}" + (" with gradients" if grad else "")
    return f"flex_attention's least blocks for {what} are larger than the GPU's {room // 1024} KiB of shared memory"


def options(
    dtype: str, widths: tuple[int, int], group: int, one: bool, grad: bool, capability: tuple[int, int] | None
) -> dict[str, Any]:
    """flex_attention's `kernel_options`, for heads of these widths, `group` of them to a head of keys.

    Torch has a second kernel, for one row of few queries, that holds all of a group's at once. For `one` query it
    splits the keys, which is what decoding needs; for a hundred it takes minutes to compile and more memory than there
    is.
    """
    row, room = _row(dtype, widths), _room(capability)
    few = one and (max(_power(group), 16) + DECODED) * row <= room
    chosen: dict[str, Any] = {} if few else {"BACKEND": "TRITON"}
    if few or TUNED[dtype] * row <= room:
        return chosen
    forward, backward = (_edge(dtype, widths, blocks, room) for blocks in (FORWARD, BACKWARD))
    chosen |= {"num_stages": 1, "fwd_BLOCK_M": forward, "fwd_BLOCK_N": forward}
    if grad and backward:  # where there is no room for it, no gradient is asked for
        chosen |= {f"bwd_BLOCK_{side}": backward for side in ("M1", "N1", "M2", "N2")}
    return chosen


def _edge(dtype: str, widths: tuple[int, int], blocks: int, room: int) -> int:
    """The most rows that so many blocks can each have, or 0 where there is no room for the least."""
    row = _row(dtype, widths)
    return next((rows for rows in EDGES[dtype] if blocks * rows * row + SPARE <= room), 0)


def _row(dtype: str, widths: tuple[int, int]) -> int:
    """Bytes of a row of the widest head, which triton fills up to a power of two."""
    return _power(max(widths)) * (4 if dtype == "float32" else 2)


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _room(capability: tuple[int, int] | None) -> int:
    return 1024 * SHARED.get(capability or (0, 0), LEAST)
