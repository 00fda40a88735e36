# B rows, T tokens, K logits of a row, V vocabulary
"""Run the forward passes of a step: choose the tokens that share a pass, and call the model with its cache."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zoo.cache.cache import Cache
from zoo.cache.pool_store import Store
from zoo.errors import ConfigError
from zoo.generation.graphs import Graphs
from zoo.generation.scheduler import Chunk, RunningSequence
from zoo.lazy import Tensor, torch
from zoo.run.cache_layout import takes_varlen
from zoo.spec import Experts, Linear, walk

if TYPE_CHECKING:
    from zoo.model.tower import Topology, Tower
    from zoo.run.layer import Model


class EnginePasses:
    """Run the tokens of a step through `model`, whose cache is `store`. With `deterministic` a row's bits do not depend
    on the other rows of the batch. `graphs` replays decoding passes, also with drafts."""

    def __init__(
        self, model: Model, writer: Tower, store: Store, device: torch.device, *, deterministic: bool = False
    ) -> None:
        self.model, self.writer, self.store, self.device = model, writer, store, device
        self.seq2seq, self.deterministic = writer is not model.spec, deterministic
        self.graphs: Graphs | None = None
        from zoo.run.recording_plan import Recordings

        self.recordings = Recordings()
        self.recurrent = any(block.state() for block in writer.blocks.values())

    def batches(self, chunks: list[Chunk]) -> Iterator[list[Chunk]]:
        """Yield the chunks of each forward pass. If the model can read chunks concatenated (varlen, `_lies_flat`), one
        pass reads them as [1, N], except `whole` chunks, chunks of requests with prompt_logprobs, and too long chunks
        (`_list_fitting`). Other decoding chunks share a pass if the attention accepts ragged rows. All others share a
        pass with rows of equally many cached and new tokens, and of equally long sources if the pass reads an encoder's
        sources. With `deterministic`, see `_stable_batches`."""
        if self.deterministic:
            yield from self._stable_batches(chunks)
            return
        if self._lays_flat and any(chunk.count > 1 and not chunk.draft for chunk in chunks):
            plain = (chunk for chunk in chunks if not chunk.whole and chunk.sequence.asked.prompt_logprobs is None)
            flat = self._list_fitting(plain)
            if self._lies_flat(flat):
                yield flat
                chunks = [chunk for chunk in chunks if chunk not in flat]
        together = all(block.attention.passes.ragged for block in self.writer.blocks.values())
        batches: dict[Any, list[Chunk]] = {}
        for chunk in chunks:
            row, source = chunk.sequence.row, chunk.sequence.source
            assert row is not None
            alike: Any = (row.length, chunk.count, chunk.whole)
            if chunk.whole or not self.cached(chunk.sequence):
                alike = (*alike, source and len(source))
            elif together and (chunk.count == 1 or chunk.draft):
                alike = None
            batches.setdefault(alike, []).append(chunk)
        yield from batches.values()

    @cached_property
    def _lays_flat(self) -> bool:
        """Whether the model's layers can read short rows (`_longest_flat`) concatenated at no extra cost. Not so:
        compressed attention, chunked windows, positions by row length, prefix-LMs and encoder-decoders."""
        blocks = self.writer.blocks.values()
        able = all(each.varlen and each.ragged for block in blocks if (each := block.attention.passes))
        fixed = not any(each.reads_length for block in blocks if (each := block.attention.positioning))
        plain = not (self.seq2seq or getattr(self.writer, "prefix_lm", False))
        return able and fixed and plain and not any(group.chunk for group in self.store.groups)

    @property
    def _takes_varlen(self) -> bool:
        """Whether both the model (`_lays_flat`) and, for a paged store (as on CUDA), the kernels can read concatenated
        rows."""
        if not self._lays_flat or not self.store.paged:
            return self._lays_flat
        if next(self.model.parameters()).dtype != self.store.dtype:  # keys are copied, to be cast
            return False
        return takes_varlen(self.writer, self.store.dtype, self.device, self.model.kernel, self.store.page)

    @cached_property
    def _longest_flat(self) -> float:
        """Maximum tokens of a chunk that is concatenated at no extra cost (for MLA, the limit of absorption)."""
        return min(block.attention.passes.varlen for block in self.writer.blocks.values())

    def _list_fitting(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """List the chunks that can be concatenated: they are short enough for every layer's attention, and there are
        pages for every window. During the pass a row holds all of its new tokens and all tokens that these see;
        `Cache.end` then frees what later tokens do not see."""
        spare, found = [pool.available for pool in self.store.pools], []
        for chunk in chunks:
            row = chunk.sequence.row
            assert row is not None
            lacks = [row.count_lacking(number, row.length + chunk.count) for number in range(len(spare))]
            if chunk.count <= self._longest_flat and all(map(operator.le, lacks, spare)):
                spare = [*map(operator.sub, spare, lacks)]
                found.append(chunk)
        return found

    def _lies_flat(self, batch: list[Chunk]) -> bool:
        """Whether a batch is concatenated: some chunk is part of a prompt, the chunks differ in numbers of cached or
        new tokens, and the model can read concatenated rows (`_takes_varlen`)."""
        if self.deterministic or not any(chunk.count > 1 and not chunk.draft for chunk in batch):
            return False
        alike = {(chunk.sequence.row.length, chunk.count) for chunk in batch}  # type: ignore[union-attr]
        return len(alike) > 1 and self._takes_varlen

    def _stable_batches(self, chunks: list[Chunk]) -> Iterator[list[Chunk]]:
        """Yield the chunks of each pass under `deterministic`: decoding rows together if the model was prepared as
        `stable`, otherwise one chunk at a time."""
        ready = getattr(self.model, "ready", None)
        single = [chunk for chunk in chunks if chunk.count == 1 and not chunk.whole and self.cached(chunk.sequence)]
        together = ready is not None and ready.stable and not self._mixes_rows
        if together and single:
            yield single
        yield from ([chunk] for chunk in chunks if not (together and chunk in single))

    @cached_property
    def _mixes_rows(self) -> bool:
        """Whether a layer multiplies several rows in one matrix product outside prepared Linears, as recurrences and
        absorbed MLA do."""
        parts = (part for _, part in walk(self.writer, self.writer.d_model))
        return self.recurrent or any(isinstance(part, Linear) and part.bare for part in parts)

    def cached(self, sequence: RunningSequence) -> bool:
        """Whether the next pass of a sequence needs no source tokens: all but an encoder-decoder's first pass."""
        return sequence.source is None or bool(sequence.row and sequence.row.source)

    def run(self, batch: list[Chunk]) -> Sequence[Tensor]:
        """Run one forward pass over a batch of chunks. Return for each chunk the logits [K, V] after its last K
        tokens."""
        names = [chunk.sequence.asked.adapter for chunk in batch]
        if not any(names):
            return self._run(batch, replayed=True)
        counts = [chunk.count for chunk in batch] if self._lies_flat(batch) else None
        with self.model.served.choose(names, counts, apart=self.deterministic):  # type: ignore[attr-defined]
            return self._run(batch, replayed=False)

    def _run(self, batch: list[Chunk], *, replayed: bool) -> Sequence[Tensor]:
        """Run one forward pass. With `replayed`, CUDA graphs and recordings of layers may be replayed instead."""
        first, rows = batch[0].sequence, [chunk.sequence.row for chunk in batch]
        counts = [chunk.count for chunk in batch]
        longest, varlen = max(counts), self._lies_flat(batch)
        if replayed and self.graphs is not None and not batch[0].whole and self.cached(first):
            logits = self.graphs.run(rows, [chunk.tokens for chunk in batch])  # type: ignore[arg-type]
            if logits is not None:
                return logits
        if varlen:
            ids = [[token for chunk in batch for token in chunk.tokens]]
        else:
            ids = [chunk.tokens + [0] * (longest - chunk.count) for chunk in batch]
        tokens = torch.tensor(ids, device=self.device)
        scored = any(chunk.sequence.asked.prompt_logprobs is not None for chunk in batch)
        keep = longest if scored else 1 + max(len(chunk.draft) for chunk in batch)
        options: dict[str, Any] = {"logits_to_keep": keep}
        if not batch[0].whole:
            apart = self.deterministic and longest == 1
            recordings = self.recordings if replayed else None
            how: dict[str, Any] = {"apart": apart, "packs": self.deterministic, "recordings": recordings}
            options["cache"] = Cache(self.store, rows, varlen=varlen, **how)  # type: ignore[arg-type]
            options["counts"] = counts if varlen or min(counts) < longest else None
        if not self.seq2seq:
            if getattr(self.writer, "prefix_lm", False) and (batch[0].whole or not rows[0].length):  # type: ignore[union-attr]
                options["prefix"] = torch.tensor([chunk.sequence.prompt for chunk in batch], device=self.device)
            return self.model(tokens, **options).logits
        if batch[0].whole or not self.cached(first):
            source = torch.tensor([chunk.sequence.source for chunk in batch], device=self.device)
            options["memory"] = self.model.get_submodule("encoder")(source).hidden
        return self.model.get_submodule("decoder")(tokens, **options).logits


def check_deterministic(spec: Topology, speculate: int, paged: bool | None = None) -> None:
    """Check that a model and its options support `deterministic`. Raises ConfigError for paging, drafts and experts."""
    if paged:
        raise ConfigError("paged: rows that are read together may differ in bits from a row alone (false)")
    if speculate:
        raise ConfigError("speculate: a draft's tokens are computed together, and would differ in bits (0)")
    if any(isinstance(part, Experts) for _, part in walk(spec, spec.d_model)):
        raise ConfigError("deterministic: an expert's products differ in bits with the rows that it gets (false)")


@contextmanager
def serving(model: Model, kernel: str | None = None) -> Iterator[None]:
    """Put the model in eval mode and set its kernel. Both are restored on exit, the mode module by module."""
    training = [module for module in model.modules() if module.training]
    before = model.kernel
    model.eval()
    if kernel is not None:
        model.kernel = kernel
    try:
        yield
    finally:
        model.kernel = before
        for module in training:
            module.training = True
