# N labelled tokens, V vocabulary, R ranks
"""The loss of rows of tokens under a head whose vocabulary is divided over the ranks of tensor parallelism."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from zoo.lazy import Tensor
from zoo.model.loss import TokenLoss, split_for_softmax
from zoo.model.row_loss import RowLoss
from zoo.model.spread_loss import SpreadLoss

if TYPE_CHECKING:
    from zoo.distributed.seam import Seam


@dataclass(frozen=True)
class SpreadRowLoss(RowLoss, SpreadLoss):
    """RowLoss from a rank's logits [N, V/R]. All ranks compute the sums of all rows, and so the same loss."""

    def overwrite(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        assert self.slopes is not None
        sums, of = self.start(logits), self.runs[rows]
        for block in split_for_softmax(logits):
            values = self._mask(logits[block])
            log_z, logit = self.seam.measure(values, targets[block])
            p = (values - log_z).exp_()
            places = targets[block, None] - self.seam.rank * values.shape[1]
            mine = (places >= 0) & (places < values.shape[1])
            p.scatter_add_(1, places.masked_fill(~mine, 0), -mine.to(p.dtype))
            logits[block] = p * (-self.weight * self.slopes[of[block]][:, None])
            sums.index_add_(0, of[block], (logit - log_z)[:, 0].to(sums.dtype))
        return sums

    def measure(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        sums, of = self.start(logits), self.runs[rows]
        for block in split_for_softmax(logits):
            log_z, logit = self.seam.measure(self._mask(logits[block]), targets[block])
            sums.index_add_(0, of[block], (logit - log_z)[:, 0].to(sums.dtype))
        return sums


def spread_loss(loss: TokenLoss, seam: Seam, width: int) -> SpreadLoss:
    """Make the same loss for a head of which each rank of `seam` has a part. `width` is the number of tokens of the
    whole vocabulary."""
    own, made = (RowLoss, SpreadRowLoss) if isinstance(loss, RowLoss) else (TokenLoss, SpreadLoss)
    stated = {each.name: getattr(loss, each.name) for each in fields(own)}
    return made(**{**stated, "compiled": False}, seam=seam, width=width)
