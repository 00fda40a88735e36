# T queries of a row, Q of all rows, N slots of a pool, P parts of a row, H heads, K kv heads, G = H/K, C head width
"""Split-KV attention: attend to parts of a row's keys and join the parts by log-sum-exp. Keys of several rows are read
once.

softmax(s)·V over keys in parts p is Σ wₚ·yₚ, where yₚ is attention over part p alone and w the softmax of the parts'
logsumexps (Dao et al., 2023, Flash-Decoding). Shared parts take all rows' queries at once (Juravsky et al., 2024).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zoo.kernels.mask import Mask
from zoo.kernels.view.base import Run, count_slots
from zoo.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.view.base import KeySegment

SHORT = 128
"""Minimum number of slots of a run that is read in place, and of a part of a cut run. Shorter successive runs are
copied together, because separate calls would take longer: for 16 rows of two runs of 64, 128 and 256 slots copying
takes 0.9, 1.6 and 3.1 ms, merging 1.1, 1.4 and 2.2 (float32, H 12, K 4, C 64, 1 thread)."""

LONG = 1024
"""Minimum number of unmasked keys with which merging parts makes a row of several queries faster. Such a row computes
more for each key than a row of one query, so avoiding a copy gains less."""


@dataclass
class KeyPart:
    """Consecutive keys that `rows` read, in runs of slots. Without a `mask` all these keys are visible. A part with a
    `mask` has the last keys of one row."""

    runs: list[Run]
    rows: list[int]
    mask: Mask | None = None

    @property
    def size(self) -> int:
        """Number of keys."""
        return count_slots(self.runs)

    def read(self, pool: Tensor) -> Tensor:
        """Read the part from a pool [1, K, N, C] → [1, K, S, C], without a copy if it is one run."""
        held = [pool.narrow(2, start, stop - start) for start, stop in self.runs]
        return held[0] if len(held) == 1 else torch.cat(held, 2)

    def additive(self, q: Tensor, group: int) -> Tensor | None:
        """Return the additive mask [1, 1, T·G, S] for queries [1, K, T·G, C]; None without a mask."""
        if self.mask is None:
            return None
        return self.mask.additive(q.device, q.dtype).repeat_interleave(group, 2)


@dataclass
class SplitPlan:
    """The rows that `attend` serves, with their numbers of queries (`counts`), and the parts of their keys."""

    counts: dict[int, int]
    parts: list[KeyPart]
    _places: Tensor | None = None

    def attend(self, q: Sequence[Tensor], k: Tensor, v: Tensor, scale: float) -> dict[int, Tensor]:
        """Attend: each row's queries [1, count, H, C] over pools k and v [N, K, C] → its output, of equal shape."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        k, v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]  # 1 K N C
        queries, group = {row: _by_kv_head(q[row], k.shape[1]) for row in self.counts}, q[0].shape[2] // k.shape[1]
        outputs, sums = [], []
        for part in self.parts:
            mine = [queries[row] for row in part.rows]
            together = mine[0] if len(mine) == 1 else torch.cat(mine, 2)
            keys, values = part.read(k), part.read(v)
            if keys.dtype != together.dtype:
                keys, values = keys.to(together.dtype), values.to(together.dtype)
            added = part.additive(together, group)
            y, lse = operator(together, keys, values, 0.0, False, attn_mask=added, scale=scale)
            outputs.append(y)
            sums.append(lse)
        y = _merge(torch.cat(outputs, 2)[0], torch.cat(sums, 2)[0], self._place(group, k.device))[None]
        sizes = [count * group for count in self.counts.values()]
        return {row: _by_query(each, group) for row, each in zip(self.counts, y.split(sizes, 2), strict=True)}

    def _place(self, group: int, device: torch.device) -> Tensor:
        """Return the index of each row's queries in the parts' concatenated outputs [Q, P]. A row of fewer parts is
        filled up with the index after the last output."""
        if self._places is None:
            firsts: dict[int, list[int]] = {row: [] for row in self.counts}
            total = 0
            for part in self.parts:
                for row in part.rows:
                    firsts[row].append(total)
                    total += self.counts[row] * group
            most = max(map(len, firsts.values()))
            places = [
                [first + query for first in firsts[row]] + [total] * (most - len(firsts[row]))
                for row, count in self.counts.items()
                for query in range(count * group)
            ]
            self._places = torch.tensor(places, device=device)
        return self._places


def _merge(y: Tensor, lse: Tensor, places: Tensor) -> Tensor:
    """Merge outputs [K, n, C] by logsumexps [K, n]: for each query those at `places` [Q, P], n for none → [K, Q, C]."""
    weights = F.pad(lse, (0, 1), value=-torch.inf)[:, places].softmax(-1)  # K Q P
    parts = F.pad(y, (0, 0, 0, 1))[:, places]  # K Q P C
    return (parts * weights[..., None]).sum(2).to(y.dtype)


def _by_kv_head(q: Tensor, n_kv_heads: int) -> Tensor:
    """Reshape a row's queries [1, T, H, C] to queries of their kv heads [1, K, T·G, C]."""
    return q.unflatten(2, (n_kv_heads, -1)).transpose(1, 2).flatten(2, 3)


def _by_query(y: Tensor, group: int) -> Tensor:
    """Undo `_by_kv_head`: [1, K, T·G, C] → [1, T, H, C]."""
    if y.shape[2] == group:
        return y.reshape(1, 1, -1, y.shape[3])
    return y.unflatten(2, (-1, group)).transpose(1, 2).flatten(2, 3)


def plan_split(rows: Sequence[KeySegment]) -> SplitPlan | None:
    """Plan split-KV attention for the rows that it makes faster (None if there are none): rows of several long runs,
    and rows that share the start of a run. The kernel of all rows must be sdpa."""
    starts = Counter(start for row in rows for start, _ in row.runs)
    several = (
        number for number, row in enumerate(rows) if len(row.runs) > 1 or any(starts[a] > 1 for a, _ in row.runs)
    )
    able = {number: rows[number] for number in several if _eligible(rows[number])}
    cuts = _cuts(able.values())
    pieces = {number: _cut(row.runs, cuts, _unmasked(row)) for number, row in able.items()}
    readers: dict[Run, list[int]] = {}
    for number, runs in pieces.items():
        for run in runs:
            readers.setdefault(run, []).append(number)
    counts: dict[int, int] = {}
    parts: dict[Any, KeyPart] = {}
    for number, row in able.items():
        own = _join(row, pieces[number], readers)
        if _gains(row, own):
            counts[number] = row.count
            for part in own:
                parts.setdefault((*part.runs, part.mask), replace(part, rows=[])).rows.append(number)
    return SplitPlan(counts, list(parts.values())) if counts else None


def _gains(row: KeySegment, parts: list[KeyPart]) -> bool:
    """Whether a row is faster in these parts than with its keys in one piece."""
    if row.count > 1:
        return len(parts) > 1 and row.mask.n_keys - parts[-1].size >= LONG
    return len(parts) > 1 or len(parts[0].rows) > 1


def _eligible(row: KeySegment) -> bool:
    """Whether a row has no bias, and hides no keys or only later ones."""
    found = row.mask.features
    hidden = any(found[name] for name in ("window", "padding", "documents", "pairs", "lengths", "chosen"))
    return row.bias is None and not hidden


def _unmasked(row: KeySegment) -> int:
    """Count a row's leading keys that need no mask. The keys of its own queries are left to the last part, so that each
    query sees a key there too: the kernel has no logsumexp for a query without keys."""
    held = row.mask.n_keys
    return held if row.count == 1 or not row.mask.causal else held - row.count


def _cuts(rows: Iterable[KeySegment]) -> dict[int, list[int]]:
    """Return the slots at which to cut the runs that start at each slot. Rows with a common prefix then have a common
    part: runs of 200, 1000 and 1016 slots from one start are cut after 200 and 1000."""
    reaches: dict[int, list[int]] = {}
    for row in rows:
        left = _unmasked(row)
        for start, stop in row.runs:
            reaches.setdefault(start, []).append(min(stop, start + left))
            left -= stop - start
    cuts: dict[int, list[int]] = {}
    for start, stops in reaches.items():
        last = start
        for stop in sorted(stops)[:-1]:
            if stop - last >= SHORT:
                cuts.setdefault(start, []).append(stop)
                last = stop
    return cuts


def _cut(runs: Sequence[Run], cuts: dict[int, list[int]], left: int) -> list[Run]:
    """Cut a row's runs at `cuts`, but only within the row's first `left` keys."""
    pieces = []
    for start, stop in runs:
        first = start
        for cut in cuts.get(start, ()):
            if cut <= min(stop, start + left):
                pieces.append((first, cut))
                first = cut
        if first < stop:
            pieces.append((first, stop))
        left -= stop - start
    return pieces


def _join(row: KeySegment, pieces: list[Run], readers: dict[Run, list[int]]) -> list[KeyPart]:
    """Make the parts of a row. Runs that need a mask become one part, and so do successive short runs with the same
    readers."""
    left = _unmasked(row)
    parts: list[KeyPart] = []
    tail: list[Run] = []
    short = False
    for run in pieces:
        size = run[1] - run[0]
        left -= size
        before, short = short, size < SHORT
        if left < 0:
            tail.append(run)
        elif before and short and parts[-1].rows == readers[run]:
            parts[-1].runs.append(run)
        else:
            parts.append(KeyPart([run], readers[run]))
    if tail:
        parts.append(KeyPart(tail, [], Mask(row.count, count_slots(tail))))
    return parts
