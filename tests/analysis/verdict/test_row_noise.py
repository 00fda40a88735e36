"""The noise of a difference over the rows that a validation loss is measured on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoo.analysis.verdict.row_noise import FEWEST, bootstrap_rows


def test_the_error_over_rows_is_the_deviation_over_other_splits() -> None:
    """Pieces of 100 targets whose difference is 0.02 ± 0.05 nats a target: of 40 such pieces ± 0.05 ÷ √40."""
    drawn, errors, means = np.random.default_rng(0), [], []
    for _ in range(60):
        common, apart = 200 + 20 * drawn.standard_normal(40), 100 * (0.02 + 0.05 * drawn.standard_normal(40))
        pair = [(float(a + b), 100) for a, b in zip(common, apart, strict=True)], [(float(a), 100) for a in common]
        errors.append(bootstrap_rows([pair]))
        means.append(apart.mean() / 100)
    assert np.mean(errors) == pytest.approx(0.05 / math.sqrt(40), rel=0.1)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.25)


def test_runs_that_read_other_rows_or_few_have_none() -> None:
    pieces = [(1.0, 10)] * FEWEST
    assert bootstrap_rows([(pieces, pieces)]) == 0
    assert bootstrap_rows([(pieces, [(1.0, 11)] * FEWEST)]) is None
    assert bootstrap_rows([(pieces[1:], pieces[1:])]) is None and bootstrap_rows([]) is None
