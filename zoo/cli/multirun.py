"""`zoo train -m`: plan a sweep, run the jobs of it that are missing, and print one table of them all."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from zoo.jobs.matching import Match
    from zoo.jobs.outlook import Outlook
    from zoo.jobs.plan import LaunchPlan
    from zoo.jobs.sweep import Job, Sweep


@dataclass(frozen=True)
class SweepOptions:
    """What the command line asks of a sweep. Without `plan` it runs; `measure` is None where neither is asked for."""

    plan: bool = False
    measure: bool | None = None
    match: str | None = None
    match_by: str | None = None
    baseline: str | None = None
    sigma: str | None = None
    as_json: bool = False

    def refuse_any(self) -> None:
        """Raise ConfigError where an option is given to a single run."""
        from zoo.errors import ConfigError

        given = {"plan": self.plan, "measure": self.measure is not None, "sigma": self.sigma, "json": self.as_json}
        given |= {"match": self.match, "match_by": self.match_by, "baseline": self.baseline}
        if asked := [name for name, value in given.items() if value]:
            raise ConfigError(*(f"{name}: is an option of a sweep (-m)" for name in asked))

    def refuse_idle(self) -> None:
        """Raise ConfigError where an option of a plan is given without one."""
        from zoo.errors import ConfigError

        idle = [name for name, value in (("sigma", self.sigma), ("json", self.as_json)) if value and not self.plan]
        of_match = [name for name in ("match_by", "baseline") if getattr(self, name) and not self.match]
        if of_match:
            raise ConfigError(*(f"{name}: is about what is matched (--match params, say)" for name in of_match))
        if idle:
            raise ConfigError(*(f"{name}: is an option of a plan (--plan)" for name in idle))


def run_sweep(plan: LaunchPlan, options: SweepOptions) -> None:
    """Run every job that is not done, and print one table at the end; exits with 1 when one failed. With `--plan` print
    what would run."""
    from zoo.errors import ConfigError
    from zoo.jobs.sweep import Sweep

    options.refuse_idle()
    if options.plan:
        if plan.samples:
            raise ConfigError("plan: the sweeper draws points as it goes (Hydra's basic sweeper has them before)")
        _print_plan(_look_ahead(plan, options, Sweep.read(plan.find_folder())), options)
        return
    with plan.hold_folder() as folder:
        if plan.samples:
            _run_sampled(plan, folder)
        else:
            _run_known(plan, options, folder)


def _look_ahead(plan: LaunchPlan, options: SweepOptions, sweep: Sweep) -> Outlook:
    """Compose, deduplicate and price all points, and time their steps where that is asked for."""
    from zoo.jobs.forecast import Forecaster
    from zoo.jobs.outlook import Outlook
    from zoo.jobs.sweep import drop_duplicates, list_varied

    forecaster = Forecaster(measure=options.plan if options.measure is None else options.measure)
    jobs, dropped = drop_duplicates(plan.list_points())
    matched = _match(plan, options, jobs, sweep) if options.match else None
    jobs = jobs if matched is None else matched.jobs
    done = frozenset(each.name for each in jobs if sweep.read_status(each.name) == "done")
    found = {each.name: forecaster.forecast(each.planned) for each in jobs}
    refused = plan.list_refused()
    if options.plan:
        named = zip(list_varied([each.typed for each in jobs]), jobs, strict=True)
        refused |= {name: [found[each.name].fault or ""] for name, each in named if found[each.name].refused}
        jobs = [each for each in jobs if not found[each.name].refused]
        if not jobs:
            raise _refuse_all(refused)
    return Outlook(jobs, found, dropped, refused, done, _read_sigma(options.sigma), matched)


def _match(plan: LaunchPlan, options: SweepOptions, jobs: Sequence[Job], sweep: Sweep) -> Match:
    """Match the arms in the budget that is asked for. What was solved by measured seconds stays when a sweep goes on:
    they are never quite the same."""
    from zoo.errors import ConfigError, did_you_mean
    from zoo.jobs.forecast import Forecaster
    from zoo.jobs.matching import BUDGETS, Matching

    assert options.match is not None
    if options.match not in BUDGETS:
        hint = did_you_mean(options.match, BUDGETS) or f" (one of: {', '.join(BUDGETS)})"
        raise ConfigError(f"match: there is no budget {options.match!r}{hint}")
    asked = Matching(options.match, options.match_by or BUDGETS[options.match], options.baseline)
    return asked.match(plan, jobs, Forecaster(measure=True), sweep.read_solved(asked.budget, asked.by))


def _refuse_all(refused: Mapping[str, Sequence[str]]) -> Exception:
    from zoo.errors import ConfigError

    return ConfigError(*dict.fromkeys(fault for faults in refused.values() for fault in faults))


def _read_sigma(text: str | None) -> float | None:
    """Read a deviation, or estimate it from the runs in a folder."""
    from zoo.errors import ConfigError
    from zoo.jobs.outlook import estimate_sigma

    if text is None:
        return None
    if Path(text).is_dir():
        return estimate_sigma(Path(text))
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise ConfigError(f"sigma: is a deviation in loss or the folder of a sweep, found {text!r} (--sigma 0.01, say)")
    return value


# ---------------------------------------------------------------- the plan


PLANNED = ("arm", "seeds", "params", "FLOPs", "peak memory", "a step", "a run", "all runs")


def _print_plan(outlook: Outlook, options: SweepOptions) -> None:
    from zoo import report

    if options.as_json:
        print(report.format_json(outlook.to_dict()))
        return
    if outlook.match is not None:
        _print_match(outlook.match)
    rows = [_plan_row(outlook, name, jobs) for name, jobs in outlook.arms.items()]
    idle = [name for name, *cells in zip(PLANNED, *rows, strict=True) if not any(cells)]
    header, rows = report.fit_columns(PLANNED, rows, ("peak memory", "params", "a step"), idle)
    report.print_tables(report.make_table("", header, rows, right=range(1, len(header))))
    for line in _plan_lines(outlook):
        print(line)


def _print_match(match: Match) -> None:
    """Print the solved value of each arm and what it costs, in every currency."""
    from zoo import report
    from zoo.report.units import format_count, format_si

    forms = {"all_flops": format_si, "cache_bytes": lambda value: format_si(value, "B")}
    names = {"all_flops": "FLOPs", "cache_bytes": "cache", "active": "active"}
    rows = []
    for arm in match.arms:
        ratios, cells = match.ratios(arm), []
        for name, value in arm.figures.items():
            times = f" ×{ratios[name]:.2f}" if name in ratios else ""
            cells.append(f"{forms.get(name, format_count)(value)}{times}")
        rows.append([arm.name, str(arm.value), *cells])
    known = list(match.arms[0].figures)
    header = ("arm", match.by, *(names.get(each, each) for each in known))
    same = all(arm.figures["active"] == arm.figures["params"] for arm in match.arms)
    header, rows = report.fit_columns(header, rows, (), ["active"] if same else [])
    report.print_tables(report.make_table(f"matched in {match.budget}", header, rows, right=range(1, len(header))))
    apart = [names.get(each, each) for each in match.unmatched if not (same and each == "active")]
    print(f"not matched: {', '.join(apart)}" if apart else "matched in all of these")


def _plan_row(outlook: Outlook, name: str, jobs: Sequence[Job]) -> list[str]:
    from zoo.report.units import format_count, format_seconds, format_si

    found, timing = outlook.predict(jobs[0]), outlook.forecasts[jobs[0].name].timing
    flops, left = found["flops"], [each for each in jobs if each.name not in outlook.done]
    return [
        name,
        str(len(jobs)) if len(left) == len(jobs) else f"{len(jobs)} ({len(jobs) - len(left)} done)",
        format_count(found["params"]),
        "" if flops is None else format_si(flops + found["optimizer_flops"]),
        "" if found["peak_memory"] is None else format_si(found["peak_memory"], "B"),
        "" if timing is None else format_seconds(timing.step),
        "" if timing is None else format_seconds(found["wall_seconds"]),
        "" if timing is None or not left else format_seconds(found["wall_seconds"] * len(left)),
    ]


def _plan_lines(outlook: Outlook) -> list[str]:
    """Say what the table does not: points that are dropped or refused, the seconds of all, and what they tell."""
    from zoo.jobs.sweep import describe_dropped
    from zoo.report.units import format_seconds

    same = describe_dropped(outlook.jobs, outlook.dropped)
    lines = [same] if same else []
    reasons: dict[str, list[str]] = {}
    for name, why in outlook.refused.items():
        reasons.setdefault("; ".join(why), []).append(name)
    for why, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"refused: {names[0]}{more}: {why}")
    notes = {outlook.forecasts[each.name].fault: name for name, jobs in outlook.arms.items() for each in jobs[:1]}
    lines += [f"{name}: {note}" for note, name in notes.items() if note]
    if not outlook.left:
        lines.append("all are done")
    elif outlook.seconds is not None:
        left = len(outlook.left)
        takes = f"{format_seconds(outlook.seconds)} one after another: start, steps and evaluations"
        lines.append(f"{left} runs take {takes} (checkpoints, samples and pictures are left out)")
    return [*lines, *_power_lines(outlook)]


def _power_lines(outlook: Outlook) -> list[str]:
    """Say what difference the seeds tell."""
    alone, corrected = outlook.smallest_effect(), outlook.smallest_effect(corrected=True)
    others, seeds = len(outlook.arms) - 1, outlook.seeds
    if not others:
        return []
    if alone is None or corrected is None:
        return [f"{seeds} {'seed tells' if seeds == 1 else 'shared seeds tell'} no difference (seed=0,1,2, say)"]

    def size(effect: float) -> str:
        loss = "" if outlook.sigma is None else f", {effect * outlook.sigma:.4f} in loss"
        return f"{effect:.2f} σ{loss}"

    line = f"{seeds} seeds tell a difference of {size(alone)} (σ: of a pair's difference; power 0.8, two-sided 5 %)"
    return [line, *([f"and of {size(corrected)} after Holm over {others} arms"] if others > 1 else [])]


# ---------------------------------------------------------------- the sweep


def _run_known(plan: LaunchPlan, options: SweepOptions, folder: Path) -> None:
    from zoo import runs
    from zoo.jobs.sweep import Sweep, describe_dropped

    sweep = Sweep.read(folder)
    outlook = _look_ahead(plan, options, sweep)
    jobs = outlook.jobs
    if line := describe_dropped(jobs, outlook.dropped):
        _say(line)
    missing = sweep.find_missing(jobs)
    sweep.begin(plan.overrides)
    if outlook.match is not None:
        _print_match(outlook.match)
        sweep.content["match"] = outlook.match.to_dict()
    sweep.add(jobs, {each.name: outlook.predict(each) for each in jobs})
    if line := sweep.describe(jobs, missing):
        _say(line)
    try:
        if missing:
            plan.launch(folder, missing)
    finally:
        found = runs.results(folder, [each.name for each in jobs])
        _print_results(folder, jobs, found, runs.read_sweep(folder))
    if any(result["status"] != "done" for result in found):
        raise typer.Exit(1)


def _run_sampled(plan: LaunchPlan, folder: Path) -> None:
    """Run what a sampling sweeper proposes, and list the runs that are there at the end."""
    from zoo.report.history import find_runs

    try:
        plan.sample(folder)
    finally:
        found = list(find_runs(folder))
        named = ((each.folder.name, " ".join(each.result.get("overrides", ())), each.result) for each in found)
        rows = [[name, overrides, *_figures(result, {})] for name, overrides, result in named]
        _print_rows(folder, rows)
    if any(each.status != "done" for each in found):
        raise typer.Exit(1)


HEADER = ("job", "overrides", "val loss", "params", "seconds", "peak memory", "status")
EXPENDABLE = ("params", "peak memory", "seconds")
"""Columns that a narrow screen goes without, the first first."""


def _print_rows(folder: Path, rows: list[list[str]]) -> None:
    from zoo import report

    header, rows = report.fit_columns(HEADER, rows, EXPENDABLE)
    numbers = [at for at, name in enumerate(header) if name in HEADER[2:6]]
    report.print_tables(report.make_table(str(folder), header, rows, right=numbers))


def _print_results(
    folder: Path, jobs: Sequence[Job], found: Sequence[dict[str, Any]], noted: Mapping[str, dict[str, Any]]
) -> None:
    """Print a row for each job, with what was measured over what was predicted, and below why some failed."""
    from zoo.jobs.sweep import list_varied

    named = zip(jobs, list_varied([each.typed for each in jobs]), found, strict=True)
    rows = [
        [job.name, overrides, *_figures(result, noted.get(job.name, {}).get("predicted", {}))]
        for job, overrides, result in named
    ]
    _print_rows(folder, rows)
    if any("×" in cell for row in rows for cell in row):
        print("× what was predicted")
    for job, result in zip(jobs, found, strict=True):
        if "error" in result:
            _say(f"{job.name}: {result['error']}")


def _figures(result: dict[str, Any], predicted: Mapping[str, Any]) -> list[str]:
    from zoo import report

    loss, params = result.get("val_loss"), result.get("params")

    def over(name: str, form: Any) -> str:
        value, expected = result.get(name), predicted.get(name)
        return "" if value is None else form(value) if not expected else f"{form(value)} ×{value / expected:.2f}"

    return [
        "" if loss is None else f"{loss:.4f}",
        "" if params is None else report.format_count(params),
        over("seconds", "{:.1f}".format),
        over("peak_memory", lambda value: report.format_si(value, "B")),
        result.get("status", ""),
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr)
