# B rows, T tokens of a rank, C ranks
"""Stand in for the ranks of context parallelism in a traced pass.

All ranks take equally much memory, so one trace with C·B rows stands for all C ranks. Each row has the tokens of one
rank, and its queries see the keys that the first rank's queries see.
"""

from __future__ import annotations

from zoo.costs.shadow.reductions import cat
from zoo.costs.shadow.replay import replace_torch
from zoo.costs.shadow.tensor import Core
from zoo.distributed.context_parallel import SpreadContext
from zoo.distributed.seam import WHOLE_ROWS, ContextSeam


class ShadowRanks:
    """Stand in for `zoo.distributed.group.RankGroup`, seen from the first of `size` ranks."""

    rank = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def gather_tokens(self, x: Core) -> Core:
        """Make the tokens [B, C·T, …] of all ranks."""
        return cat([x] * self.size, 1)


def make_context(cp: int) -> ContextSeam:
    """Make the seam of a pass whose tokens `cp` ranks divide; for one rank, the seam of whole rows."""
    if cp == 1:
        return WHOLE_ROWS
    made = object.__new__(replace_torch(SpreadContext))
    made.group, made.rank, made.size, made.rings = ShadowRanks(cp), 0, cp, False
    return made
