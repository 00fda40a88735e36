"""Find the noise that a score has even where all seeds give the same: it is rounded to a level, or a share of answers.

A standard deviation over three seeds may be 0 by chance. These are the least that it is taken to be.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from statistics import mean, median_low

from zoo.analysis.verdict.difference import LossNoise


def find_level_noise(levels: Iterable[int], reached: Collection[float]) -> LossNoise:
    """Find the standard deviation of the levels reached that rounding gives them. What a model can do is known to the
    gap from the median level to the next one, or below the hardest: uniform in it, it has one of gap ÷ √12. It is
    no more certain than what the seeds show, so that it has no degrees of freedom."""
    middle = median_low(reached)
    marks = sorted({0.0, middle, *levels})
    at = min(marks.index(middle), len(marks) - 2)
    return LossNoise((marks[at + 1] - marks[at]) / math.sqrt(12))


def find_answer_noise(accuracies: Collection[float], answers: int) -> LossNoise:
    """Find the binomial standard deviation √(p(1 − p) ÷ n) of an accuracy over n answers. Of their mean share, k of n,
    p is (k + ½) ÷ (n + 1) (Jeffreys' prior), so that none wrong leaves noise too. It has as many degrees of freedom as
    answers."""
    share = (mean(accuracies) * answers + 0.5) / (answers + 1)
    return LossNoise(math.sqrt(share * (1 - share) / answers), answers)
