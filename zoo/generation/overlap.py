# B rows, V vocabulary
"""Overlap the host with the device: launch a decoding step before the tokens of the previous step are known.

The device chooses the tokens in a recorded step, and keeps them for the next step (`Graphs.tokens`). The host reads a
copy one step late. Until then a negative id stands for a sequence's last token. Random draws are functions of seed and
position, so the delay does not change them. For a sequence that turns out to have ended, one token too many was
computed: the token is dropped, and the row's pages are released. The device's stream runs later uses of these pages
after that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from zoo.generation.graphs import Graphs, send
from zoo.generation.passes import EnginePasses
from zoo.generation.scheduler import Chunk, RunningSequence, Scheduler
from zoo.kernels.blocks import round_to_power
from zoo.lazy import Tensor, torch
from zoo.run.late_values import LateValues
from zoo.sampling.sampler import GREEDY, choose_recorded, find_way
from zoo.sampling.truncate import list_cuts

UNKNOWN = -1
"""The largest id that stands for a token not yet known to the host."""


class DeviceSampler:
    """Choose the tokens of a step on the device, from the logits in `graphs`. Sampling is recorded once for each number
    of rows, rounded up to a power of two, and each way to sample (`find_way`)."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs
        self.recorded: dict[tuple[int, int], tuple[Tensor, Callable[[], object]]] = {}

    def choose(self, sequences: Sequence[RunningSequence]) -> LateValues:
        """Choose each sequence's next token, and keep it in `graphs.tokens` for the next step."""
        assert self.graphs.logits is not None
        rows, vocab = round_to_power(len(sequences)), self.graphs.logits.shape[1]
        way = max(find_way(each.draws.sampling, vocab) for each in sequences)
        if (rows, way) not in self.recorded:
            self.recorded[rows, way] = self._record(rows, way)
        columns, replay = self.recorded[rows, way]
        if way != GREEDY:
            send(_lay_out(sequences, rows, vocab), columns)
        replay()
        return LateValues(self.graphs.tokens[: len(sequences)])

    def _record(self, rows: int, way: int) -> tuple[Tensor, Callable[[], object]]:
        """Record the sampling of `rows` rows. If recording fails, the same operations are launched one by one."""
        columns = torch.ones(5, rows, dtype=torch.float64, device=self.graphs.tokens.device)

        def step(columns: Tensor) -> Tensor:
            assert self.graphs.logits is not None
            return self.graphs.tokens[:rows].copy_(choose_recorded(self.graphs.logits[:rows], columns, way))

        try:
            replay, _ = self.graphs.record(step, columns)
        except RuntimeError as error:
            found = str(error).strip().splitlines() or [type(error).__name__]
            self.graphs.note(f"graphs: tokens of {rows} rows are chosen without a CUDA graph, found: {found[0]}")
            replay = partial(step, columns)
        return columns, replay


def _lay_out(sequences: Sequence[RunningSequence], rows: int, vocab: int) -> Tensor:
    """Pack the draw points and options of sequences as a tensor [5, rows]. Padding rows are greedy."""
    listed = [
        (each.draws.point(later=int(each.ids[-1] <= UNKNOWN)), *list_cuts(each.draws.sampling, vocab))
        for each in sequences
    ]
    listed += [(0.0, 0.0, vocab, math.inf, 0.0)] * (rows - len(listed))
    return torch.tensor(listed, dtype=torch.float64).T.contiguous()


class LateStep(NamedTuple):
    """A launched step with unknown tokens: its chunks, the rows' lengths before it, and the tokens being copied."""

    chunks: Sequence[Chunk]
    before: Sequence[int]
    tokens: LateValues


class OverlappedSteps:
    """The steps of an engine that are launched before the tokens of the previous step are known. They need CUDA
    graphs."""

    def __init__(self, passes: EnginePasses, scheduler: Scheduler) -> None:
        self.passes, self.scheduler = passes, scheduler
        self.late: LateStep | None = None
        self.sampler: DeviceSampler | None = None

    def plan(self) -> list[Chunk]:
        """Plan the next step as if the late tokens were known. First keep the late step's pages for reuse, and remove
        the sequences that are certain to end with their late token."""
        late = zip(self.late.chunks, self.late.before, strict=True) if self.late else ()
        for place, (chunk, before) in enumerate(late):
            each = chunk.sequence
            if each.row is None:  # it has ended, or was preempted since and computes the token again
                continue
            self.scheduler.keep([chunk], [before])
            each.ids.append(UNKNOWN - place)
            if len(each.ids) >= each.total:
                self.scheduler.leave(each)
        return self.scheduler.plan()

    def launch(self, chunks: list[Chunk]) -> LateStep | None:
        """Launch a step whose tokens the device chooses. If any part needs the host, launch nothing and return None:
        the step must then be computed after the late tokens are known."""
        graphs = self.passes.graphs
        if graphs is None or not self._chosen_by_device(chunks):
            return None
        sequences = [chunk.sequence for chunk in chunks]
        rows = [each.row for each in sequences if each.row is not None]
        before = [row.length for row in rows]
        if graphs.launch(rows, [chunk.tokens for chunk in chunks]) is None:
            return None
        if self.sampler is None or self.sampler.graphs is not graphs:
            self.sampler = DeviceSampler(graphs)
        return LateStep(chunks, before, self.sampler.choose(sequences))

    def _chosen_by_device(self, chunks: list[Chunk]) -> bool:
        """Whether a step is a single pass of decoding rows whose tokens the device can choose (`_is_plain` for each
        row)."""
        return bool(chunks) and all(map(self._is_plain, chunks)) and len(list(self.passes.batches(chunks))) == 1

    def _is_plain(self, chunk: Chunk) -> bool:
        """Whether a chunk is the last token of a decoding row and its logits serve only to choose the next token. False
        for prompts, drafts, beams, adapters (chosen anew for each pass), log-probabilities, and options that edit
        logits."""
        each, asked = chunk.sequence, chunk.sequence.asked
        decoding = chunk.count == 1 and chunk.ends and self.passes.cached(each)
        scored = asked.logprobs is not None or (asked.prompt_logprobs is not None and len(each.ids) == each.prompt)
        return decoding and each.draws.plain and asked.n_beams == 1 and asked.adapter is None and not scored

    def settle(self, launched: LateStep | None) -> Iterator[tuple[Chunk, int, dict[RunningSequence, Tensor]]]:
        """Wait for the late tokens. Yield (chunk, token, logits) for each sequence that has not ended. `logits` is {}
        if there is a token; otherwise it has NaN logits, the only possible reason. `launched` becomes the late step."""
        late, self.late = self.late, launched
        for chunk, token in zip(late.chunks, late.tokens.read(), strict=True) if late else ():
            each = chunk.sequence
            if each.ids[-1] <= UNKNOWN:
                each.ids.pop()
                yield chunk, token, {} if token >= 0 else {each: self._unsound()}

    def _unsound(self) -> Tensor:
        assert self.sampler is not None and self.sampler.graphs.logits is not None
        return torch.full((1, 1), math.nan, dtype=self.sampler.graphs.logits.dtype)
