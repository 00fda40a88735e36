"""The order of rows: a permutation by index, sources by weight, and a position that is one count."""

import math
import random
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.corpora import FAST, faults_of
from zoo.data.held_out_rows import hold_out
from zoo.data.order import Interleaving, Permutation
from zoo.data.tokens import AHEAD, EVALUATION, Batch, Batches, Source, TokenFile
from zoo.errors import ZooError


def tokens_of(n: int, first: int = 1) -> TokenFile:
    return TokenFile(ids=np.arange(first, first + n), eos_id=0, n_documents=1, n_bytes=n)


# One source


@FAST
@given(st.integers(1, 700), st.text(max_size=9))
def test_a_permutation_takes_every_place_once(n, key):
    assert sorted(Permutation(n, key)(np.arange(n)).tolist()) == list(range(n))


def test_a_permutation_is_computed_by_index_and_needs_no_memory_for_it():
    order = Permutation(1_000_003, "a")
    some = np.array(random.sample(range(1_000_003), 2000))
    found = order(some)
    assert len(set(found.tolist())) == 2000
    assert all(order(np.array([place])) == [value] for place, value in zip(some[:20], found[:20], strict=True))
    huge = Permutation(10**13 + 37, "a")(np.arange(5000))
    assert len(set(huge.tolist())) == 5000 and huge.min() >= 0 and huge.max() < 10**13 + 37


def chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic against equal counts, in standard deviations from its mean."""
    expected = counts.sum() / counts.size
    free = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - free) / math.sqrt(2 * free)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_of_few_elements_every_order_is_equally_likely(n):
    orders = [tuple(Permutation(n, f"{key}")(np.arange(n)).tolist()) for key in range(100 * math.factorial(n))]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == math.factorial(n)
    assert chi_square(counts) < 5


def test_of_many_elements_places_and_neighbours_look_drawn_at_random():
    n, cells = 100_000, 20
    order = Permutation(n, "7/0")(np.arange(n))
    cell = order * cells // n
    first = np.zeros((cells, cells))
    np.add.at(first, (np.arange(n) * cells // n, cell), 1)
    assert abs(chi_square(first)) < 5  # which part of the corpus comes in which part of an epoch
    pairs = np.zeros((cells, cells))
    np.add.at(pairs, (cell[:-1], cell[1:]), 1)
    assert abs(chi_square(pairs)) < 5  # what comes after what
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert (order == np.arange(n)).sum() < 10  # one in the mean
    assert 0.49 < (order[1:] > order[:-1]).mean() < 0.51


def test_seeds_and_epochs_have_orders_that_agree_in_few_places():
    orders = [Permutation(10_000, key)(np.arange(10_000)) for key in ("0//0", "0//1", "1//0", "0/a/0")]
    agree = [(one == other).sum() for one in orders for other in orders if one is not other]
    assert max(agree) < 12


# The position


def rows_of(batches: Batches, sizes: list[int]) -> torch.Tensor:
    """The rows that batches of these sizes give, one after another."""
    found = []
    for size in sizes:
        batches.batch_size = size
        found.append(next(batches).input_ids)
    return torch.cat(found)


def test_the_stream_of_rows_stays_when_the_batch_size_changes_also_across_epochs():
    tokens = tokens_of(50 * 6 + 1)
    expected = rows_of(Batches(tokens, 5, 6, seed=3), [5] * 60)
    for sizes in ([300], [1] * 300, [7] * 42 + [6], [50, 100, 25, 125]):
        assert torch.equal(rows_of(Batches(tokens, 1, 6, seed=3), sizes), expected)


def test_a_run_goes_on_with_another_batch_size_where_it_was():
    tokens, first = tokens_of(64 * 4 + 1), 6
    whole = rows_of(Batches(tokens, first, 4, seed=1), [first] * 40)
    before = Batches(tokens, first, 4, seed=1)
    rows_of(before, [first] * 13)
    for size in (1, 4, 11):
        after = Batches(tokens, size, 4, seed=1)
        after.restore(before.state())
        assert torch.equal(rows_of(after, [size] * 10), whole[13 * first :][: 10 * size])
    assert before.state() == {"consumed": 78, "seed": 1, "seq_len": 4, "n_tokens": 257}


def test_rows_are_the_same_whatever_was_read_before_and_across_what_is_computed_together():
    batches = Batches(tokens_of(37 * 3 + 1), 8, 3, seed=2)
    whole = torch.cat([batch.input_ids for batch in islice(batches, 3 * AHEAD // 8)])
    for first in random.sample(range(3 * AHEAD - 20), 40):
        assert torch.equal(batches.read(first, 20).input_ids, whole[first : first + 20])


def test_what_a_row_is_corrupted_by_is_its_epoch_and_its_number():
    keys = []

    def collate(rows, found):
        keys.extend(found)
        return Batch(ids := torch.tensor(np.stack(rows)), ids)

    batches = Batches(tokens_of(10 * 2 + 1), 4, 2, seed=5, collate=collate)
    found = [next(batches) for _ in range(6)]
    assert keys == [(number // 10, number) for number in range(24)]
    assert torch.cat([batch.input_ids for batch in found]).shape == (24, 3)
    assert [number for batch in found for number in batch.row_numbers.tolist()] == list(range(24))  # type: ignore[union-attr]


@pytest.mark.parametrize(("state", "found"), [({"step": 4, "seed": 0}, "a count of steps"), ({}, "no count of rows")])
def test_the_position_of_an_earlier_version_is_refused_in_one_line(state, found):
    (fault,) = faults_of(lambda: Batches(tokens_of(99), 4, 8).restore(state))
    assert fault == f"data: the checkpoint's position is of another version's order of rows, found {found} (a new run)"


# Several sources

WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=8).map(lambda each: [Fraction(w) for w in each])


@FAST
@given(WEIGHTS)
def test_after_any_number_of_rows_each_source_has_its_share_to_within_one(weights):
    total = sum(weights)
    source, index = Interleaving(weights)(np.arange(3 * int(total) + 5))
    counts = np.zeros(len(weights), int)
    for n, (one, which) in enumerate(zip(source.tolist(), index.tolist(), strict=True), 1):
        assert which == counts[one]  # the rows of a source come in order, and none is left out
        counts[one] += 1
        assert all(abs(count - n * weight / total) < 1 for count, weight in zip(counts.tolist(), weights, strict=True))


def test_weights_are_exact_as_they_are_written():
    parts = Interleaving([Fraction("0.7"), Fraction("0.2"), Fraction("0.1")])
    assert parts.period == 10
    source, _ = parts(np.arange(1_000_000, 1_000_010))
    assert np.bincount(source).tolist() == [7, 2, 1]


def test_weights_of_many_digits_are_refused():
    (fault,) = faults_of(lambda: Interleaving([Fraction("0.123456789"), Fraction(1)]))
    assert fault.startswith("data.of: a mix repeats within 100,000 rows, found weights that repeat after 1,123,456,789")


def mixed(seed: int = 0, batch_size: int = 4) -> Batches:
    sources = [
        Source("a", Fraction(3), tokens_of(11 * 5 + 1, 1000)),
        Source("b", Fraction(1), tokens_of(4 * 5 + 1, 5000)),
    ]
    return Batches(sources, batch_size, 5, seed)


def test_a_mix_takes_turns_by_weight_and_shows_each_source_once_an_epoch():
    rows = rows_of(mixed(), [4] * 44)
    of_a = rows[:, 0] < 5000
    assert of_a.sum() == 3 * 44
    assert all(of_a[first : first + 4].sum() == 3 for first in range(0, 176, 4))
    for mine, n_windows in ((rows[of_a], 11), (rows[~of_a], 4)):
        for epoch in range(len(mine) // n_windows):
            starts = mine[epoch * n_windows : (epoch + 1) * n_windows, 0]
            assert len(set(starts.tolist())) == n_windows


def test_a_mix_goes_on_where_it_was_and_not_with_other_weights():
    whole = rows_of(mixed(), [4] * 20)
    before = mixed()
    rows_of(before, [4] * 7)
    after = mixed(batch_size=3)
    after.restore(before.state())
    assert torch.equal(rows_of(after, [3] * 10), whole[28:58])
    other = Batches([source._replace(weight=Fraction(2)) for source in mixed().sources], 4, 5)
    (fault,) = faults_of(lambda: other.restore(before.state()))
    assert fault.startswith("data: to resume, weights must be as before, found")


def test_a_source_that_fills_no_row_is_named():
    sources = [Source("a", Fraction(1), tokens_of(99)), Source("b", Fraction(1), tokens_of(5))]
    (fault,) = faults_of(lambda: Batches(sources, 2, 8))
    assert fault.startswith("data.of.b: the training split must fill one row of 8 tokens and a target, found 5 (")


def test_rows_that_evaluate_have_an_epoch_of_their_own_and_whole_rows_where_they_are_collated():
    keys = []

    def collate(rows, found):
        keys.extend(found)
        return rows

    source = Source("", Fraction(1), tokens_of(30))  # three rows of nine, and a rest
    (held,) = hold_out([source], 2, 9, wanted=None, documents=False, collate=collate)  # type: ignore[arg-type]
    assert [rows.shape for rows in held.batches] == [(2, 10), (1, 10)]  # type: ignore[attr-defined]
    assert keys == [(EVALUATION, number) for number in range(3)] and held.n_bytes is None
    with pytest.raises(ZooError, match="the validation split fills no row, found 5 tokens, a row has 9 and one more"):
        hold_out([source._replace(tokens=tokens_of(5))], 2, 9, wanted=3, documents=False, collate=collate)  # type: ignore[arg-type]


def test_each_source_of_a_mix_gives_held_out_rows_by_its_length_and_one_at_least():
    sources = [Source(name, Fraction(1), tokens_of(9 * n + 1)) for name, n in (("a", 90), ("b", 30), ("c", 1))]
    sources = [each._replace(tokens=with_lengths(each.tokens)) for each in sources]
    held = hold_out(sources, 4, 9, wanted=12, documents=False)
    assert [sum(len(batch.input_ids) for batch in each.batches) for each in held] == [9, 3, 1]
    assert [each.n_bytes for each in held] == [81, 27, 10]  # of the last all that there is


def with_lengths(tokens: TokenFile) -> TokenFile:
    """The same tokens, of a byte each."""
    return replace(tokens, lengths=np.ones(len(tokens), "<u4"))
