"""Find a lower bound of a score's noise, for a score that is rounded to a level or is a share of answers.

The bound is needed because the standard deviation over three seeds may be 0 by chance.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from statistics import mean, median_low

from zoo.analysis.verdict.difference import LossNoise


def find_level_noise(levels: Iterable[int], reached: Collection[float]) -> LossNoise:
    """Find the standard deviation that rounding to levels gives a score: gap ÷ √12, for a true score uniform in the gap
    from the median level reached to the next level (at the hardest level, in the gap below). The result has no
    degrees of freedom, because it is no more certain than the spread of the seeds."""
    middle = median_low(reached)
    marks = sorted({0.0, middle, *levels})
    at = min(marks.index(middle), len(marks) - 2)
    return LossNoise((marks[at + 1] - marks[at]) / math.sqrt(12))


def find_answer_noise(accuracies: Collection[float], answers: int) -> LossNoise:
    """Find the binomial standard deviation √(p(1 − p) ÷ n) of an accuracy over n answers; it has n degrees of freedom.
    With k right answers in the mean, p is (k + ½) ÷ (n + 1) (Jeffreys' prior), so the noise is never 0."""
    share = (mean(accuracies) * answers + 0.5) / (answers + 1)
    return LossNoise(math.sqrt(share * (1 - share) / answers), answers)
