"""Compute the accuracy of guesses that know the tokens of a sequence, but not their order."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

SURE = 1e-9
"""Probability below which the remaining terms of the sum are left out."""


@cache
def expect_most(draws: int, kinds: int) -> float:
    """Compute the expected count of the most frequent of `kinds` equally likely kinds among `draws` draws.

    E[max] = Σ P(max > c) over c ≥ 0. Given their sum, independent Poisson counts are multinomial, so P(max ≤ c) is a
    convolution of Poisson distributions cut off at c, divided by the probability of the sum.
    """
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, draws + 1)))])  # ln 0!, ln 1!, …
    counts = np.exp(np.arange(draws + 1) * math.log(draws / kinds) - draws / kinds - logs)
    total = math.exp(draws * math.log(draws) - draws - logs[-1])
    least = -(-draws // kinds)
    found = float(least)
    for most in range(least, draws):
        length = kinds * most + 1
        within = np.fft.irfft(np.fft.rfft(counts[: most + 1], length) ** kinds, length)[draws] / total
        if within > 1 - SURE:
            break
        found += 1 - float(within)
    return found
