"""Which of their tensors is which of ours: rows of a family's YAML, laid out over a model's own table of tensors.

    blocks.#.attention.o: ~layers.#.self_attn.o_proj           one module: its weight, and its bias where it has one
    blocks.#.attention.{q,k,v}: ~h.#.attn.c_attn | turn, rows  several of ours fused in one of theirs
    blocks.#.ffn.experts.gate: ~layers.#.experts.@.w1          one of ours stacked from several of theirs
    blocks.#(moe).ffn_norm: …                                  only in layers of the family's kind `moe`
    embedding.tokens: ="~shared" if tied else "~embed_tokens"  as the config says; None where there is no such row
    head.out.bias ?head.out.weight: …                          only where the model has that other tensor too
    blocks.#.ffn.up: ~groups.{layer // 2}.up                   an index worked out of the layer's

`#` is a layer's index and `@` an expert's (or a head's). What follows `|` makes ours of theirs, step by step; the other
way round makes theirs of ours. A tensor on either side without a row is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointError
from zoo.families.expression import Expression, resolved
from zoo.lazy import torch
from zoo.spec import Experts, Spec, tensors

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """Some of our tensors, which are some of theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shapes: tuple[Shape, ...]  # of ours
    steps: tuple[TensorStep, ...]
    stacked: bool  # ours is a stack of theirs
    experts: bool  # ours has experts along its first dimension

    @property
    def same(self) -> bool:
        """Whether ours is theirs as it is."""
        return not self.steps and not self.stacked

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """Our tensors, of theirs."""
        whole = [torch.stack(list(theirs)) if self.stacked else theirs[0]]
        for step in self.steps:
            whole = step.read(whole, self)
        return whole

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """Their tensors, of ours."""
        parts = list(ours)
        for step in reversed(self.steps):
            parts = step.write(parts, self)
        return list(parts[0].unbind(0)) if self.stacked else parts

    @property
    def axis(self) -> int:
        """The dimension of a weight's outputs."""
        return 1 if self.experts else 0


@dataclass(frozen=True)
class TensorStep:
    """One thing done to tensors, and undone."""

    number: int = 0

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        raise NotImplementedError

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        raise NotImplementedError


class Rows(TensorStep):
    """`rows`: ours are theirs' outputs, one after the other."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return list(tensors[0].split([shape[entry.axis] for shape in entry.shapes], entry.axis))

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [torch.cat(tensors, entry.axis)]


class Groups(TensorStep):
    """`groups(n)`: theirs has n groups of outputs, each with a share of every one of ours in turn (heads, most
    often)."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        axis, count = entry.axis, self.number
        whole = tensors[0].unflatten(axis, (count, -1))
        sizes = [shape[axis] // count for shape in entry.shapes]
        return [part.flatten(axis, axis + 1) for part in whole.split(sizes, axis + 1)]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        axis, count = entry.axis, self.number
        parts = [part.unflatten(axis, (count, -1)) for part in tensors]
        return [torch.cat(parts, axis + 1).flatten(axis, axis + 1)]


class Turn(TensorStep):
    """`turn`: theirs has a weight's inputs first, [in, out]."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.transpose(-1, -2) if each.ndim - entry.axis > 1 else each for each in tensors]

    write = read


class OneRow(TensorStep):
    """`row`: theirs is a matrix of one row."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.squeeze(0) for each in tensors]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.unsqueeze(0) for each in tensors]


class Split(TensorStep):
    """`pairs(n)`: ours is a vector [n, m] that theirs has flat, n·m."""

    def read(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.reshape(shape) for each, shape in zip(tensors, entry.shapes, strict=True)]

    def write(self, tensors: list[Tensor], entry: Entry) -> list[Tensor]:
        return [each.flatten() for each in tensors]


STEPS: dict[str, type[TensorStep]] = {"rows": Rows, "groups": Groups, "turn": Turn, "row": OneRow, "flat": Split}


@dataclass(frozen=True)
class Rule:
    """A row of a family's `keys`, read."""

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
    """`a.{b,c}` as `a.b` and `a.c`; spaces between names that share nothing."""
    for word in text.split():
        match = re.fullmatch(r"(.*)\{(.*)\}(.*)", word)
        yield from (f"{match[1]}{each}{match[3]}" for each in match[2].split(",")) if match else (word,)


def _pattern(ours: str) -> re.Pattern[str]:
    """Our tensors that a row is for: those under its name, with their leaf as the group after the layer's index."""
    text = re.sub(r"#(?:\\\((\w+)\\\))?", r"(\\d+)", re.escape(ours).replace(r"\#", "#"))
    return re.compile(rf"{text}((?:\.(?:weight|bias))?)")


def _kind(ours: str) -> str | None:
    match = re.search(r"#\((\w+)\)", ours)
    return match[1] if match else None


def entries(
    spec: Spec, rows: Mapping[str, str], prefix: str, fields: Mapping[str, Any], kinds: Mapping[str, Sequence[str]]
) -> list[Entry]:
    """Every tensor of the model with what it is in theirs. Raises CheckpointError that lists those without a row.

    `kinds` names each layer's kind as the family does, by tower.
    """
    laid = {ours: resolved(theirs, fields) for ours, theirs in rows.items()}
    rules = [Rule.parse(ours, theirs) for ours, theirs in laid.items() if theirs is not None]
    table = {name: (part, part.shapes()[leaf]) for name, part, leaf in tensors(spec, spec.d_model)}  # type: ignore[attr-defined]
    found: dict[str, Entry] = {}
    lost = []
    for name in table:
        if name in found:
            continue
        entry = next(_laid(name, rules, table, prefix, fields, kinds), None)
        if entry is None:
            lost.append(name)
        else:
            found |= dict.fromkeys(entry.ours, entry)
    if lost:
        raise CheckpointError(*(f"keys: {name} has no row in the family's map" for name in lost))
    return list(dict.fromkeys(found.values()))


def _laid(
    name: str,
    rules: Sequence[Rule],
    table: Mapping[str, tuple[Any, Shape]],
    prefix: str,
    fields: Mapping[str, Any],
    kinds: Mapping[str, Sequence[str]],
) -> Iterator[Entry]:
    """The entries that rows give for one of our tensors; the first holds."""
    for rule in rules:
        for pattern, ours in zip(rule.patterns, rule.ours, strict=True):
            match = pattern.fullmatch(name)
            if match is None or not _is_kind(ours, match, kinds, name):
                continue
            *index, leaf = match.groups()
            names = tuple(_filled(each, index) + leaf for each in rule.ours)
            if not all(each in table for each in (*names, *rule.needs)):
                continue
            part, shape = table[names[0]]
            theirs = _filled(worked_out(rule.theirs, index, fields).replace("~", prefix), index) + leaf
            stacked = "@" in theirs
            whole = tuple(theirs.replace("@", str(number)) for number in range(shape[0])) if stacked else (theirs,)
            steps = tuple(step(0 if number is None else int(number.value(fields))) for step, number in rule.steps)
            shapes = tuple(table[each][1] for each in names)
            yield Entry(names, whole, shapes, steps, stacked, isinstance(part, Experts))


def _is_kind(ours: str, match: re.Match[str], kinds: Mapping[str, Sequence[str]], name: str) -> bool:
    wanted = _kind(ours)
    if wanted is None:
        return True
    tower = name.split(".")[0]
    laid = kinds.get(tower) or kinds.get("") or []
    layer = int(match[1])
    return layer < len(laid) and laid[layer] == wanted


def worked_out(theirs: str, index: Sequence[str], fields: Mapping[str, Any]) -> str:
    """The name with what stands in braces worked out for a layer."""
    env = {**fields, "layer": int(index[0])} if index else fields
    return re.sub(r"\{([^}]*)\}", lambda match: str(Expression(match[1]).value(env)), theirs)


def _filled(text: str, index: Sequence[str]) -> str:
    text = re.sub(r"#\(\w+\)", "#", text)
    return text.replace("#", index[0]) if index else text


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name is one of those that a family names with `*` for any part."""
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) for pattern in patterns)
