# N labelled tokens, V vocabulary, R ranks
"""The loss of a head whose vocabulary is divided over the ranks of tensor parallelism."""

from __future__ import annotations

from dataclasses import dataclass, field

from zoo.distributed.seam import WHOLE, Seam
from zoo.lazy import Tensor, torch
from zoo.model.loss import TokenLoss, accumulating, split_for_softmax


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

    def overwrite(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        sums = torch.zeros(2, device=logits.device, dtype=accumulating(logits))
        for block in split_for_softmax(logits):
            values = self._mask(logits[block])
            log_z, logit = self.seam.measure(values, targets[block])
            p = (
                values.sub_(log_z).exp_().mul_(1 + 2 * self.z_loss * log_z)
            )  # in place of the logits, if these are float32
            places = targets[block] - self.seam.rank * values.shape[1]
            own = (places >= 0) & (places < values.shape[1])  # masked, because listing them would wait for the device
            p.scatter_add_(1, places.clamp(0, values.shape[1] - 1)[:, None], -own[:, None].to(p.dtype))
            torch.mul(p, self.weight, out=logits[block])
            del values, p  # or they would exist beside the next block's
            sums += torch.stack([(log_z - logit).sum(), self.z_loss * log_z.square().sum()])
        return sums

    def measure(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        sums = torch.zeros(2, device=logits.device, dtype=accumulating(logits))
        for block in split_for_softmax(logits):
            log_z, logit = self.seam.measure(self._mask(logits[block]), targets[block])
            sums += torch.stack([(log_z - logit).sum(), self.z_loss * log_z.square().sum()])
        return sums

    def _mask(self, block: Tensor) -> Tensor:
        """Return the logits in float32, with −∞ in columns beyond the vocabulary."""
        values = block.to(accumulating(block))
        there = max(self.width - self.seam.rank * block.shape[1], 0)
        return values if there >= block.shape[1] else values.index_fill(1, _columns(there, block), -torch.inf)


def _columns(first: int, block: Tensor) -> Tensor:
    return torch.arange(first, block.shape[1], device=block.device)
