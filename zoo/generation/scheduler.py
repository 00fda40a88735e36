"""Schedule sequences: choose which run in the next step, and how many tokens of each. Uses plain numbers, no
tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from zoo.cache.cached_row import CachedRow
from zoo.cache.encoder_reuse import Sources
from zoo.cache.pool_store import Store
from zoo.cache.prefix import Prefixes
from zoo.generation.beams import Beams
from zoo.generation.request import Reason, Request
from zoo.lazy import Tensor

if TYPE_CHECKING:
    from zoo.sampling.draws import DrawState
    from zoo.sampling.sampler import Logprob


@dataclass(eq=False)
class RunningSequence:
    """One sample of a request: its tokens so far, and its row in the store while it runs.

    `ids` are the decoder's tokens, of which the first `prompt` were given; `source` is an encoder-decoder's prompt.
    `names` are the prefix cache's keys for full pages of `ids` (or of `source`). `draws` is the sampling state.
    """

    request: int
    sample: int
    asked: Request
    ids: list[int]
    prompt: int
    draws: DrawState
    source: tuple[int, ...] | None = None
    row: CachedRow | None = None
    names: list[bytes] = field(default_factory=list)
    finished: Reason | None = None
    leader: RunningSequence | None = None  # the first sample of the same request
    beams: Beams | None = None
    scores: list[Logprob | None] = field(
        default_factory=list
    )  # the prompt's log-probabilities, as far as they are known
    preempted: int = 0

    @property
    def total(self) -> int:
        """Maximum number of tokens of the sequence, prompt included."""
        return self.prompt + self.asked.max_new_tokens

    @property
    def salt(self) -> bytes:
        """Part of the prefix cache's keys that distinguishes equal tokens with different adapters."""
        return (self.asked.adapter or "").encode()

    @property
    def left(self) -> int:
        """Number of known tokens that are not computed yet."""
        return len(self.ids) - (self.row.length if self.row else 0)


@dataclass(frozen=True)
class Chunk:
    """The next `count` uncomputed tokens of one sequence, for one step. They may end with a `draft` of K proposed
    tokens, drawn with probabilities `shares` [K, V]. With `whole` all tokens are computed without the cache, because
    new positions change earlier keys (dynamic NTK beyond the trained length)."""

    sequence: RunningSequence
    count: int
    whole: bool = False
    draft: tuple[int, ...] = ()
    shares: Tensor | None = None

    @property
    def tokens(self) -> list[int]:
        """Token ids of the chunk."""
        row = self.sequence.row
        assert row is not None
        start = 0 if self.whole else row.length
        return [*self.sequence.ids[start : start + self.count - len(self.draft)], *self.draft]

    @property
    def ends(self) -> bool:
        """Whether the chunk reaches the sequence's last known token. A next token can then be chosen."""
        return self.whole or self.sequence.left == self.count - len(self.draft)


class Scheduler:
    """Schedule first come, first served: a waiting sequence starts when there is room, and runs until it ends.

    A step computes one token of each decoding sequence, and chunks of prompts, at most `budget` tokens in all. At least
    one prompt token is computed even if decoding sequences use up the budget, so that prompts do not starve. While any
    sequence decodes, a step computes at most `max_prefill_tokens` prompt tokens. A sequence reserves pages for its
    maximum length divided by `overcommit`. If pages run out, the sequence that started last is preempted and waits
    again. With `tile`, prompts are cut at multiples of `tile`, and tokens generated before a preemption are recomputed
    one at a time, so that shapes do not depend on other sequences.
    """

    def __init__(
        self,
        store: Store,
        prefixes: Prefixes | None,
        sources: Sources | None = None,
        *,
        budget: int,
        rows: int,
        overcommit: float,
        max_prefill_tokens: int | None = None,
        tile: int | None = None,
    ) -> None:
        self.store, self.prefixes, self.sources = store, prefixes, sources
        self.budget, self.rows, self.overcommit = budget, rows, overcommit
        self.max_prefill_tokens, self.tile = max_prefill_tokens or budget, tile
        self.limit = store.tower.cacheable_until or 1 << 60
        self.waiting: deque[RunningSequence] = deque()
        self.running: list[RunningSequence] = []
        self.preemptions = 0

    def plan(self) -> list[Chunk]:
        """Admit waiting sequences that fit, and return the chunks of the next step."""
        self._admit()
        self._make_room()
        chunks, left = [], self.budget
        for each in self.running:
            if len(each.ids) > self.limit:
                chunks.append(Chunk(each, len(each.ids), whole=True))
            elif each.left == 1:
                chunks.append(Chunk(each, 1))
                left -= 1
        whole = left = max(min(left, self.max_prefill_tokens) if chunks else left, 1)
        for each in self.running:
            if each.left > 1 and len(each.ids) <= self.limit and left > 0:
                count = self._tile(each) if self.tile else self._chunk(each, min(each.left, left))
                if count <= left or left == whole:  # a chunk of fixed size waits, or exceeds the budget alone
                    chunks.append(Chunk(each, count))
                    left -= count
        return chunks

    def _tile(self, sequence: RunningSequence) -> int:
        """Return the number of tokens of a sequence's next chunk under `tile`: up to the end of the tile or prompt,
        whichever comes first; a prefix-LM's whole prompt; 1 for generated tokens."""
        assert sequence.row is not None and self.tile is not None
        length = sequence.row.length
        if length >= sequence.prompt:
            return 1
        if getattr(self.store.tower, "prefix_lm", False):
            return sequence.prompt
        return min(self.tile - length % self.tile, sequence.prompt - length)

    def _chunk(self, sequence: RunningSequence, most: int) -> int:
        if sequence.source is None and getattr(self.store.tower, "prefix_lm", False):
            return sequence.left  # a prefix whose tokens all see one another comes whole
        if self.prefixes is None:
            return most
        assert sequence.row is not None
        length = sequence.row.length
        return self.prefixes.next_stop(sequence.row, length + most, self._last_page(sequence)) - length

    def _last_page(self, sequence: RunningSequence) -> int:
        step = self.store.page if self.prefixes is None else self.prefixes.step
        return (sequence.prompt - 1) // step * step

    # ---------------------------------------------------------------- starting

    def _admit(self) -> None:
        while self.waiting:
            sequence = self.waiting[0]
            width = sequence.asked.n_beams
            if self._count_rows() + width > self.rows or self._awaits(sequence):
                return
            sequence.row = self._start(sequence)
            if sequence.row is None:
                return
            self.running.append(self.waiting.popleft())
            if width > 1 and not self._widen(sequence):
                self.waiting.appendleft(self._narrow(sequence.beams))  # type: ignore[arg-type]
                return

    def _count_rows(self) -> int:
        """Count the rows in use, including spare rows of beam searches."""
        searches = {id(each.beams): each.beams for each in self.running if each.beams is not None}
        beams = sum(len(each.running) + len(each.spare) for each in searches.values())
        return beams + sum(each.beams is None for each in self.running)

    def _awaits(self, sequence: RunningSequence) -> bool:
        """Whether a running sequence is computing something that this one can reuse: the prompt of the same request,
        the same source, or the same prefix."""
        leader = sequence.leader
        if leader is not None and leader.row is not None and leader.row.length < leader.prompt:
            return True
        if self.sources is not None:
            return any(
                (each.source, each.salt) == (sequence.source, sequence.salt)
                and not each.row.source  # type: ignore[union-attr]
                and len(each.ids) <= self.limit  # type: ignore[union-attr]
                for each in self.running
            )
        return self.prefixes is not None and sequence.asked.prompt_logprobs is None and self._awaits_prefix(sequence)

    def _awaits_prefix(self, sequence: RunningSequence) -> bool:
        assert self.prefixes is not None
        reading = [each for each in self.running if each.row is not None and each.row.length < each.prompt]
        if reading:
            self.prefixes.name(sequence.names, sequence.ids, sequence.salt)
        most = len(sequence.ids) - 1
        return any(
            self.prefixes.awaits(sequence.names, most, each.names, each.row.length, self._last_page(each))  # type: ignore[union-attr]
            for each in reading
        )

    def _widen(self, sequence: RunningSequence) -> bool:
        """Add the rows of a beam search's other beams. Return False if there is no room yet."""
        spare = [replace(sequence, ids=[], row=None) for _ in range(sequence.asked.n_beams - 1)]
        sequence.beams = Beams(sequence, spare=spare)
        for each in spare:
            each.beams, each.ids = sequence.beams, list(sequence.ids)
            each.row = self._start(each, restore=False)
            each.ids = []
            if each.row is None:
                return False
        return True

    def _start(self, sequence: RunningSequence, restore: bool = True) -> CachedRow | None:
        """Return a row with room for the sequence. None if there is no room yet."""
        while not self.store.free_slots:
            if self.prefixes is None or not self.prefixes.evict():
                return None
        row = CachedRow(self.store)
        if self.prefixes is not None and restore:
            self.prefixes.name(sequence.names, sequence.ids, sequence.salt)
            if sequence.asked.prompt_logprobs is None:  # prompt log-probabilities need logits, which no cache keeps
                self.prefixes.restore(row, sequence.names, len(sequence.ids) - 1)
        if self.sources is not None and restore and sequence.source is not None:
            sequence.names = sequence.names or self.sources.name(sequence.source, sequence.salt)
            self.sources.restore(row, sequence.names, len(sequence.source))
        leader = sequence.leader
        if leader is not None and leader.row is not None and leader.row.source and not row.source:
            row.share_source(leader.row)
        if self._reserve(row, sequence):
            if self.prefixes is not None and restore:
                self.prefixes.count(row, len(sequence.ids) - 1)
            if self.sources is not None and restore:
                self.sources.count(row, len(sequence.source or ()))
            return row
        row.release()
        return None

    def _reserve(self, row: CachedRow, sequence: RunningSequence) -> bool:
        """Take the pages with which a sequence starts: those for its maximum length divided by `overcommit`. Return
        False if there are too few."""
        tokens = max(len(sequence.ids) + 1, int(sequence.total / self.overcommit))
        tokens = min(tokens, sequence.total, self.limit)
        for number, group in enumerate(self.store.groups):
            wanted = len(sequence.source or ()) if group.cross else tokens
            room = self.store.pages_of(group, wanted)
            if not row.own(number, room):
                return False
        return True

    # ---------------------------------------------------------------- running out

    def _make_room(self) -> None:
        """Take pages for all tokens that the next step may compute. While there are too few, preempt the sequence that
        started last."""
        for sequence in list(self.running):
            while sequence.row is not None and not self._grow(sequence):
                self.preempt(self.running[-1])

    def _grow(self, sequence: RunningSequence) -> bool:
        row = sequence.row
        assert row is not None
        for number, group in enumerate(self.store.groups):
            if group.cross:
                continue
            reach = self.store.pages_of(group, 1 << 60) if group.window or group.chunk else None
            tokens = min(len(sequence.ids) + self.store.new - 1, sequence.total, self.limit)
            needed = -(-group.count_slots(tokens) // self.store.page) - row.dropped[number]
            needed = needed if reach is None else min(needed, reach)
            if not row.own(number, needed):
                return False
        return True

    def preempt(self, sequence: RunningSequence) -> None:
        """Release a running sequence's row, and put the sequence first in the queue. It later resumes from its tokens
        so far; a beam search restarts from its prompt."""
        if sequence.beams is not None:
            sequence = self._narrow(sequence.beams)
        else:
            self.leave(sequence)
        sequence.scores.clear()  # it reads its prompt again, from the start
        sequence.preempted += 1
        self.preemptions += 1
        self.waiting.appendleft(sequence)

    def _narrow(self, beams: Beams) -> RunningSequence:
        """Release all rows of a beam search, and return the sequence that restarts it."""
        first = beams.first
        self.end(beams)
        first.beams, first.ids = None, first.ids[: first.prompt]
        return first

    def end(self, beams: Beams) -> None:
        """Release all rows of a beam search."""
        for each in (*beams.running, *beams.spare):
            if each in self.running:
                self.running.remove(each)
            if each.row is not None:
                _release_row(each)

    def leave(self, sequence: RunningSequence) -> None:
        """Release a running sequence's row."""
        self.running.remove(sequence)
        _release_row(sequence)

    def remove(self, sequences: Iterable[RunningSequence]) -> None:
        """Drop sequences, running or waiting, and release their rows."""
        for each in sequences:
            if each.beams is not None:
                self.end(each.beams)
            elif each in self.running:
                self.leave(each)
            elif each in self.waiting:
                self.waiting.remove(each)

    # ---------------------------------------------------------------- afterwards

    def keep(self, chunks: Sequence[Chunk], before: Sequence[int]) -> None:
        """Keep the pages and states of a step for reuse by later rows. `before` has the rows' lengths before the
        step."""
        for chunk, length in zip(chunks, before, strict=True):
            row = chunk.sequence.row
            if self.sources is not None and not length and row is not None and row.source:
                self.sources.keep(row, chunk.sequence.names)
        if self.prefixes is None:
            return
        for chunk, length in zip(chunks, before, strict=True):
            each = chunk.sequence
            assert each.row is not None
            if (each.beams is not None or self.tile) and length >= each.prompt:
                continue  # other beams may overwrite this row; or tokens were computed one by one
            self.prefixes.name(each.names, each.ids, each.salt)
            self.prefixes.keep(each.row, each.names, length, self._last_page(each))


def _release_row(sequence: RunningSequence) -> None:
    assert sequence.row is not None
    sequence.row.release()
    sequence.row = None
