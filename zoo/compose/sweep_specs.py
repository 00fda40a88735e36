"""Read the Spec of every point of a sweep: one for each combination of the swept values of one model.

Composing takes most of a point's time, and a number in an override usually changes only the value at its key. Therefore
points that differ only in numbers are composed once, and the numbers are replaced.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from zoo.compose.composing import Composed
from zoo.compose.hydra_engine import IntervalSweep, Override
from zoo.compose.overrides import format_override, list_alternatives, parse_overrides
from zoo.compose.targets import Composer, note_idle, spec_of_composed
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.model.decoder import Decoder

DIGITS = 20
"""Maximum number of characters of a number that is replaced directly. Longer numbers are composed by Hydra."""


@dataclasses.dataclass
class Point:
    """One combination of a sweep: overrides, swept values by key, the Spec or the faults, and lines about unused
    settings."""

    overrides: list[str]
    swept: dict[str, str]
    target: str = ""
    spec: Decoder | None = None
    faults: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)


def read_points(target: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Iterator[Point]:
    """Yield every point of a sweep in Hydra's grammar (commas, range, choice, glob), the last key varying fastest.

    Raises ConfigError for a faulty target and for unreadable overrides. An invalid point is yielded with its faults.
    """
    composer = Composer(target)
    lines, keys = _lines(overrides, composer)
    reader = _Reader(composer, frozenset(keys.values()))
    for line in lines:
        point = Point(list(line), {key: line[index].partition("=")[2] for index, key in keys.items()})
        try:
            point.spec, point.left_out = reader.read(point.overrides)
        except ConfigError as error:
            point.faults = error.faults
        yield point


def _lines(overrides: Sequence[str], composer: Composer) -> tuple[list[tuple[str, ...]], dict[int, str]]:
    """List the overrides of each point, and map the indices of swept overrides to their keys."""
    faults: list[str] = []
    parsed = parse_overrides(overrides, faults, composer.repo)
    choices = [_values(each, faults) for each in parsed]
    if faults:
        raise ConfigError(*faults)
    keys = {i: each.get_key_element().lstrip("+") for i, each in enumerate(parsed) if each.is_sweep_override()}
    return list(itertools.product(*choices)), keys


def _values(override: Override, faults: list[str]) -> list[str]:
    """List the alternatives of an override. Intervals, which have no list, and empty sweeps are added to `faults`."""
    if isinstance(override.value(), IntervalSweep):
        faults.append(
            f"{format_override(override)}: an interval is for a sampler (name values, or range(start,stop,step))"
        )
    found = list_alternatives(override)
    if not found:
        faults.append(f"{format_override(override)}: sweeps over nothing (no choice goes by that)")
    return found


class _Reader:
    """Reader of points' Specs. Among points that differ only in numbers, the first is composed and the others reuse its
    config."""

    def __init__(self, composer: Composer, varied: frozenset[str]) -> None:
        self.composer, self.varied = composer, varied
        self.alike: dict[tuple[str, ...], Composed | None] = {}
        """Composed configs by the overrides without their numbers. None if a number changes more than the value at its
        key; then each point is composed."""

    def read(self, line: Sequence[str]) -> tuple[Decoder, list[str]]:
        """Return the Spec of a point, and lines about unused settings. Raises ConfigError with the point's faults."""
        numbers = {key: number for key, _, value in map(_split, line) if (number := _number(value)) is not None}
        shape = tuple(key if key in numbers else text for key, text, _ in map(_split, line))
        if (first := self.alike.get(shape)) is not None:
            body: Any = functools.reduce(_put, numbers.items(), first.cfg)
            return spec_of_composed(dataclasses.replace(first, cfg=body, typed=list(line))), []
        made = self.composer.compose(list(line), self.varied)
        spec = spec_of_composed(
            dataclasses.replace(made, touched=[each for each in made.touched if each in self.varied])
        )
        made.left_out += note_idle(made, self.varied)
        if shape not in self.alike:
            body = OmegaConf.to_container(made.cfg, resolve=False)
            own = not made.left_out and functools.reduce(_put, numbers.items(), body) == body
            self.alike[shape] = dataclasses.replace(made, cfg=body) if own else None
        return spec, made.left_out


def _split(override: str) -> tuple[str, str, str]:
    """Split an override into key, whole text and value."""
    key, _, value = override.partition("=")
    return key.lstrip("+"), override, value


def _number(value: str) -> int | float | None:
    """Parse a number as Hydra's grammar does. None if it is no number."""
    whole, point, part = value.partition(".")
    if not (whole + part).isascii() or not (whole + part).isdigit() or len(value) > DIGITS:
        return None
    return float(value) if point else None if value != "0" and value.startswith("0") else int(value)


def _put(node: object, place: tuple[str, Any]) -> Any:
    """Copy a mapping with the value at a dotted key replaced. None if the key does not exist."""
    key, _, rest = place[0].partition(".")
    if not isinstance(node, dict) or key not in node:
        return None
    return {**node, key: _put(node[key], (rest, place[1])) if rest else place[1]}
