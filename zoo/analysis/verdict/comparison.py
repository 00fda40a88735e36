"""Decide between architectures: better, worse, equivalent within a margin, or inconclusive.

Each arm is compared with the baseline by two tests: a test of difference and, if a margin is stated, a test of
equivalence within it (two one-sided tests; Schuirmann, 1987). If both tests are significant, the verdict is equivalent,
because a difference within the margin is no reason to prefer an arm. If neither is, the verdict is inconclusive.

Each test is at 5 % over all comparisons together (Holm, 1979): those of a sweep's arms with its baseline, or an
experiment's expected verdicts.

Diverged runs count as outcomes. If an arm or its baseline has any, the two are compared by exact ranks, with diverged
runs last.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist, mean, stdev
from typing import Literal

from zoo.analysis.verdict.difference import UNKNOWN, LossNoise, MeanDifference
from zoo.analysis.verdict.power import LEVEL, POWER, count_seeds, count_seeds_per_arm, find_smallest_effect
from zoo.analysis.verdict.student import student_cdf
from zoo.analysis.verdict.worst_rank import compare_ranks, fisher_exact

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]

Losses = Mapping[int, float]
"""The losses of an arm by seed. Lower is better; a value that is not finite is a diverged run."""


@dataclass(frozen=True)
class Comparison:
    """The difference between an arm's mean loss and the baseline's, and its verdict.

    If both arms have seeds in common, runs are `paired` by seed and `n` counts the pairs; otherwise `n` is the size of
    the smaller arm. Diverged runs count in `n`, and not in `difference`. Fields that need a spread are None if `n` is
    1.
    """

    n: int
    difference: float | None
    """The difference of the means over finished runs; None if an arm has none."""
    interval: tuple[float, float] | None
    """The confidence interval of the test that decided, at the level α of Holm's procedure for this arm. It excludes 0
    exactly if the arm is better or worse. For an equivalent arm it is the 1 − 2α interval of the two one-sided tests,
    which lies within the margin. None if runs diverged, because the test is then of ranks."""
    p: float | None
    """The two-sided p-value of no difference."""
    adjusted: float | None
    """`p` after Holm's correction over all comparisons."""
    verdict: Verdict
    needed: int | None
    """The seeds of a new experiment in which a true difference as large as the one found would be significant with
    power POWER."""
    paired: bool = True
    equivalence: float | None = None
    """The p-value of equivalence within the margin after Holm's correction; None without a margin."""
    margin: float | None = None
    """The largest difference that does not matter; None if none was stated, so that no arm is called equivalent."""
    detectable: float | None = None
    """The smallest true difference that `n` seeds of this spread show with power POWER."""
    pairing: float | None = None
    """The standard deviation of a pair's difference ÷ that of two runs of different seeds. Below 1 pairing helps."""
    pooled: float | None = None
    """The p-value with the variance pooled over all arms (two-way analysis of variance of arms and seeds), which has
    more degrees of freedom and assumes arms of equal noise. It is a second reading, and decides nothing."""
    noise: float | None = None
    """The standard error of the difference from the noise of runs; `freedom` has its degrees of freedom."""
    freedom: float | None = None
    counted: float = 0.0
    """A lower bound of the standard error, from the number of scored answers."""
    rate_error: float | None = 0.0
    """The standard error that searched learning rates add, which all seeds share. None if it is unknown, because only
    one rate has a loss; then there is no test."""
    diverged: tuple[int, int] = (0, 0)
    """The diverged runs of the arm and of the baseline."""
    divergence: float | None = None
    """Fisher's exact p-value that both arms diverge equally often; None if no run diverged."""

    def negate(self) -> Comparison:
        """Give the difference and its interval the sign of a metric that was negated before it was compared."""
        interval = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return replace(self, difference=None if self.difference is None else -self.difference, interval=interval)


@dataclass(frozen=True)
class _Sample:
    """One arm's runs compared with the baseline's, before Holm's correction."""

    n: int
    mean: MeanDifference | None
    p: float | None
    below: bool
    """Whether the arm is the better one of the two, significantly or not."""
    diverged: tuple[int, int]
    divergence: float | None = None


def compare_arms(
    losses: Mapping[str, Losses],
    baseline: str,
    level: float = LEVEL,
    margin: float | None = None,
    tuning: Mapping[str, float] | None = None,
    least: Mapping[str, LossNoise] | None = None,
) -> dict[str, Comparison]:
    """Compare each arm with the baseline arm, given losses by arm and seed. `margin` is the largest difference that
    does not matter. `tuning` maps an arm to the standard error that its searched learning rate adds to its mean loss,
    `least` an arm to a lower bound of its runs' standard deviation (`score_noise`)."""
    errors, floors = tuning or {}, defaultdict(LossNoise, least or {})
    pairs = {
        arm: ArmPair(
            own,
            losses[baseline],
            margin,
            math.hypot(errors.get(arm, 0), errors.get(baseline, 0)),
            least=floors[arm].join(floors[baseline]),
        )
        for arm, own in losses.items()
        if arm != baseline
    }
    pooled = pool_variance(losses, baseline)
    return {arm: replace(each, pooled=pooled.get(arm)) for arm, each in compare_pairs(pairs, level).items()}


@dataclass(frozen=True)
class ArmPair:
    """The losses of two arms to compare, the largest difference that does not matter (None: none was stated), and the
    standard error that searched learning rates add to their difference."""

    losses: Losses
    baseline: Losses
    margin: float | None = None
    tuning: float = 0.0
    measured: MeanDifference | None = None
    """The difference itself, if it is not of losses but of two windows of learning rates."""
    least: LossNoise = UNKNOWN
    """A lower bound of the standard deviation of a pair's difference, for seeds that agree (`score_noise`)."""


def compare_pairs(pairs: Mapping[str, ArmPair], level: float = LEVEL) -> dict[str, Comparison]:
    """Compare pairs of arms, with an error rate of `level` over all pairs together (Holm)."""
    samples = {name: _sample(each) for name, each in pairs.items()}
    differ = {name: each.p for name, each in samples.items() if each.p is not None}
    alike = {
        name: p for name, each in pairs.items() if (p := _test_equivalence(samples[name], each.margin)) is not None
    }
    different, equal = adjust_by_holm(differ), adjust_by_holm(alike)
    levels, margins = find_levels(differ, level), find_levels(alike, level)

    def describe(name: str, each: _Sample) -> Comparison:
        tested_at = (levels.get(name, level), margins.get(name, level))
        return _describe(each, level, different.get(name), equal.get(name), tested_at, pairs[name])

    return {name: describe(name, each) for name, each in samples.items()}


def _sample(pair: ArmPair) -> _Sample:
    if (given := pair.measured) is not None:
        return _Sample(given.n, given, given.p_value() if given.known else None, given.difference < 0, (0, 0))
    shared = pair.losses.keys() & pair.baseline.keys()
    runs, theirs = (
        {s: v for s, v in each.items() if not shared or s in shared} for each in (pair.losses, pair.baseline)
    )
    finite, others = ({s: v for s, v in each.items() if math.isfinite(v)} for each in (runs, theirs))
    lost = (len(runs) - len(finite), len(theirs) - len(others))
    both = finite.keys() & others.keys() if shared else finite and others
    found = MeanDifference.of_runs(finite, others, pair.tuning, pair.least) if both else None
    n = min(len(runs), len(theirs))
    if not any(lost):
        assert found is not None
        return _Sample(n, found, found.p_value() if found.known else None, found.difference < 0, lost)
    away, p = compare_ranks(list(runs.values()), list(theirs.values()))
    rate = fisher_exact(lost[0], len(runs), lost[1], len(theirs))
    return _Sample(n, found, p if n > 1 else None, away < 0, lost, rate)


def _test_equivalence(sample: _Sample, margin: float | None) -> float | None:
    """Give the p-value of equivalence; None without a margin, with an unknown error, or if runs diverged."""
    if margin is None or sample.mean is None or not sample.mean.known or any(sample.diverged):
        return None
    return sample.mean.p_equivalent(margin)


def _describe(
    sample: _Sample,
    level: float,
    different: float | None,
    equal: float | None,
    levels: tuple[float, float],
    pair: ArmPair,
) -> Comparison:
    verdict: Verdict = "inconclusive"
    if equal is not None and equal < level:
        verdict = "equivalent"
    elif different is not None and different < level:
        verdict = "better" if sample.below else "worse"
    found, whole = sample.mean, not any(sample.diverged)
    tested_at, within_at = levels
    shown_at = 2 * within_at if verdict == "equivalent" else tested_at
    known = found if found is not None and found.known and whole else None
    return Comparison(
        n=sample.n,
        difference=None if found is None else found.difference,
        interval=None if known is None else known.interval(shown_at),
        p=sample.p,
        adjusted=different,
        verdict=verdict,
        needed=None if known is None or pair.measured else _count_needed(known, tested_at),
        paired=True if found is None else found.paired,
        equivalence=equal,
        margin=pair.margin,
        detectable=None if known is None else _find_detectable(known, tested_at),
        pairing=_measure_pairing(pair) if whole else None,
        noise=None if known is None else known.noise,
        freedom=None if known is None else known.freedom,
        counted=0.0 if known is None else known.counted,
        rate_error=pair.tuning if math.isfinite(pair.tuning) else None,
        diverged=sample.diverged,
        divergence=sample.divergence,
    )


def _count_needed(found: MeanDifference, level: float) -> int | None:
    return (count_seeds if found.paired else count_seeds_per_arm)(found.difference, found.spread, level)


def _find_detectable(found: MeanDifference, level: float) -> float:
    """Find the smallest true difference that is significant with power POWER, in the unit of the losses."""
    pairs = max(round(found.freedom), 1) + 1  # of as many degrees of freedom
    effect = find_smallest_effect(pairs, level) if found.noise else 0.0
    assert effect is not None
    normal = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(POWER)
    of_noise = max(effect * found.noise * math.sqrt(pairs), normal * found.counted)
    return math.hypot(of_noise, normal * found.shared)


def _measure_pairing(pair: ArmPair) -> float | None:
    shared = pair.losses.keys() & pair.baseline.keys()
    if len(shared) < 2:
        return None
    apart = math.hypot(*(stdev(each[seed] for seed in shared) for each in (pair.losses, pair.baseline)))
    return stdev(pair.losses[seed] - pair.baseline[seed] for seed in shared) / apart if apart else None


def pool_variance(losses: Mapping[str, Losses], baseline: str) -> dict[str, float]:
    """Give each arm's two-sided p-value with the residual variance of all arms (analysis of variance of arms and
    seeds). Empty for two arms, for which this is the paired test, and if the finished seeds differ among the arms."""
    seeds = sorted(losses[baseline])
    arms, n = list(losses), len(seeds)
    whole = all(sorted(each) == seeds and all(map(math.isfinite, each.values())) for each in losses.values())
    if len(arms) < 3 or n < 2 or not whole:
        return {}
    means = {arm: mean(losses[arm].values()) for arm in arms}
    of_seed = {seed: mean(losses[arm][seed] for arm in arms) for seed in seeds}
    grand = mean(means.values())
    squares = sum((losses[arm][seed] - means[arm] - of_seed[seed] + grand) ** 2 for arm in arms for seed in seeds)
    freedom = (len(arms) - 1) * (n - 1)
    error = math.sqrt(2 * squares / freedom / n)
    if error == 0:
        return {}
    return {
        arm: 2 * student_cdf(-abs(means[arm] - means[baseline]) / error, freedom) for arm in arms if arm != baseline
    }


# ---------------------------------------------------------------- Holm's correction


def adjust_by_holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for multiple comparisons (Holm, 1979): multiply the k-th smallest of m by m − k + 1. No result
    is below the one before it, or above 1."""
    found, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda each: each[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        found[name] = highest
    return found


def find_levels(p_values: Mapping[str, float], level: float) -> dict[str, float]:
    """Find the level at which Holm's procedure tests each p-value: `level` ÷ (m − k + 1) for the k-th smallest of m, up
    to the first that is not significant. All larger p-values are tested at that one's level."""
    found, step, stopped = {}, 0, False
    for name, p in sorted(p_values.items(), key=lambda each: each[1]):
        at = level / (len(p_values) - step)
        found[name] = at
        stopped = stopped or p >= at
        step += not stopped
    return found


# ---------------------------------------------------------------- Pareto fronts

Place = Literal["on the front", "beaten", "undecided"]


def find_front(losses: Mapping[str, Losses], costs: Mapping[str, float], alike: float) -> dict[str, Place]:
    """Place each arm relative to the Pareto front of loss and cost. Costs within a share `alike` count as equal.

    A rival of an arm is another arm of equal or lower cost. An arm is beaten if a rival is significantly better, and on
    the front if all rivals are significantly worse or it has none (5 %, Holm over the rivals). Otherwise it is
    undecided, as is every arm with a rival if arms have one seed each.
    """

    def place(arm: str) -> Place:
        rivals = [each for each in costs if each == arm or costs[each] <= costs[arm] * (1 + alike)]
        against = [each.verdict for each in compare_arms({each: losses[each] for each in rivals}, arm).values()]
        if "better" in against:
            return "beaten"
        return "on the front" if all(each == "worse" for each in against) else "undecided"

    return {arm: place(arm) for arm in costs}


def negate(losses: Mapping[str, Losses]) -> dict[str, dict[int, float]]:
    """Negate a metric whose higher values are better, so that lower is better. A value that is not finite becomes
    infinite, the worst."""
    return {
        arm: {seed: -value if math.isfinite(value) else math.inf for seed, value in each.items()}
        for arm, each in losses.items()
    }
