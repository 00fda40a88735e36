"""Simulated experiments: how often a verdict is false, how often a true difference is found, what intervals cover.

Nothing is trained. Losses are drawn with the noise and the curves of loss by learning rate that were measured on the
packaged recipes (docs/findings.md), and go through the functions that judge real runs.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import stdev
from unittest import mock

import numpy as np
import yaml

from zoo.analysis.verdict import comparison
from zoo.analysis.verdict.comparison import Comparison, compare_arms, find_front, pool_variance
from zoo.analysis.verdict.difference import LossNoise, MeanDifference
from zoo.analysis.verdict.power import compute_equivalence_power, compute_power
from zoo.analysis.verdict.rate_optimum import find_good_window, fit_optimum
from zoo.analysis.verdict.row_noise import FEWEST, bootstrap_rows
from zoo.analysis.verdict.score_noise import find_answer_noise
from zoo.analysis.verdict.speedup import PowerLaw, find_speedup
from zoo.analysis.verdict.spending import find_look_levels
from zoo.experiments.experiment import Expectation, Experiment
from zoo.experiments.judging import Ran, weigh
from zoo.experiments.noise_atlas import find_run_noise
from zoo.jobs.rates import RateSearch
from zoo.paths import recipes_dir
from zoo.report.rate_table import WINDOW

SIGMA, COMMON = 0.017, 0.02
"""The standard deviation of a run, and that of what all runs of a seed have in common, in nats."""


@dataclass(frozen=True)
class Rate:
    """How often something happened in simulated experiments, against what is nominal."""

    what: str
    share: float
    nominal: float | None
    experiments: int


def draw_arms(
    drawn: np.random.Generator, seeds: int, *means: float, sigma: float = SIGMA
) -> dict[str, dict[int, float]]:
    """Draw the losses of arms named by their numbers, which share the noise of their seeds."""
    common = COMMON * drawn.standard_normal(seeds)
    return {
        str(at): dict(enumerate((middle + common + sigma * drawn.standard_normal(seeds)).tolist()))
        for at, middle in enumerate(means)
    }


def count(experiments: int, seed: int, happens: Callable[[np.random.Generator], bool]) -> float:
    """Count in how many experiments something happens."""
    drawn = np.random.default_rng(seed)
    with mock.patch.object(comparison, "count_seeds", return_value=None):  # is slow, and decides nothing
        return sum(happens(drawn) for _ in range(experiments)) / experiments


# ---------------------------------------------------------------- searched learning rates


def search(loss: Callable[[float], float]) -> RateSearch:
    """Search where the loss is a function of the decade."""
    made = RateSearch(1.0)
    while not made.finished:
        for place in made.ask():
            made.tell(place, loss(place / 4))
    return made


Curve = Callable[[float], float]
"""The excess loss of an arm by decades from its best rate."""

BENDS = (0.3, 2.0)
"""The curvatures at the best rate, in nats per squared decade, between which an arm's is drawn."""


def bend_parabola(decade: float) -> float:
    """A parabola of curvature 1."""
    return decade**2


def bend_cliff(decade: float) -> float:
    """A curve as those of the packaged tiny models: about a parabola of curvature 1 below the best rate, and flatter
    above it up to where training becomes unstable and the loss rises at once."""
    if decade < 0:
        return decade**2 / (1 - 0.4 * decade)
    return 0.7 * decade**2 / (1 + decade**2) + 0.25 * (1 + math.tanh((decade - 0.26) / 0.04))


@dataclass(frozen=True)
class TunedDesign:
    """Two arms at searched rates. Each has a curvature and a best rate of its own; at its best rate the second arm's
    loss is higher by `gap`. `how` they are judged: "now"; "without errors" of the rates; or as until November "2026",
    at the best rate of the grid, with the search's run as the first seed."""

    seeds: int
    sigma: float = SIGMA
    bends: tuple[float, float] = BENDS
    curve: Curve = bend_parabola
    gap: float = 0.0
    margin: float | None = None
    how: str = "now"

    def judge(self, drawn: np.random.Generator) -> Comparison:
        """Search, train and compare."""
        losses, decades = {}, {}
        for arm, gap in (("a", 0.0), ("b", self.gap)):
            best, wide = drawn.uniform(-0.125, 0.125), math.exp(drawn.uniform(*np.log(self.bends)) / 2)

            def loss(decade: float, best: float = best, wide: float = wide, gap: float = gap) -> float:
                return 2 + gap + self.curve(wide * (decade - best)) + self.sigma * drawn.standard_normal()

            made = search(loss)
            assert made.best is not None
            at = made.best / 4 if self.how == "2026" else fit_optimum(made.decades, 0.0).at
            losses[arm], decades[arm] = {seed: loss(at) for seed in range(self.seeds)}, made.decades
            if self.how == "2026":
                losses[arm][0] = made.losses[made.best]
        noise = LossNoise.of_arms(losses.values()).sigma
        tuning = {arm: fit_optimum(each, noise).excess for arm, each in decades.items()} if self.how == "now" else {}
        return compare_arms(losses, "a", margin=self.margin, tuning=tuning)["b"]

    def tells(self, drawn: np.random.Generator) -> bool:
        """Whether the arms get a verdict."""
        return self.judge(drawn).verdict != "inconclusive"

    def covers(self, drawn: np.random.Generator) -> bool:
        """Whether the interval holds the true difference."""
        low, high = self.judge(drawn).interval or (math.nan, math.nan)
        return low <= self.gap <= high


def judge_windows(
    drawn: np.random.Generator,
    seeds: int,
    bend: float,
    sigma: float,
    times: float = 1.0,
    curve: Curve = bend_parabola,
) -> bool:
    """Whether the windows of two arms, whose best rates are a little off the grid, are told apart; the second arm's is
    `times` as wide."""
    searches, losses = [], []
    for wide in (math.sqrt(bend), math.sqrt(bend) / times):
        best = drawn.uniform(-0.125, 0.125)

        def loss(decade: float, best: float = best, wide: float = wide) -> float:
            return 2 + curve(wide * (decade - best)) + sigma * drawn.standard_normal()

        searches.append(search(loss).decades)
        losses.append({seed: loss(best) for seed in range(seeds)})
    noise = LossNoise.of_arms(losses)
    one, other = (find_good_window(each, noise.sigma) for each in searches)
    apart = one.subtract_from(other, noise.freedom)
    return apart.known and abs(apart.difference) > apart.half_width(0.05)


# ---------------------------------------------------------------- rates searched on a proxy

PROXY, WIDE = 419_000, 0.011
"""The parameters of the narrow model of recipe qk-norm-10m, and the standard deviation of its wide runs, in nats."""


KeptArm = tuple[float, list[float]]
"""The parameters of an arm of a kept verdict, and the losses of its runs by seed; NaN for one that diverged."""


@functools.cache
def read_kept() -> list[list[KeptArm]]:
    """Read the arms of each kept verdict in validation loss, the first one first."""
    found = []
    for file in sorted((recipes_dir() / "verdicts").glob("*.json")):
        recipe, kept = yaml.safe_load((recipes_dir() / f"{file.stem}.yaml").read_text()), json.loads(file.read_text())
        losses = kept["values"].get("val_loss", {})
        if losses and not recipe.get("withdrawn") and recipe.get("metric", "val_loss") == "val_loss":
            found.append(
                [
                    (kept["costs"][arm]["params"], np.array([*own.values()], float).tolist())
                    for arm, own in losses.items()
                ]
            )
    return found


@functools.cache
def list_deviations(params: float) -> list[tuple[float, int]]:
    """List the standard deviation and the number of the runs of each distinct kept arm that has a fifth to five times
    the parameters."""
    near = [own for arms in read_kept() for size, own in arms if params / 5 <= size <= params * 5]
    finite = dict.fromkeys(tuple(filter(math.isfinite, own)) for own in near)
    return [(stdev(own), len(own)) for own in finite]


def tells_on_proxies(drawn: np.random.Generator, metric: str | None, noted: bool) -> bool:
    """Whether two equal arms are told apart, in loss or in another `metric`, after a search on proxies that are as
    noisy as some kept arm of their size; with `noted`, the searches say which noise kept verdicts have, as those of an
    experiment do."""
    kept = list_deviations(PROXY)
    sigma, _ = kept[drawn.integers(len(kept))]
    wide, losses, searches = math.exp(drawn.uniform(*np.log(BENDS)) / 2), {}, {}
    for arm in ("plain", "other"):
        best = drawn.uniform(-0.125, 0.125)

        def loss(decade: float, sigma: float, best: float = best) -> float:
            return 2 + bend_parabola(wide * (decade - best)) + sigma * drawn.standard_normal()

        made = search(partial(loss, sigma=sigma))
        at = fit_optimum(made.decades, 0.0).at
        losses[arm] = {seed: loss(at, WIDE) for seed in range(5)}
        searches[arm] = made.to_dict() | ({"noise": list(find_run_noise(PROXY))} if noted else {})
    expected = Expectation(arm="other", against="plain", metric=metric, verdict="any")
    experiment = Experiment(arms={"plain": [], "other": ["optim=muon"]}, tune=True)
    ran = Ran({"val_loss": losses}, {}, 0.0, "", searches)
    return weigh(ran, experiment, [expected])[0].found != "inconclusive"


# ---------------------------------------------------------------- verdicts


def is_false(drawn: np.random.Generator, seeds: int, arms: int) -> bool:
    """Whether any of several equal arms is called better or worse."""
    found = compare_arms(draw_arms(drawn, seeds, *[2.0] * arms), "0")
    return any(each.verdict in ("better", "worse") for each in found.values())


def is_falsely_equivalent(drawn: np.random.Generator, seeds: int, margin: float) -> bool:
    """Whether an arm that is worse by just the margin is called equivalent."""
    return compare_arms(draw_arms(drawn, seeds, 2.0, 2.0 + margin), "0", margin=margin)["1"].verdict == "equivalent"


def tells_equal_accuracies(
    drawn: np.random.Generator, seeds: int, answers: int, share: float, seeded: bool = False
) -> bool:
    """Whether two arms are told apart that are right in the same share of answers, of which so many are scored; if it
    is `seeded`, the share of each run is drawn too, with as much noise as the count has."""

    def draw() -> dict[int, float]:
        own = drawn.beta(answers * share, answers * (1 - share), seeds) if seeded else share
        return dict(enumerate((drawn.binomial(answers, own, seeds) / answers).tolist()))

    arms = {arm: draw() for arm in "ab"}
    least = {arm: find_answer_noise(own.values(), answers) for arm, own in arms.items()}
    return compare_arms(arms, "a", least=least)["b"].verdict != "inconclusive"


def diverges_by_chance(drawn: np.random.Generator, seeds: int, share: float) -> bool:
    """Whether two equal arms, whose runs diverge with this probability, get a verdict."""
    losses = draw_arms(drawn, seeds, 2.0, 2.0)
    for own in losses.values():
        own |= {seed: math.inf for seed in own if drawn.random() < share}
    if all(math.isinf(each) for own in losses.values() for each in own.values()):
        return False
    return compare_arms(losses, "0")["1"].verdict != "inconclusive"


def tells_at_some_look(drawn: np.random.Generator, looks: tuple[int, ...], spends: bool) -> bool:
    """Whether two equal arms get a verdict at any look; without `spends`, each look has the whole 5 %."""
    losses = draw_arms(drawn, looks[-1], 2.0, 2.0)
    levels = find_look_levels(looks) if spends else [0.05] * len(looks)
    for seeds, level in zip(looks, levels, strict=True):
        first = {arm: {seed: own[seed] for seed in range(seeds)} for arm, own in losses.items()}
        if compare_arms(first, "0", level)["1"].verdict != "inconclusive":
            return True
    return False


def finds(drawn: np.random.Generator, seeds: int, difference: float) -> bool:
    """Whether a true difference is found."""
    return compare_arms(draw_arms(drawn, seeds, 2.0, 2.0 - difference), "0")["1"].verdict == "better"


# ---------------------------------------------------------------- intervals


def covers_difference(drawn: np.random.Generator, seeds: int) -> bool:
    """Whether the 95 % interval of a difference has the true one in it."""
    losses = draw_arms(drawn, seeds, 2.0, 1.97)
    low, high = MeanDifference.of_runs(losses["1"], losses["0"]).interval(0.05)
    return low <= -0.03 <= high


def covers_speedup(drawn: np.random.Generator, seeds: int) -> bool:
    """Whether the interval of an effective speedup has the true one in it."""
    law = PowerLaw(1.5, 0.3)
    losses = draw_arms(drawn, seeds, 2.0, 1.97, sigma=SIGMA / 2)
    found = find_speedup(losses["1"], losses["0"], [law]).interval
    assert found is not None
    return found[0] <= law.speedup(2.0, 1.97) <= found[1]


def places_falsely(drawn: np.random.Generator, seeds: int) -> bool:
    """Whether the dearest of four equally good arms is called beaten, or on the Pareto front."""
    losses = draw_arms(drawn, seeds, *[2.0] * 4)
    return find_front(losses, {"0": 1.0, "1": 1.2, "2": 1.4, "3": 1.6}, 0.01)["3"] != "undecided"


def covers_other_rows(drawn: np.random.Generator, pieces: int) -> bool:
    """Whether twice the error over rows, of a split of so many pieces, holds the difference over all text."""
    common, apart = 200 + 20 * drawn.standard_normal(pieces), 100 * (0.02 + 0.05 * drawn.standard_normal(pieces))
    pair = [(float(a + b), 100) for a, b in zip(common, apart, strict=True)], [(float(a), 100) for a in common]
    error = bootstrap_rows([pair])
    assert error is not None
    return abs(apart.mean() / 100 - 0.02) <= 1.96 * error


def differs_pooled(drawn: np.random.Generator, seeds: int, arms: int) -> bool:
    """Whether the variance pooled over equal arms calls the last one different, which is five times as noisy."""
    losses = draw_arms(drawn, seeds, *[2.0] * arms)
    losses[str(arms - 1)] = {seed: 2 + 5 * (loss - 2) for seed, loss in losses[str(arms - 1)].items()}
    return pool_variance(losses, "0")[str(arms - 1)] < 0.05


# ---------------------------------------------------------------- the table


def list_rates(experiments: int) -> Iterator[Rate]:
    """Simulate every design of the table in docs/verdicts.md."""

    def rate(what: str, nominal: float | None, happens: Callable[[np.random.Generator], bool]) -> Rate:
        return Rate(what, count(experiments, 1, happens), nominal, experiments)

    yield from list_tuned_rates(rate)
    for curve, shape in ((bend_parabola, "parabolas"), (bend_cliff, "cliffs")):
        for seeds, bend in ((3, 0.83), (5, 0.3), (5, 0.83), (5, 2.0), (10, 0.83)):
            apart = partial(judge_windows, seeds=seeds, bend=bend, sigma=SIGMA, curve=curve)
            yield rate(
                f"false verdicts on windows of good rates, {shape} of curvature {bend}, {seeds} seeds", 0.05, apart
            )
        for times in (1.5, 2, 3):
            apart = partial(judge_windows, seeds=5, bend=0.83, sigma=SIGMA, curve=curve, times=times)
            yield rate(f"a window {times:g} times as wide is found, {shape} of curvature 0.83, 5 seeds", None, apart)
    for metric, of in ((None, ""), (WINDOW, " on windows of good rates")):
        for noted, how in ((False, ", with the noise of wide runs"), (True, "")):
            told = partial(tells_on_proxies, metric=metric, noted=noted)
            yield rate(f"rates searched on proxies, 5 seeds: false verdicts{of}{how}", 0.05, told)
    for seeds in (3, 5, 10):
        yield rate(f"false verdicts, four arms, {seeds} seeds", 0.05, partial(is_false, seeds=seeds, arms=4))
    for answers, share, seeds, seeded in itertools.product((128, 1024), (0.5, 0.99), (3, 10), (False, True)):
        told = partial(tells_equal_accuracies, seeds=seeds, answers=answers, share=share, seeded=seeded)
        noisy = ", and noisy seeds" if seeded else ""
        yield rate(
            f"false verdicts, accuracies of {share:.0%} on {answers:,} answers{noisy}, {seeds} seeds", 0.05, told
        )
    for seeds in (5, 10):
        worse = partial(is_falsely_equivalent, seeds=seeds, margin=2 * SIGMA)
        yield rate(f"false equivalence, an arm worse by the margin, {seeds} seeds", 0.05, worse)
        for share in (0.2, 0.5):
            lost = partial(diverges_by_chance, seeds=seeds, share=share)
            yield rate(f"false verdicts, {share:.0%} of all runs diverge, {seeds} seeds", 0.05, lost)
    for spends, how in ((False, "5 % at each"), (True, "5 % spent")):
        looks = partial(tells_at_some_look, looks=(3, 6, 10), spends=spends)
        yield rate(f"false verdicts, looks at 3, 6 and 10 seeds, {how}", 0.05, looks)
    for seeds, difference in ((5, 1.5), (10, 1.0)):
        told = partial(finds, seeds=seeds, difference=difference * SIGMA * math.sqrt(2))
        power = compute_power(difference, seeds)
        yield rate(f"a true difference of {difference:g} σ of a pair is found, {seeds} seeds", power, told)
    for seeds in (3, 5, 10):
        yield rate(
            f"the interval of a difference covers it, {seeds} seeds", 0.95, partial(covers_difference, seeds=seeds)
        )
        yield rate(f"the interval of a speedup covers it, {seeds} seeds", 0.95, partial(covers_speedup, seeds=seeds))
        dearest = partial(places_falsely, seeds=seeds)
        yield rate(f"false places on a Pareto front, the dearest of four equal arms, {seeds} seeds", 0.025, dearest)
        pooled = partial(differs_pooled, seeds=seeds, arms=4)
        yield rate(
            f"p < 0.05 with pooled variance, one of four equal arms 5 times as noisy, {seeds} seeds", 0.05, pooled
        )
    for pieces in (FEWEST, 32):
        over, few = partial(covers_other_rows, pieces=pieces), max(experiments // 4, 1)
        what = f"1.96 errors over rows hold the difference on other text, {pieces} pieces, {few} experiments"
        yield Rate(what, count(few, 1, over), 0.95, few)


def list_tuned_rates(rate: Callable[..., Rate]) -> Iterator[Rate]:
    """Simulate the designs with searched learning rates."""
    shapes = {"parabolas": TunedDesign(5), "cliffs": TunedDesign(5, curve=bend_cliff)}
    shapes["flat and noisy"] = TunedDesign(5, sigma=0.05, bends=(0.1, 0.1))
    for shape, design in shapes.items():
        for seeds in (3, 5, 10):
            own = replace(design, seeds=seeds)
            what = f"searched rates, {shape}, {seeds} seeds"
            if shape == "parabolas":
                yield rate(f"{what}: false verdicts, until November 2026", 0.05, replace(own, how="2026").tells)
            if shape == "flat and noisy":
                yield rate(
                    f"{what}: false verdicts, without rates' errors", 0.05, replace(own, how="without errors").tells
                )
            yield rate(f"{what}: false verdicts", 0.05, own.tells)
        apart = 1.5 * design.sigma * math.sqrt(2)
        what = f"searched rates, {shape}, 5 seeds"
        worse = replace(design, gap=apart)
        yield rate(f"{what}: the interval of a difference covers it", 0.95, worse.covers)
        power = compute_power(1.5, 5)
        yield rate(f"{what}: a true difference of 1.5 σ of a pair is found", power, worse.tells)
        within = 4 * design.sigma * math.sqrt(2)
        power = compute_equivalence_power(4.0, 5)
        equal = partial(is_equivalent, design=replace(design, margin=within))
        yield rate(f"{what}: equal arms are equivalent within 4 σ of a pair", power, equal)
        worse = partial(is_equivalent, design=replace(design, margin=within, gap=within))
        yield rate(f"{what}: an arm worse by that margin is equivalent", 0.05, worse)


def is_equivalent(drawn: np.random.Generator, design: TunedDesign) -> bool:
    """Whether two arms at searched rates are called equivalent."""
    return design.judge(drawn).verdict == "equivalent"
