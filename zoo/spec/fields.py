"""Read what each field of a Spec is: its type, its default, and the docstring below it in its class.

    softcap: PositiveFloat | None = None
    \"\"\"Bound of the scores, c·tanh(s/c) (Gemma 2, 2024).\"\"\"

Python drops docstrings of fields, so they are read from the source, on first use.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import sys
import typing
from collections.abc import Iterator
from typing import Any

from zoo.spec.node import Node
from zoo.spec.spec import Spec
from zoo.spec.types import describe_component, describe_node, describe_type, name_reference, write_schema

YEAR = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
"""Matches a paper or model with its year, in parentheses."""

UNIT = re.compile(r"\bin (tokens|channels|positions|bytes|layers)\b|^(Tokens|Channels|Positions|Bytes|Layers)\b")
"""Matches the unit of a number in a sentence."""

SIGN = re.compile(r"[·√Σσ‖²³∞×≤≥←∈]|[\w)]\(|^[-=+−/<>]$|\d/|/\d")
"""Matches a word that is part of a formula."""


@dataclasses.dataclass(frozen=True)
class SpecField:
    """A field of a choice: the class that declares it, its type, its default (MISSING if required), and its description
    on one line, empty if it has none."""

    name: str
    owner: type[Spec]
    schema: dict[str, Any]
    type: str
    default: Any
    text: str

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def sentence(self) -> str:
        """The first sentence of the description."""
        return first_sentence(self.text)

    @property
    def paper(self) -> str:
        """The paper or model named in the last parentheses that contain a year; empty if there is none."""
        found = YEAR.findall(self.text)
        return found[-1] if found else ""

    @property
    def formula(self) -> str:
        """The first formula of the description, if any."""
        return find_formula(self.text)

    @property
    def unit(self) -> str:
        """The unit of a number, if the first sentence states it: tokens, channels, …"""
        found = UNIT.search(self.sentence) if "number" in self.type else None
        return (found[1] or found[2]).lower() if found else ""


def find_paper(text: str) -> str:
    """Find the first paper with its year that a docstring or comment names."""
    found = YEAR.search(" ".join(text.split()))
    return found[1] if found else ""


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring, on one line."""
    line = " ".join(text.split("\n\n")[0].split())
    end = re.search(r"(?<!\bal)(?<!\b[A-Z])(?<!e\.g)(?<!i\.e)\.(?=\s+[A-Z`]|$)", line)
    return line[: end.end()] if end else line


def find_formula(text: str) -> str:
    """Find the first formula in a description, a run of words with mathematical signs such as `c·tanh(s/c)`. A bare
    product such as x·W names a vector and is skipped."""
    bare = YEAR.sub("", text)
    for clause in re.split(r"[,:;.] (?![^(]*\))|\.$", bare):
        words = clause.replace("`", "").split()
        marked = [at for at, word in enumerate(words) if SIGN.search(word)]
        if marked and not re.fullmatch(r"\w+·\w+", formula := _cut_formula(words, marked)):
            return formula
    return ""


def _cut_formula(words: list[str], marked: list[int]) -> str:
    """Cut the first formula out of a clause: a run of words with signs (at the indices `marked`), with the operands at
    the run's ends, up to the closing bracket."""
    last = next((at for at, after in itertools.pairwise(marked) if after > at + 2), marked[-1])
    first = marked[0] - (len(words[marked[0]]) == 1 and marked[0] > 0)
    last += len(words[last]) == 1 and last + 1 < len(words)
    found = " ".join(words[first : last + 1])
    while found.count("(") > found.count(")") and last + 1 < len(words):
        last += 1
        found = " ".join(words[first : last + 1])
    return found.rstrip(".,") if found.count("(") >= found.count(")") else found.rstrip(".,").removesuffix(")")


@functools.cache
def read_fields(choice: type[Spec]) -> dict[str, SpecField]:
    """Read the fields of a choice by name, in the order of the class."""
    hints = typing.get_type_hints(choice, include_extras=True)
    return {field.name: _read_field(choice, field, hints[field.name]) for field in choice.fields()}


def _read_field(choice: type[Spec], field: dataclasses.Field[Any], hint: Any) -> SpecField:
    declared = [each for each in choice.__mro__ if field.name in inspect.get_annotations(each)]
    schema = write_schema(hint)
    words = {name_reference(base): _describe_reference(base) for base in find_axes(hint)}
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    texts = (_read_module(each.__module__).get((each.__qualname__, field.name), "") for each in declared)
    text = next(filter(None, texts), "")
    return SpecField(field.name, declared[0], schema, describe_type(schema, words), default, text)


def _describe_reference(base: type[Spec]) -> str:
    """Describe the values that stand for a component or a node. A node also takes `true` if it needs no field, or only
    its main one, which then gets the default component."""
    if not issubclass(base, Node):
        return describe_component(base, list_kinds(base))
    fields = read_fields(base)
    main = fields.get(base.word)
    needed = {name for name, field in fields.items() if field.is_required}
    usual = {base.word} if main is not None and "$ref" in main.schema else set()
    return describe_node(list(fields), base.word, main.type if main is not None else "", bool(main) and needed <= usual)


def list_kinds(base: type[Spec]) -> list[str]:
    """List Zoo's own kinds of an axis, without those that another program registered."""
    return [name for name, kind in base.kinds.items() if kind.__module__.startswith("zoo.")]


def find_axes(hint: Any) -> Iterator[type[Spec]]:
    """Yield the axes whose components an annotation takes."""
    if isinstance(hint, type) and issubclass(hint, Spec):
        yield hint
    for each in typing.get_args(hint):
        yield from find_axes(each)


def read_docstrings(choice: type) -> dict[str, str]:
    """Read the docstrings of a class's own fields by name, as one line each."""
    found = _read_module(choice.__module__)
    return {name: text for (where, name), text in found.items() if where == choice.__qualname__}


@functools.cache
def _read_module(name: str) -> dict[tuple[str, str], str]:
    """Read the docstrings of a module's fields, by class and name; empty if the source is not available."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except OSError:
        return {}
    return dict(_find_docstrings(tree.body, ""))


def _find_docstrings(body: list[ast.stmt], inside: str) -> Iterator[tuple[tuple[str, str], str]]:
    for at, node in enumerate(body):
        if isinstance(node, ast.ClassDef):
            yield from _find_docstrings(node.body, f"{inside}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield from _find_docstrings(node.body, f"{inside}{node.name}.<locals>.")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and inside and at + 1 < len(body):
            below = body[at + 1]
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                yield (inside.rstrip("."), node.target.id), " ".join(text.split())
