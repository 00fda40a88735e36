# B rows, T tokens of a row, C ranks, L tokens of a run
"""Context parallelism: each rank computes with its own tokens of a row, and attention reads the keys of all ranks.

A row is cut into 2C runs of equal length, and rank r has runs r and 2C − 1 − r. All ranks then have equal work: under a
causal mask an early run sees few keys and a late one many (Dubey et al., 2024, Llama 3, §3.3.2). Keys and values are
all-gathered before each layer's attention, and their gradients reduce-scattered in the backward pass. With a ring,
`zoo.kernels.ring` instead sends keys and values from rank to rank.
"""

from __future__ import annotations

from typing import Any

from zoo.distributed.group import RankGroup
from zoo.distributed.seam import ContextSeam
from zoo.lazy import Tensor, torch


class SpreadContext(ContextSeam):
    """The seam of context parallelism among the ranks of a group. A pass without gradients is not divided: each rank
    computes whole rows."""

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

    def own_share(self, loss: Tensor) -> Tensor:
        return loss / self.size if self.active else loss

    def gather(self, new: Tensor) -> Tensor:
        by_rank = self.group.gather_tokens(new).unflatten(1, (self.size, 2, -1))  # B C 2 L …
        return torch.cat((by_rank[:, :, 0], by_rank[:, :, 1].flip(1)), 1).flatten(1, 2)
