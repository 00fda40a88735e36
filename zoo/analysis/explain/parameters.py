"""Parameters, explained from the shapes of the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from zoo.analysis.explain.line import Line, Sheet, cited, layers, place, times
from zoo.analysis.explain.terms import Term, symbol, term, total
from zoo.costs.params import component, count
from zoo.spec import Part, Spec, walk

UNIT = "parameters"


class Piece(NamedTuple):
    """A component of a kind of layer, or of a tower beside its layers."""

    where: str  # the tower: "", "encoder" or "decoder"
    kind: str | None  # of layer
    what: str  # the component, as in by_component
    name: str
    each: Term  # in one layer
    copies: Term
    source: str

    @property
    def all(self) -> Term:
        return times(self.copies, self.each)


def pieces(model: Any, of: Callable[[str, Part], Any], stored: bool = True) -> Iterator[Piece]:
    """What `of` gives of each part and its path, added up by component; of layers as stored, or as a pass meets
    them."""
    for where, tower, kind, copies, parts in _stacks(model, stored):
        found: dict[tuple[str, str], list[tuple[Term, Spec]]] = {}
        for path, owner, part, more in parts:
            what = component(path, owner)
            label = f"{path.split('.')[0]}_norm" if kind is None and what == "norm" else what
            label = "final_norm" if label == "norm_norm" else label
            found.setdefault((what, label), []).append((times(term(more), of(path, part)), owner))
        for (what, label), counted in found.items():
            each = total(made for made, _ in counted)
            if each.value:
                yield Piece(where, kind, what, place(where, label, tower, kind), each, copies, cited(counted[0][1]))


def _stacks(model: Any, stored: bool) -> Iterator[tuple[str, Any, str | None, Term, list[Any]]]:
    """The parts before a tower's layers, of each kind of layer, and behind them."""
    for where, tower in model.towers().items():
        before, behind = [], []
        for each in walk(tower, tower.d_model, used=not stored):
            if not each[0].startswith("blocks."):
                (before if each[0].startswith(("embedding", "position")) else behind).append(each)
        yield where, tower, None, term(1), before
        for kind, block in tower.blocks.items():
            inside = walk(block, tower.d_model, f"blocks.{kind}", used=not stored)
            yield where, tower, kind, layers(tower, kind, stored), list(inside)
        yield where, tower, None, term(1), behind


def parameters(model: Any) -> list[Line]:
    """Lines of a traced model: each component by kind of layer, what they add up to, and what a token meets."""
    sheet = Sheet("Parameters")
    by_component: dict[str, list[Term]] = {}
    for piece in pieces(model, lambda _, part: part.params):
        by_component.setdefault(piece.what, []).append(sheet.add(piece.name, piece.all, UNIT, piece.source))
    sums = [_component(sheet, what, held) for what, held in by_component.items()]
    whole = sheet.sum("total", sums, UNIT, "every part once; a tied one at its owner", "params.total")
    idle = [piece.all for piece in pieces(model, lambda _, part: part.params - part.active)]
    source = "total without the experts that a token does not meet"
    _rest(sheet, model, whole, sheet.add("active", whole - total(idle), UNIT, source, "params.active"))
    _by_kind(sheet, model)
    return sheet.lines


def _component(sheet: Sheet, what: str, held: list[Any]) -> Any:
    """The sum of a component's lines, or the only one, marked as the figure that it is."""
    figure = f"params.by_component.{what}"
    if len(held) == 1:
        index = next(i for i, line in enumerate(sheet.lines) if line.name == held[0].symbol)
        sheet.lines[index] = replace(sheet.lines[index], figure=figure)
        return held[0]
    return sheet.sum(f"all {what}", held, UNIT, "over kinds of layer and towers", figure)


def _rest(sheet: Sheet, model: Any, whole: Term, active: Term) -> None:
    """Figures of which `count` itself, on traced numbers, gives the formula."""
    counted = count(model)
    looked = term(counted["active"] - counted["active_without_input_table"])
    source = "a token reads one row of a table that no head is tied to"
    sheet.add("active, no input table", active - looked, UNIT, source, "params.active_without_input_table")
    tables = sheet.add(
        "embedding tables and head", counted["embedding"], UNIT, "tables, and a head of its own", "params.embedding"
    )
    sheet.add("not embedding", whole - tables, UNIT, "total without these", "params.non_embedding")
    if counted["buffers"]:
        sheet.add("buffers", counted["buffers"], "values", "saved, never trained, in no other figure", "params.buffers")


def _by_kind(sheet: Sheet, model: Any) -> None:
    held = list(pieces(model, lambda _, part: part.params))
    met = list(pieces(model, lambda _, part: part.active))
    for where, tower in model.towers().items():
        for kind in tower.blocks:
            name = f"{where}.{kind}" if where else kind
            for what, of in (("total", held), ("active", met)):
                inside = [symbol(p.name, p.all.value) for p in of if p.where == where and p.kind == kind]
                sheet.sum(f"'{name}' layers, {what}", inside, UNIT, "", f"params.by_layer_kind.{name}.{what}")
