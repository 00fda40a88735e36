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

PLANNED = ("arm", "seeds", "params", "FLOPs", "elementwise FLOPs", "peak memory", "time/step", "time/run", "time left")


def print_plan(outlook: Outlook) -> None:
    """Print a table of the arms with their costs, then lines on duplicates, refusals, seconds and power."""
    if outlook.match is not None:
        print_match(outlook.match)
    rows = [_plan_row(outlook, name, jobs) for name, jobs in outlook.arms.items()]
    expendable = ("elementwise FLOPs", "peak memory", "params", "time/step")
    header, rows = report.fit_columns(*report.drop_empty(PLANNED, rows), expendable)
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
    names = {"all_flops": "FLOPs", "elementwise": "elementwise FLOPs", "cache_bytes": "cache"}
    dense = all(arm.figures["active"] == arm.figures["params"] for arm in match.arms)
    known = [name for name in match.arms[0].figures if not (dense and name == "active")]
    rows = []
    for arm in match.arms:
        ratios = {name: f" ×{ratio:.2f}" for name, ratio in match.ratios(arm).items()}
        cells = (f"{forms.get(name, format_count)(arm.figures[name])}{ratios.get(name, '')}" for name in known)
        rows.append([arm.name, str(arm.value), *cells])
    header = ("arm", match.by, *(names.get(each, each) for each in known))
    report.print_tables(report.make_table(f"matched on {match.budget}", header, rows, right=range(1, len(header))))
    apart = [names.get(each, each) for each in match.unmatched if each in known]
    if match.noise is not None:
        print(
            f"seconds of an arm ÷ the first's are known to ± {2 * match.noise:.1%}, twice the error of the timed steps"
        )
    print(f"not matched: {', '.join(apart)}" if apart else "matched on all of these")


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
    prunes = fewest == most
    runs = f"{most} runs per arm, the poor ones ended early" if prunes else f"{fewest} to {most} runs per arm"
    line = f"the search of learning rates adds {runs}"
    if (each := outlook.search_seconds) is None:
        return line
    longest = format_seconds(most * each)
    return f"{line}: {longest} at most" if prunes else f"{line}: {format_seconds(fewest * each)} to {longest}"


def _power_lines(outlook: Outlook) -> list[str]:
    """Describe the smallest difference that the seeds can detect."""
    alone, corrected = outlook.smallest_effect(), outlook.smallest_effect(corrected=True)
    count, seeds = outlook.comparisons, outlook.seeds
    if len(outlook.arms) < 2:
        return []
    if alone is None or corrected is None:
        return [f"{seeds} {'seed detects' if seeds == 1 else 'shared seeds detect'} no difference (seed=0,1,2, say)"]

    def size(effect: float) -> str:
        loss = "" if outlook.sigma is None else f", {effect * outlook.sigma:.4f} in loss"
        return f"{effect:.2f} σ{loss}"

    line = f"{seeds} seeds detect a difference of {size(alone)} (σ: of the paired difference; power 0.8, two-sided 5 %)"
    return [line, *([f"and of {size(corrected)} after Holm over {count} comparisons"] if count > 1 else [])]
