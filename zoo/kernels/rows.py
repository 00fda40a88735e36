# B rows, T queries, N slots of a pool, S keys of a row, H heads, K kv heads, C head width
"""Ragged rows: each row's keys lie somewhere else in a pool, and are as many as the row has tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.base import Kernel
    from zoo.kernels.bias import Bias
    from zoo.kernels.mask import Mask

Run = tuple[int, int]
"""The first of some consecutive slots of a pool, and one past the last."""


@dataclass
class PoolRow:
    """One row of a ragged batch: its first `count` queries attend, under `mask`, to the keys in these runs of slots, in
    order. `bias` is what is added to its scores; `index` are the places of queries and keys that it is made of."""

    count: int
    runs: list[Run]
    mask: Mask
    bias: Bias | None = None
    index: Any = None

    def read(self, pool: Tensor) -> Tensor:
        """The row's part of a pool [N, …]: [1, S, …], without a copy if it is one run."""
        if len(self.runs) == 1:
            start, stop = self.runs[0]
            return pool[start:stop][None]
        return torch.cat([pool[start:stop] for start, stop in self.runs])[None]


@dataclass
class PoolRows:
    """The rows of a ragged batch, over pools of keys and values [N, K, C]. Made once a pass for layers of a kind, which
    share the kernel that the first of them chose."""

    rows: list[PoolRow]
    kernels: list[Kernel] = field(default_factory=list)

    def with_biases(self, make: Callable[..., Bias]) -> PoolRows:
        """The same rows in a layer that has a bias of its own: `make` gives it for the places of queries and keys."""
        rows = [replace(row, bias=make(*row.index)) for row in self.rows]
        return PoolRows(rows, self.kernels)

    def join(self, outputs: list[Tensor], tokens: int) -> Tensor:
        """Lay the rows' outputs [1, count, H, C] into one tensor [B, T, H, C], 0 behind a row's last query."""
        if all(row.count == tokens for row in self.rows):
            return torch.cat(outputs)
        whole = outputs[0].new_zeros(len(outputs), tokens, *outputs[0].shape[2:])
        for row, (each, output) in enumerate(zip(self.rows, outputs, strict=True)):
            whole[row, : each.count] = output[0]
        return whole


def attend_rows(q: Tensor, k: Tensor, v: Tensor, rows: PoolRows, choose: Any, **scores: Any) -> Tensor:
    """Attend row by row: q [B, T, H, C] over pools k [N, K, C] and v [N, K, Cv] → [B, T, H, Cv].

    No key is copied and none is computed that a row does not have; a row gets the bits that it gets alone. `choose`
    gives the kernel for one row's tensors and Scores; `scores` are the arguments of Scores that rows share.
    """
    from zoo.kernels.base import Scores

    outputs = []
    fresh = not rows.kernels
    for place, row in enumerate(rows.rows):
        mine, keys, values = q[place : place + 1, : row.count], row.read(k), row.read(v)
        if keys.dtype != q.dtype:
            keys, values = keys.to(q.dtype), values.to(q.dtype)
        how = Scores(row.mask, bias=row.bias, **scores)
        if fresh:
            rows.kernels.append(choose(mine, keys, values, how))
        outputs.append(rows.kernels[place](mine, keys, values, how))
    return rows.join(outputs, q.shape[1])
