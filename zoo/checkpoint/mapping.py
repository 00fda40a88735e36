"""Map tensors of a published file to tensors of ours, by the rows of a family's `keys`.

    blocks.#.attention.o: ~layers.#.self_attn.o_proj           one module: its weight, and its bias where it has one
    blocks.#.attention.{q,k,v}: ~h.#.attn.c_attn | turn, rows  several of ours fused in one of theirs
    blocks.#.ffn.experts.gate: ~layers.#.experts.@.w1          one of ours stacked from several of theirs
    blocks.#.attention.conv: ~layers.#.q_conv + ~layers.#.v_conv   one of ours, its `segments` apart in theirs
    blocks.#(moe).ffn_norm: …                                  only in layers of the family's kind `moe`
    embedding.tokens: ="~shared" if tied else "~embed_tokens"  depends on the config; None where there is no such row
    head.out.bias ?head.out.weight: …                          only where the model has that other tensor too
    blocks.#.ffn.up: ~groups.{layer // 2}.up                   an index computed from the layer's

`#` is a layer's index, `@` an expert's (or a head's), `~` the prefix of the model's class. The steps after `|` convert
their tensors to ours, from left to right; undone from right to left they convert ours to theirs. A tensor of either
side without a row is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointError
from zoo.families.expression import Expression, evaluate_tree
from zoo.families.family import Body
from zoo.lazy import torch
from zoo.spec import Experts, tensors

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """Some of our tensors, their tensors that hold the same values, and the steps between: a row at one layer."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shapes: tuple[Shape, ...]  # of ours
    steps: tuple[TensorStep, ...]
    stacked: bool  # ours is a stack of theirs
    experts: bool  # ours has experts along its first dimension
    segments: tuple[int, ...] = ()  # the outputs of ours that each of theirs holds, where they are several

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """Convert their tensors to ours."""
        several = torch.stack if self.stacked else torch.cat
        whole = [several(list(theirs)) if self.stacked or self.segments else theirs[0]]
        for step in self.steps:
            whole = step.read(whole, self)
        return whole

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """Convert our tensors to theirs."""
        parts = list(ours)
        for step in reversed(self.steps):
            parts = step.write(parts, self)
        if self.segments:
            return list(parts[0].split(self.segments))
        return list(parts[0].unbind(0)) if self.stacked else parts

    @property
    def axis(self) -> int:
        """The dimension of a weight's outputs: experts come before it."""
        return 1 if self.experts else 0

    def shapes_of_theirs(self) -> Iterator[tuple[str, Shape]]:
        """The names and shapes of their tensors, from converting empty ones of ours."""
        made = self.to_theirs([torch.empty(shape, device="meta") for shape in self.shapes])
        yield from ((name, tuple(tensor.shape)) for name, tensor in zip(self.theirs, made, strict=True))


@dataclass(frozen=True)
class TensorStep:
    """One conversion of tensors and its inverse."""

    number: int = 0
    numbers: tuple[int, ...] = ()

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        """Convert from their layout."""
        raise NotImplementedError

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        """Convert to their layout."""
        raise NotImplementedError


class Rows(TensorStep):
    """`rows`: their tensor holds the outputs of ours one after the other."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return list(tensors[0].split([shape[entry.axis] for shape in entry.shapes], entry.axis))

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [torch.cat(tensors, entry.axis)]


class Groups(TensorStep):
    """`groups(n)`: their outputs form n groups (heads, most often), each with a share of every one of ours in turn."""

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


class OneRow(TensorStep):
    """`row`: their tensor is a matrix of one row, ours a vector."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.squeeze(0) for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unsqueeze(0) for each in tensors]


class OneColumn(TensorStep):
    """`column`: their tensor is a matrix of one column, ours a vector."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.squeeze(1) for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unsqueeze(1) for each in tensors]


class Flat(TensorStep):
    """`flat`: their tensor is ours flattened."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.reshape(shape) for each, shape in zip(tensors, entry.shapes, strict=True)]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.flatten() for each in tensors]


class Pairs(TensorStep):
    """`pairs(n)`: their outputs of each of n heads lie as interleaved rotation pairs them, ours as half-split does.

    Of a head of six outputs, theirs are 0, 3, 1, 4, 2, 5 of ours.
    """

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unflatten(0, (self.number, -1, 2)).transpose(1, 2).flatten(0, 2) for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unflatten(0, (self.number, 2, -1)).transpose(1, 2).flatten(0, 2) for each in tensors]


class Plus(TensorStep):
    """`plus(n)`: their values are ours plus n."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each - self.number for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each + self.number for each in tensors]


class ThirdDimension(TensorStep):
    """`third`: ours is a vector, theirs has it along the third of four dimensions, [1, 1, n, 1]."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.flatten() for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each[None, None, :, None] for each in tensors]


class Blocks(TensorStep):
    """`blocks(n)`: theirs is n blocks, [n, in, out] of a weight and [n, out] of a bias; ours is a convolution of one
    token in n groups, [n·out, in, 1] and [n·out]."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.mT.flatten(0, 1)[..., None] if each.ndim == 3 else each.flatten() for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        parts = [each.unflatten(0, (self.number, -1)) for each in tensors]
        return [part.squeeze(-1).mT if part.ndim == 4 else part for part in parts]


class Folded(TensorStep):
    """`folded(n)`: the first dimension of theirs is two: n, and what is left of ours."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.flatten(0, 1) for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unflatten(0, (self.number, -1)) for each in tensors]


class Merged(TensorStep):
    """`merged`: the first two dimensions of ours are one in theirs: the outputs of all experts, one after the other."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unflatten(0, (shape[0], -1)) for each, shape in zip(tensors, entry.shapes, strict=True)]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.flatten(0, 1) for each in tensors]


class Heads(TensorStep):
    """`heads(n)`: the last dimension of ours is two of theirs: n heads, and the channels of each."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.flatten(-2) for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unflatten(-1, (self.number, -1)) for each in tensors]


class Depthwise(TensorStep):
    """`depthwise`: their convolution of each channel by itself is [channels, width], ours [channels, 1, width]."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unsqueeze(1) if each.ndim > 1 else each for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.squeeze(1) if each.ndim > 1 else each for each in tensors]


class Decay(TensorStep):
    """`decay`: theirs is the decay A itself, ours the logarithm of -A."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.neg().log() for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.exp().neg() for each in tensors]


class Tiled(TensorStep):
    """`tiled([k, v, d])`: v heads of d rows, the last rows of theirs, lie in tiles: the first head of each of k groups,
    then the second. Ours lie group by group.

    Of four heads in two groups, theirs are 0, 2, 1, 3 of ours.
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


class TrailingOnes(TensorStep):
    """`ones(n)`: theirs has n more dimensions of 1 behind ours."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.flatten(-1 - self.number) for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each[(..., *[None] * self.number)] for each in tensors]


STEPS: dict[str, type[TensorStep]] = {"rows": Rows, "groups": Groups, "turn": Transpose, "row": OneRow, "flat": Flat}
STEPS |= {
    "merged": Merged,
    "pairs": Pairs,
    "plus": Plus,
    "third": ThirdDimension,
    "blocks": Blocks,
    "ones": TrailingOnes,
}
STEPS |= {"column": OneColumn, "folded": Folded, "depthwise": Depthwise, "decay": Decay, "tiled": Tiled, "heads": Heads}


@dataclass(frozen=True)
class Rule:
    """A row of a family's `keys`, parsed."""

    ours: tuple[str, ...]
    theirs: str
    steps: tuple[tuple[type[TensorStep], Expression | None], ...]
    needs: tuple[str, ...] = ()

    @classmethod
    def parse(cls, ours: str, theirs: str) -> Rule:
        head, _, tail = theirs.partition("|")
        steps = []
        for each in re.findall(r"\w+(?:\([^)]*\))?", tail):
            name, _, argument = each.partition("(")
            steps.append((STEPS[name], Expression(argument[:-1]) if argument else None))
        words = ours.split()
        names = " ".join(word for word in words if not word.startswith("?"))
        needs = tuple(word[1:] for word in words if word.startswith("?"))
        return cls(tuple(_braces(names)), head.strip(), tuple(steps), needs)

    @property
    def patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(each) for each in self.ours]


def _braces(text: str) -> Iterator[str]:
    """The names of a row: `a.{b,c}` gives `a.b` and `a.c`; a space separates whole names."""
    for word in text.split():
        match = re.fullmatch(r"(.*)\{(.*)\}(.*)", word)
        yield from (f"{match[1]}{each}{match[3]}" for each in match[2].split(",")) if match else (word,)


def _pattern(ours: str) -> re.Pattern[str]:
    """The names of our tensors that a row covers; its groups are the layer's index and the leaf (.weight, .bias)."""
    text = re.sub(r"#(?:\\\((\w+)\\\))?", r"(\\d+)", re.escape(ours).replace(r"\#", "#"))
    return re.compile(rf"{text}((?:\.(?:weight|bias))?)")


def _kind(ours: str) -> str | None:
    match = re.search(r"#\((\w+)\)", ours)
    return match[1] if match else None


def map_tensors(spec: Any, body: Body) -> list[Entry]:
    """Map every tensor of a model to tensors of a file. Raises CheckpointError that lists those without a row."""
    entries, lost = find_entries(spec, body)
    if lost:
        raise CheckpointError(*(f"keys: {name} has no row in the family's map" for name in lost))
    return entries


def find_entries(spec: Any, body: Body) -> tuple[list[Entry], list[str]]:
    """Map the tensors of a model to tensors of a file, and list those without a row."""
    rows = {ours: evaluate_tree(theirs, body.fields) for ours, theirs in body.keys.items()}
    rules = [Rule.parse(ours, theirs) for ours, theirs in rows.items() if theirs is not None]
    table = {name: (part, part.shapes()[leaf]) for name, part, leaf in tensors(spec, spec.d_model)}  # type: ignore[attr-defined]
    found: dict[str, Entry] = {}
    lost = []
    for name in table:
        if name in found:
            continue
        entry = next(_entries_for(name, rules, table, body), None)
        if entry is None:
            lost.append(name)
        else:
            found |= dict.fromkeys(entry.ours, entry)
    return list(dict.fromkeys(found.values())), lost


def _entries_for(
    name: str, rules: Sequence[Rule], table: Mapping[str, tuple[Any, Shape]], body: Body
) -> Iterator[Entry]:
    """The entries that the rows give for one of our tensors; the first is taken."""
    for rule in rules:
        for pattern, ours in zip(rule.patterns, rule.ours, strict=True):
            match = pattern.fullmatch(name)
            if match is None or not _is_kind(ours, match, body.kinds, name):
                continue
            *index, leaf = match.groups()
            names = tuple(_filled(each, index) + leaf for each in rule.ours)
            if not all(each in table for each in (*names, *rule.needs)):
                continue
            part, shape = table[names[0]]
            whole = tuple(
                _filled(body.full_name(fill_braces(each, index, body.fields)), index) + leaf
                for each in rule.theirs.split(" + ")
            )
            stacked = "@" in rule.theirs
            segments = part.segments if len(whole) > 1 else ()
            if stacked:
                whole = tuple(each.replace("@", str(number)) for each in whole for number in range(shape[0]))
            steps = tuple(_make_step(step, number, body.fields) for step, number in rule.steps)
            shapes = tuple(table[each][1] for each in names)
            yield Entry(names, whole, shapes, steps, stacked, isinstance(part, Experts), segments)


def _make_step(step: type[TensorStep], argument: Expression | None, fields: Mapping[str, Any]) -> TensorStep:
    """A step with its number, or with its list of numbers."""
    value = 0 if argument is None else argument.value(fields)
    return step(numbers=tuple(map(int, value))) if isinstance(value, list) else step(int(value))


def _is_kind(ours: str, match: re.Match[str], kinds: Mapping[str, Sequence[str]], name: str) -> bool:
    """Whether the layer is of the kind that the row asks for, if it asks for one."""
    wanted = _kind(ours)
    if wanted is None:
        return True
    tower = name.split(".")[0]
    laid = kinds.get(tower) or kinds.get("") or []
    layer = int(match[1])
    return layer < len(laid) and laid[layer] == wanted


def fill_braces(theirs: str, index: Sequence[str], fields: Mapping[str, Any]) -> str:
    """Replace each `{expression}` in a name by its value for a layer."""
    env = {**fields, "layer": int(index[0])} if index else fields
    return re.sub(r"\{([^}]*)\}", lambda match: str(Expression(match[1]).value(env)), theirs)


def _filled(text: str, index: Sequence[str]) -> str:
    """The name with the layer's index in place of `#`, and without the kind after it."""
    text = re.sub(r"#\(\w+\)", "#", text)
    return text.replace("#", index[0]) if index else text


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name matches one of the patterns, in which `*` is any text."""
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) for pattern in patterns)
