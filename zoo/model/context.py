# B batch, T queries, S keys, D model width
"""One forward pass through a stack of layers: its positions and masks, and the Step for each kind of layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from zoo import kernels
from zoo.distributed.seam import WHOLE, WHOLE_ROWS, ContextSeam, Seam
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.packed import count_in_run, find_run_firsts
from zoo.kernels.view import KeySegment, KeyView, PagedView, PooledView, RingView, SpreadView, count_slots
from zoo.kernels.view.joined import join_views
from zoo.lazy import Tensor, torch
from zoo.model.attention.entries import share_entries
from zoo.model.row_groups import RowGroups
from zoo.model.step import Inputs, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zoo.kernels.view import Run
    from zoo.kernels.view.slots import SlotMapping
    from zoo.model.attention.base import Attention
    from zoo.model.drops import Drops
    from zoo.model.position.base import Position
    from zoo.model.step import Weights
    from zoo.model.tower import Tower


class ForwardContext:
    """The positions, padding, documents and masks of one forward pass, computed once for all layers of the tower
    `spec`. Raises ConfigError for inputs that do not go together.

    `index` [S] is the token index: a token's place in its row, pads and the tokens in the cache included. If rows have
    different numbers of cached tokens, it covers only the new tokens: [B, T], or [1, N] for concatenated rows.
    """

    def __init__(
        self,
        spec: Tower,
        inputs: Inputs,
        seam: Seam = WHOLE,
        context: ContextSeam = WHOLE_ROWS,
        drops: Drops | None = None,
    ) -> None:
        self.spec, self.causal, self.cache = spec, bool(spec.causal), inputs.cache
        self.seam, self.context, self.drops = seam, context, drops
        self.documents, self.prefix = inputs.documents, inputs.prefix
        self._tables: dict[Any, Any] = {}
        read = self.cache is not None and self.cache.has_source  # the memory's keys are cached already
        self.memory, mask = None if read else inputs.memory, inputs.memory_mask
        self.memory_mask = None if mask is None else mask.bool()
        self.memory_documents = inputs.memory_documents
        everywhere = inputs.global_attention_mask
        self.extra = {} if everywhere is None else {"global": everywhere.bool()}
        if inputs.token_type_ids is not None:
            self.extra["types"] = inputs.token_type_ids
        self.padding = None if inputs.attention_mask is None else inputs.attention_mask.bool()
        self.ids, self.new = inputs.input_ids, inputs.input_ids.shape[1]
        self.device = self.ids.device
        if self.cache is not None:
            self.cache.begin(inputs.counts, self.new)
        self.past = 0 if self.cache is None else self.cache.past
        self.total = self.new if self.cache is None else self.cache.reach(self.new)
        self.rows: RowGroups | None = None
        self._check(spec, inputs)
        if self.past is None and self.cache.varlen:  # type: ignore[union-attr]
            self.index = torch.tensor([self.cache.list_places()], device=self.device)  # type: ignore[union-attr]
            self.positions = self.every = self.index  # 1 N
            if any(block.state() for block in spec.blocks.values()):
                slots = [row.slot for row in self.cache.rows]  # type: ignore[union-attr]
                self.rows = RowGroups(self.cache.counts, slots, self.device)  # type: ignore[union-attr, arg-type]
        elif self.past is None:  # rows of different lengths
            starts = self.cache.starts  # type: ignore[union-attr]
            columns = torch.arange(self.new, device=self.device)[None]
            if (counts := self.cache.find_counts(self.new)) is not None:  # type: ignore[union-attr]
                columns = torch.minimum(columns, counts[:, None] - 1)  # a table may have no further positions
            self.index = starts[:, None] + columns
            self.positions = self.every = self.index  # B T
        else:
            self.index = torch.arange(self.total, device=self.device)
            self.every = self._count_positions()  # B|1 S
            self.positions = self.every[:, self.past :]  # B|1 T
        self.real = self._find_real()

    def _find_real(self) -> Tensor | None:
        """Mark each new token that is not padding, True [B, T]. None if the inputs state no padding, or if rows are
        concatenated."""
        if self.padding is not None or self.cache is None:
            return self.padding
        counts = self.cache.find_counts(self.new)
        return None if counts is None else torch.arange(self.new, device=self.device) < counts[:, None]

    @property
    def own(self) -> int:
        """Number of new tokens on this rank."""
        return sum(stop - start for start, stop in self.context.spans(self.new)) if self.context.active else self.new

    @property
    def table_positions(self) -> Tensor:
        """The positions to look up in a learned table [B|1, T]. If the scheme has a `skip_id` (RoBERTa), tokens of
        that id get −1; without a cache positions do not count them. Packed rows keep their positions."""
        skipped = self.spec.position.skip_id
        if skipped is None or self.documents is not None:
            return self.positions
        if self.cache is not None:
            return torch.where(self.ids != skipped, self.positions, -1)
        counted = self.ids != skipped
        if self.padding is not None:
            counted = counted & self.padding
        return torch.where(counted, counted.long().cumsum(1) - 1, -1)

    def _check(self, spec: Tower, inputs: Inputs) -> None:
        if self.documents is not None and (self.cache is not None or self.padding is not None):
            raise ConfigError(
                "documents: packed rows take neither a cache nor an attention_mask (pass one or the other)"
            )
        if self.cache is None and inputs.counts is not None:
            raise ConfigError("counts: says how many tokens rows of a cache get, and there is none (attention_mask)")
        if self.cache is not None and self.padding is not None:
            raise ConfigError("attention_mask: rows of a cache have no padding but at their end (pass `counts`)")
        limit = spec.position.limit
        if limit is not None and self.total > limit:
            raise ConfigError(
                f"position: {spec.position.kind} has {limit} positions, the sequence has {self.total} (shorten it)"
            )
        stable = None if self.cache is None else spec.cacheable_until
        if stable is not None and self.total > stable:
            raise ConfigError(
                f"position: a cache drifts beyond {stable} tokens, the sequence has {self.total} (go without a cache)"
            )
        if self.padding is not None and self.padding.shape[1] != self.total:
            found = f"{self.padding.shape[1]} tokens, the sequence has {self.total}"
            raise ConfigError(f"attention_mask: has {found} (one number for each)")
        if self.memory_documents is not None and (self.documents is None or self.memory_mask is not None):
            found = "an encoder's rows are packed"
            raise ConfigError(f"memory_documents: {found} (number the decoder's too, and leave out masks)")
        whole = self.prefix is None or self.cache is None or self.past or torch.compiler.is_compiling()
        if not whole and int(self.prefix.max()) > self.new:  # type: ignore[union-attr]
            found = f"reaches token {int(self.prefix.max())}, {self.new} tokens came"  # type: ignore[union-attr]
            raise ConfigError(
                f"prefix: {found} (a prefix sees itself, so with a cache it comes whole in the first pass)"
            )
        if spec.reads_memory and self.memory is None and (self.cache is None or not self.cache.has_source):
            raise ConfigError("memory: the layers read an encoder's output, and none was given (pass it)")

    def _count_positions(self) -> Tensor:
        """Count the position of every token [B|1, S]: its place in its row or document, padding not counted."""
        if self.documents is not None:
            return self.index - find_run_firsts(self.documents)
        if self.padding is not None:
            return (self.padding.long().cumsum(1) - 1).clamp(min=0)
        return self.index[None]

    def _count_lengths(self) -> Tensor:
        """Count the tokens of each token's row or document [B|1, 1|S], padding not counted."""
        if self.documents is not None:
            return count_in_run(self.documents, torch.ones_like(self.documents, dtype=torch.bool))
        if self.padding is not None:
            return self.padding.sum(1, keepdim=True)
        return self.positions[:, -1:] + 1

    def step(self, kind: str, kernel: str, x: Tensor, m: Weights) -> Step:
        """Make the Step of the layers of this kind; `m` are the model's modules, x [B, T, D] the layers' input."""
        block = self.spec.blocks[kind]
        attention, dtype = block.attention, _compute_dtype(x)
        slots = (
            None
            if self.cache is None
            else self.cache.lay_out(attention.loan.lender if attention.loan else kind, self.new)
        )
        own = m.position if self.spec.has_position else None
        step = Step(
            KeyView(Mask(self.new, self.new)),
            kernel,
            positions=self.context.own(self.positions),
            real=self.real,
            rows=self.rows,
            documents=self.context.own(self.documents),
            ids=self.context.own(self.ids),
            training=m.training,
            first=self.cache is None or not self.cache.longest,
            drops=self.drops,
            extra=dict(self.extra),
            seam=self.seam if self.seam.size > 1 else None,
        )
        position = attention.positioning
        if position is not None:
            step.tables = self._share_tables(position, attention.rotary_width, dtype, own)
            if attention.chooser is not None:
                rotate = partial(position.tables, head_dim=attention.rotary_width, dtype=dtype, m=own)
                attention.chooser.prepare(self, step, slots, rotate)
        if attention.sight.rate > 1:
            share_entries(self, step, attention, own, slots, dtype)  # type: ignore[arg-type]
        else:
            step.keys = self.see(attention, own, slots)
            if type(step.keys) is KeyView:
                attention.prepare(own, step)
        if block.cross is not None:
            step.cross = self._cross(block.cross, kernel, dtype)
            if not block.crosses:
                step.keys = join_views(step.cross.keys, step.keys, self.device, self.pool)
        if attention.sight.rate == 1:
            self.draw(step, attention, dtype)
        return step

    def _share_tables(self, position: Position, width: int, dtype: torch.dtype, own: Weights | None) -> Any:
        """Make a scheme's rotary tables for heads of `width` channels, once for all kinds of layer that share them."""
        key = (position, width)
        if key not in self._tables:
            lengths = self._count_lengths() if position.reads_length else None
            places = self.context.own(self.positions)
            self._tables[key] = position.tables(places, width, dtype, lengths, own)
        return self._tables[key]

    def see(self, attention: Attention, own: Weights | None, slots: SlotMapping | None) -> KeyView:
        """Make the view of the keys that layers with this attention see, if each key stands for one token. This method
        chooses the layout of these keys; `share_entries` does so for compressed entries, and `_cross` for
        cross-attention."""
        if slots is not None and slots.table is not None:
            return self._see_pages(attention, own, slots)
        if slots is not None and slots.ragged:
            return self.pool([self._see_row(attention, own, *each) for each in self.list_rows(slots)], slots)
        chunk = attention.sight.chunk
        if self.context.active:
            return self._see_spans(attention, own, self._apart(chunk, 0))
        first = 0 if slots is None else slots.first
        places = self.index[self.past :], self.index[first:]
        hides = {"padding": self.padding, "documents": self._apart(chunk, first)}
        prefix = None if self.past else self.prefix
        segment = self._segment(attention, own, places, prefix=prefix, **hides)
        return KeyView(segment.mask, places, segment.bias, slots)

    def _segment(
        self, attention: Attention, own: Weights | None, places: Any, runs: Sequence[Run] = (), **hides: Any
    ) -> KeySegment:
        """Make the KeySegment of some queries and keys: its mask, and the bias that layers share. `places` has two
        items, for queries and for keys: their places in the row, or only their number (then there is no bias)."""
        sizes = [each if isinstance(each, int) else each.shape[-1] for each in places]
        reach = {"causal": self.causal, "window": attention.sight.window, "ahead": attention.sight.ahead}
        found = KeySegment(Mask(*sizes, **reach, **hides), list(runs))
        position = attention.positioning
        if position is not None and not isinstance(places[0], int):
            found.index = places
            if not position.per_layer:
                found.bias = self.seam.bias(position, own, attention.score_heads, *places, self.causal)
        return found

    def _see_spans(self, attention: Attention, own: Weights | None, chunks: tuple[Tensor, Tensor] | None) -> KeyView:
        """Make the view of the keys for this rank's runs of a row's tokens. Each run sees all keys up to its own last
        token."""
        found = []
        for start, stop in self.context.spans(self.new):
            apart = None if chunks is None else (chunks[0][:, start:stop], chunks[1][:, :stop])
            places = self.index[start:stop], self.index[:stop]
            found.append(self._segment(attention, own, places, documents=apart))
        if self.context.rings:
            return RingView(found, self.context, self.new, attention.score_heads, self.device)
        return SpreadView(found, self.context, self.new)

    def _see_pages(self, attention: Attention, own: Weights | None, slots: SlotMapping) -> PagedView:
        """Make the view of rows whose keys are read by page table. Everything that changes between passes is in tensors
        with one item per row."""
        cache, chunk, chunks = self.cache, attention.sight.chunk, None
        new = max(cache.counts) if cache.varlen else self.new  # type: ignore[union-attr, type-var, arg-type]
        places: Any = new, slots.n_keys
        if chunk or _biases(attention):
            columns = torch.arange(-new, slots.n_keys, device=self.device)
            keys = slots.first[:, None] + columns[new:]  # type: ignore[index]  # B S
            queries = (slots.first + slots.lengths)[:, None] + columns[:new]  # type: ignore[operator]  # B T
            places = (queries, keys) if _biases(attention) else places
            if chunk and (new > 1 or chunk % slots.page):  # else the first page is the first of the query's chunk
                chunks = (queries // chunk, keys // chunk)
        hides = {"documents": chunks, "lengths": slots.lengths, "cu_seqlens_q": cache.cu_seqlens_q}  # type: ignore[union-attr]
        segment = self._segment(attention, own, places, **hides)
        return PagedView(segment.mask, segment.index, segment.bias, slots)

    def list_rows(self, slots: SlotMapping) -> Iterator[tuple[int, int, list[Run]]]:
        """Yield each row's number of queries, the place after its last query, and the runs of its keys."""
        assert self.cache is not None
        for number, (row, runs) in enumerate(zip(self.cache.rows, slots.rows, strict=True)):
            count = self.cache.count(number, self.new)
            yield count, row.length + count, runs

    def _see_row(
        self, attention: Attention, own: Weights | None, count: int, stop: int, runs: Sequence[Run]
    ) -> KeySegment:
        """Make the KeySegment of a row that is attended separately. The row's last key is at place `stop` − 1."""
        held, chunk, chunks = count_slots(runs), attention.sight.chunk, None
        places: Any = count, held
        if _biases(attention) or chunk:
            keys = torch.arange(stop - held, stop, device=self.device)
            places = (keys[held - count :], keys) if _biases(attention) else places
            if chunk and count > 1:
                chunks = (keys[None, held - count :] // chunk, keys[None] // chunk)
        return self._segment(attention, own, places, runs, documents=chunks)

    def pool(self, rows: list[KeySegment], slots: SlotMapping) -> PooledView:
        """Make the view of rows that are attended one by one."""
        cache = self.cache
        assert cache is not None
        how = {"splits": not cache.apart, "packs": cache.packs, "varlen": cache.varlen}
        return PooledView(rows, **how, tokens=self.new, slots=slots)

    def draw(self, step: Step, attention: Attention, dtype: torch.dtype, mask: Mask | None = None) -> None:
        """Prepare masks in the form that this attention's kernel reads, once for all layers of the kind: `mask` if
        given, else the masks of the step's keys. Does nothing if the keys' view makes its masks when it attends."""
        keys = step.keys
        if isinstance(keys, PooledView) or keys.travels:  # these make masks where they attend
            return
        if self.cache is not None:
            keys.kernels = []
        name, page = str(dtype).removeprefix("torch."), keys.slots.page if keys.pooled else None
        given = {"needs_grad": torch.is_grad_enabled(), "page": page}
        given["dropout"] = self.drops is not None and self.drops.attention
        later = self.past != 0 and not step.crosses and not self.context.active
        for segment in keys.segments if mask is None else [KeySegment(mask)]:
            features = {**segment.mask.features, **given}
            ask = (
                attention.decode_ask(name, segment.mask.n_queries, **features)
                if later
                else attention.ask(name, **features)
            )
            if ask is not None:
                kernels.prepare(segment.mask, ask, self.device, dtype, bias=segment.bias, kernel=step.kernel)

    def _cross(self, attention: Attention, kernel: str, dtype: torch.dtype) -> Step:
        """Make the step of cross-attention: every query sees the whole memory except padding and other documents."""
        tokens = None if self.memory is None else self.memory.shape[1]
        slots = None if self.cache is None else self.cache.lay_out_source(tokens)
        if slots is not None and slots.table is not None:
            mask = Mask(self.new, slots.n_keys, causal=False, lengths=slots.lengths)
            keys: KeyView = PagedView(mask, slots=slots)
        elif slots is not None and slots.ragged:
            rows = ((Mask(count, count_slots(runs), causal=False), runs) for count, _, runs in self.list_rows(slots))
            keys = self.pool([KeySegment(*each) for each in rows], slots)
        else:
            held = tokens if slots is None else count_slots(slots.rows[0])
            apart = None if self.memory_documents is None else (self.documents, self.memory_documents)
            mask = Mask(self.new, held or 0, causal=False, padding=self.memory_mask, documents=apart)  # type: ignore[arg-type]
            keys = KeyView(mask, slots=slots)
        step = Step(keys, kernel, memory=self.memory, crosses=True)
        self.draw(step, attention, dtype)
        return step

    def _apart(self, chunk: int | None, first: Any) -> tuple[Tensor, Tensor] | None:
        """Number the documents of queries [B, T] and of keys [B, S]; the first key is token `first` of the row. With
        `chunk`, number the chunks of that many tokens within documents. None if nothing separates tokens."""
        if chunk is None:
            return None if self.documents is None else (self.documents, self.documents)
        if self.cache is not None and self.total <= first + chunk:
            return None  # all in one chunk
        chunks = self.every // chunk  # B|1 S
        if self.documents is not None:
            chunks = chunks + self.documents * (self.index.shape[0] // chunk + 1)
        return chunks[:, self.past :], chunks[:, first:]


def _biases(attention: Attention) -> bool:
    return attention.positioning is not None and attention.positioning.biases


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)  # torch knows no autocast for meta
    return torch.get_autocast_dtype(kind) if autocast else x.dtype
