"""Fields of configs in which some layers are run several times (Inkling 2 with a loop)."""

from __future__ import annotations

from zoo.families.expression import FUNCTIONS, Plain


def find_looped(layer: int, start: int, end: int, passes: int) -> int:
    """`looped(layer, start, end, passes)`: the number of the weights that a layer runs with, where the layers `start`
    to `end` - 1 are run so many times: of seven layers with two passes from 1 to 3 they are 0, 1, 2, 1, 2, 3, 4."""
    again = (passes - 1) * (end - start)
    if layer < end:
        return layer
    return start + (layer - start) % (end - start) if layer < end + again else layer - again


def find_pass(layer: int, start: int, end: int, passes: int) -> int | None:
    """`pass_of(layer, start, end, passes)`: the pass that a layer of a loop is in, counted from 0; None outside it."""
    inside = start <= layer < start + passes * (end - start)
    return (layer - start) // (end - start) if inside else None


FUNCTIONS |= {"looped": Plain(find_looped), "pass_of": Plain(find_pass)}
