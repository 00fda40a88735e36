"""Read fields of configs in which some layers are run several times (Inkling 2 with a loop)."""

from __future__ import annotations

from zoo.families.expression import FUNCTIONS, PlainFunction


def find_looped(layer: int, start: int, end: int, passes: int) -> int:
    """`looped(layer, start, end, passes)`: the index of a layer's weights in a model that runs layers `start` to `end`
    - 1 `passes` times. With start 1, end 3 and 2 passes, seven layers have the indices 0, 1, 2, 1, 2, 3, 4."""
    again = (passes - 1) * (end - start)
    if layer < end:
        return layer
    return start + (layer - start) % (end - start) if layer < end + again else layer - again


def find_pass(layer: int, start: int, end: int, passes: int) -> int | None:
    """`pass_of(layer, start, end, passes)`: the pass of the loop to which a layer belongs, from 0; None for a layer
    outside the loop."""
    inside = start <= layer < start + passes * (end - start)
    return (layer - start) // (end - start) if inside else None


FUNCTIONS |= {"looped": PlainFunction(find_looped), "pass_of": PlainFunction(find_pass)}
