"""`zoo fit`: fit a scaling law to trained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import report
from zoo.cli.options import argument, option
from zoo.cli.showing import Json
from zoo.disk import write_text
from zoo.errors import ConfigError, refuse
from zoo.report.scaling import (
    compare_held,
    describe_fit,
    describe_isoflop,
    find_bias,
    format_head,
    format_isoflop,
    make_fit_tables,
)

if TYPE_CHECKING:
    from zoo.analysis.scaling import LossPoints

FILES = (".csv", ".jsonl")


def run(
    sources: list[Path] = argument(
        "Runs, folders with runs, or files (.csv, .jsonl).", default=..., metavar="POINTS..."
    ),
    approach: int = option("3: parametric fit; 2: isoFLOP parabolas (Hoffmann et al., 2022).", default=3, min=2, max=3),
    columns: str = option(
        "Names of a file's columns for parameters, tokens and loss.",
        default="params,tokens,loss",
        metavar="NAME,NAME,NAME",
    ),
    drop_highest: int = option("Drop this many points with the highest losses.", default=0, min=0),
    hold_out: int = option("Hold out this many points with the most FLOPs, and predict them.", default=0, min=0),
    bootstrap: int = option("Number of bootstrap resamples.", default=1000, min=0, max=10_000),
    seed: int = option("Random seed of the resampling.", default=0, min=0),
    out: Path | None = option("Write the fit to this file, for zoo predict.", "--out", "-o"),
    as_json: Json = False,
) -> None:
    """Fit the loss to L(N, D) = E + A/N^α + B/D^β, N parameters and D tokens (Hoffmann et al., 2022).

    The fit minimises the Huber loss on log L from 18 initial values (Besiroglu et al., 2024); errors are those of a
    bootstrap. The loss of a run is its
    last validation loss. A run with several decays (schedule=wsd_s) is one point per decay.

    --approach 2 fits a parabola to the points of equal FLOPs (6·N·D), and a power law to the minima. The bias that
    the parabola approximation has even on noise-free data is printed too.
    """
    from zoo.analysis.scaling import fit_law

    points = collect_points(sources, read_columns(columns)).without_highest(drop_highest)
    if approach == 2:
        if hold_out or out is not None:
            name = "hold-out" if hold_out else "out"
            raise ConfigError(f"{name}: needs a law, because parabolas predict no loss (--approach 3)")
        return fit_parabolas(points, bootstrap, seed, as_json)
    kept, held = points.split_largest(hold_out) if hold_out else (points, None)
    fit = fit_law(kept, bootstrap, seed)
    compared = compare_held(fit, held) if held is not None else []
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, report.format_json(fit.to_dict()) + "\n")
    if as_json:
        print(report.format_json({**describe_fit(fit), "held_out": compared}))
        return
    print(format_head(fit))
    report.print_tables(*make_fit_tables(fit, compared))
    if out is not None:
        print(f"written: {out}")


def fit_parabolas(points: LossPoints, bootstrap: int, seed: int, as_json: bool) -> None:
    """Fit isoFLOP parabolas (approach 2), and print the minima with their bias."""
    from zoo.analysis.scaling import fit_isoflop

    fit = fit_isoflop(points, bootstrap=bootstrap, seed=seed)
    bias = find_bias(points, fit)
    if as_json:
        print(report.format_json(describe_isoflop(fit, bias)))
        return
    report.print_tables(*format_isoflop(fit, bias))


def read_columns(text: str) -> dict[str, str]:
    """Read `N,D,L` as the names of a file's columns of parameters, tokens and loss. Raises ConfigError unless there are
    three."""
    from zoo.analysis.scaling.points import COLUMNS

    names = [each.strip() for each in text.split(",")]
    if len(names) != len(COLUMNS) or not all(names):
        raise ConfigError(f"columns: is {text!r}, which names {len(names)} (three: parameters, tokens and loss)")
    return dict(zip(COLUMNS, names, strict=True))


def collect_points(sources: Sequence[Path], columns: Mapping[str, str]) -> LossPoints:
    """Collect the points of files and of runs. Raises ConfigError for the first faulty file, else for all folders
    without runs, else for all runs without a validation loss."""
    from zoo.analysis.scaling.points import LossPoints, read_points

    found = [read_points(each, columns) for each in sources if each.suffix in FILES]
    if folders := [each for each in sources if each.suffix not in FILES]:
        found.append(read_runs(folders))
    return LossPoints.collect(
        (row for each in found for row in each.rows()), (run for each in found for run in each.runs)
    )


def read_runs(folders: Sequence[Path]) -> LossPoints:
    """Read parameters, tokens and validation loss of the runs in folders; a run with several decays gives one point per
    decay. Raises ConfigError for runs without a validation loss."""
    from zoo.analysis.scaling.points import LossPoints
    from zoo.report.history import collect_runs

    rows, runs, faults = [], [], []
    for each in collect_runs(folders):
        if decayed := each.decayed():
            params = float(each.outcome["params"])
            rows += [(params, float(line["trained_tokens"]), float(line["val_loss"])) for line in decayed]
            runs += [str(each.folder)] * len(decayed)
            continue
        found = [each.outcome[name] for name in ("params", "tokens", "val_loss")]
        if None in found:
            faults.append(f"{each.folder}: has no validation loss (a run that has been evaluated, or leave it out)")
        else:
            rows.append((float(found[0]), float(found[1]), float(found[2])))
            runs.append(str(each.folder))
    refuse(faults)
    return LossPoints.collect(rows, runs)
