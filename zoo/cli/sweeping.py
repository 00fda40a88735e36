"""`zoo stats -m`: price each combination of swept values, one row per combination."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import report
from zoo.analysis.compare import choose_columns, flatten
from zoo.cli.common import print_note
from zoo.cli.showing import Shown, shorten_labels
from zoo.errors import ConfigError
from zoo.report.figures import find_unit
from zoo.report.models import make_sweep_table
from zoo.report.price_plot import check_picture, draw_models

if TYPE_CHECKING:
    from zoo.compose.sweep_specs import Point
    from zoo.costs.setup import Setup

REFUSED = "refused"


def sweep(
    targets: Sequence[str],
    overrides: Sequence[str],
    setup: Setup,
    columns: str | None,
    shown: Shown,
    plot: Path | None,
) -> None:
    """Price every point and print one table. Raises ConfigError if every point is refused."""
    gc.enable()  # `main` has disabled it; a thousand composed configs need collecting
    names = [name.strip() for name in columns.split(",") if name.strip()] if columns else []
    made = _points(targets, overrides)
    for note in dict.fromkeys(note for point in made for note in point.left_out):
        print_note(note)
    whole = [figures for point in (made, made[::-1]) if (figures := _first(point, setup))]
    if not whole:
        raise ConfigError(*dict.fromkeys(fault for point in made for fault in point.faults))
    asked = choose_columns(names, list(dict.fromkeys(path for figures in whole for path in flatten(figures))))
    parts = None if shown is Shown.json else {"params", *asked.values()}
    points = [(point, _priced(point, setup, parts)) for point in made]
    priced = [figures for _, figures in points if figures is not None]
    if plot is not None:
        check_picture(plot, len(priced))
    if not names and all(each["params"]["active"] == each["params"]["total"] for each in priced):
        del asked["active"]  # dense models, all of them
    _print(points, asked, shown)
    if plot is not None:
        named = ((" ".join(map(str, point.swept.values())) or point.target, point.spec) for point in made)
        specs = {name: spec for name, spec in named if spec is not None}
        draw_models(specs, setup, plot)


def _points(targets: Sequence[str], overrides: Sequence[str]) -> list[Point]:
    from zoo.compose.sweep_specs import read_points

    found = []
    for target, label in zip(targets, shorten_labels(targets), strict=True):
        for point in read_points(target, overrides):
            point.target = label
            if len(targets) > 1:
                point.swept = {"model": label, **point.swept}
            found.append(point)
    return found


def _first(points: Sequence[Point], setup: Setup) -> dict[str, Any] | None:
    return next((figures for point in points if (figures := _priced(point, setup)) is not None), None)


def _priced(point: Point, setup: Setup, parts: Collection[str] | None = None) -> dict[str, Any] | None:
    """Price a point, or only the `parts` of its figures; None if the point is refused."""
    from zoo.costs import price

    try:
        return None if point.spec is None else price(point.spec, setup, parts)
    except ConfigError as error:  # a set-up that does not fit this architecture, such as too many ranks
        point.faults = error.faults
        return None


def _print(points: Sequence[tuple[Point, dict[str, Any] | None]], columns: dict[str, str], shown: Shown) -> None:
    if shown is Shown.json:
        print(report.format_json([_as_data(point, figures) for point, figures in points]))
        return
    keys = list(points[0][0].swept)
    rows, reasons = [], []
    for point, figures in points:
        flattened = flatten(figures) if figures else {}
        rows.append([*point.swept.values(), *(flattened.get(path) for path in columns.values())])
        reasons.append("; ".join(point.faults) or None)
    header, units = [*keys, *columns], [find_unit(path) for path in columns.values()]
    if shown is Shown.csv:
        header = [*keys, *columns.values(), REFUSED]
        print(report.format_csv(header, [[*row, why] for row, why in zip(rows, reasons, strict=True)]))
    elif shown is Shown.md:
        short = partial(report.format_figure, short=True)
        told = [[*row[: len(keys)], *map(short, row[len(keys) :], units)] for row in rows]
        told = [[*row, why or ""] for row, why in zip(told, reasons, strict=True)] if any(reasons) else told
        header = [*header, REFUSED] if any(reasons) else header
        print(report.format_markdown(header, told, right=range(len(keys), len(keys) + len(columns))))
    else:
        table, whys = make_sweep_table(header, len(keys), rows, units, reasons)
        report.print_tables(table, *whys)


def _as_data(point: Point, figures: dict[str, Any] | None) -> dict[str, Any]:
    at = {"model": point.target, "overrides": point.overrides}
    return {**at, "refused": point.faults} if figures is None else {**at, **figures}
