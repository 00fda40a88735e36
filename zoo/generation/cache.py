# B batch, T new tokens, S keys
"""KV cache and recurrent states. Allocated from each component's own `cache()` and `state()` tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from zoo.errors import ConfigError
from zoo.lazy import torch
from zoo.spec import Spec


@dataclass(frozen=True)
class CacheLayout:
    """The cache slots that the next tokens go to, for one kind of layer, and the index of every key then read.

    An index is a token's place in its row, pads included. Slot s of a ring of W slots holds an index equal
    to s modulo W. With W = 4 and six tokens cached, one more goes to slot 2, and `index` is [4, 5, 6, 3].
    """

    start: int  # first slot to write
    stop: int  # one past the last
    held: int  # slots that hold a token before the new ones come
    wraps: bool  # whether the new tokens do not fit before the ring's end: old and new are joined, then the newest kept
    index: torch.Tensor  # of every key, int64 [S]


class LayerCache:
    """One layer's cache: tensors [B, capacity, …]. A window or chunk of W tokens is a ring of W slots: new tokens
    overwrite those that left it."""

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        states: dict[str, torch.Tensor] | None = None,
        cross: LayerCache | None = None,
    ) -> None:
        self.tensors = tensors
        self.states = states or {}  # a recurrent mixer's [B, …], of the same size at any length
        self.cross = cross
        self.filled = False  # whether `recall` has computed its tensors

    def append(self, layout: CacheLayout, new: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Write the new tokens; give all tokens that may be read, the new ones included, in the order of
        `layout.index`."""
        return tuple(self._append(layout, self.tensors[name], tensor) for name, tensor in new.items())

    def held(self) -> Iterator[torch.Tensor]:
        """Yield every tensor that this layer's cache keeps."""
        yield from self.tensors.values()
        yield from self.states.values()
        if self.cross is not None:
            yield from self.cross.held()

    def recall(
        self, compute: Callable[[], tuple[torch.Tensor, ...]], names: tuple[str, ...]
    ) -> tuple[torch.Tensor, ...]:
        """Keys and values of an encoder's output [B, S, …] by name: computed the first time, then read."""
        if not self.filled:
            self.tensors = dict(zip(names, compute(), strict=True))
            self.filled = True
        return tuple(self.tensors[name] for name in names)

    def _append(self, layout: CacheLayout, buffer: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        if not layout.wraps:
            buffer[:, layout.start : layout.stop] = new
            return buffer[:, : max(layout.held, layout.stop)]
        joined = torch.cat((buffer[:, : layout.held], new.to(buffer.dtype)), 1)
        newest = layout.index.argsort()[-buffer.shape[1] :]
        slots = layout.index[newest] % buffer.shape[1]
        buffer[:, slots] = joined[:, newest]
        return joined


class Cache:
    """All layers' caches. `length` is the number of tokens cached, pads included; each forward with this cache appends
    to it."""

    def __init__(self, spec: Any, layers: list[LayerCache], capacities: dict[str, int], every: torch.Tensor) -> None:
        self.spec = spec
        self.layers = layers
        self.capacities = capacities
        self.every = every  # 0 … capacity − 1, from which indices are cut: no step copies any from the host
        self.capacity = len(every)
        self.length = 0

    @classmethod
    def allocate(cls, model: Any, batch: int, capacity: int, *, dtype: Any = None, device: Any = None) -> Cache:
        """Allocate caches for `capacity` tokens in `batch` rows, of the model's own dtype and device unless given."""
        spec = next(tower for tower in getattr(model, "spec", model).towers().values() if tower.causal)
        if dtype is None or device is None:
            weight = next(model.parameters())
            dtype, device = dtype or weight.dtype, device or weight.device
        capacities = {kind: min(capacity, _window(block) or capacity) for kind, block in spec.blocks.items()}
        layers = []
        for kind in spec.pattern:
            block = spec.blocks[kind]
            shapes = block.attention.cache()
            size = (batch, capacities[kind])
            tensors = {name: _allocate(*size, shape, dtype, device) for name, shape in shapes.items()}
            states = {
                name: torch.zeros(batch, *shape, dtype=torch.float32, device=device)
                for name, shape in block.state().items()
            }
            cross = LayerCache({}) if block.cross else None
            layers.append(LayerCache(tensors, states, cross))
        return cls(spec, layers, capacities, torch.arange(capacity, device=device))

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.held())

    def lay_out(self, kind: str, new: int) -> CacheLayout:
        """The slots that `new` tokens go to in layers of this kind. Raises ConfigError when they do not fit."""
        if self.length + new > self.capacity:
            found = f"holds {self.length} of at most {self.capacity} tokens, {new} more came"
            raise ConfigError(f"cache: {found} (allocate a larger capacity)")
        size = self.capacities[kind]
        start, held = self.length % size, min(self.length, size)
        if start + new <= size and (self.length + new <= size or new == 1):
            end = self.length + new
            index = self.every[:end] if end <= size else _ring_index(self.every[:size], end)
            return CacheLayout(start, start + new, held, False, index)
        old = _ring_index(self.every[:size], self.length) if self.length > size else self.every[:held]
        return CacheLayout(start, start, held, True, torch.cat((old, self.every[self.length : self.length + new])))


def _allocate(batch: int, capacity: int, shape: tuple[int, ...], dtype: Any, device: Any) -> torch.Tensor:
    """Zeros [B, capacity, …]. A head's tokens lie together in memory, which is how attention reads them: decoding one
    token at 4096 takes a quarter less time for it (CPU, float32 and bfloat16, November 2026)."""
    heads, *rest = shape if len(shape) > 1 else (1, *shape)
    zeros = torch.zeros(batch, heads, capacity, *rest, dtype=dtype, device=device).transpose(1, 2)
    return zeros if len(shape) > 1 else zeros.squeeze(2)


def _ring_index(slots: torch.Tensor, end: int) -> torch.Tensor:
    """The index in each slot of a full ring after `end` tokens: the newest one that is ≡ slot (mod size)."""
    return end - 1 - (end - 1 - slots) % len(slots)


def _window(block: Spec) -> int | None:
    """The slots of a layer's ring: its window or its chunk, which is all that it may still see. None for no ring."""
    return block.attention.visible_window or block.attention.visible_chunk  # type: ignore[attr-defined]
