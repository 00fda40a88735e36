# B batch, T queries, S keys, D model width
"""One forward pass through a stack of layers: its positions and masks, and the Step for each kind of layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo import kernels
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.ring import Ring
from zoo.kernels.rows import PoolRow, PoolRows
from zoo.kernels.varlen import run_starts
from zoo.lazy import F, torch
from zoo.model.entries import POOL_TABLES, share_entries
from zoo.model.merging import merge_masks
from zoo.model.step import Inputs, QueryRun, Step
from zoo.ranks.seam import WHOLE, WHOLE_ROWS, ContextSeam, Seam

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.drops import Drops


class Scene:
    """The tokens of one pass as the layers of `spec` need them. Raises ConfigError for inputs that do not go together.

    `index` [S] is the token index: a token's place in its row, pads and the tokens in the cache included; of rows that
    are not alike, [B, T] for the new tokens alone.
    """

    def __init__(
        self,
        spec: Any,
        inputs: Inputs,
        seam: Seam = WHOLE,
        context: ContextSeam = WHOLE_ROWS,
        drops: Drops | None = None,
    ) -> None:
        self.spec, self.causal, self.cache = spec, bool(spec.causal), inputs.cache
        self.seam, self.context, self.drops = seam, context, drops
        self.documents, self.prefix = inputs.documents, inputs.prefix
        self._tables: dict[Any, Any] = {}
        read = self.cache is not None and self.cache.has_source  # its keys are in the cache already
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
        self._check(spec, inputs)
        if self.past is None and self.cache.varlen:  # type: ignore[union-attr]
            self.index = torch.tensor([self.cache.list_places()], device=self.device)  # type: ignore[union-attr]
            self.positions = self.every = self.index  # 1 N
        elif self.past is None:  # rows of other lengths
            starts = self.cache.starts  # type: ignore[union-attr]
            columns = torch.arange(self.new, device=self.device)[None]
            if inputs.counts is not None:  # padding stands where its row ends: there may be no position after that
                columns = torch.minimum(columns, torch.tensor(inputs.counts, device=self.device)[:, None] - 1)
            self.index = starts[:, None] + columns
            self.positions = self.every = self.index  # B T
        else:
            self.index = torch.arange(self.total, device=self.device)
            self.every = self._count_positions()  # B|1 S
            self.positions = self.every[:, self.past :]  # B|1 T
        self.real = self._find_real(inputs.counts)

    def _find_real(self, counts: Any) -> Tensor | None:
        """True for each new token that is no padding [B, T]; None where none is."""
        if self.padding is not None:
            return self.padding
        if counts is None or all(count == self.new for count in counts) or self.cache.varlen:  # type: ignore[union-attr]
            return None
        columns = torch.arange(self.new, device=self.device)
        return columns < torch.tensor(counts, device=self.device)[:, None]

    @property
    def own(self) -> int:
        """How many of the new tokens are this rank's own."""
        return sum(stop - start for start, stop in self.context.spans(self.new)) if self.context.active else self.new

    @property
    def table_positions(self) -> Tensor:
        """The positions to look up in a learned table [B|1, T]. A scheme with a `padding_id` does not count that token
        (RoBERTa)."""
        skipped = self.spec.position.padding_id
        if skipped is None or self.documents is not None:
            return self.positions
        if self.cache is not None:
            return torch.where(self.ids != skipped, self.positions, -1)
        counted = self.ids != skipped
        if self.padding is not None:
            counted = counted & self.padding
        return torch.where(counted, counted.long().cumsum(1) - 1, -1)

    def _check(self, spec: Any, inputs: Inputs) -> None:
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
        """The position of every token [B|1, S]: its place in its row or document, padding not counted."""
        if self.documents is not None:
            return self.index - torch.where(run_starts(self.documents), self.index, 0).cummax(1).values
        if self.padding is not None:
            return (self.padding.long().cumsum(1) - 1).clamp(min=0)
        return self.index[None]

    def _count_lengths(self) -> Tensor:
        """How many tokens each token's row or document has [B|1, 1|S], padding not counted.

        Documents [0, 0, 0, 1] have the lengths [3, 3, 3, 1]: from each token, the distance to the next document's start
        and its own position.
        """
        if self.documents is not None:
            total = self.index.shape[0]
            later = torch.where(run_starts(self.documents), self.index, total)[:, 1:]  # the start of a later document
            following = F.pad(later, (0, 1), value=total).flip(1).cummin(1).values.flip(1)
            return following - self.index + self.every
        if self.padding is not None:
            return self.padding.sum(1, keepdim=True)
        return self.positions[:, -1:] + 1

    def step(self, kind: str, kernel: str, x: Tensor, m: Any) -> Step:
        """Make the Step of the layers of this kind; `m` are the model's modules, x [B, T, D] the layers' input."""
        block = self.spec.blocks[kind]
        attention, dtype = block.attention, _compute_dtype(x)
        where = None if self.cache is None else self.cache.lay_out(attention.lender or kind, self.new)
        step = Step(
            mask=Mask(self.new, self.new),
            kernel=kernel,
            positions=self.context.own(self.positions),
            real=self.real,
            documents=self.context.own(self.documents),
            ids=self.context.own(self.ids),
            training=m.training,
            first=self.cache is None or not self.cache.longest,
            where=where,
            drops=self.drops,
            extra=dict(self.extra),
            seam=self.seam if self.seam.size > 1 else None,
            context=self.context if self.context.size > 1 else None,
        )
        own = m.position if self.spec.has_position else None
        position = attention.positioning
        if position is not None:
            step.tables = self._share_tables(position, attention.rotary_width, dtype, own)
            if attention.chooser is not None and attention.chooser.rotates_pools:
                step.extra[POOL_TABLES] = self._turn_pools(attention, own, where, dtype)
        if attention.sight.rate > 1:
            share_entries(self, step, attention, own, where, dtype)
        elif where is not None and where.table is not None:
            self._share_pages(step, attention, own, where)
        elif where is not None and where.ragged:
            step.rows = self._rows(attention, own, where)
        elif self.context.active:
            self._share_runs(step, attention, own)
        else:
            self._share(step, attention, own, where)
        if block.cross is not None:
            step.cross = self._cross(block.cross, kernel, dtype)
            if block.cross.merges:
                merge_masks(self, step)
        if attention.sight.rate == 1 and step.rows is None:
            self.draw(step, attention, dtype)
        return step

    def _share_tables(self, position: Any, width: int, dtype: Any, own: Any) -> Any:
        """The rotary tables of a scheme for heads so wide, made once for all kinds of layer that have them."""
        key = (position, width)
        if key not in self._tables:
            lengths = self._count_lengths() if position.reads_length else None
            places = self.context.own(self.positions)
            self._tables[key] = position.tables(places, width, dtype, lengths, own)
        return self._tables[key]

    def _turn_pools(self, attention: Any, own: Any, where: Any, dtype: torch.dtype) -> Any:
        """The rotation of an indexer's pooled keys, each by its first token's place in its text, for as many pools as
        there may be."""
        n_keys, pool = self.total, attention.chooser.pooled
        if where is not None and where.table is not None:
            n_keys = where.table.shape[1] * where.page
        places = torch.arange(n_keys // pool, device=self.device)[None] * pool  # 1 E
        return attention.positioning.tables(places, attention.rotary_width, dtype, None, own)

    def _share(self, step: Step, attention: Any, own: Any, where: Any) -> None:
        """Give the step a mask and a bias that serve rows which are alike."""
        first = 0 if where is None else where.first
        keys = self.index[first:]
        step.index = (self.index[self.past :], keys)
        step.mask = Mask(
            self.new,
            keys.shape[0],
            causal=self.causal,
            window=attention.sight.window,
            ahead=attention.sight.ahead,
            padding=self.padding,
            documents=self._apart(attention.sight.chunk, first),
            prefix=None if self.past else self.prefix,
        )
        position = attention.positioning
        if position is not None and not position.per_layer:
            step.bias = self.seam.bias(position, own, attention.score_heads, *step.index, self.causal)
        attention.prepare(own, step)

    def _share_runs(self, step: Step, attention: Any, own: Any) -> None:
        """Give the step a mask and a bias for each run of tokens that is this rank's: those of later tokens of the row,
        which read all keys up to their own."""
        chunk, position = attention.sight.chunk, attention.positioning
        chunks = self._apart(chunk, 0)
        for start, stop in self.context.spans(self.new):
            apart = None if chunks is None else (chunks[0][:, start:stop], chunks[1][:, :stop])
            mask = Mask(stop - start, stop, causal=True, window=attention.sight.window, documents=apart)
            places, bias = (self.index[start:stop], self.index[:stop]), None
            if position is not None and not position.per_layer:
                bias = self.seam.bias(position, own, attention.score_heads, *places, True)
            step.runs.append(QueryRun(mask, places, bias))
        step.mask = Mask(sum(each.mask.n_queries for each in step.runs), self.new)
        if self.context.rings:
            masks, biases = ([each[place] for each in step.runs] for place in (0, 2))
            ring = Ring.plan(self.context, self.new, masks, self.device)  # type: ignore[arg-type]
            step.ring = ring.with_biases(biases, attention.score_heads)

    def _share_pages(self, step: Step, attention: Any, own: Any, where: Any) -> None:
        """Give the step what rows that are read by page have in common: tensors of a row each, and no number that
        changes from pass to pass."""
        step.pages, step.page = where.table, where.page
        n_keys, chunk, chunks = where.table.shape[1] * where.page, attention.sight.chunk, None
        keys = where.first[:, None] + torch.arange(n_keys, device=self.device)  # B S
        if chunk and (self.new > 1 or chunk % where.page):  # else the first page is the first of the query's chunk
            chunks = (self.index // chunk, keys // chunk)
        reach = {"causal": self.causal, "window": attention.sight.window}
        step.mask = Mask(self.new, n_keys, **reach, documents=chunks, lengths=where.lengths)
        position = attention.positioning
        if position is not None and position.biases:
            step.index = (self.index, keys)
            if not position.per_layer:
                step.bias = self.seam.bias(position, own, attention.score_heads, *step.index, self.causal)

    def _rows(self, attention: Any, own: Any, where: Any) -> PoolRows:
        """The rows of a ragged pass: each with its own mask, and its own bias."""
        rows, position, chunk = [], attention.positioning, attention.sight.chunk
        scheme = position if position is not None and position.biases else None
        for number, (row, runs) in enumerate(zip(self.cache.rows, where.rows, strict=True)):  # type: ignore[union-attr]
            count = self.cache.count(number, self.new)  # type: ignore[union-attr]
            stop, held = row.length + count, sum(end - start for start, end in runs)
            keys: Any = torch.arange(stop - held, stop, device=self.device) if scheme or chunk else None
            chunks = None
            if chunk and count > 1:
                chunks = (keys[None, held - count :] // chunk, keys[None] // chunk)
            mask = Mask(count, held, causal=self.causal, window=attention.sight.window, documents=chunks)
            each = PoolRow(count, runs, mask)
            if scheme:
                each.index = (keys[held - count :], keys)
                if not scheme.per_layer:
                    each.bias = self.seam.bias(scheme, own, attention.score_heads, *each.index, self.causal)
            rows.append(each)
        return self.pool_rows(rows)

    def pool_rows(self, rows: list[PoolRow]) -> PoolRows:
        """The rows of a pass that are attended one by one."""
        assert self.cache is not None
        cache = self.cache
        return PoolRows(rows, splits=not cache.apart, packs=cache.packs, varlen=cache.varlen)

    def draw(self, step: Step, attention: Any, dtype: torch.dtype, mask: Mask | None = None) -> None:
        """Draw the mask, the step's own unless given, as this kind's kernel reads it, once for all of its layers."""
        if step.ring is not None:  # which has drawn what it reads
            return
        name, mask = str(dtype).removeprefix("torch."), mask or step.mask
        features = {**mask.features, "needs_grad": torch.is_grad_enabled(), "page": step.page or None}
        features |= {"dropout": self.drops is not None and self.drops.attention}
        later = self.past != 0 and not step.crosses
        if step.runs:
            for each in step.runs:
                ask = attention.ask(name, **{**features, **each.mask.features})
                kernels.prepare(each.mask, ask, self.device, dtype, bias=each.bias, kernel=step.kernel)
            return
        ask = attention.decode_ask(name, self.new, **features) if later else attention.ask(name, **features)
        if ask is not None:
            kernels.prepare(mask, ask, self.device, dtype, bias=step.bias, kernel=step.kernel)

    def _cross(self, attention: Any, kernel: str, dtype: torch.dtype) -> Step:
        """Make the step of cross-attention: every query sees the whole memory but its padding and other documents."""
        tokens = None if self.memory is None else self.memory.shape[1]
        where = None if self.cache is None else self.cache.lay_out_source(tokens)
        step = Step(Mask(self.new, 0), kernel, memory=self.memory, where=where, crosses=True)
        if where is not None and where.table is not None:
            step.pages, step.page = where.table, where.page
            step.mask = Mask(self.new, where.table.shape[1] * where.page, causal=False, lengths=where.lengths)
            self.draw(step, attention, dtype)
            return step
        if where is not None and where.ragged:
            rows = []
            for number, runs in enumerate(where.rows):
                count = self.cache.count(number, self.new)  # type: ignore[union-attr]
                rows.append(PoolRow(count, runs, Mask(count, sum(b - a for a, b in runs), causal=False)))
            step.rows = self.pool_rows(rows)
            return step
        held = tokens if where is None else sum(end - start for start, end in where.rows[0])
        apart = None if self.memory_documents is None else (self.documents, self.memory_documents)
        hides: Any = {"padding": self.memory_mask, "documents": apart}
        step.mask = Mask(self.new, held or 0, causal=False, **hides)
        self.draw(step, attention, dtype)
        return step

    def _apart(self, chunk: int | None, first: int) -> tuple[Tensor, Tensor] | None:
        """Number the documents, or the chunks in them, of queries [B, T] and keys [B, S] from token `first` on; None
        where there are none."""
        if chunk is None:
            return None if self.documents is None else (self.documents, self.documents)
        if self.cache is not None and self.total <= first + chunk:
            return None  # all in one chunk
        chunks = self.every // chunk  # B|1 S
        if self.documents is not None:
            chunks = chunks + self.documents * (self.index.shape[0] // chunk + 1)
        return chunks[:, self.past :], chunks[:, first:]


def _compute_dtype(x: Tensor) -> Any:
    """The dtype in which attention computes: autocast's where it is on."""
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)  # torch knows no autocast for meta
    return torch.get_autocast_dtype(kind) if autocast else x.dtype
