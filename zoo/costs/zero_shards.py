"""Count a rank's share of a tensor under ZeRO, and the bytes of a value by precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from zoo.costs.rank_model import ceil_share, dim0_share
from zoo.costs.rank_tensors import RankTensor
from zoo.costs.setup import DTYPES, Setup
from zoo.errors import ConfigError


def widths(setup: Setup) -> tuple[int, int, int, int]:
    """Give the bytes of a weight, of its gradient, of a value of the optimizer's states, and of its master copy.

    Gradients have at least 16 bits, even of 8-bit weights. Raises ConfigError for `bf16_pure` in 8 bits.
    """
    width = DTYPES[setup.dtype]
    if setup.precision in ("fp32", "bf16"):
        return 4, 4, 4, 0
    if setup.precision == "bf16_pure":
        if width < 2:
            raise ConfigError(
                f"precision: bf16_pure keeps states in {setup.dtype}, as no optimizer does (mixed would do)"
            )
        return width, width, width, 0
    return width, 4 if setup.precision == "bf16_master" else max(width, 2), 4, 4 if width < 4 else 0


def ways(setup: Setup, expert: bool) -> int:
    """Count the ranks that hold the same weights, among which ZeRO shards them."""
    return setup.count_holders(expert)[0]


def shard_shape(shape: tuple[int, ...], setup: Setup, expert: bool) -> tuple[int, ...]:
    """Give the shape of a tensor's shard on the first rank, the largest shard. Below ZeRO 3 (FSDP2) it is the whole
    tensor."""
    return dim0_share(shape, ways(setup, expert) if setup.zero == 3 else 1, expert=expert)


def count_sharded(pieces: Iterable[RankTensor], setup: Setup, since: int) -> int:
    """Count the elements that a rank has of one training state: all of them, or a shard if ZeRO's stage is `since` or
    higher (3 for weights, 2 for gradients, 1 for optimizer states)."""
    return sum_sharded(pieces, setup, since, lambda shape, hidden: math.prod(shape))


def sum_sharded(
    pieces: Iterable[RankTensor], setup: Setup, since: int, size: Callable[[tuple[int, ...], bool], int]
) -> int:
    """Sum `size(shape, hidden)` over the tensors of a rank, for a state that ZeRO shards from stage `since` on.

    Stages 1 and 2 cut the concatenation of all parameters into equal parts (DeepSpeed, Megatron-LM).
    """
    if setup.zero == 3 or setup.zero < since:
        return sum(size(shard_shape(each.shape, setup, each.expert), each.hidden) * each.copies for each in pieces)
    sums = {True: 0, False: 0}
    for piece in pieces:
        sums[piece.expert] += size(piece.shape, piece.hidden) * piece.copies
    return sum(ceil_share(whole, ways(setup, expert)) for expert, whole in sums.items())
