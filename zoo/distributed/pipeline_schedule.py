# p stages, v chunks of a stage, m microbatches, F forward pass, B backward pass, I and W its halves
"""Pipeline schedules: the order in which stages run forward and backward passes.

A chunk is a run of consecutive layers, and a stage has one chunk or several. Chunk c of p stages is on stage c mod p.
With `zero_bubble_v` the chunks go to the last stage and back: chunk c of the second half is on stage 2p − 1 − c.

| schedule | chunks of a stage | as in |
| --- | --- | --- |
| 1f1b | 1 | Narayanan et al., 2021, Megatron-LM, §2.2 |
| interleaved | 2 or more | Narayanan et al., 2021, §2.2: passes of a chunk are shorter, and so is the bubble |
| zero_bubble | 1 or more | Qi et al., 2023, Zero Bubble, ZB-H1: the gradients of weights (W) wait for idle time |
| zero_bubble_v | 2 | Qi et al., 2023, §6, ZB-V: stages keep equal activations, no more than the first of 1f1b |

Training runs torch's schedules of these names (`zoo.training.pipeline`). The same order is computed here for pricing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SCHEDULES = ("1f1b", "interleaved", "zero_bubble", "zero_bubble_v")

WHOLE_BACKWARD = "schedule=1f1b or interleaved"
"""The remedy that errors name if a backward pass cannot be split in two halves."""

FORWARD, BACKWARD, INPUT, WEIGHT = "F", "B", "I", "W"
"""Kinds of pass: forward, backward, and the backward's halves for gradients of inputs and of weights."""

ROUNDS = 3
"""Number of rounds of microbatches after which a stage's peak memory no longer changes."""


class StagePass(NamedTuple):
    """One pass of a stage: its kind (F, B, I or W), the chunk's number in its stage, and the microbatch."""

    what: str
    chunk: int
    microbatch: int


class BackwardMoment(NamedTuple):
    """The state of a stage before one of its backward passes: kind `what` (B, I or W) of chunk `chunk`. By chunk,
    `kept` counts the microbatches whose activations are held, and `between` those that are between I and W. `done` are
    the chunks whose weights have gradients already."""

    what: str
    chunk: int
    kept: tuple[int, ...]
    between: tuple[int, ...]
    done: frozenset[int]

    def covers(self, other: BackwardMoment) -> bool:
        """Whether the stage holds at least as much as at another moment before the same pass of the same chunk."""
        counts = zip(self.kept + self.between, other.kept + other.between, strict=True)
        more = all(mine >= theirs for mine, theirs in counts) and self.done >= other.done
        return (self.what, self.chunk) == (other.what, other.chunk) and more


@dataclass(frozen=True)
class PipelineSchedule:
    """A pipeline schedule of `stages` stages with `chunks` chunks each."""

    kind: str = "1f1b"
    stages: int = 1
    chunks: int = 1

    @property
    def n_chunks(self) -> int:
        """Count the chunks of all stages."""
        return self.stages * self.chunks

    @property
    def splits_backward(self) -> bool:
        """Whether the backward pass is split in two halves (I and W)."""
        return self.kind in ("zero_bubble", "zero_bubble_v")

    def find_stage(self, chunk: int) -> int:
        """Return the stage of chunk number `chunk` of the model."""
        if self.kind == "zero_bubble_v":
            return min(chunk, 2 * self.stages - 1 - chunk)
        return chunk % self.stages

    def list_chunks(self, stage: int) -> tuple[int, ...]:
        """List the chunks of a stage by their numbers in the model."""
        return tuple(chunk for chunk in range(self.n_chunks) if self.find_stage(chunk) == stage)

    def count_sends(self, stage: int) -> int:
        """Count the tensors that a stage sends to other stages for each microbatch: residual streams and their
        gradients."""
        found = 0
        for chunk in self.list_chunks(stage):
            beside = (each for each in (chunk - 1, chunk + 1) if 0 <= each < self.n_chunks)
            found += sum(self.find_stage(each) != stage for each in beside)
        return found

    # ------------------------------------------------------------ constraints

    @property
    def least(self) -> int:
        """Minimum number of microbatches: with fewer, the stages would never all work at once."""
        return 2 * self.stages - 1 if self.kind == "zero_bubble_v" else self.stages

    def find_chunk_fault(self) -> str | None:
        """Return why a stage cannot have `chunks` chunks; None if it can."""
        least, most = {"1f1b": (1, 1), "interleaved": (2, None), "zero_bubble": (1, None)}.get(self.kind, (2, 2))
        if least <= self.chunks <= (most or self.chunks):
            return None
        would = f"chunks={least}" + ("" if most else " or more")
        would += ", or schedule=interleaved" if self.kind == "1f1b" else ""
        return f"chunks: is {self.chunks}, and schedule={self.kind} does not take it ({would})"

    def find_microbatch_fault(self, count: int) -> str | None:
        """Return why a step cannot have `count` microbatches; None if it can."""
        if count < self.least:
            found = f"is {count}, and the pp={self.stages} stages"
            if self.kind == "zero_bubble_v":
                return f"accumulate: {found} take 2·pp − 1 microbatches at least (accumulate={2 * self.stages})"
            return f"accumulate: {found} take as many microbatches at least (accumulate={self.stages})"
        if self.kind in ("interleaved", "zero_bubble") and count % (rounds := count // self.stages):
            would = f"accumulate={rounds * self.stages}"
            return f"accumulate: is {count}, which the {rounds} rounds of pp={self.stages} do not divide ({would})"
        return None

    def find_recompute_fault(self, recompute: str) -> str | None:
        """Return why the schedule cannot recompute activations; None if it can. Both halves of a split backward pass
        would recompute them."""
        if recompute == "none" or not self.splits_backward:
            return None
        found = f"recompute: is {recompute}, and schedule={self.kind} goes back in two halves"
        return f"{found}, each of which would compute again (recompute=none, or {WHOLE_BACKWARD})"

    def find_ring_fault(self, cp_comm: str) -> str | None:
        """Return why keys cannot travel round a ring under this schedule; None if they can. Both halves of a split
        backward pass would send them."""
        if cp_comm != "ring" or not self.splits_backward:
            return None
        found = f"cp_comm: is ring, and schedule={self.kind} goes back in two halves"
        return f"{found}, each of which would go round (cp_comm=all_gather, or {WHOLE_BACKWARD})"

    # ------------------------------------------------------------ the order

    def order(self, stage: int, microbatches: int) -> Iterator[StagePass]:
        """Yield the passes of a stage in a step, in order."""
        if self.kind == "zero_bubble_v":
            return (each for each in self._order_v(stage, microbatches) if each.microbatch < microbatches)
        return self._order(stage, microbatches)

    def _order(self, stage: int, microbatches: int) -> Iterator[StagePass]:
        """Yield warm-up forward passes, then one forward and one backward pass in turn, then the other backward passes.
        Each chunk in turn takes a round of about as many microbatches as there are stages. In zero_bubble, stage s runs
        the W of backward pass k right after the I of backward pass k + s."""
        each_round = microbatches // max(1, microbatches // self.stages)
        total, further = microbatches * self.chunks, self.stages - 1 - stage
        twice = 2 if self.kind == "interleaved" else 1
        early = min((self.chunks - 1) * each_round + twice * further, total)
        last = self.chunks - 1
        forward = self._count_up(FORWARD, lambda step: step // each_round % self.chunks)
        back = self._count_up(
            INPUT if self.splits_backward else BACKWARD, lambda step: last - step // each_round % self.chunks
        )
        weights = self._count_up(WEIGHT, lambda step: last - step // each_round % self.chunks)
        yield from itertools.islice(forward, early)
        for step in range(total):
            if step < total - early:
                yield next(forward)
            yield next(back)
            if self.splits_backward and step >= stage:
                yield next(weights)
        if self.splits_backward:
            yield from itertools.islice(weights, min(stage, total))

    @staticmethod
    def _count_up(what: str, chunk_of: Callable[[int], int]) -> Iterator[StagePass]:
        """Yield passes of one kind without end. Pass n is of chunk `chunk_of(n)`, whose microbatches come in order."""
        counts: dict[int, int] = {}
        for step in itertools.count():
            chunk = chunk_of(step)
            counts[chunk] = counts.get(chunk, -1) + 1
            yield StagePass(what, chunk, counts[chunk])

    def _order_v(self, stage: int, microbatches: int) -> Iterator[StagePass]:
        """Yield the passes of ZB-V, for `least` microbatches or more (`order` drops the surplus)."""
        count, further = max(microbatches, self.least), self.stages - stage
        passes = {
            (what, chunk): self._count_up(what, lambda _, chunk=chunk: chunk)
            for what in (FORWARD, INPUT, WEIGHT)
            for chunk in (0, 1)
        }

        def take(*wanted: tuple[str, int]) -> Iterator[StagePass]:
            return (next(passes[each]) for each in wanted)

        down, up = [(FORWARD, 0)], [(FORWARD, 1)]
        back = [[(INPUT, chunk), (WEIGHT, chunk)] for chunk in (0, 1)]
        yield from take(*down * (2 * further - 1), *(up + down) * stage, *(up + back[1]) * further)
        begun = 2 * further - 1 + stage
        for number in range(begun, begun + count - self.stages):
            yield from take(*(down if number < count else []), *back[0], *up, *back[1])
        yield from take(*[(INPUT, 0), (INPUT, 1)] * stage, *back[0] * further)
        yield from take(*[(WEIGHT, 1)] * stage, *[(WEIGHT, 0)] * stage)

    def shorten(self, microbatches: int) -> int:
        """Reduce a number of microbatches to one that the schedule allows and that has the same peak memory. The result
        is above `microbatches` only if the schedule needs more."""
        count = max(microbatches, self.least)
        if self.kind == "1f1b":
            return min(count, self.least + 1)
        rounds = count // self.stages
        return count if rounds <= ROUNDS else ROUNDS * (count // rounds)

    def count_kept(self, stage: int, microbatches: int, sizes: Sequence[float]) -> tuple[int, ...]:
        """Count, by chunk, the microbatches whose activations a stage holds at its peak of memory. A forward pass of a
        chunk adds `sizes[chunk]`, the size of its activations. Its backward pass frees them: B, or W if the backward
        pass is split."""
        if self.kind == "1f1b":
            return (self.stages - stage,)
        kept, most, found = [0] * self.chunks, 0.0, (0,) * self.chunks
        for what, chunk, _ in self.order(stage, self.shorten(microbatches)):
            kept[chunk] += {FORWARD: 1, INPUT: 0}.get(what, -1)
            if (size := sum(number * each for number, each in zip(kept, sizes, strict=True))) > most:
                most, found = size, tuple(kept)
        return found

    def list_backwards(self, stage: int, microbatches: int) -> list[BackwardMoment]:
        """List the moments before a stage's backward passes at which its memory can peak: those that no other
        covers. The model's first chunk has no input with a gradient, and torch's W runs its whole backward pass."""
        kept, between = [0] * self.chunks, [0] * self.chunks
        done, found = frozenset[int](), dict[BackwardMoment, None]()
        for what, chunk, _ in self.order(stage, microbatches):
            begins = self.list_chunks(stage)[chunk] == 0
            if what in (BACKWARD, WEIGHT) or (what == INPUT and not begins):
                own = BACKWARD if begins else what
                found[BackwardMoment(own, chunk, tuple(kept), tuple(between), done)] = None
            if what in (BACKWARD, WEIGHT):
                done |= {chunk}
            kept[chunk] += {FORWARD: 1, INPUT: 0}.get(what, -1)
            between[chunk] += 0 if begins else {INPUT: 1, WEIGHT: -1}.get(what, 0)
        return [each for each in found if not any(other.covers(each) for other in found if other != each)]
