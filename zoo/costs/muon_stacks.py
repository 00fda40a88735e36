"""Count the matrices that Muon orthogonalises at once, and their memory. The optimizer and its price use the counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from zoo.costs.rank_tensors import RankTensor
from zoo.costs.setup import Setup

STACK = 1 << 24
"""Most elements that a process orthogonalises at once, unless one tensor has more. A larger stack takes more memory and
saves no time."""

HELD = 8 * STACK
"""Most elements of a stack that a process holds, unless one tensor has more. Replicas hold all matrices of a stack."""


def count_stacked(short: int, long: int, ranks: int = 1, shards: int = 1) -> int:
    """Count the matrices [short, long] that `ranks` processes orthogonalise together. Each process holds 1/`shards` of
    every matrix."""
    size = short * long
    return max(1, min(max(STACK // size, 1) * ranks, HELD * shards // size))


def list_stack_bytes(pieces: Iterable[RankTensor], setup: Setup, width: int) -> Iterator[int]:
    """List the bytes of a process at three moments of orthogonalising a stack of matrices in bf16, for each shape of
    matrix. The largest of them is the peak. `width` is the bytes of a value of the states.

    The moments are the largest tensor's update, together with the parts of the stack; an iteration, with the process'
    own matrices before and after it and two square matrices of the short side for each; and the exchange of the
    results.
    """
    alike: dict[tuple[int, int, bool], dict[int, int]] = {}
    for piece in pieces:
        if piece.hidden:
            sizes = alike.setdefault((min(piece.shape[-2:]), max(piece.shape[-2:]), piece.expert), {})
            sizes[math.prod(piece.shape)] = sizes.get(math.prod(piece.shape), 0) + piece.copies
    for (short, long, expert), sizes in alike.items():
        among, replicas = setup.count_holders(expert)
        ranks, shards = among * replicas, among if setup.zero == 3 else 1
        largest = max(sizes)
        whole = sum(size * copies for size, copies in sizes.items())
        fits = count_stacked(short, long, ranks, shards) * short * long
        stack = max(largest, min(whole, fits // largest * largest))
        own = -(-stack // (short * long) // ranks) * short * long
        squares = own // long * short
        parts = -(-stack // shards) if ranks > 1 else 0
        yield width * largest // shards + 2 * (parts or stack)
        yield 2 * (2 * own + 2 * squares + (parts if shards < ranks else 0))
        yield 2 * (own + 2 * parts)
