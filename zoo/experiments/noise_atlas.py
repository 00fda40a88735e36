"""Collect the noise of runs by model size from the stored verdicts: the noise atlas.

Plans use the noise of the difference between two arms with the same seed; searches on narrow proxies use a run's.
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
"""Largest ratio of parameters at which two models are assumed to have the same noise."""


@dataclass(frozen=True)
class PairNoise:
    """The standard deviation `sigma` of the difference between two arms with the same seed. It is the median over arms
    of stored verdicts: `arms` of them, with `smallest` to `largest` parameters."""

    sigma: float
    loss: float
    """`sigma` ÷ the median over these arms of σ ÷ mean loss."""
    arms: int
    smallest: float
    largest: float

    def describe(self) -> str:
        """Describe the noise and its source in a line."""
        sizes = dict.fromkeys(format_count(each) for each in (self.smallest, self.largest))
        said = f"σ = {self.sigma:.3g}, of the paired difference: the median over {self.arms} arms of stored verdicts, "
        return f"{said}each against its baseline, on models of {' to '.join(sizes)} parameters (--sigma replaces it)"


@functools.lru_cache(8)
def find_noise(metric: str, params: float) -> PairNoise | None:
    """Find the noise of the difference between two arms in a metric, for models within a factor NEAR of `params`. None
    if no stored verdict has such a model."""
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
    """Pool the noise of a run's loss over stored verdicts' arms with models within a factor NEAR of `params`. Arms
    differ in noise; quantiles of the pooled noise hold for an arm drawn at random."""
    near = (own for arms in _list_verdicts("val_loss") for size, own in arms if _is_near(size, params))
    distinct = {tuple(own.values()): own for own in near}  # several recipes have the same runs
    return LossNoise.of_arms(distinct.values())


@functools.lru_cache(8)
def _list_verdicts(metric: str) -> list[list[tuple[float, dict[int, float]]]]:
    """List the arms of each stored verdict in a metric, the first arm first. An arm is its number of parameters and its
    finite values by seed."""
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
    """Add the stored verdicts' noise at a proxy's size to an arm's search on that proxy, as `noise` (a LossNoise). The
    search has one run per rate and thus no spread of its own, and narrow models may be noisier than the wide one."""
    if arm.search is None or not arm.search.get("width"):
        return arm
    run = next(each for each in arm.runs.values() if each.search)
    jobs = [each for each in run.sweep["jobs"].values() if "search" in each and each.get("arm") == run.job["arm"]]
    params = next((size for each in jobs if (size := each.get("predicted", {}).get("params"))), None)
    noise = LossNoise() if params is None else find_run_noise(params)
    return replace(arm, search={**arm.search, "noise": list(noise)})
