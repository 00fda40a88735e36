# S tokens of a sequence, B sequences, V vocabulary, t = tp
"""Find the peak of a training step's memory on one rank: the memory at the fullest moment of its backward pass."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from zoo.costs.activations import Section
from zoo.costs.again import keeps_input, name_stored
from zoo.costs.rank_tensors import Stage, count_read, list_distinct
from zoo.costs.repeats import PassPiece, PassRun, find_repeats, list_decisive
from zoo.costs.rows import Priced
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.states import cast_bytes
from zoo.costs.sums import Amount, take_smaller
from zoo.costs.tuning import TunedModel
from zoo.costs.zero_shards import widths
from zoo.distributed.pipeline_schedule import BACKWARD, WEIGHT, BackwardMoment
from zoo.model.tower import Tower

CHUNK = 256 << 20
"""Bytes of a chunk's logits in a chunked loss, and of the float32 softmax over them: the defaults of Zoo's training
(`zoo.training.objective`)."""

BLOCK = 4 << 20
"""Bytes of float32 logits of which a CPU computes the softmax at once (`zoo.model.loss`)."""

STAYS = ("weights", "optimizer")
"""Figures of `states` that stay allocated throughout a step, gradients left out."""


def find_head(spec: Priced) -> Any:
    """Find the head that gives a model's logits; None without logits."""
    return next((tower.head for tower in spec.towers().values() if tower.head.n_logits), None)


def count_loss(values: Amount, setup: Setup) -> Amount:
    """Count the peak bytes of the loss of `values` logits: `loss_head` of `memory.training`."""
    if not setup.chunked_loss:
        return values * 12
    return take_smaller(values * DTYPES[setup.computed], CHUNK) + take_smaller(values * 4, CHUNK)


@dataclass(frozen=True)
class StepMemory:
    """The memory of a training step on a rank of one pipeline `stage` (a model without a pipeline is one stage).
    `passes` are the sections from `trace_passes`, called with `tuned` and `fused`; `held` is the result of the function
    `states` for the stage."""

    spec: Priced
    setup: Setup
    passes: Mapping[str, Section]
    stage: Stage
    held: Mapping[str, Any]
    tuned: TunedModel | None = None
    fused: bool = True

    @cached_property
    def peak(self) -> tuple[int, str]:
        """Give two figures of `training`: `train_peak` in bytes, and `peak_at`, the place of that peak."""
        moments = self.moments
        where = max(moments, key=lambda name: sum(moments[name].values()))
        return round(sum(self.held[name] for name in STAYS) + sum(moments[where].values())), where

    @cached_property
    def moments(self) -> dict[str, dict[str, int]]:
        """Give the memory at the fullest moment of each place of a step (`peak_at`): bytes by name, without STAYS."""
        schedule, found = self.stage.schedule, {}
        count = schedule.shorten(self.setup.accumulate)
        for moment in schedule.list_backwards(self.stage.index, count):
            walk = self._walk if moment.what == BACKWARD else self._walk_half
            for where, parts in walk(moment):
                found[where] = max(found.get(where, {}), parts, key=lambda parts: sum(parts.values()))
        found["step"] = {"gradients": self.held["gradients"], "step": self.held["step"]}
        return {where: {name: round(size) for name, size in parts.items()} for where, parts in found.items()}

    @cached_property
    def logits(self) -> int:
        """Count the logits of a batch: for each token, or for each row if the head reads whole rows."""
        head = find_head(self.spec)
        if head is None:
            return 0
        return head.n_logits * self.setup.batch * (1 if head.reads_rows else self.setup.tokens(self.spec))

    @property
    def loss(self) -> float | None:
        """Count the peak bytes of the loss on a rank; None without logits."""
        return count_loss(self.logits / (self.setup.tp * self.setup.cp), self.setup) if self.logits else None

    @property
    def _width(self) -> int:
        """Bytes of a gradient's value as a pass computes it, before any conversion."""
        return max(DTYPES[self.setup.stream], 2)

    @cached_property
    def _chunks(self) -> list[list[PassRun]]:
        """The pieces of a pass through each of the stage's chunks, in order: each tower's embedding if the chunk is the
        model's first, its layers, and its loss or head if the chunk is the last."""
        numbers = self.stage.schedule.list_chunks(self.stage.index)
        found = []
        for number, layers in zip(numbers, self.stage.runs(), strict=True):
            runs = []
            for name, tower in self.spec.towers().items():
                pattern = tuple(kind for where, kind in layers if where == name)
                runs += [self._describe_embedding(name, tower)] if number == 0 else []
                runs += self._list_layers(name, tower, pattern)
                runs += [self._describe_end(name, tower)] if number == self.stage.schedule.n_chunks - 1 else []
            found.append([run._replace(pieces=tuple(map(self._held_of, run.pieces))) for run in runs])
        return found

    def _describe_embedding(self, name: str, tower: Tower) -> PassRun:
        embedding, table = self.passes[_name_section(name, "embedding")], self._met_again(name, tower)
        own = embedding.gradients - (table if self.stage.finishes else 0)  # the head's gradient is there
        one_pass = self.setup.pp == 1 and not self.setup.chunked_loss  # which adds the head's gradient in place first
        return PassRun((PassPiece("embedding", embedding, embedding.bytes, own, table if one_pass else 0),))

    def _describe_end(self, name: str, tower: Tower) -> PassRun:
        label = "loss" if _name_section(name, "loss") in self.passes else "head"
        last = self.passes[_name_section(name, "head" if self.setup.chunked_loss else label)]
        masters = self.setup.precision == "bf16_master"  # whose 16-bit sum waits before it is added to fp32
        waits = self.setup.pp == 1 and (masters or not self.setup.chunked_loss)
        table = self._met_again(name, tower) if waits else 0
        kept = last.bytes
        if label == "loss" and self.setup.chunked_loss and self.stage.schedule.splits_backward:
            kept += last.gradients  # computed in the forward pass, and kept until the half for weights
        return PassRun((PassPiece(label, last, kept, last.gradients, table=table),))

    def _list_layers(self, name: str, tower: Tower, pattern: tuple[str, ...]) -> list[PassRun]:
        firsts = _mark_first_gradients(tower)
        layers = pattern if firsts is None else tuple(zip(pattern, firsts, strict=False))
        made: dict[Any, PassPiece] = {}
        for each in dict.fromkeys(layers):
            place: Any = (each, True) if firsts is None else each
            kind, first = place
            section = self.passes[_name_section(name, f"layer:{kind}")]
            again = keeps_input(f"layer:{kind}", self.setup.recompute) and section.bytes > 0
            kept = section.input + section.lent if again else section.bytes
            gradients = section.gradients if first else 0  # other layers with these weights add to them in place
            made[each] = PassPiece("layer", section, kept, gradients, 0, again, kind=(name, kind))
        return [PassRun(tuple(made[each] for each in block), times) for block, times in find_repeats(layers)]

    def _met_again(self, name: str, tower: Any) -> int:
        """Count the bytes of a tied token table's gradient. The table has a gradient from the head (or the other
        tower's embedding) already, and torch sums both into a third tensor. 0 without a tie, or if the table is
        frozen."""
        if self.tuned is not None and "embedding.tokens.weight" in self.tuned.ends[name].frozen:
            return 0
        tied = getattr(tower.head, "tied", False)
        if name == "encoder":
            tied = tied or self.spec.towers()["decoder"].embedding.tied is not None
        return tower.vocab_size * (tower.embedding.width or tower.d_model) * self._width if tied else 0

    @cached_property
    def _share(self) -> float:
        """The share of a rank in activations: 1 / (tp · cp)."""
        return 1 / (self.setup.tp * self.setup.cp)

    def _read(self, piece: PassPiece) -> int:
        """Count the bytes of other ranks' tokens that a piece gathers under tensor parallelism."""
        if piece.kind is None:
            return count_read(int(piece.label in ("loss", "head")), self.spec, self.setup)
        tower, kind = piece.kind
        return count_read(self.spec.towers()[tower].blocks[kind].gathers, self.spec, self.setup)

    def _cast(self, piece: PassPiece) -> float:
        """Count the bytes of autocast's copies of weights that exist at a piece. The forward pass copies all weights.
        With recompute `full`, a layer copies its own weights again, and only a pipeline keeps the other copies."""
        if not piece.again or piece.kind is None or self.setup.recompute != "full" or self.setup.pp > 1:
            return self.held["cast"]
        (tower, kind), stage = piece.kind, self.stage
        own = [each for each in stage.pieces if (each.where, each.kind) == piece.kind]
        return cast_bytes(own, self.setup) / max(stage.held[tower].stack.stored().count(kind), 1)

    def _held_of(self, piece: PassPiece) -> PassPiece:
        """Give the piece with a rank's `kept`: its share of the bytes and, unless recomputed, the gathered bytes."""
        return piece._replace(kept=piece.kept * self._share + (0 if piece.again else self._read(piece)))

    @cached_property
    def _scales(self) -> tuple[float, float]:
        """A rank's bytes of gradients ÷ the bytes of a pass on a single rank: first before ZeRO in the pass's dtype,
        then as stored until the update."""
        wider = widths(self.setup)[1] / self._width  # Megatron-LM keeps fp32 gradients, its passes compute 16 bits
        made = sum(map(_sum_gradients, self._chunks))
        if not made or self.setup.ranks == 1:
            return 1, wider
        return self.held["learning"] * self._width / made, self.held["gradients"] / made

    @cached_property
    def _kept(self) -> list[float]:
        """The bytes that a microbatch keeps of a pass through each chunk: of shared tensors and of all pieces."""
        again = self.setup.recompute
        shared = (pair for pair in self.passes.items() if pair[0].split(".")[-1] == "shared")
        common = sum(each.input if keeps_input(name, again) else each.bytes for name, each in shared) * self._share
        return [
            common + sum(sum(piece.kept for piece in run.pieces) * run.times for run in runs) for runs in self._chunks
        ]

    @cached_property
    def _stream(self) -> float:
        """Bytes of a microbatch's residual stream on a rank, as stages send it."""
        setup = self.setup
        return setup.batch * setup.tokens(self.spec) * self._share * self.spec.d_model * DTYPES[setup.computed]

    @cached_property
    def _between(self) -> list[float]:
        """The bytes that a microbatch keeps of each chunk between the halves of its backward pass, beside `_kept`: the
        gradients that weights need."""
        return [sum(self._sum_between(run.pieces) * run.times for run in runs) for runs in self._chunks]

    def _sum_between(self, pieces: Sequence[PassPiece]) -> float:
        """Sum `between` of pieces. A chunked loss keeps its gradients from the forward pass on."""
        chunked = self.setup.chunked_loss
        read = sum(map(self._read, pieces))  # a product that ranks share in reads the gradient of all their tokens
        own = sum(each.section.between for each in pieces if not (chunked and each.label == "loss"))
        return own * self._share + read

    def _hold(self, moment: BackwardMoment) -> dict[str, float]:
        """List the bytes that stay throughout a backward pass of one chunk: those that the stage's other microbatches
        keep, gradients of its other chunks, autocast's copies of weights, and buffers. A stage receives each
        microbatch's stream and gradient into buffers. It keeps the streams that it sent of microbatches in flight, and
        until the step ends the gradients that a half for inputs sent."""
        setup, stage, own = self.setup, self.stage, moment.chunk
        found = {"other microbatches": sum(map(operator.mul, moment.kept, self._kept)) - self._kept[own]}
        found["cast"] = self.held["cast"]
        others = (_sum_gradients(self._chunks[each]) for each in moment.done if each != own)
        found["other chunks' gradients"] = sum(others) * self._scales[1]
        if any(moment.between):
            found["between halves"] = sum(map(operator.mul, moment.between, self._between))
        buffers = sent = 0
        saved = setup.autocast is None  # a pass saves the buffers that it reads; autocast casts them
        numbers = stage.schedule.list_chunks(stage.index)
        for number, kept, between in zip(numbers, moment.kept, moment.between, strict=True):
            if number > 0:
                buffers += setup.accumulate - (kept if saved else 0)
                sent += setup.accumulate * stage.schedule.splits_backward
            if number < stage.schedule.n_chunks - 1:
                buffers, sent = buffers + setup.accumulate - (between if saved else 0), sent + kept
        return {**found, "received": self._stream * buffers, "sent": self._stream * sent}

    def _undo(self, piece: PassPiece, whole: float, standing: float) -> float:
        """Count the peak bytes of a piece's backward pass on a rank, its gradients and saved tensors included. `whole`
        is a rank's share of gradients, `standing` the bytes of those from earlier passes."""
        section, sharded = piece.section, self.setup.gathers
        made = section.gradients * whole * (1 if sharded else widths(self.setup)[1] / self._width)
        undone = (section.peak - section.gradients) * self._share + made
        undone = section.moving * self._share if standing and not sharded else undone
        if piece.again:  # recomputed: its forward pass runs again while the gradient of its result exists
            read = 0 if section.keeps_input else section.input
            undone = max(undone + read * self._share, (section.forward + section.input) * self._share)
        return undone + self._read(piece)

    def _walk(self, moment: BackwardMoment) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield the fullest moment of each piece in the backward pass of one chunk, with the piece's label. It goes
        through the pieces last to first; at each, the saved tensors of earlier pieces and the gradients of later ones
        are allocated too.

        After a chunk's first microbatch all its gradients exist. A weight's new gradient is freed once it is added; a
        tied table's first new gradient waits for the second. FSDP reduces a layer's gradients when its backward pass
        ends, and keeps the sent bytes until the next layer's; in a pipeline over one shard it reduces at the step's
        end.
        """
        setup, held, runs, share = self.setup, self.held, self._chunks[moment.chunk], self._share
        (whole, left), others = self._scales, self._hold(moment)
        sharded, holds = setup.gathers, setup.zero == 0 and setup.pp > 1
        standing = _sum_gradients(runs) * left if moment.chunk in moment.done else 0
        before = self._kept[moment.chunk]
        gradients = beside = waiting = ends = sent = 0.0
        pieces = [step for run in reversed(runs) for step in list_decisive(run)]
        layers = sum(piece.kind is not None for piece in pieces)
        for piece in pieces:
            section, first = piece.section, piece.label == "embedding"
            before -= piece.kept
            layers -= piece.kind is not None
            there = {"gradients": standing or gradients, "shared gradients": beside, "the table's": waiting}
            there |= {"reduced gradients": sent, "gathered": held["gathered" if layers else "gathered_first"]}
            there["whole gradients"] = max(ends, held["reducing"]) if first and sharded else ends
            last = {"gradients": standing, "gathered": held["gathered_last"]}
            if piece.label == "loss" and setup.chunked_loss:
                most = {**last, **self._chunked_loss(section, whole)}
            else:
                undone = self._undo(piece, whole, standing)
                backward = {**there, "its backward pass": undone, "sum": piece.sum * whole}
                forward = {**last, "its forward pass": section.forward * share + self._read(piece)}
                most = max(backward, forward, key=lambda parts: sum(parts.values()))
            yield piece.label, {"kept before it": before, **others, **most, "cast": self._cast(piece)}
            if sharded and piece.kind is None:
                ends += piece.gradients * whole
            else:
                gradients += piece.gradients * left
            if sharded and not holds and piece.kind is not None and section.gradients:
                sent = section.gradients * (whole * widths(setup)[1] / self._width + (left if standing else 0))
            waiting = 0 if first else max(waiting, piece.table * whole if standing else 0)
            beside = 0 if first else max(beside, section.beside * share)
        if sharded and all(piece.label != "embedding" for piece in pieces):  # what is outside the layers comes last
            last = {"gradients": gradients, "gathered": held["gathered"], "whole gradients": held["reducing"]}
            yield "layer", {**others, **last}

    def _walk_half(self, moment: BackwardMoment) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield the fullest moments of half a backward pass of one chunk, as torch runs it: the half for inputs frees
        no saved tensor, and that for weights frees most of them at its end, when all gradients exist and a new one
        waits to be added."""
        runs, others = self._chunks[moment.chunk], {**self._hold(moment), "gathered": self.held["gathered"]}
        kept, made = self._kept[moment.chunk], _sum_gradients(runs) * self._scales[1]
        pieces = [step for run in reversed(runs) for step in list_decisive(run)]
        if moment.what == WEIGHT:
            new = max(math.prod(each.shape) for each in self.stage.pieces if each.kind is not None and each.learns)
            norm = 2 * self._stream  # a norm's whole backward pass runs again: its input's gradient, and a product
            yield "layer", {**others, "kept": kept, "gradients": made, "new": max(new * self._width, norm)}
            return
        found, between = {"gradients": made if moment.chunk in moment.done else 0.0}, 0.0
        for piece in pieces:
            if piece.label == "loss" and self.setup.chunked_loss:
                most = self._chunked_loss(piece.section, self._scales[0])
            else:
                undone = piece.section.input_peak * self._share + self._read(piece)
                most = {"between halves": between, "its backward pass": undone}
            yield piece.label, {"kept beside it": kept - piece.kept, **others, **found, **most}
            between += self._sum_between([piece])

    def _chunked_loss(self, head: Section, whole: float = 1) -> dict[str, float]:
        """List the tensors at a chunk of the loss, in bytes: the hidden states, their gradient, the head's gradients
        from earlier chunks, the chunk's logits, and the larger of the logits' softmax and the head's gradients from
        this chunk. `whole` is the rank's share of the gradients.

        A CPU computes the softmax of BLOCK bytes at a time, for 16-bit logits in a float32 copy.
        """
        width, values = DTYPES[self.setup.computed], self.logits * self._share
        logits, block = min(values * width, CHUNK), CHUNK if self.fused else BLOCK
        softmax = min(values * 4, block) * (1 if self.fused or width == 4 else 2)
        gradients, read = head.gradients * whole, count_read(1, self.spec, self.setup)
        before = gradients if values * width > CHUNK else 0
        normed = (
            head.input * self._share if self.setup.autocast or self.setup.tp > 1 else 0
        )  # beside a copy that is read
        there = {"hidden states": head.bytes * self._share + normed + read}
        there["their gradient"] = head.input / self.setup.cp
        there |= {"the head's": before, "logits": logits}
        if softmax >= gradients:
            return {**there, "their softmax": softmax}
        return {**there, "a chunk's gradients": gradients}


def find_fullest(
    spec: Priced,
    setup: Setup,
    passes: Mapping[str, Section],
    pipeline: Iterable[Stage],
    held_by: Callable[[int], Mapping[str, Any]],
    **how: Any,
) -> StepMemory:
    """Find the pipeline stage whose step takes most memory. `held_by` gives the states of a stage by its index, `how`
    the other fields of a StepMemory. Of equal stages only the first is priced: it has the most microbatches in
    flight."""
    steps = (StepMemory(spec, setup, passes, stage, held_by(stage.index), **how) for stage in list_distinct(pipeline))
    return max(steps, key=lambda step: step.peak[0])


def _name_section(tower: str, piece: str) -> str:
    return f"{tower}.{piece}" if tower else piece


def _sum_gradients(runs: list[PassRun]) -> float:
    return sum(piece.gradients * run.times for run in runs for piece in run.pieces)


def _mark_first_gradients(tower: Any) -> list[bool] | None:
    """Tell which layers are the last users of their weights. The backward pass begins with them, so they make the
    weights' first gradients. None if no layers share weights."""
    if not tower.shared_layers and tower.loop is None:
        return None
    weights = [name_stored(kind) for kind in tower.pattern] if tower.shared_layers else tower.layer_weights
    last = {each: place for place, each in enumerate(weights)}  # the backward pass begins with the last layer
    return [last[each] == place for place, each in enumerate(weights)]
