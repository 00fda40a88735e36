"""Convert tensors of a published file ("theirs") to our model's ("ours") and back.

An Entry is a row of a family's name map (mapping.py) at one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from zoo.lazy import Tensor, torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """Some of our tensors, the tensors of a file that hold the same values, and the steps from theirs to ours."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shapes: tuple[Shape, ...]  # of ours
    steps: tuple[TensorStep, ...]
    stacked: bool  # ours is a stack of theirs
    experts: bool  # ours has experts along its first dimension
    segments: tuple[int, ...] = ()  # rows of ours that each of theirs holds, if several of theirs are concatenated

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """Convert their tensors to ours."""
        for step in self.steps:
            theirs = step.read(list(theirs), self) if step.apart else theirs
        several = torch.stack if self.stacked else torch.cat
        whole = [several(list(theirs))] if self.stacked or self.segments else list(theirs)
        for step in self.steps:
            whole = whole if step.apart else step.read(whole, self)
        return whole

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """Convert our tensors to theirs."""
        parts = list(ours)
        for step in reversed(self.steps):
            parts = parts if step.apart else step.write(parts, self)
        if self.segments:
            parts = list(parts[0].split(self.segments))
        parts = list(parts[0].unbind(0)) if self.stacked else parts
        for step in reversed(self.steps):
            parts = step.write(parts, self) if step.apart else parts
        return parts

    def name_theirs(self, ours: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield name and value of each of their tensors, converted from ours."""
        yield from zip(self.theirs, self.to_theirs([ours[name] for name in self.ours]), strict=True)

    @property
    def axis(self) -> int:
        """The index of a weight's output dimension: 1 in stacked experts [E, d_out, d_in], else 0."""
        return 1 if self.experts else 0

    def shapes_of_theirs(self) -> Iterator[tuple[str, Shape]]:
        """Yield name and shape of each of their tensors, found by converting ours on the meta device."""
        forms = {name: torch.empty(shape, device="meta") for name, shape in zip(self.ours, self.shapes, strict=True)}
        yield from ((name, tuple(tensor.shape)) for name, tensor in self.name_theirs(forms))


@dataclass(frozen=True)
class TensorStep:
    """One conversion of tensors and its inverse. `number` or `numbers` is the step's argument in the name map. With
    `apart`, the step converts each tensor of the file before they are concatenated or stacked."""

    number: int = 0
    numbers: tuple[int, ...] = ()
    apart: bool = False

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        """Convert from the file's layout to ours."""
        raise NotImplementedError

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        """Convert from our layout to the file's."""
        raise NotImplementedError


class Rows(TensorStep):
    """`rows`: their tensor is our tensors concatenated along the outputs."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return list(tensors[0].split([shape[entry.axis] for shape in entry.shapes], entry.axis))

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [torch.cat(tensors, entry.axis)]


class Apart(TensorStep):
    """`apart([n, m])`: their tensors are the first n rows of our tensor and the next m rows."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [torch.cat(tensors)]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return list(tensors[0].split(self.numbers))


class Shards(Apart):
    """`shards(n)`: their tensors are at most n chunks of our rows, by `torch.chunk` (the last may be shorter)."""

    def count(self, rows: int) -> int:
        return -(-rows // -(-rows // self.number))

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return list(tensors[0].chunk(self.number))


class Groups(TensorStep):
    """`groups(n)`: their outputs form n groups (usually heads). Each group has 1/n of each of our tensors, in order."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        axis, count = entry.axis, self.number
        whole = tensors[0].unflatten(axis, (count, -1))
        sizes = [shape[axis] // count for shape in entry.shapes]
        return [part.flatten(axis, axis + 1) for part in whole.split(sizes, axis + 1)]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        axis, count = entry.axis, self.number
        parts = [part.unflatten(axis, (count, -1)) for part in tensors]
        return [torch.cat(parts, axis + 1).flatten(axis, axis + 1)]


class Transpose(TensorStep):
    """`turn`: their weight is transposed, [in, out]."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.transpose(-1, -2) if each.ndim - entry.axis > 1 else each for each in tensors]

    write = read


class Flat(TensorStep):
    """`flat`: their tensor is our tensor, flattened."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.reshape(shape) for each, shape in zip(tensors, entry.shapes, strict=True)]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.flatten() for each in tensors]


class Merged(TensorStep):
    """`merged`: their tensor is our tensor with the first two dimensions (experts, outputs) flattened to one."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unflatten(0, (shape[0], -1)) for each, shape in zip(tensors, entry.shapes, strict=True)]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.flatten(0, 1) for each in tensors]


class Tiled(TensorStep):
    """`tiled([k, v, d])`: the last v·d rows are v heads of d rows in k groups. Our heads are ordered group by group;
    their tensor has the first head of each group, then the second of each.

    For four heads in two groups, their order is our heads 0, 2, 1, 3.
    """

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        groups, heads, width = self.numbers
        return [self._turn(each, (heads // groups, groups), heads * width) for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        groups, heads, width = self.numbers
        return [self._turn(each, (groups, heads // groups), heads * width) for each in tensors]

    def _turn(self, tensor: Tensor, grid: tuple[int, int], rows: int) -> Tensor:
        before, tiles = tensor.split([tensor.shape[0] - rows, rows])
        return torch.cat([before, tiles.unflatten(0, (*grid, -1)).transpose(0, 1).flatten(0, 2)])


class Ends(TensorStep):
    """`ends`: n tensors [4, D] are two [2n, D] in the file: rows 0 and 3 of each in one, rows 1 and 2 in the other."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        ends, between = (each.unflatten(0, (-1, 2)) for each in tensors)
        return list(torch.cat([ends[:, :1], between, ends[:, 1:]], 1).unbind(0))

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        whole = torch.stack(tensors)
        return [whole[:, [0, 3]].flatten(0, 1), whole[:, 1:3].flatten(0, 1)]


@dataclass(frozen=True)
class EachStep(TensorStep):
    """A step listed in EACH, which converts each tensor independently."""

    name: str = ""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [EACH[self.name][0](each, self.number) for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [EACH[self.name][1](each, self.number) for each in tensors]


Conversion = Callable[["Tensor", int], "Tensor"]

EACH: dict[str, tuple[Conversion, Conversion]] = {
    # Theirs is a matrix of one row (or one column), ours a vector.
    "row": (lambda t, n: t.squeeze(0), lambda t, n: t.unsqueeze(0)),
    "column": (lambda t, n: t.squeeze(1), lambda t, n: t.unsqueeze(1)),
    # Ours is a vector [n], theirs [1, 1, n, 1].
    "third": (lambda t, n: t.flatten(), lambda t, n: t[None, None, :, None]),
    # `ones(n)`: theirs has n more trailing dimensions of size 1.
    "ones": (lambda t, n: t.flatten(-1 - n), lambda t, n: t[(..., *[None] * n)]),
    # `folded(n)`: our first dimension is two in theirs, [n, size / n].
    "folded": (lambda t, n: t.flatten(0, 1), lambda t, n: t.unflatten(0, (n, -1))),
    # `heads(n)`: our last dimension is two in theirs, [n heads, channels of a head].
    "heads": (lambda t, n: t.flatten(-2), lambda t, n: t.unflatten(-1, (n, -1))),
    # `pairs(n)`: in each of n heads, their outputs are ordered for interleaved rotary embedding, ours for half-split.
    # For a head of six outputs, their order is our outputs 0, 3, 1, 4, 2, 5.
    "pairs": (
        lambda t, n: t.unflatten(0, (n, -1, 2)).transpose(1, 2).flatten(0, 2),
        lambda t, n: t.unflatten(0, (n, 2, -1)).transpose(1, 2).flatten(0, 2),
    ),
    # `plus(n)`: their values are ours plus n.
    "plus": (lambda t, n: t - n, lambda t, n: t + n),
    # Theirs is the decay A of a state space model, ours ln(-A).
    "decay": (lambda t, n: t.neg().log(), lambda t, n: t.exp().neg()),
    # A depthwise convolution is [channels, width] in theirs, [channels, 1, width] in ours.
    "depthwise": (lambda t, n: t.unsqueeze(1) if t.ndim > 1 else t, lambda t, n: t.squeeze(1) if t.ndim > 1 else t),
    # A convolution is [width, channels] in theirs, the current token's weight first; ours is [channels, 1, width], with
    # the current token's weight last.
    "lags": (lambda t, n: t.mT.flip(-1).unsqueeze(1), lambda t, n: t.squeeze(1).flip(-1).mT),
    # `blocks(n)`: a block-diagonal product. Theirs has a weight [n, in, out] and a bias [n, out]; ours is a convolution
    # of width 1 in n groups, [n·out, in, 1] and [n·out].
    "blocks": (
        lambda t, n: t.mT.flatten(0, 1)[..., None] if t.ndim == 3 else t.flatten(),
        lambda t, n: t.unflatten(0, (n, -1)).squeeze(-1).mT if t.ndim == 3 else t.unflatten(0, (n, -1)),
    ),
}
"""Steps that convert each tensor independently: (theirs to ours, ours to theirs), functions of tensor and number."""

STEPS: dict[str, Callable[..., TensorStep]] = {
    **{"rows": Rows, "apart": Apart, "shards": Shards, "groups": Groups, "turn": Transpose, "flat": Flat},
    **{"merged": Merged, "tiled": Tiled, "ends": Ends},
    **{name: partial(EachStep, name=name, apart=name == "lags") for name in EACH},
}
