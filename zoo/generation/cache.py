# B batch, T new tokens, S keys
"""What a model keeps of earlier tokens while generating. Allocated from each component's own `cache()` table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from zoo.errors import ConfigError
from zoo.lazy import torch
from zoo.spec import Spec


@dataclass(frozen=True)
class Plan:
    """Where the next tokens go in the caches of one kind of layer, and which columns are then visible."""

    start: int  # first slot to write
    stop: int  # one past the last, in the same stretch
    held: int  # slots that hold a token before the new ones come
    rolls: bool  # whether a chunk passes the end of the ring: old and new are joined, then the newest kept
    columns: Any  # column (index in the row, pads included) of every key, LongTensor [S]


class LayerCache:
    """One layer's tensors [B, capacity, …]. A window or chunk of W tokens is a ring of W slots: what left it is
    overwritten."""

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        columns: torch.Tensor,
        states: dict[str, torch.Tensor] | None = None,
        cross: LayerCache | None = None,
    ) -> None:
        self.tensors = tensors
        self.columns = columns
        self.states = states or {}  # what a recurrent mixer holds [B, …], whatever the length
        self.cross = cross
        self.filled = False  # whether a memory was written whole (see `recall`)

    def append(self, plan: Plan, new: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Stores the new tokens; gives every visible key, the new ones included, in the order of `plan.columns`."""
        return tuple(self._append(plan, self.tensors[name], tensor) for name, tensor in new.items())

    def held(self) -> Iterator[torch.Tensor]:
        """Every tensor it keeps."""
        yield from self.tensors.values()
        yield from self.states.values()
        if self.cross is not None:
            yield from self.cross.held()

    def recall(
        self, compute: Callable[[], tuple[torch.Tensor, ...]], names: tuple[str, ...]
    ) -> tuple[torch.Tensor, ...]:
        """What was made of an encoder's output [B, S, …] by name: computed and kept the first time."""
        if not self.filled:
            self.tensors = dict(zip(names, compute(), strict=True))
            self.filled = True
        return tuple(self.tensors[name] for name in names)

    def _append(self, plan: Plan, buffer: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        if not plan.rolls:
            buffer[:, plan.start : plan.stop] = new
            return buffer[:, : max(plan.held, plan.stop)]
        joined = torch.cat((buffer[:, : plan.held], new.to(buffer.dtype)), 1)
        newest = plan.columns.argsort()[-buffer.shape[1] :]
        slots = plan.columns[newest] % buffer.shape[1]
        buffer[:, slots] = joined[:, newest]
        return joined


class Cache:
    """All layers' caches. `length` is the number of columns held; each forward with this cache appends to it."""

    def __init__(self, spec: Any, layers: list[LayerCache], capacities: dict[str, int], capacity: int) -> None:
        self.spec = spec
        self.layers = layers
        self.capacities = capacities
        self.capacity = capacity
        self.length = 0

    @classmethod
    def allocate(cls, model: Any, batch: int, capacity: int, *, dtype: Any = None, device: Any = None) -> Cache:
        """Room for `capacity` tokens in `batch` rows, of the model's own dtype and device unless given."""
        spec = next(tower for tower in getattr(model, "spec", model).towers().values() if tower.causal)
        if dtype is None or device is None:
            weight = next(model.parameters())
            dtype, device = dtype or weight.dtype, device or weight.device
        capacities = {kind: min(capacity, _window(block) or capacity) for kind, block in spec.blocks.items()}
        columns = torch.arange(capacity, device=device)
        layers = []
        for kind in spec.pattern:
            block = spec.blocks[kind]
            shapes = block.attention.cache()
            size = (batch, capacities[kind])
            tensors = {name: _room(*size, shape, dtype, device) for name, shape in shapes.items()}
            states = {
                name: torch.zeros(batch, *shape, dtype=torch.float32, device=device)
                for name, shape in block.state().items()
            }
            cross = LayerCache({}, columns) if block.cross else None
            layers.append(LayerCache(tensors, columns, states, cross))
        return cls(spec, layers, capacities, capacity)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.held())

    def plan(self, kind: str, new: int) -> Plan:
        """Where `new` tokens go in layers of this kind. Raises ConfigError when they do not fit."""
        if self.length + new > self.capacity:
            found = f"holds {self.length} of at most {self.capacity} tokens, {new} more came"
            raise ConfigError(f"cache: {found} (allocate a larger capacity)")
        size, columns = self.capacities[kind], self.layers[self.spec.pattern.index(kind)].columns
        start, held = self.length % size, min(self.length, size)
        if start + new <= size and (self.length + new <= size or new == 1):
            end = self.length + new
            visible = columns[:end] if end <= size else _ring(columns, end, size)
            return Plan(start, start + new, held, False, visible)
        old = _ring(columns, self.length, size) if self.length > size else columns[:held]
        return Plan(start, start, held, True, torch.cat((old, columns[self.length : self.length + new])))


def _room(batch: int, capacity: int, shape: tuple[int, ...], dtype: Any, device: Any) -> torch.Tensor:
    """Zeros [B, capacity, …]. A head's tokens lie together in memory, which is how attention reads them: decoding one
    token at 4096 takes a quarter less time for it (CPU, float32 and bfloat16, November 2026)."""
    heads, *rest = shape if len(shape) > 1 else (1, *shape)
    room = torch.zeros(batch, heads, capacity, *rest, dtype=dtype, device=device).transpose(1, 2)
    return room if len(shape) > 1 else room.squeeze(2)


def _ring(columns: torch.Tensor, end: int, size: int) -> torch.Tensor:
    """The column in each slot of a full ring when `end` columns have come: the newest one that is ≡ slot (mod size)."""
    slots = columns[:size]
    return end - 1 - (end - 1 - slots) % size


def _window(block: Spec) -> int | None:
    """The tokens of which a ring holds all that a layer may still see: its window, or its chunk."""
    return block.attention.visible_window or block.attention.visible_chunk  # type: ignore[attr-defined]
