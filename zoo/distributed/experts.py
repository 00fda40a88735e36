# M rows, a token once for each of its experts; E experts, R ranks, D width
"""Expert parallelism: each rank holds some of the experts. An all-to-all sends each row (a token at one of its experts)
to the rank of its expert, and another all-to-all sends the expert's output back (Lepikhin et al., 2020, GShard)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from zoo.distributed.group import RankGroup


@dataclass(frozen=True)
class Visit:
    """Rows that this rank has received for its experts: `rows` [M', D] sorted by expert, `ends` [E/R] int32 where each
    expert's rows end, `experts` [M'] each row's expert. `order` is the permutation that sorted the received rows.
    `sent` and `received` are numbers of rows by rank. `count` is M, the number of this rank's own rows. Own rows after
    the last expert's end have no expert and are not sent."""

    group: RankGroup
    rows: Tensor
    ends: Tensor
    experts: Tensor
    order: Tensor
    sent: list[int]
    received: list[int]
    count: int

    def bring(self, rows: Tensor) -> Tensor:
        """Send another tensor of the same rows [M, …] to the same ranks, without a gradient; return [M', …]."""
        return self.group.send_rows(rows[: sum(self.sent)], self.sent, self.received)[self.order]

    def go_back(self, y: Tensor) -> Tensor:
        """Send the experts' outputs [M', D] back to where their rows came from: [M, D], zeros for rows not sent."""
        found = self.group.exchange(y[self.order.argsort()], self.received, self.sent)
        rest = self.count - found.shape[0]
        return F.pad(found, (0, 0, 0, rest)) if rest else found


def visit_experts(rows: Tensor, ends: Tensor, group: RankGroup) -> Visit:
    """Send rows [M, D], sorted by expert, to the ranks of their experts, and receive the rows for this rank's experts.
    Expert e's rows end at `ends[e]` ([E]).

    The host waits for the device once: an all-to-all takes numbers of rows from the host."""
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).view(group.size, -1)  # R E/R
    theirs = group.send_rows(counts, [1] * group.size, [1] * group.size)
    sent, received = torch.stack((counts, theirs)).sum(2).tolist()
    found = group.exchange(rows[: sum(sent)], sent, received)  # by rank, then by expert
    experts = torch.arange(theirs.shape[1], device=rows.device).repeat(group.size)
    experts = experts.repeat_interleave(theirs.flatten().long(), output_size=len(found))
    order = experts.argsort(stable=True)
    ends = theirs.sum(0).cumsum(0).to(ends.dtype)
    return Visit(group, found[order], ends, experts[order], order, sent, received, len(rows))
