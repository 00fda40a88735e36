# N slots of a pool
"""Store the KV cache and recurrent states, allocated from the shapes in each component's `cache()` and `state()`.

A slot holds one token's keys and values in one layer; slots are given out in pages. Layers that see equally far back
form a group. They share a page table, because their rows hold the same tokens. Recurrent states have a slot per
sequence.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.cache.page_pool import PagePool
from zoo.errors import ConfigError
from zoo.kernels.view.page_tables import PAGE
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.model.tower import Tower


class LayerGroup(NamedTuple):
    """The `kinds` of layers whose rows hold the same tokens. In these layers a token sees a window of `window` tokens,
    or its own chunk of `chunk` tokens; all earlier tokens if both are None. The group with `cross` holds a source's
    tokens, read by cross-attention. One slot stands for `rate` tokens, and is written when the last of them comes."""

    kinds: tuple[str, ...]
    window: int | None = None
    chunk: int | None = None
    cross: bool = False
    rate: int = 1

    @property
    def full(self) -> bool:
        """Whether a token sees all earlier tokens."""
        return self.window is None and self.chunk is None and not self.cross

    def first_seen(self, token: int) -> int:
        """Return the earliest token that a query at index `token` sees."""
        if self.window is not None:
            return max(0, token - self.window + 1)
        return token // self.chunk * self.chunk if self.chunk is not None else 0

    def pages(self, tokens: int, new: int = 1, page: int = PAGE) -> int:
        """Return the maximum number of pages that a row of up to `tokens` tokens needs, if a pass adds up to `new`
        tokens.

        With a window of 8 and pages of 4, one new token and the 7 before it lie on at most 3 pages.
        """
        reach = self.window or self.chunk
        if reach is not None:
            tokens = min(tokens, reach - 1 + new + page - 1)
        return -(-self.count_slots(tokens) // page)

    def count_slots(self, tokens: int) -> int:
        """Count the slots that a row's first `tokens` tokens take."""
        return tokens // self.rate


def list_groups(tower: Tower) -> list[LayerGroup]:
    """List the groups of a tower's layers, the cross-attention group last."""
    kinds: dict[tuple[Any, Any, int], list[str]] = {}
    for kind, block in tower.blocks.items():
        own = block.attention
        if block.cache():
            kinds.setdefault((own.sight.window, own.sight.chunk, own.sight.rate), []).append(kind)
    groups = [LayerGroup(tuple(names), *reach, rate=rate) for (*reach, rate), names in kinds.items()]
    crossed = tuple(kind for kind, block in tower.blocks.items() if block.cross is not None)
    return [*groups, *([LayerGroup(crossed, cross=True)] if crossed else [])]


@dataclass
class LayerStore:
    """One layer's pools by name: `tensors` [N, …] of its attention, `cross` [N, …] of its cross-attention, and its
    recurrent `states` [slots, …] in float32."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    cross: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Tensor]:
        for part in (self.tensors, self.cross, self.states):
            yield from part.values()


class Store:
    """The pools of a decoder's layers: `pages[g]` pages for group g, and `slots` recurrent states in each layer. A
    window has room for `new` new tokens and the tokens that they see. For longer prompt chunks, the window's tokens and
    the new ones are concatenated. Up to `undone` last tokens of a row may be removed again.

    In a `paged` store (default on any device but a CPU) decoding rows are read by page table. Its pools and states each
    have one more slot, the scratch slot for padding.
    """

    def __init__(
        self,
        tower: Tower,
        pages: Sequence[int],
        slots: int,
        *,
        page: int = PAGE,
        paged: bool | None = None,
        new: int = 1,
        undone: int = 0,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.tower, self.page, self.new, self.device = tower, page, new, torch.device(device)
        self.undone, self.dtype = undone, dtype
        self.paged = self.device.type not in ("cpu", "meta") if paged is None else paged
        self.groups = list_groups(tower)
        self.pools = [PagePool(count) for count in pages]
        self.group_of = {kind: g for g, group in enumerate(self.groups) if not group.cross for kind in group.kinds}
        self.cross_group = next((g for g, group in enumerate(self.groups) if group.cross), None)
        self.free_slots = list(reversed(range(slots)))
        self.slots = slots
        self.layers = [self._layer(kind, dtype) for kind in tower.pattern]
        self.evict: Callable[..., bool] = lambda group=None: False  # drops something cached for reuse

    def pages_of(self, group: LayerGroup, tokens: int) -> int:
        """Return the maximum number of pages that a row of up to `tokens` tokens needs in a group."""
        return group.pages(tokens, self.new + self.undone, self.page)

    def take(self, group: int, count: int, after: int | None = None) -> list[int]:
        """Take pages of a group. If too few are free or cached, checkpoints are dropped. Raises OutOfPages if too few
        are left even so."""
        while self.pools[group].available < count and self.evict(group):
            pass
        return self.pools[group].take(count, after)

    def _layer(self, kind: str, dtype: torch.dtype) -> LayerStore:
        block = self.tower.blocks[kind]
        layer = LayerStore()
        if kind in self.group_of:
            count = self.pools[self.group_of[kind]].count * self.page
            layer.tensors = {name: self._pool(count, shape, dtype) for name, shape in block.cache().items()}
        if block.cross is not None:
            count = self.pools[self.cross_group].count * self.page  # type: ignore[index]
            layer.cross = {name: self._pool(count, shape, dtype) for name, shape in block.cross.cache().items()}
        for name, shape in block.state().items():
            layer.states[name] = make_zeros((self.slots + self.paged, *shape), torch.float32, self.device)
        return layer

    def scratch(self, group: int) -> int:
        """Return the slot of a paged store that padding is written to, behind all pages."""
        return self.pools[group].count * self.page

    def _pool(self, slots: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate zeros [N, …]. On a CPU a head's tokens lie together in memory, as attention reads them: decoding one
        token after 4096 takes a quarter less time (float32 and bfloat16, November 2026)."""
        slots += self.paged
        if len(shape) == 1 or self.device.type == "cuda":
            return make_zeros((slots, *shape), dtype, self.device)
        heads, *rest = shape
        return make_zeros((heads, slots, *rest), dtype, self.device).transpose(0, 1)

    def copy(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy slots `sources` of a group to `targets`, in all layers of the group. The two lists may overlap, and
        `targets` may be longer. `sources` may be empty: a checkpoint at the start of a chunk, or in a window of one
        token, holds no page."""
        if not sources:
            return
        read = torch.tensor(sources, device=self.device)
        write = torch.tensor(targets[: len(sources)], device=self.device)
        for kind, layer in zip(self.tower.pattern, self.layers, strict=True):
            if self.group_of.get(kind) == group:
                for pool in layer.tensors.values():
                    pool[write] = pool[read]

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages `sources` of a group to `targets`, in all layers of the group."""
        page = self.page
        slots = ([slot for each in own for slot in range(each * page, (each + 1) * page)] for own in (sources, targets))
        self.copy(group, *slots)

    def copy_states(self, source: int, target: int) -> None:
        """Copy the recurrent states of a slot to another."""
        for layer in self.layers:
            for state in layer.states.values():
                state[target] = state[source]

    @property
    def nbytes(self) -> int:
        """Bytes of all pools and states."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)


def make_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate a tensor of zeros. On a CPU its memory is mapped, and the system clears each page at its first write.
    torch.zeros would write the whole tensor at once if malloc keeps memory (`keep_memory`): 1.3 s for 1.6 GB."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(*shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size)
    with suppress(AttributeError, OSError):  # not every system has them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


class StorePlan(NamedTuple):
    """The size of a Store: pages of each group, slots of recurrent states, and the number of rows that it serves."""

    pages: list[int]
    slots: int
    rows: int


def plan_store(
    tower: Tower,
    rows: int,
    tokens: int,
    source: int,
    width: int,
    memory: int | None,
    *,
    overcommit: float = 1.0,
    reuse: bool = False,
    new: int = 1,
    page: int = PAGE,
    paged: bool = False,
) -> StorePlan:
    """Plan a Store for `rows` rows of up to `tokens` tokens (and `source` encoder tokens), or for the fewer rows that
    `memory` bytes hold. A cached value takes `width` bytes.

    The pages that rows may need for full attention are divided by `overcommit`, but are enough for one row. `reuse`
    doubles windows and adds a state slot for each row, for checkpoints. With `new` above 1 (drafts of new − 1 tokens)
    each row has one more state slot, to undo rejected tokens. A `paged` store has one more slot of everything. Raises
    ConfigError if `memory` holds no row.
    """
    groups = list_groups(tower)
    copies = 1 + (reuse + (new > 1)) * any(block.state() for block in tower.blocks.values())
    each = [group.pages(source if group.cross else tokens, new, page) for group in groups]
    states = state_bytes(tower)
    sizes = [page * token_bytes(tower, group, width) for group in groups]

    def plan(rows: int) -> StorePlan:
        whole = [
            max(count, math.ceil(rows * count / overcommit))
            if group.full
            else (1 + (reuse and not group.cross)) * rows * count
            for group, count in zip(groups, each, strict=True)
        ]
        return StorePlan(whole, copies * rows, rows)

    spare = states + sum(sizes) / page if paged else 0

    def needed(plan: StorePlan) -> float:
        return spare + plan.slots * states + sum(count * size for count, size in zip(plan.pages, sizes, strict=True))

    while memory is not None and rows and needed(plan(rows)) > memory:
        rows -= 1
    if not rows:
        found = f"a row of {tokens} tokens needs {needed(plan(1)):,.0f} bytes of cache, {memory:,} were given"
        raise ConfigError(f"memory: {found} (more memory, or fewer tokens)")
    return plan(rows)


def token_bytes(tower: Tower, group: LayerGroup, width: float) -> float:
    """Count the bytes of a slot in all layers of a group, for cached values of `width` bytes each."""
    total = 0
    for kind in group.kinds:
        block = tower.blocks[kind]
        shapes = block.cross.cache() if group.cross else block.cache()  # type: ignore[union-attr]
        total += count_values(shapes) * tower.pattern.count(kind)
    return total * width


def state_bytes(tower: Tower) -> int:
    """Count the bytes of a row's recurrent states in all layers, in float32."""
    return sum(4 * count_values(block.state()) * tower.pattern.count(kind) for kind, block in tower.blocks.items())


def count_values(shapes: dict[str, tuple[int, ...]]) -> int:
    """Count the values in tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())
