"""Lines of an explanation: a figure, its formula, and the formula's source."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.analysis.explain.terms import Number, Term, symbol, term, total
from zoo.model.attention.gqa import GQA
from zoo.model.tower import Tower
from zoo.spec import Spec

CITATION = re.compile(
    r"(?:[A-Z][\w.-]*|[a-z]+[-\d][\w.-]*)"
    r"(?: et al\.|,? [A-Z][\w.-]+(?: and [A-Z][\w-]+)?| and \w[\w-]+| \d\w*)?, (?:19|20)\d\d"
)
"""Matches a citation in a docstring: `Ainslie et al., 2023`, `Gu and Dao, 2023` or `DeepSeek-V3.2, 2025`."""

NUMBER = re.compile(r"−?[\d.]+(e[+-]?\d+)?")
WIDTH = 80


@dataclass(frozen=True)
class Line:
    """One line of an explanation. `figure` is the number's dotted path in the result of `price`, if any."""

    section: str
    name: str
    term: Term
    unit: str
    source: str
    figure: str = ""

    def row(self) -> dict[str, Any]:
        """Give the line as plain data; `values` is `formula` with the numbers put in."""
        return {
            "section": self.section,
            "name": self.name,
            "formula": self.term.formula,
            "values": self.term.values,
            "result": self.term.value,
            "unit": self.unit,
            "source": self.source,
            "figure": self.figure,
        }


@dataclass
class Sheet:
    """The lines of a section, in order. `add` returns a symbol by which later lines refer to the added line."""

    section: str
    lines: list[Line] = field(default_factory=list)

    def add(self, name: str, made: object, unit: str, source: str, figure: str = "") -> Number:
        line = Line(self.section, name, term(made), unit, source, figure)
        self.lines.append(line)
        return symbol(name, line.term.value)

    def sum(self, name: str, of: Iterable[Term], unit: str, source: str, figure: str = "") -> Number:
        """Add a line that sums other terms."""
        return self.add(name, total(of), unit, source, figure)


def count_layers(tower: Tower, kind: str, stored: bool = False) -> Term:
    """Count the layers of a kind, or with `stored` those with weights of their own, as a term such as
    `n_layers[near]`."""
    count = (tower.stack.stored() if stored else tower.pattern).count(kind)
    if stored and tower.layer_weights:
        return Number(count)
    return symbol("n_layers" if len(tower.blocks) == 1 else f"n_layers[{kind}]", count)


def name_component(where: str, name: str, tower: Tower, kind: str | None = None) -> str:
    """Name a component of a tower and a kind of layer: `attention`, `attention[near]`, `encoder.attention`."""
    kinds = f"[{kind}]" if kind is not None and len(tower.blocks) > 1 else ""
    return f"{where}.{name}{kinds}" if where else f"{name}{kinds}"


def cite(owner: Spec) -> str:
    """Cite a component: its class, and the first paper in the first paragraph of its docstring. GQA is cited by its
    fields (`_list_credits`); an indexer is cited after its attention."""
    credits = _list_credits(owner) if isinstance(owner, GQA) else [_cite_class(owner)]
    indexer = getattr(owner, "indexer", None)
    return "; ".join(credits if indexer is None else [*credits, _cite_class(indexer)])


def _cite_class(owner: Spec) -> str:
    found = CITATION.search(" ".join((type(owner).__doc__ or "").split("\n\n")[0].split()))
    return f"{type(owner).__name__}, {found[0]}" if found else type(owner).__name__


def _list_credits(attention: GQA) -> list[str]:
    """List the names and papers that a GQA's fields call for: MHA, MQA or GQA by its heads, and a window if set."""
    heads = _cite_class(attention)
    if attention.n_kv_heads == attention.n_heads:
        heads = "MHA, Vaswani et al., 2017"
    elif attention.n_kv_heads == 1:
        heads = "MQA, Shazeer, 2019"
    return [heads] if attention.window is None else [heads, "window, Beltagy et al., 2020"]


def format_explanation(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format an explanation as text no wider than WIDTH."""
    written, section = [], None
    for row in rows:
        if row["section"] != section:
            section = row["section"]
            written += ["", section] if written else [section]
        result = f"{row['result']:,}" if isinstance(row["result"], int) else f"{row['result']:,.6g}"
        source = f"  [{row['source']}]" if row["source"] else ""
        written += _wrapped(f"{row['name']}: {result} {row['unit']}{source}".rstrip(), 2)
        if row["formula"] != row["values"]:
            written += _wrapped(f"= {row['formula']}", 6)
        if not NUMBER.fullmatch(row["values"]):
            written += _wrapped(f"= {row['values']}", 6)
    return "\n".join(written)


def _wrapped(text: str, indent: int) -> list[str]:
    """Wrap a text; all lines but the first are indented by two more."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_on_hyphens=False,
        break_long_words=False,
    )
