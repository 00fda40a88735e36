"""Format a fitted scaling law as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError
from zoo.report.tables import TextTable
from zoo.units import format_count

if TYPE_CHECKING:
    from zoo.analysis.scaling import FittedLaw, Law, LossPoints
    from zoo.analysis.scaling.isoflop import IsoFlop, ParabolaBias

SYMBOLS = {"E": "E", "A": "A", "B": "B", "alpha": "α", "beta": "β", "exponent": "a = β/(α + β)"}
BEYOND = 100
"""Optima are listed up to this many times the FLOPs of the largest point."""


def describe_fit(fit: FittedLaw) -> dict[str, Any]:
    """Write a fit as plain data: the law, its errors and intervals, the number of points, and the optima."""
    numbers = {
        name: {"value": getattr(fit.law, name), "error": fit.error(name), "interval": fit.interval(name)}
        for name in SYMBOLS
    }
    return {
        **numbers,
        "open": fit.list_open(),
        "objective": fit.objective,
        "points": len(fit.points),
        "optima": list_optima(fit),
    }


def list_optima(fit: FittedLaw) -> list[dict[str, float]]:
    """List the compute-optimal parameters and tokens for powers of ten of FLOPs, within the range of extrapolation.
    Empty if the points leave a constant of the law undetermined."""
    if fit.list_open():
        return []
    products = [6 * params * tokens for params, tokens, _ in fit.points.rows()]
    found, flops = [], 10.0 ** len(str(int(min(products))))
    while flops <= BEYOND * max(products):
        best = fit.law.optimum(flops)
        try:
            fit.check_reach(best.params, best.tokens)
        except ConfigError:
            break
        found.append({"flops": flops, "params": best.params, "tokens": best.tokens, "loss": best.loss})
        flops *= 10
    return found


def compare_held(fit: FittedLaw, held: LossPoints) -> list[dict[str, Any]]:
    """Compare the law's predictions with the measured losses at held-out points. Runs of equal parameters and tokens
    are one line: `measured` is the mean of their `losses`, and `interval` is the prediction interval of this mean."""
    groups: dict[tuple[float, float], list[float]] = {}
    for params, tokens, loss in held.rows():
        groups.setdefault((params, tokens), []).append(loss)
    return [
        {
            "params": params,
            "tokens": tokens,
            "measured": fmean(losses),
            "losses": losses,
            "predicted": fit.law.loss(params, tokens),
            "interval": fit.predict_interval(params, tokens, len(losses)),
        }
        for (params, tokens), losses in groups.items()
    ]


def make_fit_tables(fit: FittedLaw, held: Sequence[dict[str, Any]]) -> list[TextTable]:
    """Make the tables of the law, of held-out points and of the compute optima."""
    numbers = []
    for name, symbol in SYMBOLS.items():
        value, error, interval = getattr(fit.law, name), fit.error(name), fit.interval(name)
        spread = "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
        numbers.append([symbol, f"{value:.4g}", "" if error is None else f"{error:.2g}", spread])
    tables = [TextTable("", ("", "value", "error", "95 % interval"), numbers, (1, 2, 3))]
    if held:
        rows = [
            [
                *(format_count(each[name]) for name in ("params", "tokens")),
                *(f"{each[name]:.4f}" for name in ("measured", "predicted")),
                f"{each['predicted'] / each['measured'] - 1:+.2%}",
            ]
            for each in held
        ]
        header = ("parameters", "tokens", "measured", "predicted", "error")
        tables.append(TextTable("Held-out points, predicted", header, rows, range(5)))
    optima = list_optima(fit)
    if optima:
        rows = [
            [
                f"{each['flops']:.0e}".replace("e+", "e"),
                *(format_count(each[name]) for name in ("params", "tokens")),
                f"{each['tokens'] / each['params']:.1f}",
                f"{each['loss']:.4f}",
            ]
            for each in optima
        ]
        header = ("FLOPs", "parameters", "tokens", "tokens per parameter", "loss")
        tables.append(TextTable("Compute-optimal sizes (C = 6ND)", header, rows, range(5)))
    return tables


def format_head(fit: FittedLaw) -> str:
    """Write the first lines: the range of the points, the law, and the Huber loss."""
    params, tokens = fit.points.params, fit.points.tokens
    return (
        f"{len(fit.points)} points: {format_count(min(params))} to {format_count(max(params))} parameters, "
        f"{format_count(min(tokens))} to {format_count(max(tokens))} tokens\n"
        f"L(N, D) = E + A/N^α + B/D^β; Huber's loss {fit.objective:.6g}"
        + "".join(f"\n{line}" for line in fit.list_open())
    )


# ---------------------------------------------------------------- approach 2


def find_bias(points: LossPoints, fit: IsoFlop) -> tuple[Law, ParabolaBias] | str:
    """Fit approach 3 (the law itself) to all points, and measure the bias of approach 2 (parabolas) for this law. If
    this is impossible, return the reason instead."""
    from zoo.analysis.scaling import fit_law, measure_bias

    try:
        found = fit_law(points, bootstrap=0)
    except ConfigError as error:
        return error.faults[0]
    if missing := found.list_open():
        return missing[0]
    return found.law, measure_bias(found.law, fit.budgets)


def describe_isoflop(fit: IsoFlop, found: tuple[Law, ParabolaBias] | str) -> dict[str, Any]:
    """Write a fit by approach 2 as plain data: each budget's minimum, the exponents, and the bias."""
    low_high = fit.interval()
    budgets = [
        {
            "flops": each.flops,
            "sizes": len(each.points),
            "spread": each.spread,
            "params": each.params,
            "tokens": each.tokens,
        }
        for each in fit.budgets
    ]
    bias: dict[str, Any] = (
        {"unknown": found} if isinstance(found, str) else {"law": asdict(found[0]), **asdict(found[1])}
    )
    return {
        "exponent": {"value": fit.exponent, "interval": low_high},
        "scale": fit.scale,
        "budgets": budgets,
        "bias": bias,
    }


def format_isoflop(fit: IsoFlop, found: tuple[Law, ParabolaBias] | str) -> list[str | TextTable]:
    """Make the lines and the table of a fit by approach 2."""
    interval = fit.interval()
    between = "" if interval is None else f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})"
    bias = None if isinstance(found, str) else found[1]
    rows = []
    for at, each in enumerate(fit.budgets):
        about = [f"{each.flops:.2e}".replace("e+", "e"), f"{len(each.points)}", f"±{each.spread:.2g}×"]
        minimum = ["none"] * 2 if each.params is None else [format_count(each.params), format_count(each.tokens or 0)]
        off = [None, None] if bias is None else [bias.params[at], bias.tokens[at]]
        rows.append([*about, *minimum, *("" if value is None else f"{value:+.1%}" for value in off)])
    header = ("FLOPs", "points", "size range", "parameters", "tokens", "parameter bias", "token bias")
    return [
        f"N = {fit.scale:.4g} · C^a, a = {fit.exponent:.4f}{between}; for tokens 1 − a",
        TextTable("Minima of the parabolas", header, rows, range(7)),
        _say_bias(found),
    ]


def _say_bias(found: tuple[Law, ParabolaBias] | str) -> str:
    if isinstance(found, str):
        return f"The bias of the parabolas is unknown: {found}"
    law, bias = found
    known = [abs(each) for each in (*bias.params, *bias.tokens) if each is not None]
    most = f"up to {max(known):.1%}" if known else "unknown, because they have no minimum there"
    exponent = "" if bias.exponent is None else f", of the exponent {bias.exponent:+.4f}"
    return (
        f"The parabolas' bias without any noise is {most}{exponent}: for the law of approach 3 "
        f"(α {law.alpha:.3f}, β {law.beta:.3f}) at these sizes. Intervals leave it out."
    )
