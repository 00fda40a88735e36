"""Place the nodes of a layer. A node's row is its longest path from the input; parallel chains get their own
columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo.drawing.wiring import STREAM, Junction


@dataclass(frozen=True)
class NodePlace:
    """The position of a node: its row, from 0 at the layer's input, and its column, from 0 for the main chain."""

    row: int
    column: int


def add_outside(nodes: Sequence[Junction]) -> list[Junction]:
    """Add a node for each value that is read from outside the layer. The new node has no sources."""
    found: list[Junction] = list(nodes)
    for at, node in enumerate(nodes):
        sources: list[int | str] = []
        for source in node.sources:
            if isinstance(source, str) and source != STREAM:
                found.append(Junction(len(found), sign=source))
                source = len(found) - 1
            sources.append(source)
        found[at] = Junction(node.number, node.part, node.sign, tuple(sources))
    return found


def place_nodes(nodes: Sequence[Junction], weights: Mapping[int, float], last: int) -> dict[int, NodePlace]:
    """Place every node. The main chain, in column 0, is the heaviest path from the input to the node `last`. Each other
    chain gets a column that is free in its rows. A value from outside the layer is in its reader's row."""
    rows = {number: int(count) - 1 for number, count in _weigh_ways(nodes, dict.fromkeys(weights, 1.0)).items()}
    readers = {node.number: [each.number for each in nodes if node.number in each.sources] for node in nodes}
    for node in nodes:
        if not node.sources:
            rows[node.number] = rows[readers[node.number][0]]
    ways = _weigh_ways(nodes, weights)
    by_number = {node.number: node for node in nodes}
    spots = {number: NodePlace(rows[number], 0) for number in _follow(by_number, ways, last, set())}
    taken: list[list[tuple[float, float]]] = []
    inner = [node for node in nodes if node.sources]
    for node in (*reversed(inner), *(each for each in nodes if not each.sources)):
        if node.number in spots:
            continue
        shared = {number for number, each in readers.items() if len(each) > 1}
        branch = _follow(by_number, ways, node.number, set(spots) | shared)
        sources = [each for number in branch for each in by_number[number].sources]
        after = [0 if isinstance(each, str) else rows[each] + 1 for each in sources]
        low = min([rows[number] for number in branch] + after)
        high = max([rows[each] for each in readers[node.number]])
        column = 1 + _find_lane(taken, low, high + 1)
        spots |= {number: NodePlace(rows[number], column) for number in branch}
    return spots


def _weigh_ways(nodes: Sequence[Junction], weights: Mapping[int, float]) -> dict[int, float]:
    """Compute the weight of the heaviest path from the input to each node; 0 for a value from outside the layer."""
    ways: dict[int, float] = {}
    for node in sorted(nodes, key=lambda each: bool(each.sources)):
        before = max((ways[each] for each in node.sources if isinstance(each, int)), default=0.0)
        ways[node.number] = before + weights[node.number] if node.sources else 0.0
    return ways


def _follow(by_number: Mapping[int, Junction], ways: Mapping[int, float], end: int, placed: set[int]) -> list[int]:
    """Follow the heaviest path back from `end` to a node in `placed`. Values from outside the layer are skipped."""
    found = [end]
    while True:
        sources = (each for each in by_number[found[-1]].sources if isinstance(each, int) and by_number[each].sources)
        before = [each for each in sources if each not in placed]
        if not before:
            return found
        found.append(max(before, key=lambda each: (ways[each], -each)))


def _find_lane(taken: list[list[tuple[float, float]]], low: float, high: float) -> int:
    """Find the first lane that is free from `low` to `high`, or else a new one, and mark it as taken there."""
    free = (at for at, held in enumerate(taken) if all(high <= first or last <= low for first, last in held))
    lane = next(free, len(taken))
    if lane == len(taken):
        taken.append([])
    taken[lane].append((low, high))
    return lane


def assign_lanes(spans: Sequence[tuple[float, float]]) -> list[int]:
    """Assign a lane to each span of rows, short spans first. Spans in one lane do not overlap."""
    lanes: list[list[tuple[float, float]]] = []
    found = [0] * len(spans)
    for at in sorted(range(len(spans)), key=lambda each: (spans[each][1] - spans[each][0], spans[each])):
        found[at] = _find_lane(lanes, *spans[at])
    return found
