# B batch, S slots
"""Trace the KV cache of a pass on shadows: the memory that `zoo.cache.cache` takes to store and read tokens.

The cache's own tensors are `held`: `zoo.costs.cache_sizes` counts them. The tape counts temporary tensors, such as the
copy of a window that new tokens are joined to. All rows have the same length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zoo.costs.shadow.dtypes import FLOAT32, ShadowDtype
from zoo.costs.shadow.reductions import cat
from zoo.costs.shadow.tensor import make_shadow
from zoo.kernels.view import count_slots
from zoo.kernels.view.page_tables import PAGE
from zoo.kernels.view.slots import SlotMapping
from zoo.model.block.base import Block
from zoo.model.tower import Tower


@dataclass(eq=False)
class ShadowLayerCache:
    """One layer's cached tensors [B, S, …], its recurrent states [B, …], and cross-attention's keys and values."""

    tensors: dict[str, Any]
    states: dict[str, Any]
    cross: dict[str, Any]
    filled: bool

    def append(self, where: SlotMapping, new: dict[str, Any]) -> tuple[Any, ...]:
        """Store the new tokens' tensors; return those of all visible tokens."""
        return tuple(self._append(where, self.tensors[name], tensor) for name, tensor in new.items())

    def _append(self, where: SlotMapping, buffer: Any, new: Any) -> Any:
        keys = count_slots(where.rows[0])
        held = keys - new.shape[1]
        if not where.overflows:
            return buffer[:, :keys]
        joined = cat((buffer[:, :held], new.to(buffer.dtype)), 1) if held else new
        stored = new[:, max(0, new.shape[1] - buffer.shape[1]) :].flatten(0, 1).to(buffer.dtype)
        del stored
        return joined

    def recall(self, where: SlotMapping, compute: Callable[[], tuple[Any, ...]] | None, names: tuple[str, ...]) -> Any:
        """Return the keys and values of an encoder's output; the first pass computes and stores them."""
        if not self.filled and compute is not None:
            made = compute()
            del made
        self.filled = True
        return tuple(self.cross[name] for name in names)

    def state(self, name: str) -> Any:
        """Return a recurrent state of the rows."""
        return self.states[name]

    def hold(self, name: str, value: object) -> None:
        """Store a state: it is copied into the cache's own tensor, which takes no new memory."""


class ShadowCache:
    """The caches of a tower's layers, with `length` tokens in them and room for `capacity`."""

    recordings = None  # no CUDA graphs: a pass on shadows runs every layer's code
    varlen = False  # rows of one length: tokens [B, T]

    def __init__(self, tower: Tower, batch: int, length: int, capacity: int, memory: int, dtype: ShadowDtype) -> None:
        self.past = self.longest = length
        self.capacity, self.tower = capacity, tower
        self.has_source = length > 0
        self.memory = memory
        self.layers = [self._layer(tower.blocks[kind], batch, memory, dtype) for kind in tower.pattern]

    def _layer(self, block: Block, batch: int, memory: int, dtype: ShadowDtype) -> ShadowLayerCache:
        size = self._slots(block)
        tensors = {name: _room(batch, size, shape, dtype) for name, shape in block.cache().items()}
        states = {name: make_shadow((batch, *shape), FLOAT32, held=True) for name, shape in block.state().items()}
        crossed = {} if block.cross is None else block.cross.cache()
        cross = {name: _room(batch, memory, shape, dtype) for name, shape in crossed.items()}
        return ShadowLayerCache(tensors, states, cross, self.longest > 0)

    def _slots(self, block: Block) -> int:
        reach = block.attention.sight.window or block.attention.sight.chunk
        slots = self.capacity // block.attention.sight.rate
        return slots if reach is None else min(slots, reach + PAGE - 1)

    def begin(self, counts: object, new: int) -> None:
        """Start a pass."""

    def find_counts(self, new: int) -> None:
        """Return None: no column of a pass is padding."""

    def reach(self, new: int) -> int:
        """Give the number of tokens of a row after a pass over `new` tokens."""
        return self.longest + new

    def end(self, new: int) -> None:
        """End a pass."""

    def lay_out(self, kind: str, new: int) -> SlotMapping | None:
        """Return the slots of `new` tokens in layers of this kind, as the real cache does; None for attention that
        caches nothing."""
        attention = self.tower.blocks[kind].attention
        if not attention.cache():
            return None
        window, chunk = attention.sight.window, attention.sight.chunk
        first = max(0, self.longest - window + 1) if window else 0
        first = self.longest // chunk * chunk if chunk else first
        keys = (self.longest + new - first) // attention.sight.rate
        overflows = new > 1 and keys > self._slots(self.tower.blocks[kind])
        return SlotMapping([[(0, keys)]], first=first, overflows=overflows)

    def lay_out_source(self, tokens: int | None) -> SlotMapping:
        """Return the slots of an encoder's output, whose keys and values cross-attention caches."""
        return SlotMapping([[(0, self.memory)]])


def _room(batch: int, slots: int, shape: tuple[int, ...], dtype: ShadowDtype) -> Any:
    """Make a cache tensor [B, S, …] with the real one's strides: a head's tokens are contiguous, row after row."""
    heads, *rest = shape if len(shape) > 1 else (1, *shape)
    room = make_shadow((heads, batch, slots, *rest), dtype, held=True).transpose(0, 1).transpose(1, 2)
    return room if len(shape) > 1 else room.reshape(batch, slots, math.prod(rest))
