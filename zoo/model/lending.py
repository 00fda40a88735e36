"""Share tensors between layers: keys and values (Brandon et al., 2024, cross-layer attention), values of the first
layer (Peng et al., 2025), depth averages of routers (Zyphra, 2026), the result of a loop's previous pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.model.mlp_router import MLPTopK

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights
    from zoo.model.tower import Tower


def find_sources(blocks: Mapping[str, Any], pattern: Sequence[str]) -> dict[int, int]:
    """Find the layer that each layer takes its keys and values from: the last one before it of the kind that its
    attention names. Those that take none, or whose source is missing, are left out.

    With `shared` taking from `full`, the pattern full, shared, near, full, shared gives {1: 0, 4: 3}.
    """
    lenders = {name: block.attention.lender for name, block in blocks.items() if block.attention.lender is not None}
    last: dict[str, int] = {}
    found = {}
    for index, name in enumerate(pattern) if lenders else ():
        if lenders.get(name) in last:
            found[index] = last[lenders[name]]
        last[name] = index
    return found


def find_lending_faults(blocks: Mapping[str, Any], pattern: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each kind of layer that cannot take the keys and values that its attention names, and why."""
    sources = find_sources(blocks, pattern)
    for name, block in blocks.items():
        lender = block.attention.lender
        if lender is None:
            continue
        places = [index for index, each in enumerate(pattern) if each == name]
        if lender not in blocks:
            yield name, f"is {lender!r}, and the kinds of layer are: {', '.join(blocks)} (one of them)"
        elif any(index not in sources for index in places):
            first = next(index for index in places if index not in sources)
            yield name, f"is {lender!r}, and no layer before layer {first} is of that kind (a pattern with one)"
        elif blocks[lender].attention.kind != block.attention.kind or blocks[lender].attention.lender is not None:
            yield name, f"is {lender!r}, whose layers make none of their own by head (a kind that does)"
        else:
            theirs, own = blocks[lender].attention, block.attention
            differ = [each for each in own.lent_alike if getattr(theirs, each) != getattr(own, each)]
            if differ:
                which = ", ".join(differ)
                yield name, f"is {lender!r}, whose layers have other {which}, and they are read as they are (the same)"


def find_averager(block: Any) -> MLPTopK | None:
    """Find a layer's router that makes a depth average for those of later layers; None where it has no such."""
    router = getattr(getattr(block, "ffn", None), "router", None)
    return router if isinstance(router, MLPTopK) else None


def takes_average(block: Any) -> bool:
    """Tell whether a layer's router reads the depth average of an earlier one."""
    router = find_averager(block)
    return router is not None and router.depth_average


def find_average_faults(blocks: Mapping[str, Any], pattern: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each kind of layer whose router has no earlier one's depth average to read, and why."""
    faults: dict[str, str] = {}
    width = 0
    routers = {name: find_averager(block) for name, block in blocks.items()}
    for index, name in enumerate(pattern if any(routers.values()) else ()):
        router = routers[name]
        if router is None:
            continue
        if router.depth_average and not width:
            found = f"is true, and no layer before layer {index} has a router that makes a depth average"
            faults.setdefault(name, f"{found} (false in the first such layer)")
        elif router.depth_average and width != router.d_router:
            found = f"is true, and the router before layer {index} is {width} wide, its own {router.d_router}"
            faults.setdefault(name, f"{found} (one d_router)")
        width = router.d_router
    yield from faults.items()


class Lending:
    """Everything that the layers of one pass get besides the stream: keys and values of earlier layers, sums of earlier
    groups of layers, the depth average of the last router that made one, inputs that the embedding made for each, the
    first layer's input (`embedded`), for those that read it, and the result of a loop's previous pass."""

    def __init__(
        self, tower: Tower, m: Weights, inputs: Sequence[Tensor] | None = None, embedded: Tensor | None = None
    ) -> None:
        blocks, pattern = tower.blocks, tower.pattern
        self._embedded = embedded if any(block.reads_embedding for block in blocks.values()) else None
        self.sources = find_sources(blocks, pattern)
        self._last = {source: index for index, source in self.sources.items()}  # the last layer that reads each
        self._inputs = inputs
        self._lent: dict[int, tuple[Tensor, ...] | None] = {}
        takers = {name for name, block in blocks.items() if takes_average(block)}
        self._averaging = [name in takers for name in pattern] if takers else []
        self._average: Tensor | None = None
        self.earlier: Tensor | None = None  # B T S D, sums of the groups of layers that have ended
        self._rounds = None if tower.loop is None else tower.loop.follow(m.loop)
        self._told = tower.loop is None and any(block.gate is not None for block in blocks.values())

    def open(self, index: int, step: Step, x: Tensor) -> Tensor:
        """Give a layer's step what it takes, before the layer is run on what is returned: x, the last one's output, or
        what a loop puts in its place."""
        if self._rounds is not None:
            x, self.earlier = self._rounds.enter(index, x, self.earlier)
            step.passed, step.passed_earlier = self._rounds.passed or (None, None)
        elif self._told:  # a tower that is priced with a layer of each kind, and has no pass before
            step.passed = x
        step.given = None if self._inputs is None else self._inputs[index]
        step.embedded = self._embedded
        if index in self.sources:
            step.taken = self._lent[self.sources[index]]
        step.lends = index in self._last
        if self._averaging and self._averaging[index]:
            step.taken_average = self._average
        step.earlier = self.earlier
        return x

    def close(self, index: int, step: Step) -> None:
        """Keep what later layers take, once a layer has run, and let go what none takes any more."""
        if step.lends:
            self._lent[index] = step.lent
        if step.lent_average is not None:
            self._average = step.lent_average
        if step.lent_earlier is not None:
            self.earlier = step.lent_earlier
        source = self.sources.get(index)
        if source is not None and self._last[source] == index:
            del self._lent[source]
