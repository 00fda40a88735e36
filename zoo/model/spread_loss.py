# N labelled tokens, V vocabulary, R ranks
"""Losses of a head whose vocabulary is divided over the ranks of tensor parallelism."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from zoo.distributed.seam import WHOLE, Seam
from zoo.lazy import Tensor, torch
from zoo.model.loss import TokenLoss, accumulating
from zoo.model.row_loss import RowLoss


@dataclass(frozen=True)
class SpreadLoss(TokenLoss):
    """TokenLoss from a rank's logits [N, V/R], where V is the size of the whole vocabulary (Shoeybi et al., 2019, §3).

    Ranks exchange two numbers for each token. Logits beyond the vocabulary, which pad the last ranks' parts, are
    masked.
    """

    seam: Seam = field(default=WHOLE, kw_only=True)
    """Ranks that share the vocabulary."""
    width: int = field(default=0, kw_only=True)
    """Number of tokens V of the whole vocabulary."""

    def _normalise(self, block: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, width = block.to(accumulating(block)), block.shape[1]
        there = max(self.width - self.seam.rank * width, 0)  # of these columns; the rest pads the vocabulary
        if there < width:
            values = values.index_fill(1, torch.arange(there, width, device=block.device), -torch.inf)
        log_z, logit = self.seam.measure(values, targets)
        return values, log_z - logit, log_z

    def _exponentiate(self, values: Tensor, log_z: Tensor) -> Tensor:
        return values.sub_(log_z).exp_()  # in place of the logits, if these are float32

    def _subtract_targets(self, p: Tensor, targets: Tensor) -> None:
        places = targets - self.seam.rank * p.shape[1]
        own = (places >= 0) & (places < p.shape[1])  # masked, because listing them would wait for the device
        p.scatter_add_(1, places.clamp(0, p.shape[1] - 1)[:, None], -own[:, None].to(p.dtype))


@dataclass(frozen=True)
class SpreadRowLoss(RowLoss, SpreadLoss):
    """RowLoss from a rank's logits [N, V/R]. All ranks compute the sums of all rows, and so the same loss."""


def spread_loss(loss: TokenLoss, seam: Seam, width: int) -> SpreadLoss:
    """Make the same loss for a head of which each rank of `seam` has a part. `width` is the number of tokens of the
    whole vocabulary."""
    own, made = (RowLoss, SpreadRowLoss) if isinstance(loss, RowLoss) else (TokenLoss, SpreadLoss)
    stated = {each.name: getattr(loss, each.name) for each in fields(own)}
    return made(**{**stated, "compiled": False}, seam=seam, width=width)
