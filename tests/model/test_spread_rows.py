"""Losses of rows under a divided vocabulary: each rank's gradient is its columns of the gradient of the whole."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.distributed.seam import Seam
from zoo.model.loss import IGNORED, TokenLoss, find_labelled
from zoo.model.row_loss import RowLoss
from zoo.model.spread_loss import spread_loss

VOCABULARY, RANKS, COLUMNS = 11, 3, 4
"""Of the last rank's columns one is padding."""


@dataclass
class KnownSeam(Seam):
    """A rank whose exchange is answered from the whole logits."""

    whole: torch.Tensor
    rank: int

    size = RANKS

    def measure(self, logits, targets):
        assert logits.shape == (len(targets), COLUMNS)
        return self.whole.logsumexp(1, keepdim=True), self.whole.gather(1, targets[:, None])


def combine(sums):
    """A loss that mixes rows, as one of preferences does."""
    return {"loss": -torch.nn.functional.logsigmoid(sums[0] - sums[1]) + sums[1] ** 2, "other": sums.sum()}


def run(loss, logits, targets, hidden):
    """The gradient that a loss leaves, and its terms."""
    loss = loss.look_ahead(lambda: loss.measure(logits, targets, slice(None)))
    chunk = logits.clone()
    return chunk, loss.finish(loss.start(hidden) + loss.overwrite(chunk, targets, slice(None)))


@pytest.mark.parametrize("kind", ["rows", "tokens"])
def test_a_ranks_gradient_is_its_columns_of_the_whole(kind):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, VOCABULARY, generator=generator, dtype=torch.float64)
    targets, hidden = torch.randint(VOCABULARY, (7,), generator=generator), logits[:, :2]
    plain = TokenLoss(0.3, 1e-3)
    if kind == "rows":
        plain = RowLoss(
            0.3, terms=("loss", "other"), runs=torch.tensor([0, 0, 0, 1, 1, 1, 1]), n_runs=2, combine=combine
        )
    gradient, (total, terms) = run(plain, logits, targets, hidden)
    padded = torch.nn.functional.pad(logits, (0, RANKS * COLUMNS - VOCABULARY), value=5.0)
    for rank in range(RANKS):
        loss = spread_loss(plain, KnownSeam(logits, rank), VOCABULARY)
        own = padded[:, rank * COLUMNS : (rank + 1) * COLUMNS]
        part, (found, names) = run(loss, own, targets, hidden)
        columns = min(VOCABULARY - rank * COLUMNS, COLUMNS)
        assert_close(part[:, :columns], gradient[:, rank * COLUMNS : rank * COLUMNS + columns])
        assert not part[:, columns:].any()
        assert_close((found, names), (total, terms))


class NeverWaiting(TorchDispatchMode):
    """Refuse the operations whose result has a size or a value that a GPU's host must wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("nonzero", "masked_select", "_local_scalar_dense", "unique"), func
        return func(*args, **(kwargs or {}))


def test_a_divided_loss_of_known_targets_waits_for_no_device():
    logits, targets = torch.randn(7, VOCABULARY), torch.randint(VOCABULARY, (7,))
    targets[2] = IGNORED
    with NeverWaiting():
        rows = find_labelled(targets, 6)
        labelled = logits[rows]
        loss = spread_loss(TokenLoss(0.3, 1e-3), KnownSeam(labelled, 0), VOCABULARY)
        run(loss, labelled[:, :COLUMNS], targets[rows], labelled)
        with pytest.raises(AssertionError, match="nonzero"):
            find_labelled(targets)
