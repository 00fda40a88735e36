# B rows, T tokens, V vocabulary
"""The engine: requests of any length join and leave at any step. Token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError
from zoo.generation.cache import Cache
from zoo.generation.draws import DrawState
from zoo.generation.prefix import Prefixes
from zoo.generation.request import Event, Reason, Request
from zoo.generation.sampler import Sampler
from zoo.generation.scheduler import Chunk, Continuation, Scheduler
from zoo.generation.store import Store, plan_store, row_bytes
from zoo.generation.towers import check_length, check_prompt, find_reader, find_writer
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 32
"""Sequences that run at once, unless asked otherwise."""

CURE = "(sound weights, or dtype=fp32 if the model overflows)"

BUDGET = 512
"""Tokens that a step computes, unless asked otherwise."""


class Engine:
    """Continue many requests at once with one model.

    A step computes the next token of every running sequence and, within `budget` tokens, parts of prompts. The cache
    has room for `rows` sequences of `tokens` tokens (of an encoder-decoder: besides as many `source` tokens each), or
    for what fits `memory` bytes. Tokens that earlier requests began with are not computed again unless `reuse` is
    false. The model must stay in eval mode while requests are in flight; `serving` sees to it.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: int = ROWS,
        tokens: int | None = None,
        source: int | None = None,
        memory: int | None = None,
        budget: int = BUDGET,
        overcommit: float = 1.0,
        reuse: bool = True,
        dtype: Any = None,
        kernel: str | None = None,
    ) -> None:
        self.model, self.kernel = model, kernel
        self.writer, self.reader = find_writer(model.spec), find_reader(model.spec)
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, dtype or weight.dtype
        self.seq2seq = self.writer is not model.spec
        tokens = int(tokens or self.writer.max_seq_len)
        if self.writer.cacheable_until is not None:
            tokens = min(tokens, self.writer.cacheable_until)
        self.tokens, self.source = tokens, (source or self.reader.max_seq_len) if self.seq2seq else 0
        plain = not self.seq2seq and not getattr(self.writer, "prefix_lm", False)
        reuse = reuse and plain
        sizes = rows, self.tokens, self.source, self.dtype.itemsize, memory
        plan = plan_store(self.writer, *sizes, overcommit=overcommit, reuse=reuse)
        self.store = Store(self.writer, plan.pages, plan.slots, dtype=self.dtype, device=self.device)
        self.prefixes = Prefixes(self.store) if reuse else None
        self.scheduler = Scheduler(self.store, self.prefixes, budget=budget, rows=plan.rows, overcommit=overcommit)
        self.sampler = Sampler()
        self.live: dict[int, list[Continuation]] = {}
        self.fault = ""
        self._next = 0

    # ---------------------------------------------------------------- requests

    def add(self, request: Request) -> int:
        """Queue a request; the number under which its events come. Raises ConfigError for one that can never be served:
        tokens outside the vocabulary, no positions for its length, or more cache than there is."""
        check_prompt(self.reader, request.ids, self.seq2seq)
        ids = [self.model.spec.start_id] if self.seq2seq else list(request.ids)
        check_length(self.writer, len(ids), request.max_new_tokens)
        self._check_fits(request, len(ids))
        number, self._next = self._next, self._next + 1
        source = tuple(request.ids) if self.seq2seq else None
        self.live[number] = [
            Continuation(number, sample, request, list(ids), len(ids), self._draws(request, ids, sample), source)
            for sample in range(request.n)
        ]
        self.scheduler.waiting.extend(self.live[number])
        return number

    def _draws(self, request: Request, context: Sequence[int], sample: int) -> DrawState:
        copy = request.copy + sample
        options = {"context": context, "stop_ids": request.stop_ids, "guide": request.guide}
        return DrawState(request.sampling, request.ids, copy, **options)

    def _check_fits(self, request: Request, prompt: int) -> None:
        total, source = prompt + request.max_new_tokens, len(request.ids) if self.seq2seq else 0
        if self.writer.cacheable_until is not None:
            total = min(total, self.writer.cacheable_until)
        for group, pool in zip(self.store.groups, self.store.pools, strict=True):
            if group.pages(source if group.cross else total, page=self.store.page) > pool.count:
                need = row_bytes(self.writer, total, source, self.dtype.itemsize, page=self.store.page)
                found = f"a request of {total} tokens needs {need:,} bytes of cache, there are {self.store.nbytes:,}"
                raise ConfigError(f"memory: {found} (fewer max_new_tokens, a shorter prompt, or more memory)")

    def abort(self, number: int) -> list[Event]:
        """Drop a request; the events that end its samples. One that is not live gives none."""
        gone = [each for each in self.live.pop(number, []) if each.finished is None]
        self.scheduler.remove(gone)
        for each in gone:
            each.finished = "aborted"
        return [Event(number, each.sample, None, "aborted") for each in gone]

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return bool(self.live)

    # ---------------------------------------------------------------- steps

    def run(self, requests: Iterable[Request] = ()) -> Iterator[Event]:
        """Queue requests, and step until all are done."""
        for request in requests:
            self.add(request)
        with serving(self.model, self.kernel):
            while self.busy:
                yield from self.step()

    def step(self) -> list[Event]:
        """Compute one step; the tokens that came of it. Raises ZooError for logits that are NaN, after dropping the
        request that has them."""
        chunks = self.scheduler.plan()
        before = [chunk.sequence.row.length for chunk in chunks]  # type: ignore[union-attr]
        with torch.inference_mode():
            ready, logits = self._compute(chunks)
        self.scheduler.done(chunks, before)
        return self._choose(ready, logits) if ready else []

    def _compute(self, chunks: list[Chunk]) -> tuple[list[Continuation], Tensor | None]:
        """Run the passes of a step. Give the sequences whose next token can be chosen, and their logits [B, V]."""
        ready, logits = [], []
        for batch in self._passes(chunks):
            found = self._pass(batch)
            due = [place for place, chunk in enumerate(batch) if chunk.whole or chunk.sequence.left == 0]
            ready += [batch[place].sequence for place in due]
            if due:
                logits.append(found if len(due) == len(batch) else found[due])
        return ready, torch.cat(logits) if len(logits) > 1 else (logits[0] if logits else None)

    def _passes(self, chunks: list[Chunk]) -> Iterator[list[Chunk]]:
        """Chunks that go through the model together: the next tokens of all rows; and parts of prompts that are alike,
        equally many tokens after equally many."""
        together = all(block.attention.ragged for block in self.writer.blocks.values())
        batches: dict[Any, list[Chunk]] = {}
        for chunk in chunks:
            row, source = chunk.sequence.row, chunk.sequence.source
            assert row is not None
            alike: Any = (row.length, chunk.count, chunk.whole)
            if chunk.whole or not self._cached(chunk.sequence):
                alike = (*alike, source and len(source))
            elif together and chunk.count == 1:
                alike = None
            batches.setdefault(alike, []).append(chunk)
        yield from batches.values()

    def _cached(self, sequence: Continuation) -> bool:
        """Whether a pass needs no source: all but the first one of an encoder-decoder."""
        return sequence.source is None or bool(sequence.row and sequence.row.source)

    def _pass(self, batch: list[Chunk]) -> Tensor:
        """One forward of the next tokens of some sequences: the logits of their last [B, V]."""
        tokens = torch.tensor([chunk.tokens for chunk in batch], device=self.device)
        first, rows = batch[0].sequence, [chunk.sequence.row for chunk in batch]
        options: dict[str, Any] = {"logits_to_keep": 1}
        if not batch[0].whole:
            options["cache"] = Cache(self.store, rows)  # type: ignore[arg-type]
        if not self.seq2seq:
            if getattr(self.writer, "prefix_lm", False) and (batch[0].whole or not rows[0].length):  # type: ignore[union-attr]
                options["prefix"] = torch.tensor([chunk.sequence.prompt for chunk in batch], device=self.device)
            return self.model(tokens, **options).logits[:, -1]
        if batch[0].whole or not self._cached(first):
            source = torch.tensor([chunk.sequence.source for chunk in batch], device=self.device)
            options["memory"] = self.model.get_submodule("encoder")(source).hidden
        return self.model.get_submodule("decoder")(tokens, **options).logits[:, -1]

    def _choose(self, ready: list[Continuation], logits: Any) -> list[Event]:
        choices = self.sampler.choose(logits, [each.draws for each in ready])
        events = []
        for each, token in zip(ready, choices, strict=True):
            if token < 0:
                kind = str(logits.dtype).removeprefix("torch.")
                self.fault = f"has logits that are NaN or all -inf, in {kind} {CURE}"
                events.append(Event(each.request, each.sample, None, "failed"))
                self._finish(each, "failed")
                continue
            each.ids.append(token)
            each.draws.advance(token)
            reason: Reason | None = None
            if token in each.asked.stop_ids:
                reason = "stop"
            elif len(each.ids) >= each.total:
                reason = "length"
            events.append(Event(each.request, each.sample, token, reason))
            if reason:
                self._finish(each, reason)
        return events

    def _finish(self, sequence: Continuation, reason: Reason) -> None:
        sequence.finished = reason
        self.scheduler.leave(sequence)
        left = self.live[sequence.request]
        if all(each.finished for each in left):
            del self.live[sequence.request]


@contextmanager
def serving(model: Any, kernel: str | None = None) -> Iterator[None]:
    """Put the model in eval mode and set its kernel; restore both afterwards, module by module."""
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
