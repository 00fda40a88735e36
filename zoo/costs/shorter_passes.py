"""Extrapolate the bytes of a long pass from traces of shorter ones, for mixers that loop over parts of a sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from zoo.model.attention.base import Attention
from zoo.model.tower import Tower

Shape = TypeVar("Shape", bound=Any)
Value = TypeVar("Value")

SPAN, FEW = 64, 4
"""SPAN: tokens of a span in Mamba (`zoo.model.attention.mamba`). FEW: whole strides in the shortest trace
(`trace_shorter`). From that length on a layer's peak grows by the same formula, so that it can be extrapolated."""


def list_looping(towers: Iterable[Tower]) -> list[Attention]:
    """List the mixers that loop over the parts of a long sequence."""
    mixers = (block.attention for tower in towers for block in tower.blocks.values())
    return [mixer for mixer in mixers if mixer.passes.loops]


def trace_shorter(
    towers: Iterable[Tower], run: Shape, trace: Callable[[Shape], Value]
) -> tuple[list[Value], int] | None:
    """Trace a pass at two or three shorter lengths, one stride apart, for `extrapolate`. Return the traces, and the
    number of strides from the first length to the whole. Return None for a short pass, or if no mixer loops.

    A stride is a whole number of iterations of every mixer's loop. Two traces are enough if bytes are linear in length
    (recurrent mixers); three are needed if they may be quadratic (a looping mixer with softmax attention, whose scores
    may be saved).
    """
    looping = list_looping(towers)
    stride = math.lcm(SPAN, *(getattr(mixer, "chunk_size", None) or SPAN for mixer in looping))
    if not looping or run.context < 2 * FEW * stride:
        return None
    near = run.context % stride + FEW * stride
    count = 3 if any(mixer.cache() for mixer in looping) else 2
    traces = [trace(run._replace(context=near + each * stride)) for each in range(count)]
    return traces, (run.context - near) // stride


def extrapolate(figures: list[int], far: int) -> int:
    """Extrapolate a figure to `far` strides after the first of `figures`, which are one stride apart: linearly from two
    figures, quadratically from three."""
    first, second, *third = figures
    bend = third[0] - 2 * second + first if third else 0
    return first + far * (second - first) + far * (far - 1) // 2 * bend
