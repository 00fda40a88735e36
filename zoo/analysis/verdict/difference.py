"""Estimate the difference between the mean losses of two arms, with its errors.

Runs of two arms with the same seed see the same data in the same order, so that their difference has less noise than
either loss. With n pairs of mean difference d and standard deviation s, d·√n/s follows Student's t with n − 1 degrees
of freedom. Arms without a common seed are compared by Welch's t (1947), which has more noise.

Some errors are the same in all seeds, so that more seeds do not remove them: the error of a searched learning rate, or
of a fitted law. They are added to the half-width of an interval in quadrature, each with its own quantile (the method
of variance estimates recovery; Zou and Donner, 2008). A p-value is the level whose interval just reaches a difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, mean, stdev, variance
from typing import NamedTuple

from zoo.analysis.verdict.student import student_cdf, student_quantile


class LossNoise(NamedTuple):
    """The standard deviation of a run's loss (`sigma`), and its degrees of `freedom`; both 0 if unknown."""

    sigma: float = 0.0
    freedom: int = 0

    @classmethod
    def of_arms(cls, arms: Iterable[Mapping[int, float]]) -> LossNoise:
        """Pool the standard deviation over arms, each given as losses by seed. Diverged runs are left out."""
        finite = [[loss for loss in each.values() if math.isfinite(loss)] for each in arms]
        spread = [(variance(each), len(each) - 1) for each in finite if len(each) > 1]
        freedom = sum(count for _, count in spread)
        return cls(math.sqrt(sum(square * count for square, count in spread) / freedom), freedom) if freedom else cls()

    def join(self, other: LossNoise) -> LossNoise:
        """Give the noise of the difference of two runs, one with this noise and one with the `other`."""
        return LossNoise(math.hypot(self.sigma, other.sigma), min(self.freedom, other.freedom))


UNKNOWN = LossNoise()


@dataclass(frozen=True)
class MeanDifference:
    """A mean difference, the standard error of its `noise`, and the degrees of `freedom` of Student's t. If only the
    difference is known, as for one pair, `noise` and `spread` are NaN."""

    n: int
    difference: float
    noise: float
    freedom: float
    spread: float
    """The standard deviation of a pair's difference, or of a run if there are no pairs."""
    paired: bool
    shared: float = 0.0
    """The standard error that all seeds share; infinite if it is unknown."""
    counted: float = 0.0
    """A lower bound of the standard error, from the number of scored answers; it needs no seeds."""

    @classmethod
    def of_pairs(cls, differences: Sequence[float], shared: float = 0.0, least: LossNoise = UNKNOWN) -> MeanDifference:
        """Estimate the mean of pairs' differences; `least` is a lower bound of their standard deviation."""
        n = len(differences)
        own = stdev(differences) if n > 1 else math.nan
        return cls(n, mean(differences), own / math.sqrt(n), n - 1, own, True, shared)._raise_noise(least)

    @classmethod
    def of_arms(
        cls, losses: Sequence[float], baseline: Sequence[float], shared: float = 0.0, least: LossNoise = UNKNOWN
    ) -> MeanDifference:
        """Compare two arms without pairs (Welch, 1947). `least` is as in `of_pairs`."""
        n, difference = min(len(losses), len(baseline)), mean(losses) - mean(baseline)
        if n < 2:
            return cls(n, difference, math.nan, 0, math.nan, False, shared)
        shares = [variance(each) / len(each) for each in (losses, baseline)]
        total = sum(shares)
        below = sum(share**2 / (len(each) - 1) for share, each in zip(shares, (losses, baseline), strict=True))
        freedom = total**2 / below if below else n - 1
        spread = math.sqrt((variance(losses) + variance(baseline)) / 2)
        return cls(n, difference, math.sqrt(total), freedom, spread, False, shared)._raise_noise(least)

    def _raise_noise(self, least: LossNoise) -> MeanDifference:
        """Apply a lower bound (`least`) to the noise of a pair's difference. A bound without degrees of freedom
        replaces a smaller noise of the seeds; a bound with them is kept separately (`counted`)."""
        if not (least.sigma and self.known):
            return self
        error = least.sigma / math.sqrt(self.n)
        raised = replace(self, spread=max(self.spread, least.sigma / (1 if self.paired else math.sqrt(2))))
        return replace(raised, counted=error) if least.freedom else replace(raised, noise=max(self.noise, error))

    @classmethod
    def of_runs(
        cls,
        losses: Mapping[int, float],
        baseline: Mapping[int, float],
        shared: float = 0.0,
        least: LossNoise = UNKNOWN,
    ) -> MeanDifference:
        """Compare two arms whose losses are given by seed: over the seeds that both have (`of_pairs`), else without
        pairs."""
        if common := sorted(losses.keys() & baseline.keys()):
            return cls.of_pairs([losses[seed] - baseline[seed] for seed in common], shared, least)
        return cls.of_arms(list(losses.values()), list(baseline.values()), shared, least)

    @property
    def known(self) -> bool:
        """Whether the standard error is known, so that a test is possible."""
        return math.isfinite(self.noise + self.shared)

    @property
    def error(self) -> float:
        """The standard error of the difference."""
        return math.hypot(max(self.noise, self.counted), self.shared)

    def half_width(self, level: float) -> float:
        """Give half of the width of the 1 − `level` confidence interval."""
        of_seeds = student_quantile(1 - level / 2, self.freedom) * self.noise
        of_noise = max(of_seeds, -NormalDist().inv_cdf(level / 2) * self.counted)
        return math.hypot(of_noise, NormalDist().inv_cdf(level / 2) * self.shared) if self.shared else of_noise

    def interval(self, level: float) -> tuple[float, float]:
        """Give the 1 − `level` confidence interval of the difference."""
        half = self.half_width(level)
        return self.difference - half, self.difference + half

    def p_value(self) -> float:
        """Give the two-sided p-value of the hypothesis that there is no difference."""
        return self._find_level(abs(self.difference))

    def p_equivalent(self, margin: float) -> float:
        """Give the p-value of equivalence within ±`margin`: the larger of two one-sided tests (Schuirmann, 1987)."""
        inside = margin - abs(self.difference)
        outside = self._find_level(abs(inside)) / 2
        return outside if inside > 0 else 1 - outside

    def _find_level(self, distance: float) -> float:
        """Find the level whose confidence interval has the half-width `distance`."""
        if self.error == 0:
            return 1.0 if distance == 0 else 0.0
        if not self.shared:
            of_seeds = 2 * (1 - student_cdf(distance / self.noise, self.freedom)) if self.noise else 0.0
            return max(of_seeds, 2 * NormalDist().cdf(-distance / self.counted) if self.counted else 0.0)
        if not self.noise:
            return 2 * NormalDist().cdf(-distance / self.error)
        level, low, high = 1.0, 0.0, distance / self.noise  # of Student's quantile, which gives its level at once
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            level = max(2 * student_cdf(-middle, self.freedom), 1e-300)
            normal = -NormalDist().inv_cdf(level / 2)
            reached = math.hypot(max(middle * self.noise, normal * self.counted), normal * self.shared)
            low, high = (middle, high) if reached < distance else (low, middle)
        return level
