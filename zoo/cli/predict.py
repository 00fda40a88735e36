"""`zoo predict`: predict losses and compute-optimal sizes by a fitted scaling law."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import report
from zoo.cli.common import print_note
from zoo.cli.options import argument, option
from zoo.cli.setup import read_amount
from zoo.cli.showing import Json
from zoo.errors import ConfigError
from zoo.untrusted.json_file import SETTINGS, read_json

if TYPE_CHECKING:
    from zoo.analysis.scaling import FittedLaw


def run(
    file: Path = argument("The file that zoo fit --out wrote.", default=..., metavar="FIT"),
    params: str | None = option("Parameters: 350M, 7B.", metavar="NUMBER"),
    tokens: str | None = option("Training tokens: 300B, 15T.", metavar="NUMBER"),
    loss: float | None = option("Target loss: predict the training tokens needed for it.", min=0),
    flops: str | None = option("Training FLOPs: predict the compute-optimal parameters and tokens.", metavar="NUMBER"),
    as_json: Json = False,
) -> None:
    """Predict a model's loss after some training tokens, the tokens needed for a loss, or the compute-optimal model.

    Give --params with --tokens or with --loss, or --flops alone. The output says how far a prediction extrapolates
    beyond the fitted points; it is refused if an exponent's interval is wider than 0.2.
    """
    given = {"params": params, "tokens": tokens, "loss": loss, "flops": flops}
    asked = {name for name, value in given.items() if value is not None}
    if asked not in ({"params", "tokens"}, {"params", "loss"}, {"flops"}):
        found = ", ".join(f"--{name}" for name in given if name in asked) or "nothing"
        raise ConfigError(f"predict: found {found} (--params with --tokens or --loss, or --flops alone)")
    fit = read_fit(file)
    count, trained, spent = (
        None if value is None else read_amount(value, name, "350M, 7e9 or 1.5T")
        for name, value in (("params", params), ("tokens", tokens), ("flops", flops))
    )
    found = predict(fit, count, trained, loss, spent)
    if beyond := found["beyond"]:
        far = " and ".join(f"{ratio:.3g} times the most {name}" for name, ratio in beyond.items())
        print_note(f"{far} of the fitted points: the interval holds only if the law does so far out")
    if as_json:
        print(report.format_json(found))
        return
    interval = found["interval"]
    between = "" if interval is None else f" (95 %: {interval[0]:.4f} to {interval[1]:.4f})"
    sizes = f"{report.format_count(found['params'])} parameters, {report.format_count(found['tokens'])} tokens"
    print(f"{sizes}: loss {found['loss']:.4f}{between}")


def predict(
    fit: FittedLaw, params: float | None, tokens: float | None, loss: float | None, flops: float | None
) -> dict[str, Any]:
    """Compute parameters, tokens and loss from the given ones, and `beyond`: how many times parameters and tokens
    exceed the largest among the fit's points. Raises ConfigError for points too far beyond the fit's, and for figures
    that are not finite."""
    try:
        if flops is not None:
            best = fit.law.optimum(flops)
            params, tokens = best.params, best.tokens
        assert params is not None
        if loss is not None:
            tokens = fit.law.tokens_for(loss, params)
        assert tokens is not None
        fit.check_reach(params, tokens)
        found = {"params": params, "tokens": tokens, "loss": fit.law.loss(params, tokens)}
        interval = fit.predict_interval(params, tokens)
    except (OverflowError, ZeroDivisionError):
        found, interval = {"loss": math.nan}, None
    if not all(map(math.isfinite, found.values())):
        raise ConfigError("fit: its law gives no finite figures here (a law of real runs)")
    return {**found, "interval": interval, "beyond": fit.measure_reach(found["params"], found["tokens"])}


def read_fit(file: Path) -> FittedLaw:
    """Read the file that `zoo fit --out` has written. Raises ConfigError if it is missing or holds no fit."""
    from zoo.analysis.scaling import FittedLaw

    try:
        return FittedLaw.from_dict(read_json(file, most=SETTINGS), str(file))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file (zoo fit POINTS --out {file})") from None
