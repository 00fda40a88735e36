# S tokens of a sequence, B sequences, V vocabulary
"""Count memory in bytes: weights, and what training or generation adds to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from zoo.costs.activations import PassShape, Section, list_sections
from zoo.costs.advice import advice
from zoo.costs.again import keeps_input, mark_layers, name_stored, read_every
from zoo.costs.generating import generating
from zoo.costs.rank_tensors import sum_activations
from zoo.costs.repeats import PassPiece, PassRun, find_repeats, list_decisive
from zoo.costs.rows import Priced, generates, list_blocks
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.shadow.tape import UnknownOperation
from zoo.costs.states import states, widths
from zoo.costs.sums import Amount, take_smaller
from zoo.costs.tuning import TunedModel
from zoo.errors import ConfigError
from zoo.model.tower import Tower

Value = TypeVar("Value")

CHUNK = 256 << 20
"""Bytes of a chunk's logits in a chunked loss, and of the float32 softmax over them: the defaults of Zoo's training
(`zoo.training.objective`)."""

BLOCK = 4 << 20
"""Bytes of float32 logits of which a CPU computes the softmax at once (`zoo.model.loss`)."""


def memory(spec: Priced, setup: Setup) -> dict[str, Any]:
    """Count bytes on the fullest rank: the figures of `training`, and those of `advice` if the passes can be traced. A
    model that generates also has `kv_cache`, `generate_activations` (all but weights and cache) and `generate_peak`, as
    `generating` counts them. If its pass cannot be traced, `activations_unknown` (the reason) replaces the last two.

    Raises ConfigError for dimensions that the ranks do not divide.
    """
    figures, passes = _training(spec, setup, fused=True)
    if setup.ranks > 1:
        figures["on"] = f"each of {setup.ranks:,} ranks"
    if passes is not None:
        again = read_every(setup.recompute)  # with every_n, "shared" depends on the recomputed layers
        serves = passes if again is None else None
        figures |= advice(setup, figures, lambda changed: _training(spec, changed, passes=serves)[0]["train_peak"])
    if generates(spec):
        figures |= _generating(spec, setup)
    return figures


def _generating(spec: Priced, setup: Setup) -> dict[str, Any]:
    """Count the KV cache and the peak of generation; for a pass that cannot be traced, give the reason instead."""
    try:
        found = generating(spec, setup)
    except (UnknownOperation, ConfigError) as error:
        held = generating(spec, setup, prefill=False)
        return {"kv_cache": held["kv_cache"], "activations_unknown": str(error)}
    figures = {"kv_cache": found["kv_cache"], "generate_activations": found["prefill"], "generate_peak": found["total"]}
    note = _note_bias(spec, setup, found["total"])
    return figures if note is None else {**figures, "generate_note": note}


def _note_bias(spec: Priced, setup: Setup, peak: int) -> str | None:
    """Describe the memory of a position bias on the scores; None without a bias, or if it takes less than 1/20 of the
    peak. torch's attention takes the bias as a tensor; flash-attn 2 computes ALiBi's itself."""
    attentions = [block.attention for block in list_blocks(spec)]
    schemes = [(each.positioning, getattr(each, "n_heads", 1)) for each in attentions]
    biased = [(scheme, heads) for scheme, heads in schemes if scheme is not None and scheme.biases]
    if not biased:
        return None
    position, heads = max(biased, key=lambda found: found[1])
    size = heads / setup.tp * setup.tokens(spec) ** 2 * max(DTYPES[setup.dtype], 2)
    if size < peak / 20:
        return None
    fused = "; flash-attn 2 computes the bias itself and needs none of it" if position.bias_kind == "alibi" else ""
    told = f"{size / 1e9:.3g}" if size < 1e12 else f"{size / 1e9:,.0f}"
    return (
        f"position={position.kind} adds a bias to each head's scores. For torch's attention it is a tensor of heads × "
        f"tokens × tokens, {told} GB of this peak, and more while it is made from float32{fused}"
    )


STAYS = ("weights", "optimizer", "cast", "gathered")
"""Figures of `states` that stay allocated throughout a step, gradients left out."""

KEPT = ("weights", "gradients", "optimizer", "master", "step")
"""Figures that depend on the parameters only: they need no traced pass."""


def without_passes(spec: Priced, setup: Setup) -> dict[str, int]:
    """Give the figures of `training` that depend on the parameters only (KEPT)."""
    held = states(spec, setup)
    return {name: round(held[name]) for name in KEPT}


def training(spec: Priced, setup: Setup, *, fused: bool = True) -> dict[str, Any]:
    """Count the bytes of a training step on one rank:

    - `weights`, `gradients`, `optimizer` (which includes `master`): see `states`. With `offload` the host holds
      `offloaded` bytes of the optimizer's states, and the update fetches them by pieces.
    - `activations`: the tensors saved for the backward pass of `batch` sequences, without those of the loss.
      `activations_by_layer`: those of one layer of each kind.
    - `loss_head`: the peak of the loss. It is 12 bytes a logit (log-probabilities, their gradient and the logits'
      gradient, in float32), or one chunk of a chunked loss. Absent without logits.
    - `step`: the scratch memory of the update.
    - `train_peak`: the peak of all tensors. It agrees with torch's MemTracker to 2 %, and leaves out the allocator's
      rounding and the memory of CUDA and its libraries.
    - `peak_at`: where the peak is reached. This is the "loss" (without logits the "head"), a "layer", the "embedding"
      or the update ("step").

    With recompute `full` a layer keeps only its input (Chen et al., 2016), with `every_n` every n-th layer does. With
    `selective` a layer keeps all but the inside of attention (Korthikanti et al., 2022), of which a fused kernel keeps
    little anyway.

    `fused` is true for a CUDA device, false for a CPU. If a pass cannot be traced (a torch operation that operations.py
    does not list, or more tokens than the model reads), `activations_unknown` has the reason, and the figures of
    activations, the loss and the peak are absent.
    """
    return _training(spec, setup, fused=fused)[0]


def _training(
    spec: Priced,
    setup: Setup,
    *,
    fused: bool = True,
    passes: Mapping[str, Section] | None = None,
) -> tuple[dict[str, Any], Mapping[str, Section] | None]:
    """Count the figures of `training`; return the traced sections too (`passes` if given, None if untraceable)."""
    tuned = setup.tune(spec)
    held = states(spec, setup, tuned=tuned)
    spec = mark_layers(spec if tuned is None else tuned.spec, setup.recompute)
    figures: dict[str, Any] = {name: round(held[name]) for name in ("weights", "gradients", "optimizer", "master")}
    if setup.offload != "none":
        figures["offloaded"] = round(held["offloaded"])
    try:
        passes = trace_passes(spec, setup, fused=fused, tuned=tuned) if passes is None else passes
    except (UnknownOperation, ConfigError) as error:
        return {**figures, "step": round(held["step"]), "activations_unknown": str(error)}, None
    kept = count_kept(passes, setup)
    layers = name_layers(spec, kept)
    activations = sum_activations(spec, setup, layers, *sum_ends(kept)).bytes
    step = StepMemory(spec, setup, passes, held, activations, tuned, fused)
    figures["activations"] = round(activations)
    figures["activations_by_layer"] = {
        ".".join(each for each in place if each): round(size) for place, size in layers.items()
    }
    if step.loss is not None:
        figures["loss_head"] = round(step.loss)
    figures["step"] = round(held["step"])
    peak, where = step.find_peak()
    return {**figures, "train_peak": peak, "peak_at": where}, passes


def count_kept(passes: Mapping[str, Section], setup: Setup) -> dict[str, int]:
    """Count the bytes that each section keeps for its backward pass. A recomputed section keeps its input and what it
    has `lent` to later layers."""
    again = setup.recompute
    return {name: each.input + each.lent if keeps_input(name, again) else each.bytes for name, each in passes.items()}


def trace_passes(
    spec: Priced, setup: Setup, *, fused: bool = True, tuned: TunedModel | None = None
) -> Mapping[str, Section]:
    """Trace the pass of a microbatch through the whole model, as on a single rank. Raises UnknownOperation for an
    operation that is not listed, ConfigError for more tokens than the model reads."""
    return list_sections(spec, shape_pass(setup, setup.tokens(spec), setup.batch)._replace(fused=fused, model=tuned))


def shape_pass(setup: Setup, context: int, batch: int) -> PassShape:
    """Give the shape of a training pass on a CUDA device."""
    return PassShape(
        context=context,
        batch=batch,
        dtype=setup.stream,
        autocast=setup.autocast,
        selective=setup.recompute == "selective",
    )


def name_layers(spec: Priced, sections: Mapping[str, Value]) -> dict[tuple[str, str], Value]:
    """Select the sections that are layers, by tower and kind."""
    return {
        (name, kind): sections[f"{name}.layer:{kind}" if name else f"layer:{kind}"]
        for name, tower in spec.towers().items()
        for kind in dict.fromkeys(tower.pattern)
    }


def sum_ends(kept: Mapping[str, Amount]) -> tuple[Amount, Amount]:
    """Sum the bytes kept outside the layers: before them (embedding and shared tensors), and behind them (head)."""
    sums: dict[str, Amount] = {"embedding": 0, "shared": 0, "head": 0}
    for name, size in kept.items():
        piece = name.split(".")[-1]
        if piece in sums:
            sums[piece] += size
    return sums["embedding"] + sums["shared"], sums["head"]


def find_head(spec: Priced) -> Any:
    """Find the head that gives a model's logits; None without logits."""
    return next((tower.head for tower in spec.towers().values() if tower.head.n_logits), None)


def count_loss(values: Amount, setup: Setup) -> Amount:
    """Count the peak bytes of the loss of `values` logits: see `loss_head` of `training`."""
    if not setup.chunked_loss:
        return values * 12
    return take_smaller(values * DTYPES[setup.computed], CHUNK) + take_smaller(values * 4, CHUNK)


# ---------------------------------------------------------------- the peak


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
        found = self._single() if self.setup.ranks == 1 else self._many()
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
            found += self._list_layers(tower, prefix)
            label = "loss" if f"{prefix}loss" in self.passes else "head"
            last = self.passes[f"{prefix}{'head' if self.setup.chunked_loss else label}"]
            waits = met or (
                table if self.setup.precision == "megatron" else 0
            )  # 16-bit sum, before it is added to fp32
            found.append(PassRun((PassPiece(label, last, last.bytes, last.gradients, table=waits),)))
        return found

    def _list_layers(self, tower: Tower, prefix: str) -> list[PassRun]:
        firsts = _mark_first_gradients(tower)
        layers = tower.pattern if firsts is None else tuple(zip(tower.pattern, firsts, strict=True))
        made: dict[Any, PassPiece] = {}
        for each in dict.fromkeys(layers):
            kind, first = (each, True) if firsts is None else each
            section = self.passes[f"{prefix}layer:{kind}"]
            again = keeps_input(f"layer:{kind}", self.setup.recompute) and section.bytes > 0
            kept = section.input + section.lent if again else section.bytes
            gradients = section.gradients if first else 0  # other layers with these weights add to them in place
            made[each] = PassPiece("layer", section, kept, gradients, 0, again)
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

    def _single(self) -> dict[str, dict[str, float]]:
        """Find the fullest moment of each kind of piece on a single rank. The backward pass goes through the pieces
        last to first; at each, the saved tensors of earlier pieces and the gradients of later ones are allocated too.

        With accumulation all gradients exist from the first pass on. A weight's new gradient is freed once it is added;
        a tied table's first new gradient waits for the second.
        """
        runs, again = self._list_runs(), self.setup.recompute
        standing = self.held["gradients"] if self.setup.accumulate > 1 else 0
        wider = widths(self.setup)[1] / self._width  # Megatron-LM keeps fp32 gradients, its passes compute 16 bits
        shared = {name: section for name, section in self.passes.items() if name.split(".")[-1] == "shared"}
        before = sum(each.input if keeps_input(name, again) else each.bytes for name, each in shared.items())
        before += sum(sum(piece.kept for piece in run.pieces) * run.times for run in runs)
        gradients = beside = waiting = 0
        peaks: dict[str, dict[str, float]] = {}
        for piece in (step for run in reversed(runs) for step in list_decisive(run)):
            section = piece.section
            before -= piece.kept
            undone = section.moving if standing else section.peak + (wider - 1) * section.gradients
            if piece.again:  # recomputed: its forward pass runs again while the gradient of its result exists
                undone = max(undone + (0 if section.keeps_input else section.input), section.forward + section.input)
            there = {"gradients": standing or gradients * wider, "shared gradients": beside, "the table's": waiting}
            if piece.label == "loss" and self.setup.chunked_loss:
                most = self._chunked_loss(section) | ({"accumulated": standing} if standing else {})
            else:
                backward = {**there, "its backward pass": undone, "sum": piece.sum}
                forward = {"gradients": standing, "its forward pass": section.forward}
                most = max(backward, forward, key=lambda parts: sum(parts.values()))
            moment = {"kept before it": before, **most}
            peaks[piece.label] = max(peaks.get(piece.label, {}), moment, key=lambda parts: sum(parts.values()))
            gradients += piece.gradients
            waiting = 0 if piece.label == "embedding" else max(waiting, piece.table if standing else 0)
            beside = 0 if piece.label == "embedding" else max(beside, section.beside)
        return peaks

    def _chunked_loss(self, head: Section) -> dict[str, float]:
        """List the tensors at a chunk of the loss, in bytes: the hidden states, their gradient, the head's gradients
        from earlier chunks, the chunk's logits, and the larger of the logits' softmax and the head's gradients from
        this chunk.

        A CPU computes the softmax of BLOCK bytes at a time, for 16-bit logits in a float32 copy.
        """
        width = DTYPES[self.setup.computed]
        logits, block = min(self.logits * width, CHUNK), CHUNK if self.fused else BLOCK
        softmax = min(self.logits * 4, block) * (1 if self.fused or width == 4 else 2)
        before = head.gradients if self.logits * width > CHUNK else 0
        there = {"hidden states": head.bytes, "their gradient": head.input, "gradients": before, "logits": logits}
        if softmax >= head.gradients:
            return {**there, "their softmax": softmax}
        return {**there, "a chunk's gradients": head.gradients}

    def _many(self) -> dict[str, dict[str, float]]:
        """Bound the fullest moments from above if the model is spread over ranks: all gradients and all activations
        exist, and the loss or one layer's backward pass is computed."""
        setup, layers = self.setup, name_layers(self.spec, self.passes).values()
        made = {"gradients": self.held["gradients"], "whole gradients": self.held["reducing"]}
        share, there = setup.tp * setup.cp, {**made, "activations": self.activations}
        layer = {"its backward pass": max(each.peak - each.bytes - each.gradients for each in layers) / share}
        if setup.recompute == "full" or read_every(setup.recompute):
            layer["its forward pass"] = max(each.bytes - each.input for each in layers) / share
        found = {"layer": {**there, **layer}}
        if self.loss is not None:
            found["loss"] = {**there, "loss_head": self.loss}
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
