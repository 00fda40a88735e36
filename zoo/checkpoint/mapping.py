"""Map tensors of a published file ("theirs") to our model's ("ours"), by the rows of a family's `keys`.

    blocks.#.attention.o: ~layers.#.self_attn.o_proj           one module: its weight, and its bias where it has one
    blocks.#.attention.{q,k,v}: ~h.#.attn.c_attn | turn, rows  several of ours fused in one of theirs
    blocks.#.ffn.{up,down}: ~h.#.mlp.{fc_in,fc_out}            a row for each, written out by body.py
    blocks.#.ffn.experts.gate: ~layers.#.experts.@.w1          one of ours stacked from several of theirs
    blocks.#.attention.conv: ~layers.#.q_conv + ~layers.#.v_conv   one of ours, split by its part's `segments`
    embedding.tokens: ~base + ~new | apart(sizes)              one of ours, split by rows into these sizes
    blocks.#(moe).ffn_norm: …                                  only in layers of the family's kind `moe`
    embedding.tokens: ="~shared" if tied else "~embed_tokens"  depends on the config; None for no such row
    blocks.#.ngrams.table: ~layers.#.table_@ | shards(8)       one of ours whose rows are in several of theirs
    blocks.*.message_read.query: ~queries | ends               ours of all layers, in one or a few of theirs
    head.out.bias ?head.out.weight: …                          only where the model has that other tensor too
    blocks.#.ffn.up: ~groups.{layer // 2}.up                   an index computed from the layer's
    blocks.#.attention.{k_b,v_b}: ~layers.#.kv_b | groups(heads[layer])   a step whose number is the layer's own

`#` is a layer's index (a second `#` the index of one of several equal parts in a layer), `@` an expert's (or a head's,
or a shard's), `~` the prefix of the model's class. Applied left to right, the steps after `|` convert theirs to ours;
their inverses, right to left, convert ours to theirs. A tensor of either side without a row is an error.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.conversion import STEPS, Entry, Shape, Shards, TensorStep
from zoo.errors import CheckpointError
from zoo.families.body import Body
from zoo.families.expression import Expression, evaluate_tree
from zoo.spec import Experts, tensors

if TYPE_CHECKING:
    from zoo.checkpoint.stored import WholeSpec

LARGEST = 2**56
"""Maximum number of values in a tensor: torch counts bytes in 64 bits."""


@dataclass(frozen=True)
class Rule:
    """A row of a family's `keys`, parsed."""

    ours: tuple[str, ...]
    theirs: str
    steps: tuple[tuple[Callable[..., TensorStep], Expression | None], ...]
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
    """Expand the names of a row: `a.{b,c}` gives `a.b` and `a.c`; a space separates whole names."""
    for word in text.split():
        match = re.fullmatch(r"(.*)\{(.*)\}(.*)", word)
        yield from (f"{match[1]}{each}{match[3]}" for each in match[2].split(",")) if match else (word,)


def _pattern(ours: str) -> re.Pattern[str]:
    """Make the regular expression for one of our names in a row. Its groups are the layer's index and the leaf
    (.weight, .bias)."""
    text = re.sub(r"#(?:\\\((\w+)\\\))?", r"(\\d+)", re.escape(ours).replace(r"\#", "#").replace(r"\*", r"\d+"))
    return re.compile(rf"{text}((?:\.(?:weight|bias))?)")


def _kind(ours: str) -> str | None:
    match = re.search(r"#\((\w+)\)", ours)
    return match[1] if match else None


def map_tensors(spec: WholeSpec, body: Body) -> list[Entry]:
    """Map every tensor of a model to tensors of a file. Raises CheckpointError that lists the tensors without a row,
    and for a tensor of LARGEST values or more."""
    entries, lost = find_entries(spec, body)
    if lost:
        raise CheckpointError(*(f"keys: {name} has no row in the family's map" for name in lost))
    return entries


def find_entries(spec: WholeSpec, body: Body) -> tuple[list[Entry], list[str]]:
    """Map the tensors of a model to tensors of a file, and list the tensors without a row. Raises CheckpointError for a
    tensor of LARGEST values or more."""
    rows = {ours: evaluate_tree(theirs, body.fields) for ours, theirs in body.keys.items()}
    rules = [Rule.parse(ours, theirs) for ours, theirs in rows.items() if theirs is not None]
    table = {name: (part, part.shapes()[leaf]) for name, part, leaf in tensors(spec, spec.d_model)}  # type: ignore[attr-defined]
    large = next((name for name, (_, shape) in table.items() if prod(shape) >= LARGEST), None)
    if large is not None:
        shape = list(table[large][1])
        raise CheckpointError(f"{large}: has shape {shape}, too many values for any memory (smaller sizes)")
    found: dict[str, Entry] = {}
    lost = []
    inner = {name: entry for entry in _entries_of_towers(spec, body) for name in entry.ours}
    for name in table:
        if name in found:
            continue
        entry = next(_entries_for(name, rules, table, body), None) or inner.get(name)
        if entry is None:
            lost.append(name)
        else:
            found |= dict.fromkeys(entry.ours, entry)
    return list(dict.fromkeys(found.values())), lost


def _entries_of_towers(spec: WholeSpec, body: Body) -> Iterator[Entry]:
    """Map the tensors of each tower by the tower's own family, where towers have families of their own."""
    for tower, inner in body.towers.items():
        for entry in find_entries(spec.towers()[tower], inner)[0]:
            theirs = tuple(f"{body.prefix}{tower}.{name}" for name in entry.theirs)
            yield replace(entry, ours=tuple(f"{tower}.{name}" for name in entry.ours), theirs=theirs)


def _entries_for(
    name: str, rules: Sequence[Rule], table: Mapping[str, tuple[Any, Shape]], body: Body
) -> Iterator[Entry]:
    """Yield the entries that the rows give for one of our tensors; callers take the first."""
    for rule in rules:
        for pattern, ours in zip(rule.patterns, rule.ours, strict=True):
            match = pattern.fullmatch(name)
            if match is None or not _is_kind(ours, match, body.kinds, name):
                continue
            *index, leaf = match.groups()
            names = tuple(_filled(each, index) + leaf for each in rule.ours)
            if "*" in ours:
                names = tuple(each for each in table if pattern.fullmatch(each))
            needed = (_filled(each, index) for each in rule.needs)
            if not all(each in table for each in (*names, *needed)):
                continue
            part, shape = table[names[0]]
            whole = tuple(
                _filled(body.full_name(fill_braces(each, index, body.fields)), index) + leaf
                for each in rule.theirs.split(" + ")
            )
            segments = getattr(part, "segments", ()) if len(whole) > 1 else ()
            steps = tuple(_make_step(step, number, _fields_of(index, body.fields)) for step, number in rule.steps)
            shards = next((each.count(shape[0]) for each in steps if isinstance(each, Shards)), None)
            stacked = "@" in rule.theirs and shards is None
            if "@" in rule.theirs:
                numbers = range(shape[0] if shards is None else shards)
                whole = tuple(each.replace("@", str(number)) for each in whole for number in numbers)
            shapes = tuple(table[each][1] for each in names)
            yield Entry(names, whole, shapes, steps, stacked, isinstance(part, Experts), segments)


def _make_step(step: Callable[..., TensorStep], argument: Expression | None, fields: Mapping[str, Any]) -> TensorStep:
    value = 0 if argument is None else argument.value(fields)
    return step(numbers=tuple(map(int, value))) if isinstance(value, list) else step(int(value))


def _is_kind(ours: str, match: re.Match[str], kinds: Mapping[str, Sequence[str]], name: str) -> bool:
    """Whether the layer is of the kind that the row requires, if it requires one."""
    wanted = _kind(ours)
    if wanted is None:
        return True
    tower = name.split(".")[0]
    laid = kinds.get(tower) or kinds.get("") or []
    layer = int(match[1])
    return layer < len(laid) and laid[layer] == wanted


def fill_braces(theirs: str, index: Sequence[str], fields: Mapping[str, Any]) -> str:
    """Replace each `{expression}` in a name by its value for a layer."""
    env = _fields_of(index, fields)
    return re.sub(r"\{([^}]*)\}", lambda match: str(Expression(match[1]).value(env)), theirs)


def _fields_of(index: Sequence[str], fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields that an expression may read for a layer: the config's, and `layer`, its index."""
    return {**fields, "layer": int(index[0])} if index else fields


def _filled(text: str, index: Sequence[str]) -> str:
    """Replace each `#` in a name by its index (the last index fills the rest), and drop the kind of layer after it."""
    text = re.sub(r"#\(\w+\)", "#", text)
    for each in index[:-1]:
        text = text.replace("#", each, 1)
    return text.replace("#", index[-1]) if index else text


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name matches any of the patterns, in which `*` is any text."""
    return bool(patterns) and _compile(tuple(patterns)).fullmatch(name) is not None


@functools.lru_cache(256)
def _compile(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(pattern).replace(r"\*", ".*") for pattern in patterns))
