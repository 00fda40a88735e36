# B rows, T new tokens, S keys, N slots
"""Map the rows (sequences) of a forward pass to slots of a Store: the slots of their new tokens and of the keys
read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from zoo.cache.cached_row import CachedRow, list_slots
from zoo.cache.page_rows import make_room, place_rows
from zoo.cache.pool_store import PAGE, LayerGroup, LayerStore, Store, list_groups
from zoo.errors import ConfigError
from zoo.kernels.running_sums import count_windows
from zoo.kernels.view import Run
from zoo.kernels.view.page_tables import PassTensors, as_tensor
from zoo.kernels.view.slots import SlotMapping
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.run.recording_plan import Recordings


class LayerCache:
    """The KV cache and states of one layer in one pass."""

    def __init__(self, layer: LayerStore, slots: slice | Tensor, packs: bool = False) -> None:
        self.layer = layer
        self.packs = packs  # whether keys are copied before a read, so that products see the same strides in any pool
        self.slots = slots  # state slots of the rows: a slice, or a tensor [B]

    def append(self, where: SlotMapping, new: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Write the keys and values of new tokens [B, T, …] to the pools of the same names. Return the tensors to read,
        new tokens included: [B, S, …], or whole pools [N, …] if `where.ragged`."""
        return tuple(self._append(where, self.layer.tensors[name], tensor) for name, tensor in new.items())

    def _append(self, where: SlotMapping, pool: Tensor, new: Tensor) -> Tensor:
        if where.overflows:
            joined = torch.cat((where.load(pool), new.to(pool.dtype)), 1) if where.rows[0] else new
            where.store(pool, joined)
            return joined
        if where.in_place:
            keys, count = where.load(pool), new.shape[1] if where.kept is None else where.kept
            keys.narrow(1, keys.shape[1] - count, count).copy_(new[:, :count])
        else:
            where.store(pool, new)
            keys = where.whole(pool) if where.ragged else where.load(pool)
        return keys.contiguous() if self.packs and not where.ragged else keys

    def recall(
        self, where: SlotMapping, compute: Callable[[], tuple[Tensor, ...]] | None, names: Sequence[str]
    ) -> tuple[Tensor, ...]:
        """Return the keys and values of an encoder's output from the pools `names`: [B, S, …], or whole pools [N, …] if
        `where.ragged`. The results of `compute`, if given, are first written to the pools."""
        pools = [self.layer.cross[name] for name in names]
        if compute is not None:
            for pool, new in zip(pools, compute(), strict=True):
                if where.in_place:
                    where.load(pool)[:] = new
                else:
                    where.store(pool, new)
        return tuple(where.whole(pool) if where.ragged else where.load(pool) for pool in pools)

    def state(self, name: str) -> Tensor:
        """Return the rows' recurrent state `name` [B, …]."""
        return self.layer.states[name][self.slots]

    def narrow(self, slots: Tensor) -> LayerCache:
        """Return the layer's cache for only the rows with these state slots [B]."""
        return LayerCache(self.layer, slots, self.packs)

    def hold(self, name: str, value: Tensor) -> None:
        """Store a recurrent state [B, …] for the rows' next tokens."""
        # Writing at indices takes values of the state's dtype alone; a slice converts them as it copies.
        self.layer.states[name][self.slots] = value if isinstance(self.slots, slice) else value.to(torch.float32)


class Cache:
    """The rows of a Store that a forward pass reads and extends; each row has its own length.

    A pass takes token ids [B, T]: the first `counts[b]` of row b's T columns are its next tokens, and the rest is
    padding. With `varlen` a pass takes [1, N], the next tokens of all rows end to end. With `apart`, attention is
    computed row by row. With `packs`, keys are copied before they are read, so that results are bit-identical wherever
    the keys lie in the pool. In a paged store, decoding rows and `varlen` rows are read by page table (`_reads_pages`).
    """

    def __init__(
        self,
        store: Store,
        rows: Sequence[CachedRow],
        *,
        apart: bool = False,
        packs: bool = False,
        varlen: bool = False,
        recordings: Recordings | None = None,
    ) -> None:
        self.store, self.rows, self.apart, self.packs = store, list(rows), apart, packs
        self.varlen = varlen
        self.recordings = recordings
        self.counts: list[int] | None = None  # None: every row has T new tokens
        self.tensors: PassTensors | None = None  # set in a pass that reads by page table
        self.cu_seqlens_q: Tensor | None = None  # int32 [B + 1], set if that pass is also `varlen`
        numbers = [row.slot for row in self.rows]
        consecutive = all(b == a + 1 for a, b in pairwise(numbers))
        slots = slice(numbers[0], numbers[-1] + 1) if consecutive else torch.tensor(numbers, device=store.device)
        self.layers = [LayerCache(layer, slots, packs) for layer in store.layers]

    @classmethod
    def allocate(
        cls,
        model: Any,
        batch: int,
        capacity: int,
        *,
        source: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **layout: Any,
    ) -> Cache:
        """Allocate a cache for `batch` rows of up to `capacity` tokens, each reading `source` tokens of an encoder's
        output. dtype and device default to the model's. `layout` are the arguments `page` and `paged` of Store."""
        spec = next(tower for tower in getattr(model, "spec", model).towers().values() if tower.causal)
        if dtype is None or device is None:
            weight = next(model.parameters())
            dtype, device = dtype or weight.dtype, device or weight.device
        page = layout.get("page", PAGE)
        pages = [group.pages(source if group.cross else capacity, page=page) for group in list_groups(spec)]
        store = Store(spec, [batch * each for each in pages], batch, dtype=dtype, device=device, **layout)  # type: ignore[arg-type]
        rows = [CachedRow(store) for _ in range(batch)]
        for row in rows:
            for group, count in enumerate(pages):
                row.own(group, count)
        return cls(store, rows)

    @property
    def nbytes(self) -> int:
        """Bytes allocated by the store, including rows that are not in this pass."""
        return self.store.nbytes

    @property
    def past(self) -> int | None:
        """Number of cached tokens of every row; None if rows have different numbers, in a `varlen` pass, and in a pass
        that reads by page table."""
        if self.varlen or self.tensors is not None:
            return None
        lengths = {row.length for row in self.rows}
        return lengths.pop() if len(lengths) == 1 else None

    @property
    def starts(self) -> Tensor:
        """Number of cached tokens of each row [B]."""
        if self.tensors is not None:
            return self.tensors.starts
        return torch.tensor([row.length for row in self.rows], device=self.store.device)

    @property
    def longest(self) -> int:
        """Number of cached tokens of the longest row."""
        return max(row.length for row in self.rows)

    def reach(self, new: int) -> int:
        """Return the length of the longest row after a pass of `new` columns."""
        if self.past is not None:
            return self.past + new
        return max(row.length + self.count(number, new) for number, row in enumerate(self.rows))

    @property
    def has_source(self) -> bool:
        """Whether the keys of an encoder's output are cached for every row."""
        return all(row.source for row in self.rows)

    @property
    def alike(self) -> bool:
        """Whether rows can be computed together without a mask of lengths: they have equally many cached tokens,
        `counts` is None, and the pass is not `apart`, not `varlen` and not read by page table."""
        return self.counts is None and self.past is not None and not (self.apart or self.varlen)

    def find_counts(self, new: int) -> Tensor | None:
        """Return the number of new tokens of each row [B] in a pass of `new` columns; None if no column is padding."""
        if self.counts is None or self.varlen or all(count == new for count in self.counts):
            return None
        if self.tensors is not None:
            return self.tensors.counts
        return torch.tensor(self.counts, device=self.store.device)

    def list_places(self) -> list[int]:
        """List the position of each new token in its row, row after row. If `counts` is None, one new token of each row
        is assumed."""
        counts = self.counts or [1] * len(self.rows)
        return [row.length + n for row, count in zip(self.rows, counts, strict=True) for n in range(count)]

    def count(self, row: int, new: int) -> int:
        """Return the number of new tokens of a row in a pass of `new` columns."""
        return new if self.counts is None else self.counts[row]

    def lay_out(self, kind: str, new: int) -> SlotMapping | None:
        """Map the next tokens [B, T] to slots in layers of this kind, and make room for them; None for layers without a
        KV cache. Raises ConfigError if there is no room."""
        if kind not in self.store.group_of:
            return None
        number = self.store.group_of[kind]
        if self.tensors is not None and number not in self._laid:
            self._laid[number] = lay_pages(self.store, self.tensors, number)
        if number not in self._laid:
            self._laid[number] = self._lay_out(number, self.store.groups[number], new)
        return self._laid[number]

    def begin(self, counts: Sequence[int] | None, new: int) -> None:
        """Start a pass of `new` columns. Row b adds `counts[b]` tokens; if `counts` is None, every row adds `new`
        tokens."""
        self.counts = None if counts is None else list(counts)
        self._laid: dict[int, SlotMapping] = {}
        self.tensors = None
        if self._reads_pages(new):
            counts = self.counts or [new] * len(self.rows)
            placed = place_rows(self.store, self.rows, counts, new, self.varlen)
            numbers = as_tensor(placed.pack(placed.shape)).to(self.store.device)
            self.tensors = PassTensors(numbers, placed.shape)
            if self.varlen:
                ends = [0, *accumulate(counts)]
                self.cu_seqlens_q = torch.tensor(ends, dtype=torch.int32, device=self.store.device)

    def _reads_pages(self, new: int) -> bool:
        """Whether a pass of `new` columns reads by page table. `varlen` passes, decoding steps and drafts do. Other
        prompts do not: they may have a bidirectional prefix or a source to write."""
        if self.store.paged and self.varlen:
            return True
        if not self.store.paged or new > self.store.new or self.apart or self.packs:
            return False
        begun = new == 1 or all(row.length for row in self.rows)
        return begun and (self.store.cross_group is None or self.has_source)

    def end(self, new: int) -> None:
        """End a pass of `new` columns: rows grow by their new tokens; after a `varlen` pass windows shrink again."""
        for number, row in enumerate(self.rows):
            row.length += self.count(number, new)
            for group in range(len(row.pages)) if self.varlen else ():
                row.trim(group)

    def _lay_out(self, number: int, group: LayerGroup, new: int) -> SlotMapping:
        """Map the next tokens to slots in a group. If a slot stands for `rate` tokens, the pass computes `columns`
        slots of each row and stores the complete ones."""
        room = self.store.pages_of(group, 1 << 60) if group.window or group.chunk else None
        columns = count_windows(group.rate, new, self.past)
        stops = [row.length + self.count(place, new) for place, row in enumerate(self.rows)]
        overflows = (
            room is not None
            and not self.varlen
            and any(self._overflows(group, row.length, stop, room) for row, stop in zip(self.rows, stops, strict=True))
        )
        reads, slots, taken, column = [], [], [], 0
        for place, (row, stop) in enumerate(zip(self.rows, stops, strict=True)):
            first = group.first_seen(row.length)
            begin, origin = row.length, row.length  # first token to write; first token of the tensor to write from
            if overflows:
                reads.append(row.runs(number, first, row.length))
                begin, origin = row.turn(number, group.first_seen(stop)), first
            elif room is not None:
                row.slide(number, group.first_seen(max(0, row.length - self.store.undone)), stop)
            make_room(row, number, begin, stop)
            written = list_slots(row.runs(number, begin, stop))
            start = (column if self.varlen else place * (row.length - origin + columns)) + begin - origin
            column += stop - row.length
            slots += written
            taken.extend(range(start, start + len(written)))
            if not overflows:
                reads.append(row.runs(number, first, stop))
        if overflows and not self.alike:
            raise ConfigError("cache: a window takes this many new tokens of rows that are alike (fewer at a time)")
        where = self._map(reads, slots, ragged=not self.alike, overflows=overflows, singly=self._reads_apart(group))
        where.first = group.first_seen(self.rows[0].length) if self.alike else 0
        whole = len(taken) == len(self.rows) * columns and (not overflows or not any(reads))
        if where.write is not None and not whole:
            where.taken = torch.tensor(taken, device=self.store.device)
        return where

    def _overflows(self, group: LayerGroup, length: int, stop: int, room: int) -> bool:
        """Whether several new tokens and the tokens that they see need more than `room` pages, the most that a row
        has."""
        first, last = group.first_seen(length) // self.store.page, (stop - 1) // self.store.page
        return stop - length > 1 and last - first + 1 > room

    def _map(
        self, reads: list[list[Run]], slots: list[int], *, ragged: bool, overflows: bool = False, singly: bool = False
    ) -> SlotMapping:
        """Make the SlotMapping that reads these runs and writes these slots. Rows of equal length without a common
        stride are gathered, or with `singly` read one by one."""
        where, strided = SlotMapping(reads, overflows=overflows, ragged=ragged), _strided(reads)
        if not ragged:
            where.in_place = strided and not overflows
            where.ragged = singly and not strided and not overflows
            if not strided and not where.ragged:
                slots_read = [list_slots(runs) for runs in reads]  # B S, as rows have equally many
                where.index = torch.tensor(slots_read, dtype=torch.long, device=self.store.device)
        if where.in_place:
            where.kept = len(slots) // len(self.rows)
        elif slots:
            where.write = torch.tensor(slots, device=self.store.device)
        return where

    def _reads_apart(self, group: LayerGroup) -> bool:
        """Whether rows of equal length are attended one by one if their slots have no common stride. True only on a
        CPU, where gathering them takes 20 times longer (32 rows of 400 tokens, float32). Never true in a first pass:
        its bidirectional prefix, if any, must be given for all rows at once."""
        able = all(self.store.tower.blocks[kind].attention.passes.ragged for kind in group.kinds)
        return able and self.rows[0].length > 0 and self.store.device.type == "cpu" and not self.packs

    def lay_out_source(self, tokens: int | None) -> SlotMapping | None:
        """Map an encoder's keys to slots; None without cross-attention. `tokens` is the length of a source to write
        now; None if it is cached. Raises ConfigError if there is no room."""
        number = self.store.cross_group
        if number is None:
            return None
        if self.tensors is not None:
            return lay_pages(self.store, self.tensors, number)
        if tokens is not None:
            for row in self.rows:
                if not row.own(number, -(-tokens // self.store.page)):
                    raise ConfigError(f"cache: no room for a source of {tokens} tokens (allocate with source={tokens})")
                row.source = tokens
        reads = [row.runs(number, 0, row.source) for row in self.rows]
        slots = [] if tokens is None else [slot for runs in reads for slot in list_slots(runs)]
        return self._map(reads, slots, ragged=self.apart or len({row.source for row in self.rows}) > 1)


class TensorCache(Cache):
    """The rows of a pass, described only by tensors. No host code depends on their values, so that a pass can be
    recorded as a CUDA graph and replayed with other rows.

    Each row has at least one cached token and, in an encoder-decoder, its source.
    """

    longest, has_source, varlen, cu_seqlens_q = 1, True, False, None  # type: ignore[assignment]

    def __init__(self, store: Store, tensors: PassTensors) -> None:
        self.store, self.tensors, self._laid, self.recordings = store, tensors, {}, None
        self.layers = [LayerCache(layer, tensors.slots) for layer in store.layers]

    def begin(self, counts: Sequence[int] | None, new: int) -> None:
        """Do nothing: the tensors describe the pass."""

    def find_counts(self, new: int) -> Tensor | None:
        """Return the number of new tokens of each row [B], which may differ from replay to replay; None if it is 1."""
        return None if new == 1 else self.tensors.counts  # type: ignore[union-attr]

    def reach(self, new: int) -> int:
        """Return `new`, a lower bound of the longest row's length after the pass. Length limits were checked when
        requests were added."""
        return new

    def end(self, new: int) -> None:
        """Do nothing: `Graphs.run` lengthens the rows, outside the recording."""


def lay_pages(store: Store, tensors: PassTensors, number: int) -> SlotMapping:
    """Map the tokens of a pass to slots in a group, to be read by page table."""
    write, first, lengths, table = tensors.groups[number]
    if store.groups[number].rate > 1:  # the pass computes fewer slots than tokens
        write = write.view(len(table), -1)
        write = write[:, : count_windows(store.groups[number].rate, write.shape[1], None)].flatten()
    by_page = {"table": table.int(), "lengths": lengths.int(), "first": first, "page": store.page}
    return SlotMapping([], write=write, ragged=True, **by_page)


def _strided(rows: list[list[Run]]) -> bool:
    """Whether rows can be read as one strided view: single runs of equal length and equal distance, without overlap.
    Also True if all rows are empty."""
    if any(len(runs) != 1 for runs in rows):
        return not any(rows)
    starts = [runs[0][0] for runs in rows]
    lengths = {stop - start for ((start, stop),) in rows}
    strides = {b - a for a, b in pairwise(starts)}
    return len(lengths) == 1 and len(strides) <= 1 and all(stride >= next(iter(lengths)) for stride in strides)
