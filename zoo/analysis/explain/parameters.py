"""Explain the parameters from the shapes of the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from zoo.analysis.explain.line import Line, Sheet, cite, count_layers, name_component
from zoo.analysis.explain.terms import Term, symbol, term, total
from zoo.costs.flops import is_row_wise
from zoo.costs.params import component_of, count_parameters
from zoo.costs.rows import CostTable, PartRow
from zoo.spec import SHARED

UNIT = "parameters"


class ComponentFormula(NamedTuple):
    """The parameters or FLOPs of a component as a formula, in one kind of layer or outside a tower's layers."""

    where: str  # the tower: "", "encoder" or "decoder"
    kind: str | None  # the kind of layer
    what: str  # the component, as in by_component
    name: str
    each: Term  # the sum in one layer
    copies: Term
    source: str
    once: bool = False  # applied once for a row rather than to each token

    @property
    def all(self) -> Term:
        return self.copies * self.each


def list_component_formulas(
    table: CostTable, of: Callable[[PartRow], Any], stored: bool = True
) -> Iterator[ComponentFormula]:
    """Sum `of(row)` over the rows of each component, and count the layers to multiply by: with `stored` the layers with
    weights of their own, else all layers of a pass."""
    found: dict[tuple[str, str | None, str, str], list[PartRow]] = {}
    for row in table.parts:
        what = label = component_of(row)
        if what == "norm" and row.kind is None:
            label = "final_norm" if row.slot == "norm" else f"{row.slot}_norm"
        found.setdefault((row.where, row.kind, what, label), []).append(row)
    for (where, kind, what, label), counted in found.items():
        each = total(term(of(row)) for row in counted)
        if each.value:
            tower = table.towers[where]
            common = stored and counted[0].slot == SHARED
            copies = term(1) if kind is None or common else count_layers(tower, kind, stored)
            name = name_component(where, label, tower, kind)
            first = counted[0]
            yield ComponentFormula(where, kind, what, name, each, copies, cite(first.owner), is_row_wise(first))


def list_parameter_lines(table: CostTable) -> list[Line]:
    """List the lines of a traced model's rows: components by kind of layer, their sum, and the active parameters."""
    sheet = Sheet("Parameters")
    by_component: dict[str, list[Term]] = {}
    for piece in list_component_formulas(table, lambda row: row.part.params):
        by_component.setdefault(piece.what, []).append(sheet.add(piece.name, piece.all, UNIT, piece.source))
    sums = [_component(sheet, what, held) for what, held in by_component.items()]
    whole = sheet.sum("total", sums, UNIT, "every part once; a tied one at its owner", "params.total")
    idle = [piece.all for piece in list_component_formulas(table, lambda row: row.part.params - row.part.active)]
    source = "total, less the experts that a token does not use"
    _rest(sheet, table, whole, sheet.add("active", whole - total(idle), UNIT, source, "params.active"))
    _by_kind(sheet, table)
    return sheet.lines


def _component(sheet: Sheet, what: str, held: list[Any]) -> Any:
    """Sum a component's lines. The sum, or the only line, gets its path in the result of `price`."""
    figure = f"params.by_component.{what}"
    if len(held) == 1:
        index = next(i for i, line in enumerate(sheet.lines) if line.name == held[0].symbol)
        sheet.lines[index] = replace(sheet.lines[index], figure=figure)
        return held[0]
    return sheet.sum(f"all {what}", held, UNIT, "over kinds of layer and towers", figure)


def _rest(sheet: Sheet, table: CostTable, whole: Term, active: Term) -> None:
    """Add the figures whose formula is `count_parameters` run on traced numbers."""
    counted = count_parameters(table)
    looked = term(counted["active"] - counted["active_without_input_table"])
    source = "a token reads one row of a table that no head is tied to"
    sheet.add("active, no input table", active - looked, UNIT, source, "params.active_without_input_table")
    tables = sheet.add(
        "embedding tables and head", counted["embedding"], UNIT, "tables, and a head of its own", "params.embedding"
    )
    sheet.add("not embedding", whole - tables, UNIT, "total without these", "params.non_embedding")
    if counted["buffers"]:
        sheet.add("buffers", counted["buffers"], "values", "saved, never trained, in no other figure", "params.buffers")


def _by_kind(sheet: Sheet, table: CostTable) -> None:
    held = list(list_component_formulas(table, lambda row: row.part.params))
    met = list(list_component_formulas(table, lambda row: row.part.active))
    for where, tower in table.towers.items():
        for kind in tower.blocks:
            name = f"{where}.{kind}" if where else kind
            for what, of in (("total", held), ("active", met)):
                inside = [symbol(p.name, p.all.value) for p in of if p.where == where and p.kind == kind]
                sheet.sum(f"'{name}' layers, {what}", inside, UNIT, "", f"params.by_layer_kind.{name}.{what}")
