# B batch, S slots
"""Trace the KV cache of a pass on shadows: the memory that `zoo.generation.cache` allocates to store and read tokens.

The cache's own tensors are `held`: `zoo.costs.cache` counts them. What a pass makes beside them, such as the copy of
a window whose ring is written across its end, is counted by the tape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from zoo.costs.shadow.dtypes import FLOAT32, INT64, ShadowDtype
from zoo.costs.shadow.recording import (
    current_tape,
)
from zoo.costs.shadow.reductions import cat
from zoo.costs.shadow.tensor import make_shadow


class ShadowCacheLayout(NamedTuple):
    """Where new tokens go in the caches of one kind of layer: the fields of the real cache's layout."""

    start: int
    stop: int
    held: int
    wraps: bool
    index: Any


class ShadowLayerCache:
    """One layer's cached tensors [B, S, …], its recurrent states [B, …], and cross-attention's keys and values."""

    def __init__(self, tensors: dict[str, Any], states: dict[str, Any], cross: ShadowLayerCache | None) -> None:
        self.tensors, self.states, self.cross = tensors, states, cross
        self.filled = False

    def append(self, layout: ShadowCacheLayout, new: dict[str, Any]) -> tuple[Any, ...]:
        """Store the new tokens, and return all visible ones with them."""
        return tuple(self._append(layout, self.tensors[name], tensor) for name, tensor in new.items())

    def _append(self, layout: ShadowCacheLayout, buffer: Any, new: Any) -> Any:
        if not layout.wraps:
            return buffer[:, : max(layout.held, layout.stop)]
        joined = cat((buffer[:, : layout.held], new.to(buffer.dtype)), 1)
        newest = layout.index.argsort()[-buffer.shape[1] :]
        slots = layout.index[newest] % buffer.shape[1]
        stored = joined[:, newest]
        del slots, stored
        return joined

    def recall(self, compute: Callable[[], tuple[Any, ...]], names: tuple[str, ...]) -> tuple[Any, ...]:
        """Return the memory's keys and values, computed at the first call. The tape does not count them, because they
        belong to the cache, which `zoo.costs.cache` counts."""
        if not self.filled:
            moment = current_tape()
            due = sum(each.storage.nbytes for each in self.tensors.values())
            moment.count(-due)
            made = compute()
            for each in made:
                each.storage.hold()
            moment.count(due)
            self.tensors, self.filled = dict(zip(names, made, strict=True)), True
        return tuple(self.tensors[name] for name in names)


class ShadowCache:
    """The caches of the layers of `pattern`, with `length` tokens in them and room for `capacity`."""

    def __init__(self, tower: Any, batch: int, length: int, capacity: int, memory: int, dtype: ShadowDtype) -> None:
        self.length, self.capacity, self.tower = length, capacity, tower
        self.every = make_shadow((capacity,), INT64, "index")
        self.layers = [self._layer(tower.blocks[kind], batch, memory, dtype) for kind in tower.pattern]

    def _layer(self, block: Any, batch: int, memory: int, dtype: ShadowDtype) -> ShadowLayerCache:
        size = self._slots(block)
        tensors = {name: _room(batch, size, shape, dtype) for name, shape in block.attention.cache().items()}
        states = {name: make_shadow((batch, *shape), FLOAT32, held=True) for name, shape in block.state().items()}
        cross = None
        if block.cross is not None:
            kept = {name: _room(batch, memory, shape, dtype) for name, shape in block.cross.cache().items()}
            cross = ShadowLayerCache(kept, {}, None)
            cross.filled = self.length > 0
        return ShadowLayerCache(tensors, states, cross)

    def _slots(self, block: Any) -> int:
        reach = block.attention.visible_window or block.attention.visible_chunk
        return min(self.capacity, reach or self.capacity)

    def lay_out(self, kind: str, new: int) -> ShadowCacheLayout:
        """Choose the cache slots of `new` tokens in layers of this kind, as the real cache does."""
        size, end = self._slots(self.tower.blocks[kind]), self.length + new
        start, held = self.length % size, min(self.length, size)
        if start + new <= size and (end <= size or new == 1):
            visible = self.every[:end] if end <= size else self._ring(end, size)
            return ShadowCacheLayout(start, start + new, held, False, visible)
        old = self._ring(self.length, size) if self.length > size else self.every[:held]
        return ShadowCacheLayout(start, start, held, True, cat((old, self.every[self.length : end])))

    def _ring(self, end: int, size: int) -> Any:
        return end - 1 - (end - 1 - self.every[:size]) % size


def _room(batch: int, slots: int, shape: tuple[int, ...], dtype: ShadowDtype) -> Any:
    """Make a cache tensor [B, S, …] with the real one's strides: a head's tokens are contiguous."""
    heads, *rest = shape if len(shape) > 1 else (1, *shape)
    room = make_shadow((batch, heads, slots, *rest), dtype, held=True).transpose(1, 2)
    return room if len(shape) > 1 else room.reshape(batch, slots, math.prod(rest))
