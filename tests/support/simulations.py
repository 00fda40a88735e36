"""Simulated experiments: how often a verdict is false, how often a true difference is found, what intervals cover.

Nothing is trained. Losses are drawn with the noise and the learning-rate curvature that were measured on the packaged
recipes (docs/findings.md), and go through the functions that judge real runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev

import numpy as np

from zoo.analysis.verdict.comparison import compare_arms, find_front
from zoo.analysis.verdict.difference import LossNoise, MeanDifference
from zoo.analysis.verdict.power import compute_power
from zoo.analysis.verdict.rate_optimum import find_good_window, fit_optimum
from zoo.analysis.verdict.speedup import PowerLaw, find_speedup
from zoo.analysis.verdict.spending import find_look_levels
from zoo.jobs.rates import RateSearch

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
    return sum(happens(drawn) for _ in range(experiments)) / experiments


# ---------------------------------------------------------------- searched learning rates


def search(loss: Callable[[float], float]) -> RateSearch:
    """Search where the loss is a function of the decade."""
    made = RateSearch(1.0)
    while not made.finished:
        for place in made.ask():
            made.tell(place, loss(place / 4))
    return made


def judge_tuned(drawn: np.random.Generator, seeds: int, bend: float, sigma: float, honest: bool = True) -> bool:
    """Whether two equal arms, whose best rates are a little off the grid, get a verdict. With `honest=False` as it was
    until November 2026: the best rate of the grid, the search's run as the first seed, no error of the rate."""
    losses, errors = {}, {}
    for arm in "ab":
        best = drawn.uniform(-0.125, 0.125)

        def loss(decade: float, best: float = best) -> float:
            return 2 + bend * (decade - best) ** 2 + sigma * drawn.standard_normal()

        made = search(loss)
        assert made.best is not None
        at = fit_optimum(made.decades, 0.0).at if honest else made.best / 4
        losses[arm] = {seed: loss(at) for seed in range(seeds)}
        if not honest:
            losses[arm][0] = made.losses[made.best]
        errors[arm] = made.decades
    noise = math.sqrt(mean(stdev(each.values()) ** 2 for each in losses.values()))
    tuning = {arm: fit_optimum(each, noise).excess for arm, each in errors.items()} if honest else {}
    return compare_arms(losses, "a", tuning=tuning)["b"].verdict != "inconclusive"


Curve = Callable[[float], float]
"""The excess loss of an arm by decades from its best rate."""


def bend_parabola(decade: float) -> float:
    """A parabola of curvature 1."""
    return decade**2


def bend_cliff(decade: float) -> float:
    """The excess loss by decade of the packaged tiny model, which is flat above its best rate and then rises at once
    (docs/findings.md), stretched so that its window is about that of the parabola."""
    places = (-1.83, -0.84, -0.38, -0.15, 0.07, 0.3, 0.41, 0.46, 0.53, 0.98, 1.82)
    heights = (1.08, 0.58, 0.2, 0.07, 0.0, 0.014, 0.036, 0.24, 0.575, 0.82, 0.9)
    return float(np.interp(decade, places, heights))


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


# ---------------------------------------------------------------- verdicts


def is_false(drawn: np.random.Generator, seeds: int, arms: int) -> bool:
    """Whether any of several equal arms is called better or worse."""
    found = compare_arms(draw_arms(drawn, seeds, *[2.0] * arms), "0")
    return any(each.verdict in ("better", "worse") for each in found.values())


def is_falsely_equivalent(drawn: np.random.Generator, seeds: int, margin: float) -> bool:
    """Whether an arm that is worse by just the margin is called equivalent."""
    return compare_arms(draw_arms(drawn, seeds, 2.0, 2.0 + margin), "0", margin=margin)["1"].verdict == "equivalent"


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


def keeps_front(drawn: np.random.Generator, seeds: int) -> bool:
    """Whether no arm of the true Pareto front is called beaten, and no arm off it to be on it."""
    losses = draw_arms(drawn, seeds, 2.0, 2.0, 1.95, 2.05)
    costs = {"0": 1.0, "1": 1.2, "2": 1.5, "3": 1.4}  # 0 and 2 are on the front; 1 ties with 0, 3 is worse and dearer
    found = find_front(losses, costs, 0.01)
    return found["0"] != "beaten" and found["2"] != "beaten" and found["3"] != "on the front"


# ---------------------------------------------------------------- the table


def list_rates(experiments: int) -> Iterator[Rate]:
    """Simulate every design of the table in docs/verdicts.md."""

    def rate(what: str, nominal: float | None, happens: Callable[[np.random.Generator], bool]) -> Rate:
        return Rate(what, count(experiments, 1, happens), nominal, experiments)

    for seeds in (3, 5, 10):
        for bend, sigma in ((0.83, SIGMA), (0.3, SIGMA), (0.83, 3 * SIGMA)):
            what = f"false verdicts, searched rates of curvature {bend}, σ {sigma:g}, {seeds} seeds"
            for honest, how in ((False, "until November 2026"), (True, "now")):
                yield rate(
                    f"{what}: {how}", 0.05, partial(judge_tuned, seeds=seeds, bend=bend, sigma=sigma, honest=honest)
                )
    for curve, shape in ((bend_parabola, "parabolas"), (bend_cliff, "cliffs")):
        for seeds, bend in ((3, 0.83), (5, 0.3), (5, 0.83), (5, 2.0), (10, 0.83)):
            apart = partial(judge_windows, seeds=seeds, bend=bend, sigma=SIGMA, curve=curve)
            yield rate(
                f"false verdicts on windows of good rates, {shape} of curvature {bend}, {seeds} seeds", 0.05, apart
            )
        for times in (1.5, 2, 3):
            apart = partial(judge_windows, seeds=5, bend=0.83, sigma=SIGMA, curve=curve, times=times)
            yield rate(f"a window {times:g} times as wide is found, {shape} of curvature 0.83, 5 seeds", None, apart)
    for seeds in (3, 5, 10):
        yield rate(f"false verdicts, four arms, {seeds} seeds", 0.05, partial(is_false, seeds=seeds, arms=4))
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
        yield rate(
            f"no arm is on the wrong side of a Pareto front, {seeds} seeds", 0.95, partial(keeps_front, seeds=seeds)
        )
