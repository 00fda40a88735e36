"""Channels: values that layers of a forward pass hand to later layers in addition to the residual stream.

A channel is a class in the file of the component that uses it. Components name the channels that they read and give
(`Spec.takes`, `Spec.gives`). All other code treats channels alike: a tower hands their values from layer to layer,
pricing traces the values, and recorded steps replay them. A pipeline is not cut between the giver and the reader of a
value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from zoo.errors import ConfigError, name_options
from zoo.lazy import Tensor
from zoo.spec import Spec

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights
    from zoo.model.tower import Tower

Fault = tuple[tuple[str, ...], str]
"""A fault of a config: the path of a field, and a line about it."""


class Shadows(NamedTuple):
    """Arguments of `Channel.trace`, which makes shadows (tensors without values) to price activations. `kind` is the
    kind of layer that reads ("" after the last layer), x [B, T, D] the layer's input. `make(shape, dtype, name, grad)`
    makes a shadow. `given` has the values of this channel from kinds of layer traced before."""

    tower: Tower
    kind: str
    x: Any
    make: Callable[..., Any]
    given: Mapping[str, Any]


class Channel:
    """Values that some layers of a pass give and later layers read. An object serves one forward pass of one tower."""

    name: ClassVar[str] = ""
    staying: ClassVar[str] = ""
    """Reason why layers with this channel cannot be cut into a pipeline's stages, for the error message."""
    shared: ClassVar[bool] = False
    """Whether the channel's value exists before the first layer, so that no layer gives it."""
    ordered: ClassVar[bool] = False
    """Whether `trace` for a reader needs the given values. Pricing then traces the giving kinds of layer before the
    reading ones."""
    named: ClassVar[dict[str, type[Channel]]] = {}

    def __init_subclass__(cls, name: str = "") -> None:
        if name:  # empty in the copy that pricing makes to compute with shadows
            cls.name = name
            cls.named[name] = cls

    def __init__(self, tower: Tower, m: Weights, ids: Tensor, x: Tensor) -> None:
        """Begin a pass of a tower with weights m, for token ids [B, T], which are embedded as x [B, T, D]."""
        self.last: Any = None  # what a layer gave last

    def take(self, index: int) -> Any:
        """Return the value that layer `index` reads, by default the last value given; None before the first."""
        return self.last

    def wants(self, index: int) -> bool:
        """Whether a later layer reads the value that layer `index` gives; True by default."""
        return True

    def give(self, index: int, value: Any) -> None:
        """Store the value that layer `index` gave."""
        self.last = value

    @classmethod
    def lends(cls, tower: Tower, kind: str) -> bool:
        """Whether other layers read the values that layers of this kind give. Pricing then counts these values as
        kept."""
        return True

    @classmethod
    def trace(cls, at: Shadows) -> Any:
        """Make the shadow of the value that a layer reads."""
        raise NotImplementedError

    @classmethod
    def count_read(cls, tower: Tower) -> list[int]:
        """Count the values that each layer reads; the last item is for the component that `find_last_reader` finds.
        Empty if all layers of a kind read equally many values."""
        return []

    @classmethod
    def find_last_reader(cls, tower: Tower) -> Spec | None:
        """Find the component that reads the channel once more, after the last layer; None for none."""
        return None

    @classmethod
    def find_faults(cls, tower: Tower) -> Iterator[Fault]:
        """Yield the faults of a tower's layers in this channel, such as a reader without a giver."""
        yield from ()


class Uses(NamedTuple):
    """Names of a layer's channels: `reads` for reading, `gives` for writing if another layer reads the channel."""

    reads: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()


def list_uses(blocks: Mapping[str, Spec]) -> dict[str, Uses]:
    """List, for each kind of layer, the channels that its layers read and give to."""
    found = {kind: [*_walk(block)] for kind, block in blocks.items()}
    for part in (each for parts in found.values() for each in parts):
        if unknown := [name for name in (*part.takes, *part.gives) if name not in Channel.named]:
            would = name_options(unknown[0], Channel.named)
            raise ConfigError(
                f"{unknown[0]}: {part.axis} '{part.kind}' takes or gives this channel, and there is none{would}"
            )
    reads = {kind: {name for each in parts for name in each.takes} for kind, parts in found.items()}
    anywhere = {name for names in reads.values() for name in names}
    gives = {kind: {name for each in parts for name in each.gives} & anywhere for kind, parts in found.items()}
    return {kind: Uses(_sort(reads[kind]), _sort(gives[kind])) for kind in blocks}


def count_reads(tower: Tower) -> list[tuple[int, ...]]:
    """Count the values that each layer reads. A layer's tuple has a number for each channel from which layers of one
    kind read different numbers of values. Empty if there is no such channel."""
    counts = (Channel.named[name].count_read(tower)[:-1] for name in tower.channels)
    return list(zip(*filter(None, counts), strict=True))


def _sort(names: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in Channel.named if name in names)


def _walk(spec: Spec) -> Iterator[Spec]:
    yield spec
    for field in dataclasses.fields(spec):  # type: ignore[arg-type]  # also works on pricing's copies of classes
        if isinstance(value := getattr(spec, field.name), Spec):
            yield from _walk(value)


class Exchange:
    """All channels of one forward pass of a tower."""

    def __init__(self, tower: Tower, m: Weights, ids: Tensor, x: Tensor) -> None:
        self._uses = tower.uses
        self._open = {name: Channel.named[name](tower, m, ids, x) for name in tower.channels}

    def find(self, name: str) -> Any:
        """Find a channel by name; None if no layer reads it."""
        return self._open.get(name)

    def enter(self, index: int, kind: str, step: Step) -> None:
        """Set, on a layer's step, the values that the layer reads and the channels that it gives to."""
        reads, gives = self._uses[kind]
        # A layer of a loop's first pass reads no messages, although its weights are of a kind that does: None.
        step.taken = {name: self._open[name].take(index) if name in reads else None for name in self._open}
        step.gives = tuple(name for name in gives if self._open[name].wants(index))
        step.given = {}

    def leave(self, index: int, step: Step) -> None:
        """Store the values that a layer gave, once it has run. Raises ConfigError if it gave nothing in a channel."""
        if lacks := [name for name in step.gives if name not in step.given]:
            raise ConfigError(
                f"{lacks[0]}: a part of layer {index} names this channel in `gives`, and gives nothing in it"
            )
        for name, value in step.given.items():
            self._open[name].give(index, value)
