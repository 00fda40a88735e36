"""Choose block sizes for flex_attention that fit into a GPU's shared memory.

torch chooses block sizes for the largest GPU of a generation. With wide heads, in float32, or on a consumer card such a
kernel may fail to start ("out of resource: shared memory"). In these cases smaller blocks are set here.
"""

from __future__ import annotations

SHARED = {
    **{(7, 0): 96, (7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99},
    **{(9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227, (12, 0): 99, (12, 1): 99},
}
"""KiB of shared memory for a thread block, by compute capability (CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability")."""

LEAST = 99
"""KiB of shared memory assumed for a GPU that is not in SHARED."""

TUNED = {"float32": 384, "bfloat16": 256, "float16": 256}
"""Maximum number of rows in all of torch's default blocks together, by dtype. A row is as wide as the widest head."""

DECODED = 80
"""Number of rows of keys and values in the shared memory of torch's decoding kernel. It also holds a row for each query
head of a group."""

SPARE = 16 * 1024
"""Bytes of shared memory reserved for biases and masks."""

EDGES = {"float32": (32, 16), "bfloat16": (64, 32, 16), "float16": (64, 32, 16)}
"""Block sizes in rows, by dtype, in the order they are tried. Triton needs at least 16; larger float32 blocks compile
slowly."""

FORWARD, BACKWARD = 2, 4
"""Number of blocks in shared memory at once: queries and keys (or values); in the backward pass also gradients."""


def too_large(dtype: str, widths: tuple[int, int], grad: bool, capability: tuple[int, int] | None) -> str | None:
    """Return why heads of these widths (keys, values) do not fit a GPU's shared memory; None if they do."""
    room = _room(capability)
    if _edge(dtype, widths, BACKWARD if grad else FORWARD, room):
        return None
    found = " and ".join(str(each) for each in dict.fromkeys(widths))
    what = f"heads of {found} channels in {dtype}" + (" with gradients" if grad else "")
    return f"flex_attention's least blocks for {what} are larger than the GPU's {room // 1024} KiB of shared memory"


def options(
    dtype: str, widths: tuple[int, int], group: int, one: bool, grad: bool, capability: tuple[int, int] | None
) -> dict[str, object]:
    """Choose flex_attention's `kernel_options` for heads of these widths (keys, values), `group` query heads per key
    head.

    torch has a second kernel for few queries, which holds all queries of a group at once and splits keys over thread
    blocks. It is used for decoding `one` query of one row. In all other cases it is disabled ("BACKEND": "TRITON"):
    with a hundred queries it takes minutes to compile and too much memory.
    """
    row, room = _row(dtype, widths), _room(capability)
    few = one and (max(round_to_power(group), 16) + DECODED) * row <= room
    chosen: dict[str, object] = {} if few else {"BACKEND": "TRITON"}
    if few or TUNED[dtype] * row <= room:
        return chosen
    forward, backward = (_edge(dtype, widths, blocks, room) for blocks in (FORWARD, BACKWARD))
    chosen |= {"num_stages": 1, "fwd_BLOCK_M": forward, "fwd_BLOCK_N": forward}
    if grad and backward:  # where it does not fit, `too_large` has refused the gradient
        chosen |= {f"bwd_BLOCK_{side}": backward for side in ("M1", "N1", "M2", "N2")}
    return chosen


def _edge(dtype: str, widths: tuple[int, int], blocks: int, room: int) -> int:
    """Return the largest block size in rows with which `blocks` blocks fit into `room` bytes, or 0 if none fits."""
    row = _row(dtype, widths)
    return next((rows for rows in EDGES[dtype] if blocks * rows * row + SPARE <= room), 0)


def _row(dtype: str, widths: tuple[int, int]) -> int:
    """Return the bytes of a row of the widest head, which triton pads to a power of two."""
    return round_to_power(max(widths)) * (4 if dtype == "float32" else 2)


def round_to_power(number: int) -> int:
    """Round up to a power of two: 5 → 8."""
    return 1 << (number - 1).bit_length()


def _room(capability: tuple[int, int] | None) -> int:
    return 1024 * SHARED.get(capability or (0, 0), LEAST)
