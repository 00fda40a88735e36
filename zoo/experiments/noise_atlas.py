"""Collect the noise of runs by their models' size, from the kept verdicts: the noise atlas.

Plans take from it the standard deviation of a pair's difference, and searches on narrow proxies that of a run.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from statistics import mean, median, stdev

from zoo.analysis.verdict.difference import LossNoise
from zoo.experiments.experiment import find_recipe, list_recipes
from zoo.experiments.judging import find_outcome
from zoo.report.arms import Arm
from zoo.units import format_count

NEAR = 5.0
"""Largest ratio of two models' parameters at which they are taken to have the same noise."""


@dataclass(frozen=True)
class PairNoise:
    """The standard deviation of a pair's difference (two arms, one seed): the median over `arms` of kept verdicts that
    have between `smallest` and `largest` parameters."""

    sigma: float
    loss: float
    """The loss to which `sigma` is in the median of these arms' ratios of both."""
    arms: int
    smallest: float
    largest: float

    def describe(self) -> str:
        """Describe the noise and its source."""
        sizes = dict.fromkeys(format_count(each) for each in (self.smallest, self.largest))
        said = f"σ = {self.sigma:.3g}: the median of {self.arms} arms of kept verdicts"
        return f"{said} of {' to '.join(sizes)} parameters (--sigma replaces it)"


@functools.lru_cache(8)
def find_noise(metric: str, params: float) -> PairNoise | None:
    """Find the noise of a pair in a metric, of models whose parameters are at most NEAR times more or fewer; None if no
    kept verdict is on such a model."""
    near = []
    for (_, first), *others in _list_verdicts(metric):
        for size, own in others:
            shared = [own[seed] - first[seed] for seed in own.keys() & first.keys()]
            if _is_near(size, params) and len(shared) > 1:
                near.append((size, stdev(shared), mean(own.values())))
    if not near:
        return None
    sizes, sigma = [size for size, *_ in near], median(sigma for _, sigma, _ in near)
    share = median(sigma / value for _, sigma, value in near)
    return PairNoise(sigma, sigma / share, len(near), min(sizes), max(sizes))


@functools.lru_cache(8)
def find_run_noise(params: float) -> LossNoise:
    """Pool the noise of a run's loss over the arms of kept verdicts on models whose parameters are at most NEAR times
    more or fewer. Arms differ in their noise, and quantiles of the pooled one hold for an arm drawn from them."""
    near = (own for arms in _list_verdicts("val_loss") for size, own in arms if _is_near(size, params))
    distinct = {tuple(own.values()): own for own in near}  # several recipes have the same runs
    return LossNoise.of_arms(distinct.values())


@functools.lru_cache(8)
def _list_verdicts(metric: str) -> list[list[tuple[float, dict[int, float]]]]:
    """List the arms of each kept verdict in a metric, the first one first: their parameters, and their finite values by
    seed."""
    found = []
    for name in list_recipes():
        (_, experiment), outcome = find_recipe(name), find_outcome(name)
        if outcome is None or experiment.withdrawn or experiment.metric != metric:
            continue
        sizes = {arm: costs.get("params", math.nan) for arm, costs in outcome.costs.items()}
        values = outcome.values[metric].items()
        found.append([(sizes[arm], {int(s): v for s, v in own.items() if v is not None}) for arm, own in values])
    return found


def _is_near(size: float, params: float) -> bool:
    return max(size / params, params / size) <= NEAR


def note_noise(arm: Arm) -> Arm:
    """Note the `noise` of kept verdicts on models of a proxy's size with a search on the proxy (as a LossNoise). The
    search has one run a rate, and so no spread of its own, and narrow models may be noisier than the arm's wide one."""
    if arm.search is None or not arm.search.get("width"):
        return arm
    run = next(each for each in arm.runs.values() if each.search)
    jobs = [each for each in run.sweep["jobs"].values() if "search" in each and each.get("arm") == run.job["arm"]]
    params = next((size for each in jobs if (size := each.get("predicted", {}).get("params"))), None)
    noise = LossNoise() if params is None else find_run_noise(params)
    return replace(arm, search={**arm.search, "noise": list(noise)})
