"""Format a ladder's plan and its results as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.report.svg import Curve, draw_panel
from zoo.report.tables import make_table
from zoo.report.units import format_count, format_seconds, format_si

RULE = """\
Rule: d_model / n_layers, head width, query heads a key head, d_ff / d_model as
in the model, as near as whole numbers come; 2048 · 160 · (N / 108M)^⅔ tokens
an update and AdamW at 0.0047 · (N / 108M)^−⅓ / 2 (OLMo-core), 0.006 at most.
N counts all parameters."""


def make_plan_table(ladder: Mapping[str, Any]) -> Any:
    """Make the table of a ladder's plan."""
    rungs = ladder["rungs"]
    header = ("N", "width × layers", "heads", "d_ff", "batch", "lr", "updates", "decays end at", "FLOPs", "seconds")
    return make_table("", header, [_list_cells(each) for each in rungs], right=(0, 3, 4, 5, 6, 8, 9))


def format_plan(ladder: Mapping[str, Any]) -> str:
    """Write the lines below the table: the total cost, and the scaling rule."""
    rungs = ladder["rungs"]
    multiples = ", ".join(f"{tokens / rungs[-1]['params']:.3g}" for tokens in rungs[-1]["tokens"])
    total = [f"{len(rungs)} runs, {sum(len(each['tokens']) for each in rungs)} points, {multiples} tokens a parameter"]
    total.append(f"{format_si(sum(each['flops'] for each in rungs))}FLOPs")
    lines = []
    if all(each["seconds"] is not None for each in rungs):
        total.append(format_seconds(sum(each["seconds"] + each["evaluating"] for each in rungs)))
        if not all(each["timed"] for each in rungs):
            lines.append("~ too long to be timed: at the rate of the size before, or of matrix products alone")
    return "\n".join([", ".join(total), *lines, RULE])


def _list_cells(rung: Mapping[str, Any]) -> list[str]:
    dims = dict(each.removeprefix("model.").split("=") for each in rung["overrides"] if each.startswith("model."))
    shape = " × ".join(dims[name] for name in ("d_model", "n_layers") if name in dims)
    heads = "/".join(dims[name] for name in ("n_heads", "n_kv_heads") if name in dims)
    seconds = rung["seconds"]
    return [
        _shorten(rung["params"]),
        shape,
        heads,
        dims.get("d_ff", ""),
        _shorten(rung["batch_tokens"]),
        f"{rung['rate']:.3g}",
        f"{rung['ends'][-1]:,}",
        ", ".join(map(_shorten, rung["tokens"])),
        format_si(rung["flops"]),
        "" if seconds is None else f"{'' if rung['timed'] else '~'}{format_seconds(seconds + rung['evaluating'])}",
    ]


def _shorten(count: float) -> str:
    return format_count(count).replace(" ", "")


def describe_climb(outcome: Mapping[str, Any]) -> list[Any]:
    """Make the tables of a ladder's results: predicted and measured losses of the held-out size, and run times."""
    rows = [
        [
            *(format_count(each[name]) for name in ("params", "tokens")),
            f"{each['predicted']:.4f}",
            "" if each["interval"] is None else f"{each['interval'][0]:.4f} to {each['interval'][1]:.4f}",
            f"{each['measured']:.4f}",
            f"{each['predicted'] / each['measured'] - 1:+.2%}",
        ]
        for each in outcome["held_out"]
    ]
    header = ("parameters", "tokens", "predicted", "95 %, of the law", "measured", "error")
    made: list[Any] = [
        make_table("The largest size, predicted from the others before its run", header, rows, right=range(6))
    ]
    if outcome["doubt"]:
        made.append(f"In doubt: {outcome['doubt']}")
    return [*made, _compare_seconds(outcome["runs"])]


def draw_ladder(rows: Sequence[tuple[float, float, float]], held_out: Sequence[Mapping[str, Any]]) -> str:
    """Draw points of (parameters, tokens, loss) as an SVG panel: a curve per size, and the predicted one of the
    largest."""
    sizes = sorted({params for params, _, _ in rows})
    curves = []
    for color, size in enumerate(sizes):
        own = [(math.log10(tokens), loss) for params, tokens, loss in rows if params == size]
        curves.append(Curve([at for at, _ in own], [loss for _, loss in own], _shorten(size), color, marks=True))
    at = [math.log10(each["tokens"]) for each in held_out]
    curves.append(Curve(at, [each["predicted"] for each in held_out], "predicted", len(sizes)))
    return draw_panel("validation loss (nats)", curves, "log₁₀(training tokens)", width=720, height=400)


def _compare_seconds(found: Sequence[Mapping[str, Any]]) -> Any:
    rows = []
    for each in found:
        predicted, measured = each["predicted_seconds"], each["seconds"]
        off = "" if not predicted or not measured else f"{predicted / measured - 1:+.0%}"
        times = ("" if value is None else format_seconds(value) for value in (predicted, measured))
        rows.append([each["run"], format_si(each["flops"] or 0), *times, off])
    return make_table(
        "Seconds of training", ("run", "FLOPs", "predicted", "measured", "error"), rows, right=range(1, 5)
    )
