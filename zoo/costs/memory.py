# S tokens of a sequence, B sequences, V vocabulary
"""Count the memory of training and generation, in bytes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

from zoo.costs.activations import PassShape, Section, list_sections
from zoo.costs.advice import advice
from zoo.costs.again import keeps_input, mark_layers, read_every
from zoo.costs.generating import generating
from zoo.costs.rank_tensors import find_activations, stages, sum_chunks
from zoo.costs.rows import Priced, change_towers, generates, list_blocks
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.shadow.tape import UnknownOperation
from zoo.costs.states import states
from zoo.costs.sums import Amount
from zoo.costs.train_peak import find_fullest
from zoo.costs.tuning import TunedModel
from zoo.errors import ConfigError

Value = TypeVar("Value")


def memory(spec: Priced, setup: Setup) -> dict[str, Any]:
    """Count bytes on the fullest rank: the figures of `training`, and those of `advice` if the passes can be traced. A
    model that generates also has the figures of `generating`: `kv_cache`, `generate_activations` (all but weights and
    cache) and `generate_peak`. If a generating pass cannot be traced, `activations_unknown` (the reason) replaces the
    last two.

    Raises ConfigError for dimensions that the ranks do not divide.
    """
    figures, passes = _training(spec, setup, fused=True)
    if setup.ranks > 1:
        figures["on"] = f"each of {setup.ranks:,} ranks"
    if passes is not None:
        again = read_every(setup.recompute)  # with every_n, "shared" depends on the recomputed layers
        serves = passes if again is None else None
        figures |= advice(setup, figures, lambda changed: _training(spec, changed, passes=serves)[0])
    if generates(spec):
        figures |= _generating(spec, setup)
    return figures


def _generating(spec: Priced, setup: Setup) -> dict[str, Any]:
    """Count the KV cache and the peak of generation; for a pass that cannot be traced, give the reason instead."""
    try:
        found = generating(spec := change_towers(spec, lambda tower: tower.served), setup)
    except (UnknownOperation, ConfigError) as error:
        held = generating(spec, setup, prefill=False)
        return {"kv_cache": held["kv_cache"], "activations_unknown": str(error)}
    figures = {"kv_cache": found["kv_cache"], "generate_activations": found["prefill"], "generate_peak": found["total"]}
    note = _note_bias(spec, setup, found["total"])
    return figures if note is None else {**figures, "generate_note": note}


def _note_bias(spec: Priced, setup: Setup, peak: int) -> str | None:
    """Describe the memory of a position bias on the scores; None without a bias, or if it takes less than 1/20 of the
    peak. torch's attention takes the bias as a tensor; flash-attn 2 computes ALiBi's bias itself."""
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


KEPT = ("weights", "gradients", "optimizer", "master", "step")
"""Figures that depend on the parameters only: `states` has them without a traced pass."""


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

    With recompute `full` a layer keeps only its input (Chen et al., 2016). With `every_n` every n-th layer keeps only
    its input. With `selective` a layer keeps all but the inside of attention (Korthikanti et al., 2022); a fused kernel
    keeps little of that anyway.

    `fused` is true for a CUDA device, false for a CPU. If a pass cannot be traced (a torch operation that operations.py
    does not list, or more tokens than the model reads), `activations_unknown` has the reason, and the figures of
    activations, the loss and the peak are absent. Raises ConfigError as `memory` does.
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
    tuned, model, pipeline = setup.tune(spec), spec, stages(spec, setup)
    spec = change_towers(spec, lambda tower: tower.unrolled)
    held_by = functools.cache(lambda index: states(model, setup, pipeline[index], tuned))
    held = held_by(max(pipeline, key=lambda stage: stage.params).index)
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
    marked = stages(spec, setup)
    step = find_fullest(spec, setup, passes, marked, held_by, tuned=tuned, fused=fused)
    figures["activations"] = round(sum_chunks(find_activations(spec, setup, layers, *sum_ends(kept), marked)))
    figures["activations_by_layer"] = {
        ".".join(each for each in place if each): round(size) for place, size in layers.items()
    }
    if step.loss is not None:
        figures["loss_head"] = round(step.loss)
    figures["step"] = round(held["step"])
    peak, where = step.peak
    return {**figures, "train_peak": peak, "peak_at": where}, passes


def count_kept(passes: Mapping[str, Section], setup: Setup) -> dict[str, int]:
    """Count the bytes that each section keeps for its backward pass. A recomputed section keeps its input and the
    tensors `lent` to later layers."""
    again = setup.recompute
    return {name: each.input + each.lent if keeps_input(name, again) else each.bytes for name, each in passes.items()}


def trace_passes(
    spec: Priced, setup: Setup, *, fused: bool = True, tuned: TunedModel | None = None
) -> Mapping[str, Section]:
    """Trace the pass of a microbatch through the whole model, on all ranks of context parallelism together. Raises
    UnknownOperation for an operation that is not listed, ConfigError for more tokens than the model reads."""
    return list_sections(spec, shape_pass(setup, setup.tokens(spec), setup.batch)._replace(fused=fused, model=tuned))


def shape_pass(setup: Setup, context: int, batch: int) -> PassShape:
    """Give the shape of a training pass on a CUDA device."""
    return PassShape(
        context=context,
        batch=batch,
        dtype=setup.stream,
        autocast=setup.autocast,
        selective=setup.recompute == "selective",
        cp=1 if setup.cp_comm == "ring" else setup.cp,  # a ring saves its own keys alone, a share of a whole row's
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
