"""Format a ladder's plan and its results as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from zoo.analysis.scaling import FittedLaw
from zoo.jobs.rates import FEWEST, MOST
from zoo.ladder.rate_tuning import find_error_growth
from zoo.report.scaling import format_head, make_fit_tables
from zoo.report.svg import Curve, draw_panel
from zoo.report.tables import TextTable
from zoo.units import format_count, format_seconds, format_si

if TYPE_CHECKING:
    from zoo.analysis.scaling.optimal_speedup import SpeedupTrend
    from zoo.ladder.ladder_plan import Ladder

RULE = """\
Rule: d_model / n_layers, head width, query heads per key head, d_ff / d_model as
in the model, as near as whole numbers come, and two layers at least. All sizes
have one batch: that of the smallest by OLMo-core's rule, 2048 · 160 ·
(N / 108M)^⅔ tokens, but 300 updates at least before its first point. AdamW at
0.0047 · (N / 108M)^−⅓ / 2 (OLMo-core), 0.006 at most. N counts all parameters."""


WIDE = 1.5
"""The growth of a learning rate's error above which a plan names it."""


def make_plan_table(ladder: Mapping[str, Any]) -> TextTable:
    """Make the table of a ladder's plan, with a row for each size."""
    rungs = {each["params"]: each for each in ladder["rungs"]}.values()
    header = ("N", "width × layers", "heads", "d_ff", "batch", "lr", "updates", "decays end at", "FLOPs", "time")
    return TextTable("", header, [_list_cells(each) for each in rungs], (0, 3, 4, 5, 6, 8, 9))


def format_plan(ladder: Ladder) -> str:
    """Format the plan's notes: the total cost, and that of searching the learning rate."""
    rungs = ladder.rungs
    multiples = ", ".join(f"{tokens / ladder.largest:.3g}" for tokens in rungs[-1].tokens)
    seeds = sum(each.params == ladder.largest for each in rungs)
    total = [f"{len(rungs)} runs", *([f"{seeds} seeds per size"] if seeds > 1 else [])]
    total += [f"{sum(len(each.tokens) for each in rungs)} points", f"{multiples} tokens per parameter"]
    total.append(_format_cost(_list_runs(ladder)))
    lines = []
    if not all(each.timed or each.seconds is None for each in rungs):
        lines.append("~ too long to be timed: at the rate of the size before, or of matrix products alone")
    if searched := ladder.list_searched():
        sizes = " and ".join(_shorten(each.params) for each in searched)
        lines.append(
            f"Before them lr is searched at {sizes}, up to their first points, in {FEWEST} to {MOST} runs each:"
        )
        lines.append(f"{_format_cost(_list_search(ladder))} or more. lr of other sizes: log lr is linear in log N.")
        if (growth := find_error_growth([each.params for each in searched], ladder.largest)) > WIDE:
            lines.append(f"The error of a searched lr, in decades, is {growth:.2g} times as large at the largest size.")
    return "\n".join([", ".join(total), *lines])


def format_total(ladders: Sequence[Ladder]) -> str:
    """Write the cost of several ladders together, each search with the fewest runs that it may have."""
    costs = [cost for each in ladders for cost in (*_list_runs(each), *_list_search(each))]
    least = " or more, with the searches" if any(each.tune for each in ladders) else ""
    runs = sum(len(each.rungs) for each in ladders)
    return f"all {len(ladders)} arms: {runs} runs, {_format_cost(costs)}{least}"


def _list_runs(ladder: Ladder) -> list[tuple[float, float | None]]:
    """List the FLOPs and the seconds of each run."""
    return [(each.flops, None if each.seconds is None else each.seconds + each.evaluating) for each in ladder.rungs]


def _list_search(ladder: Ladder) -> list[tuple[float, float | None]]:
    """List the FLOPs and the seconds of a search of FEWEST runs at each size that is searched."""
    found: list[tuple[float, float | None]] = []
    for each in ladder.list_searched():
        runs = FEWEST * each.lengths.ends[0] / each.lengths.updates
        found.append((runs * each.flops, None if each.seconds is None else runs * each.seconds))
    return found


def _format_cost(costs: Sequence[tuple[float, float | None]]) -> str:
    """Format the sum of FLOPs, and of seconds if all are known: `1.21 TFLOPs, 22.0 min`."""
    known = [seconds for _, seconds in costs if seconds is not None]
    took = [format_seconds(sum(known))] if len(known) == len(costs) else []
    return ", ".join([f"{format_si(sum(flops for flops, _ in costs))}FLOPs", *took])


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


def describe_climb(outcome: Mapping[str, Any]) -> list[str | TextTable]:
    """Make the tables of a ladder's results: predicted and measured losses of the held-out size, run times, and the law
    fitted to all points."""
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
    header = ("parameters", "tokens", "predicted", "95 % interval", "measured", "error")
    doubt, fit = outcome["doubt"], FittedLaw.from_dict(outcome["fit"])
    return [
        TextTable("The largest size, predicted from the others before its run", header, rows, range(6)),
        *([f"In doubt: {doubt}"] if doubt else []),
        _compare_times(outcome["runs"]),
        *format_head(fit).splitlines(),
        *make_fit_tables(fit, []),
    ]


def make_speedup_table(first: str, trends: Mapping[str, SpeedupTrend]) -> TextTable:
    """Make the table of each arm's compute-optimal speedups over the first arm, and of their slopes."""
    rows = []
    for name, trend in trends.items():
        for flops, each in zip(trend.flops, trend.speedups, strict=True):
            rows.append([name, f"{format_si(flops)}FLOPs", f"×{each.factor:.3f}", _format_ends(each.interval, "×")])
        slope = f"{trend.slope:+.3f}".replace("-", "\N{MINUS SIGN}")
        rows.append([name, "slope", slope, f"{_format_ends(trend.interval)}: {trend.survives}"])
        rows += [[name, "in doubt", "", trend.doubt]] if trend.doubt else []
    title = f"Compute-optimal speedup over {first}; slope: d ln speedup / d ln FLOPs"
    return TextTable(title, ("arm", "FLOPs", "speedup", "95 % interval"), rows, (1, 2))


def _format_ends(ends: tuple[float, float] | None, sign: str = "") -> str:
    if ends is None:
        return "not known"
    return f"{sign}{ends[0]:.3f} to {sign}{ends[1]:.3f}".replace("-", "\N{MINUS SIGN}")


def draw_ladder(
    rows: Sequence[tuple[float, float, float]], held_out: Sequence[Mapping[str, Any]], name: str = ""
) -> str:
    """Draw points of (parameters, tokens, loss) as an SVG panel: a curve for each size, averaged over its runs, and the
    largest size's predicted curve with prediction intervals. `name` is the arm's, if there are several."""
    losses: dict[float, dict[float, list[float]]] = {}
    for params, tokens, loss in rows:
        losses.setdefault(params, {}).setdefault(math.log10(tokens), []).append(loss)
    curves = [
        Curve(list(own), list(map(fmean, own.values())), _shorten(size), color, marks=True)
        for color, (size, own) in enumerate(sorted(losses.items()))
    ]
    at = [math.log10(each["tokens"]) for each in held_out]
    curves.append(Curve(at, [each["predicted"] for each in held_out], "predicted, 95 % interval", len(losses)))
    curves += _make_bars(at, [each["interval"] for each in held_out], len(losses))
    title = f"{name}: validation loss (nats)" if name else "validation loss (nats)"
    return draw_panel(title, curves, "log₁₀(training tokens)", width=720, height=400)


def draw_speedups(first: str, trends: Mapping[str, SpeedupTrend]) -> str:
    """Draw each arm's compute-optimal speedup over the first arm, with intervals, as an SVG panel."""
    curves = []
    for color, (name, trend) in enumerate(trends.items()):
        at = list(map(math.log10, trend.flops))
        curves.append(Curve(at, [each.factor for each in trend.speedups], name, color, marks=True))
        curves += _make_bars(at, [each.interval for each in trend.speedups], color)
    title = f"compute-optimal speedup over {first}, 95 % intervals"
    return draw_panel(title, curves, "log₁₀(training FLOPs)", width=720, height=300)


def _make_bars(at: Sequence[float], intervals: Sequence[Sequence[float] | None], color: int) -> list[Curve]:
    """Make a vertical line at each position whose interval is known."""
    return [Curve([x] * 2, ends, color=color) for x, ends in zip(at, intervals, strict=True) if ends is not None]


def _compare_times(found: Sequence[Mapping[str, Any]]) -> TextTable:
    rows = []
    for each in found:
        predicted, measured = each["predicted_seconds"], each["seconds"]
        off = "" if not predicted or not measured else f"{predicted / measured - 1:+.0%}"
        times = ("" if value is None else format_seconds(value) for value in (predicted, measured))
        rows.append([each["run"], format_si(each["flops"] or 0), *times, off])
    return TextTable("Time of training", ("run", "FLOPs", "predicted", "measured", "error"), rows, range(1, 5))
