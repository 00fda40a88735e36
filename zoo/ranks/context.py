# B rows, T tokens of a row, C ranks, L tokens of a run
"""Context parallelism: each rank computes with its own tokens of a row, and attention reads the keys of all.

Rank r has runs r and 2C − 1 − r of the 2C that a row is cut into: under a causal mask an early run sees few keys and a
late one many, so that every rank has as much to do (Dubey et al., 2024, Llama 3, §3.3.2). Keys and values are gathered
before each layer's attention, and their gradients are summed up on the way back; or, in a ring, they stay where they
are and `zoo.kernels.ring` sends them round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.lazy import torch
from zoo.ranks.group import RankGroup
from zoo.ranks.seam import ContextSeam

if TYPE_CHECKING:
    from torch import Tensor


class SpreadContext(ContextSeam):
    """The seam between the ranks of a process group that have rows in common."""

    def __init__(self, group: Any, rings: bool = False) -> None:
        self.group, self.rings = RankGroup(group), rings
        self.rank, self.size = self.group.rank, self.group.size

    @property
    def active(self) -> bool:
        return torch.is_grad_enabled()

    def spans(self, tokens: int, rank: int | None = None) -> list[tuple[int, int]]:
        rank, run = self.rank if rank is None else rank, tokens // (2 * self.size)
        return [(place * run, (place + 1) * run) for place in (rank, 2 * self.size - 1 - rank)]

    def own(self, each: Any) -> Any:
        if each is None or not self.active:
            return each
        return torch.cat([each[:, start:stop] for start, stop in self.spans(each.shape[1])], 1)

    def share(self, loss: Tensor) -> Tensor:
        return loss / self.size if self.active else loss

    def gather(self, new: Tensor) -> Tensor:
        by_rank = self.group.gather_tokens(new).unflatten(1, (self.size, 2, -1))  # B C 2 L …
        return torch.cat((by_rank[:, :, 0], by_rank[:, :, 1].flip(1)), 1).flatten(1, 2)
