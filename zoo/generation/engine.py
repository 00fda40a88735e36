# B rows, T tokens, V vocabulary
"""Generate with continuous batching: requests of any length join and leave at any step. Token ids in, token ids out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zoo.cache.encoder_reuse import Sources
from zoo.cache.pool_store import Store, plan_store, token_bytes
from zoo.cache.prefix import Prefixes
from zoo.errors import ConfigError
from zoo.generation.beams import Beams, check_beams
from zoo.generation.engine_sizes import size_engine
from zoo.generation.graphs import make_graphs
from zoo.generation.invariants import ensure_drained
from zoo.generation.overlap import OverlappedSteps
from zoo.generation.passes import EnginePasses, check_deterministic, serving
from zoo.generation.prompt_towers import check_length, check_prompt, find_reader, find_writer
from zoo.generation.proposals import DraftModel, NGrams, Proposer
from zoo.generation.request import Event, Reason, Request
from zoo.generation.scheduler import Chunk, RunningSequence, Scheduler
from zoo.lazy import Tensor, torch
from zoo.run.cache_layout import choose_layout
from zoo.run.served_adapters import check_adapter
from zoo.sampling.draws import DrawState
from zoo.sampling.sampler import Sampler, find_logprobs, join_rows
from zoo.sampling.speculate import accept

if TYPE_CHECKING:
    from zoo.run.layer import Model

CURE = "(sound weights, or dtype=fp32 if the model overflows)"

TILE = 64
"""Prompt tokens per pass with `deterministic`, which requires bit-identical results."""


class Engine:
    """Generate for many requests at once with one model (continuous batching).

    A step computes one token of every decoding sequence, and chunks of the other sequences' prompts, at most `budget`
    tokens in all, drafts not counted. While any sequence decodes, a step computes at most `max_prefill_tokens` prompt
    tokens: a smaller number shortens the time between tokens and lengthens the time to the first token.

    The cache has room for `rows` sequences of `tokens` tokens (for an encoder-decoder also `source` tokens each), or
    for fewer if only these fit in `memory` bytes. `rows` and `budget` default to values for the device (`size_engine`).
    `memory` is unlimited by default. On a GPU it defaults to the free memory if `rows` is not given either. For
    `overcommit` see the Scheduler. Prefixes and sources of earlier requests are reused unless `reuse` is false.

    Speculative decoding proposes up to `speculate` tokens a step, from the model `draft`, or else from n-grams of the
    text. With `deterministic`, a request's log-probabilities are bit-identical whatever else is in the batch: prompts
    are computed TILE tokens at a time, and sequences one by one unless the model was prepared by `zoo.prepare(model,
    stable=True)`. While requests are in flight the model must stay in eval mode (see `serving`), and its weights must
    not change (recorded layers are replayed).

    `paged` reads decoding sequences by page table (default: on every device but a CPU); `page` is the page size in
    tokens (default: the size that the device's kernels read). On CUDA, decoding steps, verified drafts and a draft
    model's own steps are replayed as CUDA graphs unless `graphs` is false; `note` is called with a line if recording
    fails. `dtype` is the cache's (default: the weights' dtype).
    """

    def __init__(
        self,
        model: Model,
        *,
        rows: int | None = None,
        tokens: int | None = None,
        source: int | None = None,
        memory: int | None = None,
        budget: int | None = None,
        max_prefill_tokens: int | None = None,
        overcommit: float = 1.0,
        reuse: bool = True,
        draft: Model | None = None,
        speculate: int = 0,
        deterministic: bool = False,
        paged: bool | None = None,
        page: int | None = None,
        graphs: bool | None = None,
        dtype: torch.dtype | None = None,
        kernel: str | None = None,
        note: Callable[[str], object] = warnings.warn,
    ) -> None:
        self.model, self.kernel, self.deterministic = model, kernel, deterministic
        if deterministic:
            check_deterministic(model.spec, speculate, paged)
        self.writer, self.reader = find_writer(model.spec), find_reader(model.spec)
        weight = next(each for each in model.parameters() if each.device.type != "meta")  # packed weights are on meta
        self.device, self.dtype = weight.device, dtype or weight.dtype
        self.seq2seq = self.writer is not model.spec
        tokens = int(tokens or self.writer.max_seq_len)
        if self.writer.cacheable_until is not None:
            tokens = min(tokens, self.writer.cacheable_until)
        self.tokens, self.source = tokens, (source or self.reader.max_seq_len) if self.seq2seq else 0
        defaults = size_engine(self.device, self.writer.output_vocab_size, speculate + 1)
        memory = defaults.memory if rows is None and memory is None else memory
        memory = memory if memory is None else model.seam.take_least(memory)  # ranks must run the same steps
        rows, budget = rows or defaults.rows, budget or defaults.budget
        sources = reuse and self.seq2seq
        reuse = reuse and not self.seq2seq and not getattr(self.writer, "prefix_lm", False)
        sizes = rows, self.tokens, self.source, self.dtype.itemsize, memory
        layout = {"paged": False if deterministic else paged, "page": page}
        layout = choose_layout(self.writer, self.dtype, self.device, kernel or model.kernel, **layout)
        layout["new"] = speculate + 1
        plan = plan_store(self.writer, *sizes, overcommit=overcommit, reuse=reuse, **layout)
        self.store = Store(self.writer, plan.pages, plan.slots, dtype=self.dtype, device=self.device, **layout)
        aligned = {"interval": TILE, "align": TILE} if deterministic else {}
        self.prefixes = Prefixes(self.store, **aligned) if reuse else None
        limits: dict[str, Any] = {"budget": budget, "rows": plan.rows, "overcommit": overcommit}
        limits |= {"max_prefill_tokens": max_prefill_tokens, "tile": TILE if deterministic else None}
        self.sources = Sources(self.store) if sources else None
        self.scheduler = Scheduler(self.store, self.prefixes, self.sources, **limits)
        self.sampler, self.verifier = Sampler(), Sampler()
        self.passes = EnginePasses(model, self.writer, self.store, self.device, deterministic=deterministic)
        self.passes.graphs = make_graphs(model, self.writer, self.store, plan.rows, asked=graphs, note=note)
        self.proposer: Proposer | None = None
        if speculate:
            how: dict[str, Any] = {"rows": plan.rows, "tokens": tokens, "ahead": speculate}
            how |= {"graphs": graphs, "note": note}
            self.proposer = NGrams() if draft is None else DraftModel(draft, self.writer.output_vocab_size, **how)
        self.overlap = OverlappedSteps(self.passes, self.scheduler)
        self.live: dict[int, list[RunningSequence]] = {}
        self._next = 0

    # ---------------------------------------------------------------- requests

    def add(self, request: Request) -> int:
        """Queue a request, and return its number in events. Raises ConfigError for invalid options, and for a request
        that can never be served: tokens outside the vocabulary, too few positions, or too small a cache."""
        check_prompt(self.reader, request.ids, self.seq2seq)
        ids = [self.model.spec.start_id] if self.seq2seq else list(request.ids)  # type: ignore[attr-defined]
        check_length(self.writer, len(ids), request.max_new_tokens)
        request.sampling.check_vocabulary(self.writer.output_vocab_size)
        check_beams(request, self.writer.output_vocab_size)
        self._check_options(request)
        self._check_fits(request, len(ids))
        number, self._next = self._next, self._next + 1
        source = tuple(request.ids) if self.seq2seq else None
        samples = 1 if request.n_beams > 1 else request.n
        self.live[number] = [
            RunningSequence(number, sample, request, list(ids), len(ids), self._draws(request, ids, sample), source)
            for sample in range(samples)
        ]
        for each in self.live[number][1:]:
            each.leader = self.live[number][0]
        self.scheduler.waiting.extend(self.live[number])
        return number

    def _check_options(self, request: Request) -> None:
        check_adapter(self.model, request.adapter)
        if request.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens: is {request.max_new_tokens}, not 1 or more")
        if request.prompt_logprobs is not None and self.seq2seq:
            raise ConfigError("prompt_logprobs: an encoder reads the prompt, and predicts nothing of it (leave it out)")
        if request.sampling.min_tokens > request.max_new_tokens:
            found = f"is {request.sampling.min_tokens}, and at most {request.max_new_tokens} tokens come"
            raise ConfigError(f"min_tokens: {found} (fewer, or more max_new_tokens)")
        if request.n < 1:
            raise ConfigError(f"n: is {request.n}, not 1 or more")
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(request, name) or 0) < 0:
                raise ConfigError(f"{name}: is {getattr(request, name)}, not 0 or more (leave it out for none)")

    def _draws(self, request: Request, context: Sequence[int], sample: int) -> DrawState:
        options = {"context": context, "stop_ids": request.stop_ids, "guide": request.guide}
        return DrawState(request.sampling, request.ids, request.copy + sample, **options)

    def _check_fits(self, request: Request, prompt: int) -> None:
        total, source = prompt + request.max_new_tokens, len(request.ids) if self.seq2seq else 0
        if self.writer.cacheable_until is not None:
            total = min(total, self.writer.cacheable_until)
        if request.n_beams > self.scheduler.rows:
            found = f"{request.n_beams} beams are as many rows at once, there are {self.scheduler.rows}"
            raise ConfigError(f"n_beams: {found} (fewer, or an engine of more rows)")
        for group, pool in zip(self.store.groups, self.store.pools, strict=True):
            pages = request.n_beams * self.store.pages_of(group, source if group.cross else total)
            if pages > pool.count:
                size = math.ceil(self.store.page * token_bytes(self.writer, group, self.dtype.itemsize))
                where = f" in layers '{', '.join(group.kinds)}'" if len(self.store.groups) > 1 else ""
                need = f"a request of {total} tokens needs {pages * size:,} bytes of cache{where}"
                found = f"{need}, there are {pool.count * size:,}"
                raise ConfigError(f"memory: {found} (fewer max_new_tokens, a shorter prompt, or more memory)")

    def abort(self, number: int, sample: int | None = None) -> list[Event]:
        """Abort a request, or one of its samples, and return the "aborted" events; [] if the request has ended. A beam
        search is aborted as a whole, as sample 0."""
        live = self.live.get(number, [])
        gone = [each for each in live if each.finished is None and sample in (None, each.sample)]
        self.scheduler.remove(gone)
        for each in gone:
            each.finished = "aborted"
            if self.proposer is not None:
                self.proposer.forget(each)
        if all(each.finished for each in live):
            self.live.pop(number, None)
        samples = [range(each.asked.n) if each.asked.n_beams > 1 else (each.sample,) for each in gone]
        return [Event(number, sample, None, "aborted") for own in samples for sample in own]

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return bool(self.live)

    # ---------------------------------------------------------------- steps

    def run(self, requests: Iterable[Request] = ()) -> Iterator[Event]:
        """Queue requests, and yield the events of each step until all requests are done."""
        for request in requests:
            self.add(request)
        with serving(self.model, self.kernel):
            while self.busy:
                yield from self.step()

    def step(self) -> list[Event]:
        """Compute one step, and return its new tokens as events. A sample without a next token ends as "failed". If the
        device chooses the tokens (`OverlappedSteps`), the events are those of the previous step. Raises ZooError if all
        requests have ended and some of their pages or slots were not released."""
        with torch.inference_mode():
            chunks = self._propose(self.overlap.plan())
            launched = None if self.proposer else self.overlap.launch(chunks)
            if self.overlap.late is None and launched is None:
                events = self._run(chunks)
            else:  # chunks that were not launched are planned again, as a step gives one token of a row
                late = self.overlap.settle(launched)
                events = [event for chunk, token, found in late for event in self._emit(chunk, [token], found)]
        if not self.live:
            ensure_drained(self)
        return events

    def _run(self, chunks: list[Chunk]) -> list[Event]:
        """Compute the chunks of a step, wait for the new tokens, and return the events."""
        before = [chunk.sequence.row.length for chunk in chunks]  # type: ignore[union-attr]
        ending = [chunk for chunk in chunks if chunk.ends]
        ready = [chunk for chunk in ending if chunk.sequence.beams is None]
        saved = self._save_states(chunks)
        found = self._compute(chunks, {chunk.sequence for chunk in ending})
        tokens = self._choose(ready, found)
        self._take_back(ready, tokens, saved)
        self.scheduler.keep(chunks, before)
        events = [event for chunk, new in zip(ready, tokens, strict=True) for event in self._emit(chunk, new, found)]
        searches = {id(beams): beams for chunk in ending if (beams := chunk.sequence.beams) is not None}
        return events + [event for beams in searches.values() for event in self._search(beams, found)]

    def _search(self, beams: Beams, found: Mapping[RunningSequence, Tensor]) -> list[Event]:
        """Advance a beam search by one token. Return the events of its best beams if it is over, otherwise []."""
        first = beams.running[0]
        if beams.broken(found):
            fault = name_fault(found[first])
            events = [Event(first.request, sample, None, "failed", fault=fault) for sample in range(beams.asked.n)]
        elif beams.advance(found):
            waiting = [each for each in beams.running if each not in self.scheduler.running]
            gone = [each for each in beams.spare if each in self.scheduler.running]
            running = [each for each in self.scheduler.running if each not in gone] + waiting
            self.scheduler.running = sorted(running, key=lambda each: (each.request, each.sample))  # as they came
            return []
        else:
            events = beams.tell(first.request)
        self.scheduler.end(beams)
        del self.live[first.request]
        return events

    def _propose(self, chunks: list[Chunk]) -> list[Chunk]:
        """Add draft tokens to the chunks of decoding sequences, except in beam searches."""
        if self.proposer is None:
            return chunks
        going = [
            chunk
            for chunk in chunks
            if chunk.count == 1 and chunk.ends and not chunk.whole and chunk.sequence.asked.n_beams == 1
        ]
        rooms = [
            min(self.store.new - 1, each.total - len(each.ids) - 1, self.scheduler.limit - len(each.ids))
            for each in (chunk.sequence for chunk in going)
        ]
        drafts = self.proposer.propose([chunk.sequence for chunk in going], rooms)
        added = {
            id(chunk): replace(chunk, count=1 + len(draft), draft=tuple(draft), shares=shares)
            for chunk, (draft, shares) in zip(going, drafts, strict=True)
        }
        return [added.get(id(chunk), chunk) for chunk in chunks]

    def _compute(self, chunks: list[Chunk], ready: Collection[RunningSequence]) -> dict[RunningSequence, Tensor]:
        """Run the forward passes of a step. Return for each ready sequence the logits [K + 1, V] after its last known
        token and after each of its K draft tokens."""
        found = {}
        for batch in self.passes.batches(chunks):
            for chunk, logits in zip(batch, self.passes.run(batch), strict=True):
                self._score_prompt(chunk, logits)
                if chunk.sequence in ready:
                    found[chunk.sequence] = logits[len(logits) - 1 - len(chunk.draft) :]
        return found

    def _choose(self, ready: list[Chunk], found: Mapping[RunningSequence, Tensor]) -> list[list[int]]:
        """Return the next tokens of each sequence: one, or the accepted draft tokens and one more."""
        if not ready:
            return []
        logits = join_rows([found[chunk.sequence] for chunk in ready])
        states = [chunk.sequence.draws for chunk in ready]
        if not any(chunk.draft for chunk in ready):
            return [[token] for token in self.sampler.choose(logits, states)]
        drafts, shares = [chunk.draft for chunk in ready], [chunk.shares for chunk in ready]
        return accept(self.verifier, drafts, logits, states, shares)

    def _save_states(self, chunks: list[Chunk]) -> dict[RunningSequence, int]:
        """Copy the recurrent states of sequences with a draft, because the draft may be rejected. Return the slot of
        each sequence's copy."""
        drafted = [chunk.sequence for chunk in chunks if chunk.draft and self.passes.recurrent]
        saved = {}
        for each in drafted:
            while not self.store.free_slots and self.store.evict():
                pass
            saved[each] = self.store.free_slots.pop()
            self.store.copy_states(each.row.slot, saved[each])  # type: ignore[union-attr]
        return saved

    def _take_back(self, ready: list[Chunk], tokens: list[list[int]], saved: Mapping[RunningSequence, int]) -> None:
        """Remove rejected draft tokens from the cache. A model with recurrent layers restarts from the states before
        the draft and reads the accepted tokens again."""
        again = []
        for chunk, new in zip(ready, tokens, strict=True):
            each, row = chunk.sequence, chunk.sequence.row
            assert row is not None
            wrong = len(chunk.draft) + 1 - len(new)
            if wrong and each in saved:
                row.length -= chunk.count
                self.store.copy_states(saved[each], row.slot)
                again.append(replace(chunk, count=len(new), draft=chunk.draft[: len(new) - 1]))
            else:
                row.length -= wrong
        for batch in self.passes.batches(again):
            self.passes.run(batch)
        self.store.free_slots += saved.values()

    def _emit(self, chunk: Chunk, new: list[int], found: Mapping[RunningSequence, Tensor]) -> list[Event]:
        """Append the new tokens of a sequence, and return their events."""
        each, events = chunk.sequence, []
        top = each.asked.logprobs
        logprobs = [None] * len(new) if top is None else find_logprobs(found[each][: len(new)], new, [top] * len(new))
        for token, logprob in zip(new, logprobs, strict=True):
            if token < 0:
                fault = name_fault(found[each][len(new) - 1], each.draws)
                events.append(Event(each.request, each.sample, None, "failed", fault=fault))
                self._finish(each, "failed")
                break
            each.ids.append(token)
            each.draws.advance(token)
            reason: Reason | None = None
            if token in each.asked.stop_ids or each.draws.finished:
                reason = "stop"
            elif len(each.ids) >= each.total:
                reason = "length"
            prompt = tuple(each.scores) if len(each.ids) == each.prompt + 1 and each.scores else None
            events.append(Event(each.request, each.sample, token, reason, logprob, prompt))
            if reason:
                self._finish(each, reason)
                return events
        if chunk.draft and self.proposer is not None and each.finished is None:
            self.proposer.report(each, len(chunk.draft), len(new) - 1)
        return events

    def _score_prompt(self, chunk: Chunk, logits: Tensor) -> None:
        """Append the log-probabilities of the prompt tokens that this pass predicts, if the request wants them."""
        each, top = chunk.sequence, chunk.sequence.asked.prompt_logprobs
        if top is None or len(each.ids) > each.prompt or len(each.scores) >= each.prompt:
            return
        each.scores = each.scores or [None]
        start = len(each.scores)
        targets = each.ids[start : start + chunk.count]
        rows = logits[len(logits) - chunk.count :][: len(targets)]
        each.scores += find_logprobs(rows, targets, [top] * len(targets))

    def _finish(self, sequence: RunningSequence, reason: Reason) -> None:
        sequence.finished = reason
        self.scheduler.remove([sequence])
        if self.proposer is not None:
            self.proposer.forget(sequence)
        left = self.live[sequence.request]
        if all(each.finished for each in left):
            del self.live[sequence.request]


def name_fault(logits: Tensor, draws: DrawState | None = None) -> str:
    """Return the reason why a row with logits [V] has no next token, worded to follow the row's name ("has logits that
    are NaN …")."""
    if draws is not None and draws.fault:
        return f"cannot follow its grammar, found {draws.fault}"
    if draws is not None and float(logits.amax()) > -math.inf:  # NaN is above nothing
        return "is barred by its options (fewer bad_words, or another logit_bias or process)"
    kind = str(logits.dtype).removeprefix("torch.")
    return f"has logits that are NaN or all -inf, in {kind} {CURE}"
