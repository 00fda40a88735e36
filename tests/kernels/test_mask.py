"""The mask drawn, against the rule it states asked of every pair of columns."""

import itertools

import pytest
import torch

from zoo.kernels.mask import Mask
from zoo.kernels.score_bias import Given

CPU = torch.device("cpu")


def visible(query: int, key: int, *, causal: bool, window: int | None) -> bool:
    """The rule for two columns, in words of its own."""
    if causal and key > query:
        return False
    if window is None:
        return True
    return query - key < window if causal else -window <= query - key <= window


def drawn(mask: Mask) -> list:
    return mask.dense(CPU).tolist()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 6, 7, 9])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (1, 6), (3, 7), (1, 1), (7, 7)])
def test_mask_shows_what_the_rule_says_of_every_pair(queries, keys, window, causal):
    mask = Mask(queries, keys, causal=causal, window=window)
    columns = range(keys - queries, keys)
    expected = [[visible(i, j, causal=causal, window=window) for j in range(keys)] for i in columns]
    assert drawn(mask) == [[expected]]
    everything = all(map(all, expected))
    assert mask.sees_all == everything
    triangle = [[j <= i for j in range(keys)] for i in range(keys)]
    assert mask.plain_causal == (causal and expected == triangle)


def test_window_of_w_shows_w_keys_the_query_included():
    seen = Mask(8, 8, window=3).dense(CPU)[0, 0]
    assert seen.sum(-1).tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
    assert seen.diagonal().all()


def test_queries_of_a_rectangle_are_its_last_columns():
    assert drawn(Mask(2, 5)) == [[[[True] * 4 + [False], [True] * 5]]]


def test_queries_before_all_keys_see_nothing():
    seen = Mask(5, 3).dense(CPU)[0, 0]
    assert seen.sum(-1).tolist() == [0, 0, 1, 2, 3]


def test_padding_hides_keys_of_its_own_row_only():
    padding = torch.tensor([[False, False, True, True], [True, True, True, True]])
    seen = Mask(4, 4, padding=padding).dense(CPU)
    triangle = torch.ones(4, 4, dtype=torch.bool).tril()
    assert seen.shape == (2, 1, 4, 4)
    assert torch.equal(seen[1, 0], triangle)
    assert torch.equal(seen[0, 0], triangle & padding[0])


def test_documents_keep_to_themselves():
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 2, 2, 2]])
    seen = Mask(5, 5, documents=(documents, documents), window=2).dense(CPU)
    for row, i, j in itertools.product(range(2), range(5), range(5)):
        same = bool(documents[row, i] == documents[row, j])
        assert bool(seen[row, 0, i, j]) == (same and visible(i, j, causal=True, window=2))


@pytest.mark.parametrize(
    "tensors",
    [
        {"padding": torch.ones(1, 1, dtype=torch.bool)},
        {"documents": (torch.zeros(1, 1), torch.zeros(1, 1))},
        {"prefix": torch.ones(1, dtype=torch.long)},
        {"also": torch.ones(1, 1, 1, dtype=torch.bool)},
        {"lengths": torch.ones(1, dtype=torch.long)},
    ],
    ids=lambda tensors: next(iter(tensors)),
)
def test_a_mask_that_holds_a_tensor_is_never_called_simple(tensors):
    mask = Mask(1, 1, **tensors)
    assert not mask.sees_all
    assert not mask.plain_causal
    assert mask.dense(CPU).all()


def test_mask_is_drawn_once_and_its_scores_once_for_a_bias():
    mask = Mask(3, 3, window=2)
    bias = torch.randn(2, 3, 3)
    scores = mask.additive(CPU, torch.float32, Given(bias))
    assert mask.dense(CPU) is mask.dense(CPU)
    assert mask.additive(CPU, torch.float32, Given(bias)) is scores
    other = mask.additive(CPU, torch.float32, Given(bias + 1))
    seen = mask.dense(CPU)
    assert torch.equal(scores, (bias[None]).masked_fill(~seen, -torch.inf))
    assert torch.equal(other, (bias[None] + 1).masked_fill(~seen, -torch.inf))
    assert mask.additive(CPU, torch.bfloat16).dtype == torch.bfloat16
