"""List the vocabulary of model files: every axis with its choices, and the fields that each key of a model fills."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from zoo.grammar.dialect import SHARED, find_usual, list_fields, list_files, list_slots, read_file
from zoo.grammar.interpolation import split_interpolation
from zoo.grammar.keys import BASES
from zoo.model.tower import Topology
from zoo.paths import conf_dir
from zoo.spec import Node, Spec
from zoo.spec.fields import SpecField, find_paper, first_sentence, list_kinds, read_fields
from zoo.spec.types import name_axis, name_reference

ROLES = {
    "attention": "How tokens read one another.",
    "position": "How the place of a token enters the model.",
    "norm": "How vectors are normalised.",
    "block": "How a layer is put together: where its norms and residuals stand.",
    "ffn": "What transforms each token on its own.",
    "router": "How tokens choose experts; read by a mixture of experts alone.",
    "activation": "The function between the products of a feed-forward.",
    "cross": "How the decoder of an encoder-decoder reads the encoder.",
    "shared_expert": "A feed-forward of a mixture of experts that all tokens pass.",
    "embedding": "How token ids become vectors.",
    "head": "What reads the last vectors: a language model's logits, or a task.",
}
"""Descriptions of the keys of a model that hold components. Other axes are described by the docstrings of classes."""

COMMON = {
    "bias": "Whether the products of attention and of feed-forwards have a bias.",
    "norm_eps": "Epsilon under the root of norms. RMSNorm adds it to the mean square, LayerNorm to the variance.",
}
"""Descriptions of keys that fill fields of several choices. Each of these fields has a description of its own, too."""

TAKEN = "vocab_size"
"""A field of heads and of embeddings. Its value is taken from the model's key of the same name
(`zoo.grammar.towers`)."""


@dataclasses.dataclass(frozen=True)
class AxisChoice:
    """A choice by its axis and its name in a model: `attention`, `sliding`. `body` is the content of its file in conf/,
    or the kind alone if it has no file. A node is a field of its `owner`: axis `attention.gqa`, word `gate`."""

    axis: str
    word: str
    spec: type[Spec]
    body: Mapping[str, Any]
    comment: str
    """The comment at the top of the choice's file, on one line."""
    owner: AxisChoice | None = None

    @property
    def fields(self) -> dict[str, SpecField]:
        return read_fields(self.spec)

    @property
    def what(self) -> str:
        """The choice's description: the first sentence of the file's comment, or of the class docstring."""
        return first_sentence(self.comment or inspect.getdoc(self.spec) or "")

    @property
    def paper(self) -> str:
        """The choice's paper and year, from the file's comment or the class docstring."""
        return find_paper(self.comment) or find_paper(inspect.getdoc(self.spec) or "")

    def open_node(self, name: str) -> AxisChoice | None:
        """Make an AxisChoice of a field that holds a node; None for other fields."""
        base = list_fields(self.spec).get(name)
        if base is None or not issubclass(base, Node):
            return None
        body = self.body.get(name)
        stated = body if isinstance(body, Mapping) else {}
        return AxisChoice(f"{self.axis}.{self.word}", name, base, stated, "", self)

    def describe_default(self, name: str) -> str:
        """Describe a field's value in a model that does not set it: "the model's n_kv_heads or n_heads", say."""
        if name in self.body:
            return _describe_value(self.body[name])
        field = self.fields[name]
        if name == TAKEN and self.axis in ("head", "embedding"):
            return _describe_names([name], None)
        if not field.is_required:
            return _describe_value(field.default)
        main = list_fields(self.spec).get(name) if issubclass(self.spec, Node) and name == self.spec.word else None
        return "must be given" if main is None else _describe_value(find_usual(main))  # as the dialect fills it in

    def describe_filling(self, name: str, key: str) -> str:
        """Describe a field's value in a model without the key that fills it: the next key's value, a default, or that
        the key must be stated."""
        names, literal = split_interpolation(self.body.get(name))
        if not names:
            return self.describe_default(name)
        if keys := [each for each in names if each != key]:
            return _describe_names(keys, literal)
        return literal or f"must be stated where {name_axis(self.axis)} reads it"

    def find_key(self, name: str) -> str | None:
        """Find the key of the model that fills a field, if any."""
        found, _ = split_interpolation(self.body.get(name))
        return found[0] if found and found[0] not in list_axes() else None


def _describe_value(value: object) -> str:
    if isinstance(value, Node):
        given = {field.name: getattr(value, field.name) for field in value.fields()}
        return write_value({name: each for name, each in given.items() if each is not None})
    if isinstance(value, Spec):
        return value.kind
    if isinstance(value, Mapping):
        return str(value.get("kind", "a mapping"))
    names, literal = split_interpolation(value)
    return _describe_names(names, literal) if names else write_value(value)


def _describe_names(names: list[str], literal: str | None) -> str:
    return f"the model's {' or '.join(names)}{'' if literal is None else f', or {literal}'}"


def write_value(value: object) -> str:
    """Write a value on one line of YAML."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1_000_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


@functools.cache
def list_axes() -> dict[str, type[Spec]]:
    """List every axis by its name in a model or a component, axes of the model first."""
    found: dict[str, type[Spec]] = {**BASES, **list_slots()}
    for base in [*found.values(), Topology]:
        _add_axes(base, found)
    left = ("encoder", "decoder", *SHARED)
    return {name: base for name, base in found.items() if name not in left and not issubclass(base, Node)}


def _add_axes(base: type[Spec], found: dict[str, type[Spec]]) -> None:
    for kind in base.kinds.values():
        for inner in list_fields(kind).values():
            name = name_reference(inner)
            if name not in found:
                found[name] = inner
                _add_axes(inner, found)


@functools.cache
def list_nodes() -> dict[str, type[Node]]:
    """List the nodes of every choice by the names of their classes."""
    found: dict[str, type[Spec]] = {}
    for base in list_axes().values():
        _add_axes(base, found)
    return {name: base for name, base in found.items() if issubclass(base, Node)}


def describe_axis(key: str) -> str:
    """Describe in a sentence an axis, or a key of a model that holds a component."""
    base = list_axes().get(key) or list_slots()[key]
    return ROLES.get(key) or first_sentence(inspect.getdoc(base) or "")


def list_words(axis: str) -> list[str]:
    """List the choices of an axis: its files in conf/, then the kinds without a file."""
    files = sorted(list_files(axis))
    return [*files, *(kind for kind in list_kinds(list_axes()[axis]) if kind not in files and axis != "cross")]


@functools.cache
def read_choices(axis: str) -> dict[str, AxisChoice]:
    """Read the choices of an axis by name."""
    return {word: _read_choice(axis, word) for word in list_words(axis)}


def _read_choice(axis: str, word: str) -> AxisChoice:
    base = list_axes()[axis]
    if word not in list_files(axis):
        return AxisChoice(axis, word, base.kinds[word], {"kind": word}, "")
    body, text = read_file(axis, word), (conf_dir() / axis / f"{word}.yaml").read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    return AxisChoice(axis, word, base.kinds[body["kind"]], body, comment)


@functools.cache
def list_filled() -> dict[str, list[tuple[AxisChoice, SpecField]]]:
    """Map each key that the choices of conf/ look up to the fields that it fills, fields of the same name first."""
    found: dict[str, list[tuple[AxisChoice, SpecField]]] = {}
    for axis in BASES:
        for choice in read_choices(axis).values():
            for rank, key, field in _find_filled(choice.spec, choice.body):
                found.setdefault(key, []).append((choice, field)) if rank == 0 else found.setdefault(key, [])
    return {
        key: sorted(fills, key=lambda fill: fill[1].name != key) for key, fills in found.items() if key not in BASES
    }


def _find_filled(spec: type[Spec], body: Mapping[str, Any]) -> Iterator[tuple[int, str, SpecField]]:
    """Yield the keys that a node looks up: each key's rank (0 is looked up first), its name, and the field it fills."""
    slots = list_fields(spec)
    for name, value in body.items():
        if isinstance(value, Mapping) and name in slots and "${" not in str(value.get("kind")):
            yield from _find_filled(slots[name].kinds[value.get("kind", slots[name].default)], value)
        elif name != "kind":
            yield from ((rank, key, read_fields(spec)[name]) for rank, key in enumerate(split_interpolation(value)[0]))
