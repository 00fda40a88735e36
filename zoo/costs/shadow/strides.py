# shapes here are any
"""Compute the shapes and strides of views, of broadcast operands and of elementwise results, as torch does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Shape = tuple[int, ...]


def dense_strides(shape: Sequence[int]) -> Shape:
    """Compute the strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def broadcast(*shapes: Shape) -> Shape:
    """Broadcast shapes. Raises ValueError if they do not match."""
    width = max(map(len, shapes))
    padded = [(1,) * (width - len(shape)) + tuple(shape) for shape in shapes]
    found = tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))
    if any(size not in (1, want) for shape in padded for size, want in zip(shape, found, strict=True)):
        raise ValueError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
    return found


def broadcast_strides(strides: Shape, shape: Shape, wanted: Shape) -> Shape:
    """Compute the strides of a tensor of `shape` that is expanded to the shape `wanted`."""
    lead = len(wanted) - len(shape)
    own = [
        0 if size == 1 and want != 1 else step for size, want, step in zip(shape, wanted[lead:], strides, strict=True)
    ]
    return (0,) * lead + tuple(own)


def elementwise_strides(shape: Shape, operands: Sequence[Any]) -> Shape:
    """Compute an elementwise result's strides. Its dimensions have the order of the first operand that has the result's
    shape. If that operand is expanded, or there is none, the result is contiguous."""
    for each in operands:
        if each.shape == shape:
            order = sorted(range(len(shape)), key=lambda dim: (-each.strides[dim], dim))
            strides, step = [0] * len(shape), 1
            for dim in reversed(order):
                strides[dim] = step
                step *= shape[dim]
            return tuple(strides) if 0 not in each.strides else dense_strides(shape)
    return dense_strides(shape)


def flat_sizes(sizes: tuple[Any, ...]) -> Shape:
    """Return the sizes of a call such as `view(2, 3)` or `view((2, 3))`."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def sizes_of(shape: Sequence[int], count: int) -> Shape:
    """Replace -1 in a shape by the size that gives `count` values. Raises ValueError if no size does."""
    if -1 not in shape:
        if math.prod(shape) != count:
            raise ValueError(f"{count} values do not make a shape {tuple(shape)}")
        return tuple(shape)
    known = math.prod(size for size in shape if size != -1)
    if count % max(known, 1):
        raise ValueError(f"{count} values do not make a shape {tuple(shape)}")
    return tuple(count // max(known, 1) if size == -1 else size for size in shape)


def view_strides(shape: Shape, strides: Shape, wanted: Shape) -> Shape | None:
    """Compute the strides of a view of shape `wanted`; None if only a copy can have this shape.

    As torch's computeStride: only dimensions that are contiguous with each other may be merged and split.
    """
    if not math.prod(shape):
        return dense_strides(wanted)
    found: list[int] = [0] * len(wanted)
    at = len(wanted) - 1
    last, run, asked = (strides[-1] if strides else 1), 1, 1
    for dim in range(len(shape) - 1, -1, -1):
        run *= shape[dim]
        ends = dim == 0 or (shape[dim - 1] != 1 and strides[dim - 1] != run * last)
        if not ends:
            continue
        while at >= 0 and (asked < run or wanted[at] == 1):
            found[at] = asked * last
            asked *= wanted[at]
            at -= 1
        if asked != run:
            return None
        if dim:
            last, run, asked = strides[dim - 1], 1, 1
    while at >= 0:
        found[at] = last
        at -= 1
    return tuple(found)
