"""Print the cost and the statistical power of a sweep before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo import report
from zoo.run.environment import measure_crowding
from zoo.units import format_count, format_seconds, format_si

if TYPE_CHECKING:
    from zoo.jobs.matching import Match
    from zoo.jobs.outlook import Outlook
    from zoo.jobs.sweep import SweepPoint

PLANNED = ("arm", "seeds", "params", "FLOPs", "elementwise", "peak memory", "a step", "a run", "all runs")


def print_plan(outlook: Outlook) -> None:
    """Print a table of the arms with their costs, then lines on duplicates, refusals, seconds and power."""
    if outlook.match is not None:
        print_match(outlook.match)
    rows = [_plan_row(outlook, name, jobs) for name, jobs in outlook.arms.items()]
    idle = [name for name, *cells in zip(PLANNED, *rows, strict=True) if not any(cells)]
    header, rows = report.fit_columns(PLANNED, rows, ("elementwise", "peak memory", "params", "a step"), idle)
    report.print_tables(report.make_table("", header, rows, right=range(1, len(header))))
    for line in _plan_lines(outlook):
        print(line)


def note_crowding() -> list[str]:
    """Write a line if the machine is crowded, so that the steps of a plan are timed too slow."""
    if (crowding := measure_crowding()) <= 1:
        return []
    return [
        f"the machine's load is {crowding:.1f} times its CPUs: other programs slow it, and these times are too long"
    ]


def print_match(match: Match) -> None:
    """Print for each arm the solved value, the costs, and the ratios of the costs to the baseline's."""
    forms = {"all_flops": format_si, "elementwise": format_si, "cache_bytes": lambda value: format_si(value, "B")}
    names = {"all_flops": "FLOPs", "elementwise": "elementwise FLOPs", "cache_bytes": "cache", "active": "active"}
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
    if match.noise is not None:
        print(
            f"seconds of an arm ÷ the first's are known to ± {2 * match.noise:.1%}, twice the error of the timed steps"
        )
    print(f"not matched: {', '.join(apart)}" if apart else "matched in all of these")


def _plan_row(outlook: Outlook, name: str, jobs: Sequence[SweepPoint]) -> list[str]:
    from zoo.jobs.forecast import price_elementwise

    found, timing = outlook.predict(jobs[0]), outlook.forecast(jobs[0]).timing
    flops, left = found["flops"], [each for each in jobs if each.name not in outlook.done]
    return [
        name,
        str(len(jobs)) if len(left) == len(jobs) else f"{len(jobs)} ({len(jobs) - len(left)} done)",
        format_count(found["params"]),
        "" if flops is None else format_si(flops + found["optimizer_flops"]),
        "" if (elementwise := price_elementwise(jobs[0].planned)) is None else format_si(elementwise),
        "" if found["peak_memory"] is None else format_si(found["peak_memory"], "B"),
        "" if timing is None else format_seconds(timing.step),
        "" if timing is None else format_seconds(found["wall_seconds"]),
        "" if timing is None or not left else format_seconds(found["wall_seconds"] * len(left)),
    ]


def _plan_lines(outlook: Outlook) -> list[str]:
    """Write lines on dropped and refused points, the total seconds, and the statistical power."""
    from zoo.jobs.sweep import describe_dropped

    same = describe_dropped(outlook.jobs, outlook.dropped)
    lines = [same] if same else []
    reasons: dict[str, list[str]] = {}
    for name, why in outlook.refused.items():
        reasons.setdefault("; ".join(why), []).append(name)
    for why, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"refused: {names[0]}{more}: {why}")
    notes = {outlook.forecast(each).fault: name for name, jobs in outlook.arms.items() for each in jobs[:1]}
    lines += [f"{name}: {note}" for note, name in notes.items() if note]
    if not outlook.left:
        lines.append("all are done")
    elif outlook.seconds is not None:
        left = len(outlook.left)
        takes = f"{format_seconds(outlook.seconds)} one after another: start, steps and evaluations"
        lines.append(f"{left} runs take {takes} (checkpoints, samples and pictures are left out)")
        lines += note_crowding()
    if outlook.search_runs is not None:
        lines.append(describe_search(outlook, *outlook.search_runs))
    return [*lines, *_power_lines(outlook)]


def describe_search(outlook: Outlook, fewest: int, most: int) -> str:
    """Describe how many runs, and how many seconds, the learning-rate search adds."""
    runs = (
        f"{most} runs of each arm, the poor ones ended early"
        if fewest == most
        else f"{fewest} to {most} runs of each arm"
    )
    line = f"the search of learning rates adds {runs}"
    if (each := outlook.search_seconds) is None:
        return line
    takes = f"{format_seconds(fewest * each)} to {format_seconds(most * each)}"
    return f"{line}: {format_seconds(most * each)} at most" if fewest == most else f"{line}: {takes}"


def _power_lines(outlook: Outlook) -> list[str]:
    """Describe the smallest difference that the seeds can detect."""
    alone, corrected = outlook.smallest_effect(), outlook.smallest_effect(corrected=True)
    count, seeds = outlook.comparisons, outlook.seeds
    if len(outlook.arms) < 2:
        return []
    if alone is None or corrected is None:
        return [f"{seeds} {'seed tells' if seeds == 1 else 'shared seeds tell'} no difference (seed=0,1,2, say)"]

    def size(effect: float) -> str:
        loss = "" if outlook.sigma is None else f", {effect * outlook.sigma:.4f} in loss"
        return f"{effect:.2f} σ{loss}"

    line = f"{seeds} seeds tell a difference of {size(alone)} (σ: of a pair's difference; power 0.8, two-sided 5 %)"
    return [line, *([f"and of {size(corrected)} after Holm over {count} comparisons"] if count > 1 else [])]
