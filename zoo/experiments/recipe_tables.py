"""Format recipes and their verdicts as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import mean, stdev

from zoo.analysis.verdict.power import LEVEL
from zoo.experiments.experiment import Experiment
from zoo.experiments.judging import ExperimentOutcome, Finding, describe_bounds, describe_pair
from zoo.experiments.registration import describe_registration, list_shared_runs
from zoo.report import rate_table
from zoo.report.arms import CURRENCIES, find_unmatched, list_ratios
from zoo.report.tables import TextTable, fit_columns
from zoo.report.verdicts import COSTS, format_cost, format_spread
from zoo.units import format_number, format_p, say_p

LIST = ("recipe", "claim", "first finding", "expectations that hold", "date")
FIXED = "fixed"
"""Word for a recipe that does not search its learning rates."""
WITHDRAWN = "withdrawn"
"""Word that replaces the number of expectations that hold, for a withdrawn recipe."""
FINDINGS = ("expected", "published", "found", "value", "p", "holds")


BOUNDS = {None: "", "at least": "≥ ", "at most": "≤ "}
DECIDED = (
    "± and p: those of the deciding test (difference or equivalence), corrected over all comparisons of the experiment "
    "(Holm, 1979)"
)
OPEN = "≥, ≤, unknown: a window of learning rates reaches the last rate tried, so that its width is a lower bound"


def make_list(recipes: Mapping[str, Experiment], outcomes: Mapping[str, ExperimentOutcome | None]) -> TextTable:
    """Make a table with a row for each recipe: claim, first finding, number of expectations that hold, and the date if
    the terminal is wide enough."""
    rows = []
    for name, each in recipes.items():
        outcome = outcomes[name]
        if outcome is None:
            rows.append([name, each.claim, "", "not run", ""])
            continue
        first = outcome.findings[0]
        stale = "" if outcome.key == each.key() else " (of an older recipe)"
        fixed = " (fixed rates)" if describe_rates(each) == FIXED else ""
        rows.append(
            [
                name,
                each.claim,
                f"{describe_pair(first)}: {list_cells(first, each)[2]}, {format_value(first)}",
                count_held(each, outcome) + ("" if each.withdrawn else f"{fixed}{stale}"),
                outcome.date,
            ]
        )
    return TextTable("", *fit_columns(LIST, rows, ("date",)))


def count_held(recipe: Experiment, outcome: ExperimentOutcome) -> str:
    """Count the expectations that hold, those of costs apart: `2 of 3`, `0 of 2, costs 1 of 1`. A withdrawn recipe
    (WITHDRAWN) has none to count."""
    costs = [each.holds for each in outcome.findings if each.cost is not None]
    others = [each.holds for each in outcome.findings if each.cost is None]
    counted = (("", others), ("costs ", costs))
    said = ", ".join(f"{what}{sum(held)} of {len(held)}" for what, held in counted if held)
    return WITHDRAWN if recipe.withdrawn else said


def describe_rates(recipe: Experiment) -> str:
    """Return whether each arm trains at its own searched learning rate (`searched`) or at a fixed one (FIXED)."""
    searched = recipe.tune or recipe.probe is not None or (recipe.ladder is not None and recipe.ladder.tune)
    return "searched" if searched else FIXED


def list_machines(outcomes: Mapping[str, ExperimentOutcome | None]) -> list[str]:
    """List the processors, a line each, with the number of recipes that ran on each."""
    ran = Counter(each.machine.partition(";")[0] for each in outcomes.values() if each is not None)
    return [f"{count} of {len(outcomes)} ran on: {machine}" for machine, count in ran.most_common()]


def format_value(each: Finding) -> str:
    """Format the value of a finding: a ratio of costs, a difference ± half of its interval, or for expected bounds the
    mean and range over seeds. A difference of windows that is only a bound has its sign first (OPEN)."""
    if each.cost is not None:
        return f"×{each.value:.2f}"
    if each.value is None:
        return each.bound or ""
    if each.p is None and each.interval is not None:
        low, high = (format_number(end, ".3f") for end in each.interval)
        return f"{format_number(each.value, '.3f')} ({low} to {high})"
    half = None if each.interval is None else (each.interval[1] - each.interval[0]) / 2
    return f"{BOUNDS[each.bound]}{format_spread(each.value, half, '+')}"


def make_outcome_tables(
    name: str, recipe: Experiment, outcome: ExperimentOutcome | None, others: Collection[ExperimentOutcome] = ()
) -> list[str | TextTable]:
    """Make the lines and tables of one recipe: claim, expectations with their findings, the arms' metrics and costs.
    Before it has run there are only the claim and the expectations. `others` are verdicts whose runs may be the same
    (`list_shared_runs`)."""
    head = [f"{name}. Claim: {recipe.claim}" if recipe.claim else name]
    head += [f"Source: {recipe.source}"] if recipe.source else []
    head += [f"Withdrawn: {recipe.withdrawn}"] if recipe.withdrawn else []
    head += [recipe.notes] if recipe.notes else []
    if outcome is None:
        took = f"Not run yet: zoo recipes {name} --run (at most {recipe.minutes} minutes on two cores)"
        rows = [[describe_pair(each), each.verdict or describe_bounds(each), each.paper] for each in recipe.expect]
        return [*head, took, TextTable("", ("comparison", "expected", "published"), rows)]
    seeds = max((len(own) for by_arm in outcome.values.values() for own in by_arm.values()), default=0)
    margin = "" if recipe.margin is None else f", margin ±{recipe.margin:g}"
    took = describe_training(recipe, outcome)
    form = "short form, " if outcome.form == "short" else ""
    ran = f"{form}{seeds} seeds per arm, {describe_rates(recipe)} learning rates{margin}; {outcome.date}, {took}"
    rows = [list_cells(each, recipe, outcome.level) for each in outcome.findings]
    rates = rate_table.list_rows(outcome.searches, outcome.noise)
    compared = sum(each.p is not None for each in outcome.findings)
    return [
        *head,
        ran,
        describe_registration(outcome.registration, recipe),
        *list_shared_runs(outcome, others),
        *list_missing(outcome),
        TextTable("", FINDINGS, rows, (4,)),
        *([DECIDED] if compared else []),
        *list_remarks(recipe, outcome),
        *list_unmatched(outcome),
        TextTable("Arms", *list_arms(recipe, outcome)),
        TextTable("Costs", *list_costs(recipe, outcome)),
        *([TextTable("Learning rates", rate_table.HEADER, rates), rate_table.NOTE] if rates else []),
        *([tell_speedups(recipe, outcome)] if outcome.speedups else []),
    ]


def describe_training(recipe: Experiment, outcome: ExperimentOutcome) -> str:
    """Say how long an experiment trained, and on which machine."""
    over = f" ({recipe.minutes} were planned)" if outcome.seconds > 60 * (recipe.minutes or math.inf) else ""
    aside = ", without the search for rates," if recipe.tune and recipe.ladder is None and recipe.probe is None else ""
    return f"{outcome.seconds / 60:.0f} minutes{over} of training{aside} on {outcome.machine}"


def tell_speedups(recipe: Experiment, outcome: ExperimentOutcome) -> TextTable:
    """Make the table of the compute-optimal speedups of a ladder's arms over the first arm."""
    from zoo.analysis.scaling.optimal_speedup import read_trends
    from zoo.ladder.ladder_tables import make_speedup_table

    return make_speedup_table(recipe.first_arm(), read_trends(outcome.speedups))


def list_missing(outcome: ExperimentOutcome) -> list[str]:
    """Return a line on the runs that a verdict lacks; [] if it lacks none."""
    said = f"Not complete: judged early, at p < {outcome.level:.2g}, without {len(outcome.missing)} runs"
    return [f"{said} ({'; '.join(outcome.missing)})"] if outcome.missing else []


def list_remarks(recipe: Experiment, outcome: ExperimentOutcome) -> list[str]:
    """Write a line on each row of FINDINGS that is easily misread: a margin that includes the published effect, a
    significant difference within the margin, a difference of windows that is only a bound, rates from a proxy, and
    rates off the best one."""
    small = [
        f"{describe_pair(each)}: a difference is shown too ({say_p(each.p, outcome.level)}), and it is within "
        "the margin"
        for each in outcome.findings
        if each.found == "equivalent" and each.p is not None and each.p < outcome.level
    ]
    bounds = [OPEN] if any(each.bound for each in outcome.findings) else []
    losses = [each for each in outcome.findings if (each.metric or recipe.metric) == "val_loss" and not each.cost]
    pairs = dict.fromkeys((each.arm, each.against) for each in losses if each.against)
    shifts = rate_table.list_shifts(outcome.searches, outcome.noise, pairs)
    return [*list_wide_margins(recipe), *small, *bounds, *rate_table.list_transfers(outcome.searches), *shifts]


def list_unmatched(outcome: ExperimentOutcome) -> list[str]:
    """List in a line the costs, except seconds, in which compared arms differ by more than 1 %. Empty if all match."""
    costs, names = outcome.costs, [each for each in CURRENCIES if each != "seconds"]
    pairs = dict.fromkeys((each.arm, each.against) for each in outcome.findings if each.against and not each.cost)
    found = {pair: find_unmatched(costs[pair[0]], costs[pair[1]], names) for pair in pairs}
    said = [f"{arm} ÷ {against}: {list_ratios(each)}" for (arm, against), each in found.items() if each]
    return [f"Not matched: {'; '.join(said)}"] if said else []


def list_wide_margins(recipe: Experiment) -> list[str]:
    """List a line for each margin that includes the paper's effect, so that equivalence agrees with the paper too.
    Expectations of equivalence are left out."""
    return [
        f"{describe_pair(each)}: the published effect of {format_number(each.effect, '+g')} lies within the margin "
        f"±{margin:g}: equivalence would agree with it too"
        for each in recipe.expect
        if each.verdict != "equivalent"
        and each.effect is not None
        and (margin := recipe.find_margin(each) or 0.0) >= abs(each.effect)
    ]


def list_cells(each: Finding, recipe: Experiment, level: float = LEVEL) -> list[str]:
    """Format a finding, tested at a `level`, as a row of the table FINDINGS. For a withdrawn recipe the last cell is
    WITHDRAWN."""
    within = "" if each.margin is None else f" within ±{each.margin:g}"
    expected = f": {each.expected}{within if each.expected == 'equivalent' else ''}"
    pair = describe_pair(each) if each.expected == "any" else f"{describe_pair(each)}{expected}"
    unmet = "not shown" if each.found == "inconclusive" else "no"
    held = "" if each.expected == "any" else "yes" if each.holds else unmet
    found = f"{each.found}{within if each.found == 'equivalent' else ''}"
    p = format_p(each.deciding_p, level)
    return [pair, each.paper, found, format_value(each), p, WITHDRAWN if recipe.withdrawn else held]


def list_arms(recipe: Experiment, outcome: ExperimentOutcome) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return a header and a row for each arm: mean and standard deviation of each metric."""
    header = ("arm", *(f"{metric} ± σ" for metric in outcome.values))
    rows = []
    for arm in recipe.arms:
        rows.append([arm, *(_format_arm(list(by_arm[arm].values())) for by_arm in outcome.values.values())])
    return header, rows


def _format_arm(values: Sequence[float | None]) -> str:
    """Format the mean and standard deviation over the finite runs, and the number of diverged runs (None)."""
    finite = [each for each in values if each is not None]
    lost = "" if len(finite) == len(values) else f"{len(values) - len(finite)} of {len(values)} diverged"
    if not finite:
        return lost
    said = format_spread(mean(finite), stdev(finite) if len(finite) > 1 else None)
    return f"{said} ({lost})" if lost else said


def make_plan_table(planned: Mapping[str, Mapping[str, float]]) -> TextTable:
    """Make the table of a probe's experiment before it runs (`probing.plan_probe`)."""
    header = ("arm", "training runs", *COSTS[1:])
    rows = [
        [arm, f"{costs['trainings']:.0f}", *(format_cost(name, costs.get(name)) for name in CURRENCIES)]
        for arm, costs in planned.items()
    ]
    head, rows = fit_columns(header, rows, ("elementwise FLOPs", "KV cache per sequence", "parameters"))
    return TextTable("", head, rows, range(1, len(head)))


def list_costs(recipe: Experiment, outcome: ExperimentOutcome) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return a header and a row for each arm: its cost in every currency."""
    return COSTS, [
        [arm, *(format_cost(name, outcome.costs[arm].get(name)) for name in CURRENCIES)] for arm in recipe.arms
    ]
