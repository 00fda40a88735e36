"""Every packaged tiny model trains on every objective that it takes, and docs/training.md has a row for each."""

import re

import pytest

from pages import training_page
from pages.training_page import Pair, list_pairs

PAGE = training_page.PAGE.read_text(encoding="utf-8")
PAIRS = [Pair(*found) for found in re.findall(r"^\| `(.+?)` \| `(.+?)` \|", PAGE, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_loss_falls(pair, tmp_path):
    first, last, validation = training_page.train(pair, tmp_path)
    assert last < first - 0.2 and validation < first


def test_every_topology_has_an_objective_and_every_objective_a_model():
    learned = {pair.objective for pair in PAIRS}
    assert learned == {"next_token", "prefix_lm", "mlm", "span_corruption", "denoising", "ul2", "distil"}
    assert {pair.model for pair in PAIRS} == set(training_page.tiny_models())


def test_the_page_has_a_row_for_each():
    assert list(list_pairs()) == PAIRS
    assert PAGE.endswith(training_page.TAIL)
