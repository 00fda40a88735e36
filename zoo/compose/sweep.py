"""Read the Spec of every point of a sweep: each combination of the values that the overrides of one model sweep over.

Composing and reading a point takes some ten milliseconds, nearly all of it spent on interpolations. Points that differ
in numbers alone share them. So the first such point is composed once more with marks, unmistakable numbers, in place of
its own; wherever a mark ends up in the plain data of the Spec, the other points put their numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zoo import grammar
from zoo.compose.engine import IntervalSweep, Override
from zoo.compose.overrides import format_override, list_alternatives, parse_overrides
from zoo.compose.targets import Composer, spec_of_composed
from zoo.errors import ConfigError
from zoo.grammar.pattern import MOST_LAYERS
from zoo.model.tower import Topology

FEWEST = 3
"""How many points must be alike before composing one with marks pays off."""

MARK = 700_000_000_000_000
"""The first of the numbers that stand for others: beyond any dimension, and exact as a float, halves too."""

LAYERS, ANY_DEPTH = -1, "n_layers=*"
"""The key of the number of layers, and the override that stands for any. It has no mark: it is the length of the
pattern, not a number in the data."""


@dataclasses.dataclass
class Point:
    """One combination: its overrides, the values of those that vary, and the Spec or why there is none."""

    overrides: list[str]
    swept: dict[str, str]
    target: str = ""
    spec: Any = None
    faults: list[str] = dataclasses.field(default_factory=list)


def read_points(target: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Iterator[Point]:
    """Read every point of a sweep in Hydra's grammar (commas, range, choice, glob), the last key varying fastest.

    Raises ConfigError for a target at fault and for overrides that cannot be read; a point that makes no sense is
    given with its faults.
    """
    composer = Composer(target)
    lines, keys = _lines(overrides, composer)
    reader = _Reader(composer, lines)
    for line in lines:
        point = Point(list(line), {key: line[index].partition("=")[2] for index, key in keys.items()})
        try:
            point.spec = reader.spec(point.overrides)
        except ConfigError as error:
            point.faults = error.faults
        yield point


def _lines(overrides: Sequence[str], composer: Composer) -> tuple[list[tuple[str, ...]], dict[int, str]]:
    """List the overrides of each point, and the swept keys by their place among them."""
    faults: list[str] = []
    parsed = parse_overrides(overrides, faults, composer.repo)
    choices = [_values(each, faults) for each in parsed]
    if faults:
        raise ConfigError(*faults)
    keys = {i: each.get_key_element().lstrip("+") for i, each in enumerate(parsed) if each.is_sweep_override()}
    return list(itertools.product(*choices)), keys


def _values(override: Override, faults: list[str]) -> list[str]:
    """List the alternatives of one override; an interval has none that could be listed."""
    if isinstance(override.value(), IntervalSweep):
        faults.append(
            f"{format_override(override)}: an interval is for a sampler (name values, or range(start,stop,step))"
        )
    found = list_alternatives(override)
    if not found:
        faults.append(f"{format_override(override)}: sweeps over nothing (no choice goes by that)")
    return found


class _Reader:
    """Reads the Specs of points, from a marked tree where enough points are alike."""

    def __init__(self, composer: Composer, lines: Sequence[tuple[str, ...]]) -> None:
        self.composer = composer
        self.alike = Counter(_marked(line)[0] for line in lines)
        self.trees: dict[tuple[str, ...], Any] = {}
        self.held: set[tuple[str, ...]] = set()
        """Trees checked with a second number of layers."""

    def spec(self, line: list[str]) -> Any:
        """Read the Spec of a point. Raises ConfigError with its faults."""
        marked, numbers = _marked(line)
        tree = self.trees.get(marked)
        if tree is not None and (LAYERS not in numbers or marked in self.held):
            try:
                return Topology.parse(_filled(tree, numbers))
            except ValidationError:
                return self._composed(line)  # which says where the fault is
        spec = self._composed(line)
        if tree is not None and numbers[LAYERS] != len(tree["pattern"]):
            self.held.add(marked)
        if tree is None and numbers and marked not in self.trees and self.alike[marked] >= FEWEST:
            tree = self._tree(marked, numbers)
        if tree is not None:  # none where a number decides more than its own place
            self.trees[marked] = tree if Topology.parse(_filled(tree, numbers)) == spec else None
        return spec

    def _composed(self, line: Sequence[str]) -> Any:
        return spec_of_composed(self.composer.compose(list(line)))

    def _tree(self, marked: Sequence[str], numbers: Mapping[float, float]) -> Any:
        """Compose the plain data of a Spec with marks in it."""
        line = [f"n_layers={numbers[LAYERS]}" if override == ANY_DEPTH else override for override in marked]
        return grammar.to_tree(self.composer.compose(line).cfg)


def _marked(line: Sequence[str]) -> tuple[tuple[str, ...], dict[float, float]]:
    """Put marks in place of the numbers, and return the number of each mark: that of layers under `LAYERS`."""
    numbers: dict[float, float] = {}
    marked = []
    for index, override in enumerate(line):
        key, _, value = override.partition("=")
        number = _number(value)
        if key == "n_layers" and isinstance(number, int) and number <= MOST_LAYERS:  # more is refused when read
            numbers[LAYERS] = number
            override = ANY_DEPTH
        elif number is not None and key.rpartition(".")[2] != "n_layers":  # a tower's: it decides that tower's pattern
            mark = MARK + index if isinstance(number, int) else MARK + index + 0.5
            numbers[mark] = number
            override = f"{key}={mark!r}"
        marked.append(override)
    return tuple(marked), numbers


def _number(value: str) -> int | float | None:
    """Read a number above zero as Hydra's grammar does, or None; zero may stand for something of its own."""
    if value.isascii() and value.isdigit() and not value.startswith("0"):
        return int(value)
    whole, point, part = value.partition(".")
    return float(value) if point and (whole + part).isascii() and (whole + part).isdigit() and float(value) else None


def _filled(tree: Mapping[str, Any], numbers: Mapping[float, float]) -> dict[str, Any]:
    """Put the numbers in place of their marks, and repeat the layers as often as asked for, if they are all alike."""
    filled = _put(tree, numbers)
    if LAYERS in numbers and len(set(filled.get("pattern", ()))) == 1:
        filled["pattern"] = filled["pattern"][:1] * int(numbers[LAYERS])
    return filled


def _put(node: Any, numbers: Mapping[float, float]) -> Any:
    if isinstance(node, dict):
        return {key: _put(value, numbers) for key, value in node.items()}
    if isinstance(node, list):
        return [_put(value, numbers) for value in node]
    return numbers.get(node, node) if isinstance(node, int | float) else node
