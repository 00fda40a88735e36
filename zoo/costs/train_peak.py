# S tokens of a sequence, B sequences, V vocabulary, t = tp
"""Find the peak of a training step's memory on one rank: what exists at the fullest moment of its backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from zoo.costs.activations import Section
from zoo.costs.again import keeps_input, name_stored
from zoo.costs.rank_tensors import count_read, stages
from zoo.costs.repeats import PassPiece, PassRun, find_repeats, list_decisive
from zoo.costs.rows import Priced
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.states import widths
from zoo.costs.sums import Amount, take_smaller
from zoo.costs.tuning import TunedModel
from zoo.model.tower import Tower

CHUNK = 256 << 20
"""Bytes of a chunk's logits in a chunked loss, and of the float32 softmax over them: the defaults of Zoo's training
(`zoo.training.objective`)."""

BLOCK = 4 << 20
"""Bytes of float32 logits of which a CPU computes the softmax at once (`zoo.model.loss`)."""

STAYS = ("weights", "optimizer", "cast")
"""Figures of `states` that stay allocated throughout a step, gradients left out."""


def find_head(spec: Priced) -> Any:
    """Find the head that gives a model's logits; None without logits."""
    return next((tower.head for tower in spec.towers().values() if tower.head.n_logits), None)


def count_loss(values: Amount, setup: Setup) -> Amount:
    """Count the peak bytes of the loss of `values` logits: see `loss_head` of `training`."""
    if not setup.chunked_loss:
        return values * 12
    return take_smaller(values * DTYPES[setup.computed], CHUNK) + take_smaller(values * 4, CHUNK)


@dataclass(frozen=True)
class StepMemory:
    """The memory of a training step. `passes` are the sections from `trace_passes`, called with `tuned` and `fused`;
    `held` is the result of the function `states`; `activations` is in bytes, from `sum_activations`."""

    spec: Priced
    setup: Setup
    passes: Mapping[str, Section]
    held: Mapping[str, Any]
    activations: float
    tuned: TunedModel | None = None
    fused: bool = True

    def find_peak(self) -> tuple[int, str]:
        """Find two figures of `training`: `train_peak` in bytes, and `peak_at`, the place of that peak."""
        moments = self.list_moments()
        where = max(moments, key=lambda name: sum(moments[name].values()))
        return round(sum(self.held[name] for name in STAYS) + sum(moments[where].values())), where

    def list_moments(self) -> dict[str, dict[str, int]]:
        """List what is allocated at the fullest moment of each place of a step (`peak_at`): bytes by name, without
        STAYS."""
        found = self._walk() if self.setup.pp == 1 else self._pipelined()
        found["step"] = {"gradients": self.held["gradients"], "step": self.held["step"]}
        return {where: {name: round(size) for name, size in parts.items()} for where, parts in found.items()}

    @cached_property
    def logits(self) -> int:
        """Count the logits of a batch: those of each token, or of each row if the head reads whole rows."""
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

    def _list_runs(self) -> list[PassRun]:
        """List the pieces of a pass in order: each tower's embedding, its layers, and its loss or head."""
        found = []
        for name, tower in self.spec.towers().items():
            prefix = f"{name}." if name else ""
            embedding, table = self.passes[f"{prefix}embedding"], self._met_again(name, tower)
            met = 0 if self.setup.chunked_loss else table  # the chunked loss adds the head's gradient in place first
            own = embedding.gradients - table
            found.append(PassRun((PassPiece("embedding", embedding, embedding.bytes, own, met),)))
            found += self._list_layers(name, tower, prefix)
            label = "loss" if f"{prefix}loss" in self.passes else "head"
            last = self.passes[f"{prefix}{'head' if self.setup.chunked_loss else label}"]
            waits = met or (
                table if self.setup.precision == "megatron" else 0
            )  # 16-bit sum, before it is added to fp32
            found.append(PassRun((PassPiece(label, last, last.bytes, last.gradients, table=waits),)))
        return [run._replace(pieces=tuple(map(self._held_of, run.pieces))) for run in found]

    def _list_layers(self, name: str, tower: Tower, prefix: str) -> list[PassRun]:
        firsts = _mark_first_gradients(tower)
        layers = tower.pattern if firsts is None else tuple(zip(tower.pattern, firsts, strict=True))
        made: dict[Any, PassPiece] = {}
        for each in dict.fromkeys(layers):
            place: Any = (each, True) if firsts is None else each
            kind, first = place
            section = self.passes[f"{prefix}layer:{kind}"]
            again = keeps_input(f"layer:{kind}", self.setup.recompute) and section.bytes > 0
            kept = section.input + section.lent if again else section.bytes
            gradients = section.gradients if first else 0  # other layers with these weights add to them in place
            made[each] = PassPiece("layer", section, kept, gradients, 0, again, kind=(name, kind))
        return [PassRun(tuple(made[each] for each in block), times) for block, times in find_repeats(layers)]

    def _met_again(self, name: str, tower: Any) -> int:
        """Count the bytes of a tied token table's gradient: the table has one from the head (or the other tower's
        embedding) already, and torch sums both into a third tensor. 0 without a tie, or if the
        table is frozen."""
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

    def _held_of(self, piece: PassPiece) -> PassPiece:
        """Give the piece with the bytes that a rank keeps of it: its share, and what a pass gathers."""
        return piece._replace(kept=piece.kept * self._share + (0 if piece.again else self._read(piece)))

    def _scale_gradients(self, runs: list[PassRun]) -> tuple[float, float]:
        """Give what a rank has of the gradients that a pass on a single rank computes: before ZeRO, in the pass's
        dtype, and as they stay until the update."""
        wider = widths(self.setup)[1] / self._width  # Megatron-LM keeps fp32 gradients, its passes compute 16 bits
        made = sum(piece.gradients * run.times for run in runs for piece in run.pieces)
        if not made or self.setup.ranks == 1:
            return 1, wider
        return self.held["learning"] * self._width / made, self.held["gradients"] / made

    def _undo(self, piece: PassPiece, whole: float, standing: float) -> float:
        """Count the peak bytes of a piece's backward pass on a rank, its gradients and saved tensors included. `whole`
        is a rank's share of gradients, `standing` the bytes of those from earlier passes."""
        section, sharded = piece.section, self.setup.zero == 3
        made = section.gradients * whole * (1 if sharded else widths(self.setup)[1] / self._width)
        undone = (section.peak - section.gradients) * self._share + made
        undone = section.moving * self._share if standing and not sharded else undone
        if piece.again:  # recomputed: its forward pass runs again while the gradient of its result exists
            read = 0 if section.keeps_input else section.input
            undone = max(undone + read * self._share, (section.forward + section.input) * self._share)
        return undone + self._read(piece)

    def _walk(self) -> dict[str, dict[str, float]]:
        """Find the fullest moment of each kind of piece. The backward pass goes through the pieces last to first; at
        each, the saved tensors of earlier pieces and the gradients of later ones are allocated too.

        With accumulation all gradients exist from the first pass on. A weight's new gradient is freed once it is added;
        a tied table's first new gradient waits for the second. FSDP reduces a layer's gradients when its backward pass
        ends, and keeps what it sends until the next layer's.
        """
        setup, held, runs, share = self.setup, self.held, self._list_runs(), self._share
        sharded, standing = setup.zero == 3, held["gradients"] if setup.accumulate > 1 else 0
        whole, left = self._scale_gradients(runs)
        shared = {name: section for name, section in self.passes.items() if name.split(".")[-1] == "shared"}
        before = (
            sum(each.input if keeps_input(n, setup.recompute) else each.bytes for n, each in shared.items()) * share
        )
        before += sum(sum(piece.kept for piece in run.pieces) * run.times for run in runs)
        gradients = beside = waiting = ends = sent = 0.0
        peaks: dict[str, dict[str, float]] = {}
        for piece in (step for run in reversed(runs) for step in list_decisive(run)):
            section, first = piece.section, piece.label == "embedding"
            before -= piece.kept
            there = {"gradients": standing or gradients, "shared gradients": beside, "the table's": waiting}
            there |= {"reduced gradients": sent, "gathered": held["gathered"]}
            there["whole gradients"] = max(ends, held["reducing"]) if first and sharded else ends
            last = {"gradients": standing, "gathered": held["gathered_last"]}
            if piece.label == "loss" and setup.chunked_loss:
                most = {**last, **self._chunked_loss(section, whole)}
            else:
                undone = self._undo(piece, whole, standing)
                backward = {**there, "its backward pass": undone, "sum": piece.sum * whole}
                forward = {**last, "its forward pass": section.forward * share + self._read(piece)}
                most = max(backward, forward, key=lambda parts: sum(parts.values()))
            moment = {"kept before it": before, **most}
            peaks[piece.label] = max(peaks.get(piece.label, {}), moment, key=lambda parts: sum(parts.values()))
            if sharded and piece.kind is None:
                ends += piece.gradients * whole
            else:
                gradients += piece.gradients * left
            if sharded and piece.kind is not None and section.gradients:
                sent = section.gradients * whole * widths(setup)[1] / self._width
            waiting = 0 if first else max(waiting, piece.table * whole if standing else 0)
            beside = 0 if first else max(beside, section.beside * share)
        return peaks

    def _chunked_loss(self, head: Section, whole: float = 1) -> dict[str, float]:
        """List the tensors at a chunk of the loss, in bytes: the hidden states, their gradient, the head's gradients
        from earlier chunks, the chunk's logits, and the larger of the logits' softmax and the head's gradients from
        this chunk. Of the gradients a rank has a share `whole`.

        A CPU computes the softmax of BLOCK bytes at a time, for 16-bit logits in a float32 copy.
        """
        width, values = DTYPES[self.setup.computed], self.logits * self._share
        logits, block = min(values * width, CHUNK), CHUNK if self.fused else BLOCK
        softmax = min(values * 4, block) * (1 if self.fused or width == 4 else 2)
        gradients, read = head.gradients * whole, count_read(1, self.spec, self.setup)
        before = gradients if values * width > CHUNK else 0
        there = {"hidden states": head.bytes * self._share + read, "their gradient": head.input / self.setup.cp}
        there |= {"the head's": before, "logits": logits}
        if softmax >= gradients:
            return {**there, "their softmax": softmax}
        return {**there, "a chunk's gradients": gradients}

    def _pipelined(self) -> dict[str, dict[str, float]]:
        """Bound the fullest moments of a pipeline's stages from above: all gradients exist, and the fullest stage runs
        the backward pass of a layer while all its activations exist, or the last stage computes the loss.

        torch's stages receive each micro-batch into a buffer of its own, and keep what they have sent of a micro-batch
        in flight. Autocast casts the weights for each micro-batch anew.
        """
        setup, share, pieces = self.setup, self._share, [piece for run in self._list_runs() for piece in run.pieces]
        stream = setup.batch * setup.tokens(self.spec) * share * self.spec.d_model * DTYPES[setup.computed]
        flying = min(setup.pp, setup.accumulate)
        made = {"gradients": self.held["gradients"], "whole gradients": self.held["reducing"]}
        made |= {"gathered": self.held["gathered"], "received": stream * setup.accumulate * min(setup.pp - 1, 2)}
        undone = 0.0
        for piece in (each for each in pieces if each.kind is not None):
            section = piece.section
            most = section.moving
            if piece.again:
                read = 0 if section.keeps_input else section.input
                most = max(most + read, section.forward + section.input)
            undone = max(undone, most * share - piece.kept + self._read(piece))
        found = {"layer": {**made, "activations": self.activations, "its backward pass": undone}}
        found["layer"] |= {"sent": stream * flying, "cast again": self.held["cast"] * (flying - 1)}
        layers = {piece.kind: piece.kept for piece in pieces}
        kept = sum(count * layers[name, kind] for name, kind, count in stages(self.spec, setup)[-1].layers())
        loss = [each for each in pieces if each.label in ("loss", "head")][-1]
        if setup.chunked_loss and loss.label == "loss":
            found["loss"] = {**made, "kept before it": kept, **self._chunked_loss(loss.section)}
        elif self.loss is not None:
            found["loss"] = {**made, "kept before it": kept + loss.kept, "loss_head": self.loss}
        table = max(self._met_again(name, tower) for name, tower in self.spec.towers().items())
        return {**found, "embedding": {**made, "its gradient and sum": 2 * table / setup.tp}}


def _mark_first_gradients(tower: Any) -> list[bool] | None:
    """Tell which layers are the last users of their weights. The backward pass begins with them, so they make the
    weights' first gradients. None if no layers share weights."""
    if not tower.shared_layers and tower.loop is None:
        return None
    weights = [name_stored(kind) for kind in tower.pattern] if tower.shared_layers else tower.layer_weights
    last = {each: place for place, each in enumerate(weights)}  # the backward pass begins with the last layer
    return [last[each] == place for place, each in enumerate(weights)]
