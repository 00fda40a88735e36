# B rows, T queries, N slots of a pool, S keys of a row, H heads, K kv heads, C head width
"""Ragged rows: each row's keys lie somewhere else in a pool, and are as many as the row has tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zoo.kernels.merge import MergePlan, Run, plan_merge
from zoo.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.base import Kernel
    from zoo.kernels.bias import Bias
    from zoo.kernels.mask import Mask


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
        if not self.runs:
            return pool[None, :0]
        return torch.cat([pool[start:stop] for start, stop in self.runs])[None]


@dataclass
class PoolRows:
    """The rows of a ragged batch, over pools of keys and values [N, K, C]. Made once a pass for layers of a kind, which
    share the kernel that the first of them chose.

    `splits`: keys may be read in parts, those that rows share once for all of them. Faster by far with long prefixes,
    and equal to rounding; without it a row has the bits that it has alone."""

    rows: list[PoolRow]
    splits: bool = True
    packs: bool = False
    varlen: bool = False  # whether queries are [1, N, H, C], those of all rows end to end
    kernels: list[Kernel] = field(default_factory=list)
    plans: list[MergePlan | None] = field(default_factory=list)  # one, once it is made
    whole: list[bool] = field(default_factory=list)  # whether each row is one query that sees one run of keys

    def with_biases(self, make: Callable[..., Bias], read: Tensor | None = None) -> PoolRows:
        """The same rows in a layer that has a bias of its own: `make` gives it for the places of queries and keys, and
        for the queries' part of `read` [B, T, …] where there is that."""
        reads = [None] * len(self.rows) if read is None else self.split(read)
        rows = [replace(row, bias=make(*row.index, read=each)) for row, each in zip(self.rows, reads, strict=True)]
        return replace(self, rows=rows, whole=[])

    def plan(self, q: Tensor, k: Tensor, v: Tensor) -> MergePlan | None:
        """Plan, once for all layers, how to read the keys of the rows that sdpa serves in parts."""
        if not self.plans:
            taken = self.splits and q.device.type == "cpu" and k.shape[2] == v.shape[2]
            taken = taken and all(kernel.name == "sdpa" for kernel in self.kernels)
            taken = taken and not (q.requires_grad and torch.is_grad_enabled())
            self.plans.append(plan_merge(self.rows) if taken else None)
        return self.plans[0]

    def split(self, q: Tensor) -> list[Tensor]:
        """The queries of each row [1, count, H, C]."""
        if self.varlen:
            return list(q.split([row.count for row in self.rows], 1))
        return [q[place : place + 1, : row.count] for place, row in enumerate(self.rows)]

    def join(self, outputs: list[Tensor], tokens: int) -> Tensor:
        """Lay the rows' outputs [1, count, H, C] into one tensor like their queries, 0 behind a row's last one."""
        if self.varlen:
            return torch.cat(outputs, 1)
        if all(row.count == tokens for row in self.rows):
            return torch.cat(outputs)
        whole = outputs[0].new_zeros(len(outputs), tokens, *outputs[0].shape[2:])
        for row, (each, output) in enumerate(zip(self.rows, outputs, strict=True)):
            whole[row, : each.count] = output[0]
        return whole


def attend_rows(q: Tensor, k: Tensor, v: Tensor, rows: PoolRows, choose: Any, **scores: Any) -> Tensor:
    """Attend row by row: q [B, T, H, C] over pools k [N, K, C] and v [N, K, Cv] → [B, T, H, Cv].

    No key is read that a row does not have. `choose` gives the kernel for tensors like one row's, and its Scores;
    `scores` are the arguments of Scores that rows share.

    On a CPU with 32 rows of 100 to 400 tokens (H 12, K 4, C 64; the least of 40 times, 1 thread): row by row 3.1 ms in
    float32, as padded rows under a mask 8.0, gathered to padded rows 67; in bfloat16 1.5, 2.0 and 6.2.
    """
    from zoo.kernels.base import Scores

    queries = rows.split(q)
    sinks = scores.pop("sinks", None)
    own = rows.split(sinks) if sinks is not None and sinks.ndim > 1 else [sinks] * len(rows.rows)
    hows = [Scores(row.mask, bias=row.bias, sinks=sink, **scores) for row, sink in zip(rows.rows, own, strict=True)]
    if not rows.kernels:
        rows.kernels += [choose(each, k[None], v[None], how) for each, how in zip(queries, hows, strict=True)]
    plan = rows.plan(q, k, v)
    done = {} if plan is None else plan.attend(queries, k, v, scores["scale"])
    if k.dtype == q.dtype and not rows.packs:
        _attend_whole(queries, k, v, rows, done, scores["scale"])
    for place, row in enumerate(rows.rows):
        if place not in done:
            keys, values = row.read(k).to(q.dtype), row.read(v).to(q.dtype)
            if rows.packs:
                keys, values = keys.contiguous(), values.contiguous()
            done[place] = rows.kernels[place](queries[place], keys, values, hows[place])
    return rows.join([done[place] for place in range(len(rows.rows))], q.shape[1])


def _attend_whole(q: list[Tensor], k: Tensor, v: Tensor, rows: PoolRows, done: dict[int, Tensor], scale: float) -> None:
    """Add to `done` the rows of one query that sees one run of keys, as sdpa computes it: most rows of a step, whose
    calls take as long as their sums. 32 rows of 60 to 300 keys take 2.9 ms so, and 4.2 one by one (float32, H 12, K 4,
    C 64, 1 thread)."""
    if not rows.whole:
        rows.whole += [
            row.count == 1 and len(row.runs) == 1 and row.bias is None and row.mask.sees_all and kernel.name == "sdpa"
            for row, kernel in zip(rows.rows, rows.kernels, strict=True)
        ]
    k, v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]  # 1 K N C
    n_kv_heads, width, attend = k.shape[1], v.shape[3], F.scaled_dot_product_attention
    for place, whole in enumerate(rows.whole):
        if whole and place not in done:
            ((start, stop),) = rows.rows[place].runs
            query = q[place].view(1, n_kv_heads, -1, k.shape[3])  # 1 K G C
            y = attend(query, k[:, :, start:stop], v[:, :, start:stop], scale=scale)
            done[place] = y.view(1, 1, -1, width)
