# B rows, T new columns, S columns so far, K columns that get logits, D model width, V vocabulary
"""Keep keys, values and recurrent states between the steps of transformers' `generate`, in Zoo's Store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers

from zoo.cache.cache import Cache
from zoo.cache.cached_row import CachedRow, list_slots
from zoo.cache.pool_store import list_groups
from zoo.hf.offloaded import find_device
from zoo.lazy import Tensor

if TYPE_CHECKING:
    from zoo.model.tower import Tower

    Passed = dict[str, Tensor]

FIRST = 64
"""Initial capacity, in columns, of a cache that `generate` did not size."""


class ZooCache(transformers.Cache):
    """The cache of a batch whose rows may have padding anywhere: a row's slots hold its real tokens alone.

    It is allocated in the first pass, for `capacity` columns, and grows when they are used up. Rows with equal numbers
    of real tokens share a pass over the prompt. Afterwards all rows share each pass over one token.
    """

    is_compileable = False  # type: ignore[assignment]

    def __init__(self, model: Any, capacity: int | None = None) -> None:
        super().__init__(layers=[])
        self.model, self.capacity = model, capacity or FIRST
        self.writer = model.config.writer
        self.seen = 0  # columns so far, padding included
        self.cache: Cache | None = None

    @property
    def is_linear(self) -> list[bool]:
        """Always [False], so that transformers passes only the columns that the cache does not have."""
        return [False]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.seen + query_length, 0

    @property
    def is_croppable(self) -> bool:
        """Whether the last tokens can be removed (`can_crop`)."""
        return can_crop(self.writer)

    @property
    def batch_size(self) -> int:
        return -1 if self.cache is None else len(self.cache.rows)

    @property
    def is_initialized(self) -> bool:
        return self.cache is not None

    def reset(self) -> None:
        self.cache, self.seen = None, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last columns: −n removes n of them, n keeps the first n (transformers before 5.20). Raises
        ValueError if the cache cannot drop tokens (`is_croppable`)."""
        gone = -tokens_to_remove if tokens_to_remove <= 0 else max(0, self.seen - tokens_to_remove)
        if gone and not self.is_croppable:
            raise ValueError("cache: a window or a recurrent state cannot take tokens back (no assistant, no lookup)")
        self.seen -= gone
        for row in self.cache.rows if self.cache else ():
            row.length -= gone

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._pick(beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        self._pick(torch.arange(self.batch_size)[indices.cpu()].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._pick([row for row in range(self.batch_size) for _ in range(repeats)])

    def _pick(self, picks: Iterable[int]) -> None:
        """Replace row b by a copy of row `picks[b]`, in a new store of `capacity` columns."""
        if self.cache is None:
            return
        rows = [self.cache.rows[pick] for pick in picks]
        source = max(row.source for row in rows)
        self.cache = self._allocate(len(rows), source)
        copy_rows(rows, self.cache.rows)

    def _allocate(self, batch: int, source: int) -> Cache:
        """Allocate a cache. It is not paged with a `source` (tokens of an encoder): pages do not mask its padding."""
        paged = False if source else None
        where = find_device(self.model)
        return Cache.allocate(self.model, batch, self.capacity, source=source, device=where, paged=paged)

    def run(
        self, forward: Callable[..., Passed], ids: Tensor, mask: Tensor | None, keep: int | None, **memory: Any
    ) -> Passed:
        """Run `forward` on new token ids [B, T], without their padding. Returns its tensors by name, [B, T, …] and
        `logits` [B, K, V], with zeros at padding.

        `mask` [B, S + T] is 0 for padding; only the part of the new columns is read, because earlier padding is not in
        the cache. `keep` is the number K of last columns that get logits: None for all, 0 for none. `memory` has an
        encoder's output [B, M, D] and its mask. Raises ValueError for a mask of another length.
        """
        batch, new = ids.shape
        if mask is not None and mask.shape[1] != self.seen + new:
            raise ValueError(f"attention_mask: has {mask.shape[1]} columns, the rows have {self.seen + new}")
        self._make_room(batch, new, memory.get("memory"))
        real = None if mask is None or bool(mask[:, self.seen :].all()) else mask[:, self.seen :].bool()
        parts = []
        for count, rows in self._group(real, batch, new, apart=bool(memory)):
            own = {name: None if each is None else each[rows] for name, each in memory.items()}
            how = {"cache": self._take(rows), "logits_to_keep": None if keep is None else min(keep, count)}
            parts.append(
                (rows, forward(ids[rows] if real is None else ids[rows][real[rows]].view(-1, count), **how, **own))
            )
        self.seen += new
        if real is None and len(parts) == 1:
            return parts[0][1]
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real
        widths = {"logits": new if keep is None else min(keep, new)}
        return {
            name: spread_columns([(rows, given[name]) for rows, given in parts], real, widths.get(name, new))
            for name in parts[0][1]
        }

    def _make_room(self, batch: int, new: int, memory: Tensor | None) -> None:
        if self.cache is None:
            self.capacity = max(self.capacity, new)
            self.cache = self._allocate(batch, 0 if memory is None else memory.shape[1])
        elif self.seen + new > self.capacity:
            self.capacity = max(2 * self.capacity, self.seen + new)
            self._pick(range(batch))

    def _group(self, real: Tensor | None, batch: int, new: int, apart: bool) -> Iterator[tuple[int, list[int]]]:
        """Yield the number of new tokens and the rows of each pass. Rows of equal length share a pass. Rows of any
        length with one new token share one if attention supports it, unless `apart`: masking a source's padding takes
        equal lengths."""
        assert self.cache is not None
        counts = [new] * batch if real is None else real.sum(1).tolist()
        able = not apart and all(block.attention.passes.ragged for block in self.writer.blocks.values())
        passes: dict[Any, list[int]] = {}
        for number, (row, count) in enumerate(zip(self.cache.rows, counts, strict=True)):
            if count:
                passes.setdefault((count, None if able and new == 1 else row.length), []).append(number)
        yield from ((count, rows) for (count, _), rows in passes.items())

    def _take(self, rows: list[int]) -> Cache:
        assert self.cache is not None
        return Cache(self.cache.store, [self.cache.rows[row] for row in rows])


def can_crop(writer: Tower) -> bool:
    """Whether a tower's cache can drop its last tokens. Windows, keys of several tokens and recurrent states do not
    allow it."""
    plain = all(group.cross or (group.full and group.rate == 1) for group in list_groups(writer))
    return plain and not any(block.state() for block in writer.blocks.values())


def copy_rows(sources: Sequence[CachedRow], targets: Sequence[CachedRow]) -> None:
    """Copy rows of one store into empty rows of another, with their recurrent states."""
    old, new = sources[0].store, targets[0].store
    for source, target in zip(sources, targets, strict=True):
        target.length, target.source, target.dropped = source.length, source.source, list(source.dropped)
    slots = []
    for number, group in enumerate(old.groups):
        spans = [(0, row.source) if group.cross else (row.dropped[number] * old.page, row.length) for row in sources]
        own = (
            [slot for row, span in zip(rows, spans, strict=True) for slot in list_slots(row.runs(number, *span))]
            for rows in (sources, targets)
        )
        slots.append([torch.tensor(each, device=old.device) for each in own])
    states = [torch.tensor([row.slot for row in rows], device=old.device) for rows in (sources, targets)]
    for kind, there, here in zip(old.tower.pattern, old.layers, new.layers, strict=True):
        for pools, kept, (read, write) in (
            (there.tensors, here.tensors, slots[old.group_of[kind]] if kind in old.group_of else states),
            (there.cross, here.cross, states if old.cross_group is None else slots[old.cross_group]),
            (there.states, here.states, states),
        ):
            for name, pool in pools.items():
                kept[name][write] = pool[read]


def spread_columns(parts: Sequence[tuple[list[int], Tensor]], real: Tensor, width: int) -> Tensor:
    """Place the last tokens of some rows, [rows, C, …], in the last `width` columns of all rows [B, width, …], where
    `real` [B, T] marks the columns of tokens. The other columns are zeros.

    Example: of a row (pad, pad, a, b) with C = 2 and width 3 the columns are (0, a, b).
    """
    first = parts[0][1]
    full = first.new_zeros(len(real), width, *first.shape[2:])
    for rows, given in parts:
        own = real[rows]
        taken = own & (own.flip(1).cumsum(1).flip(1) <= given.shape[1])  # the last C tokens
        late = taken.clone()
        late[:, : real.shape[1] - width] = False
        placed = full[rows]
        placed[late[:, real.shape[1] - width :]] = given.flatten(0, 1)[late[taken]]
        full[rows] = placed
    return full
