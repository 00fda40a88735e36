# S tokens of a sequence, B sequences, V vocabulary
"""Count memory in bytes: weights, and what training or generation adds to them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from zoo.costs.activations import PassShape, Section, list_sections
from zoo.costs.advice import advice
from zoo.costs.again import keeps_input, mark_layers, name_stored, read_every
from zoo.costs.generating import generating
from zoo.costs.parallel import sum_activations
from zoo.costs.repeats import PassPiece, PassRun, find_repeats, list_decisive
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.shadow import UnknownOperation
from zoo.costs.states import states, widths
from zoo.costs.sums import Amount, take_smaller
from zoo.costs.tuning import TunedModel, Tuning, apply_tuning
from zoo.errors import ConfigError

Value = TypeVar("Value")

CHUNK = 256 << 20
"""Bytes of logits that a chunked loss has at once, and of the float32 that their softmax is worked out in: the defaults
of Zoo's training (`zoo.training.objective`)."""

BLOCK = 4 << 20
"""Bytes of logits, in float32, that a CPU takes the softmax of at once (`zoo.model.loss`)."""


def memory(spec: Any, setup: Setup) -> dict[str, Any]:
    """Bytes on one rank, the fullest: `training`'s with `advice`, and where the model writes `kv_cache`,
    `generate_activations` (what is alive beside weights and cache) and `generate_peak`: see `generating`.

    Raises ConfigError for what the ranks do not divide.
    """
    figures, passes = _training(spec, setup, fused=True)
    if setup.ranks > 1:
        figures["on"] = f"each of {setup.ranks:,} ranks"
    if passes is not None:
        serves = passes if read_every(setup.recompute) is None else None  # what layers read that run again
        figures |= advice(setup, figures, lambda changed: _training(spec, changed, passes=serves)[0]["train_peak"])
    if any(tower.causal for tower in spec.towers().values()):
        figures |= _generating(spec, setup)
    return figures


def _generating(spec: Any, setup: Setup) -> dict[str, Any]:
    """Count the KV cache and the peak of generation; for a pass that cannot be traced, give the reason instead."""
    try:
        found = generating(spec, setup)
    except (UnknownOperation, ConfigError) as error:
        held = generating(spec, setup, prefill=False)
        return {"kv_cache": held["kv_cache"], "activations_unknown": str(error)}
    figures = {"kv_cache": found["kv_cache"], "generate_activations": found["prefill"], "generate_peak": found["total"]}
    note = _note_bias(spec, setup, found["total"])
    return figures if note is None else {**figures, "generate_note": note}


def _note_bias(spec: Any, setup: Setup, peak: int) -> str | None:
    """Say of a bias on the scores what it takes as a tensor, where that is a good part of the peak; None elsewhere.
    torch's attention takes it as one; flash-attn 2 computes ALiBi's itself."""
    attentions = [block.attention for tower in spec.towers().values() for block in tower.blocks.values()]
    schemes = [(each.positioning, getattr(each, "n_heads", 1)) for each in attentions]
    biased = [(scheme, heads) for scheme, heads in schemes if scheme is not None and scheme.biases]
    if not biased:
        return None
    position, heads = max(biased, key=lambda found: found[1])
    size = heads / setup.tp * setup.tokens(spec) ** 2 * max(DTYPES[setup.dtype], 2)
    if size < peak / 20:
        return None
    fused = "; flash-attn 2 needs no such tensor" if position.bias_kind == "alibi" else ""
    return (
        f"position={position.kind} adds a bias to each head's scores, which torch's attention takes as a tensor of "
        f"heads × tokens × tokens: {size / 1e9:.3g} GB, beside its float32 form while it is made{fused}"
    )


STAYS = ("weights", "optimizer", "cast", "gathered")
"""What `states` counts and is there all through a step, gradients left out."""

KEPT = ("weights", "gradients", "optimizer", "master", "step")
"""Figures that depend on the parameters only, so that no pass is traced for them."""


def without_passes(spec: Any, setup: Setup) -> dict[str, int]:
    """Give those of `training`'s figures that depend on the parameters only."""
    held = states(spec, setup)
    return {name: round(held[name]) for name in KEPT}


def training(spec: Any, setup: Setup, *, fused: bool = True, tuning: Tuning | None = None) -> dict[str, Any]:
    """Bytes of a training step on one rank.

    `weights`, `gradients`, `optimizer` (`master` among it): see `states`. `activations` are what the passes of `batch`
    sequences keep for their backward passes, the loss left out; `activations_by_layer` those of one layer of each kind.
    With recompute `full` a layer keeps its input alone (Chen et al., 2016), with `every_n` every n-th does, with
    `selective` all but attention's inside (Korthikanti et al., 2022), which a fused kernel has made small already.
    `loss_head` is what the loss takes at most: 12 bytes a token and word, which are the logarithms of chances, their
    gradient and the logits', all in float32; or a chunk. `step` is what the update takes besides.

    `train_peak` is the most that stands at once, reached at `peak_at`: in the backward pass of the "loss", of a kind of
    "layer" or of the "embedding", or in the "step". It is torch's own peak to 2 % (its MemTracker), without the
    allocator's rounding and what CUDA and its libraries take.

    With `offload` the host keeps `offloaded` of the optimizer's states, and the update has some of them at a time.

    `tuning` says what trains and what a run adds, on one rank. `fused` is a CUDA device's kernels, otherwise a CPU's.
    Where a component uses a torch operation whose saved tensors are not listed in operations.py, or the model cannot
    read so many tokens, `activations_unknown` says so in place of the activations and the peak.
    """
    tuned = None if tuning is None or tuning.plain else apply_tuning(spec, tuning)
    return _training(spec, setup, fused=fused, tuned=tuned)[0]


def _training(
    spec: Any,
    setup: Setup,
    *,
    fused: bool = True,
    passes: Mapping[str, Section] | None = None,
    tuned: TunedModel | None = None,
) -> tuple[dict[str, Any], Mapping[str, Section] | None]:
    """The figures, and the sections they are of, unless those are given."""
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
    loss = _loss_bytes(spec, setup)
    activations = sum_activations(spec, setup, layers, *sum_ends(kept)).bytes
    figures["activations"] = round(activations)
    figures["activations_by_layer"] = {
        ".".join(each for each in place if each): round(size) for place, size in layers.items()
    }
    if loss is not None:
        figures["loss_head"] = round(loss)
    figures["step"] = round(held["step"])
    peak, where = find_peak(spec, setup, passes, held, activations, tuned, fused)
    return {**figures, "train_peak": peak, "peak_at": where}, passes


def find_peak(
    spec: Any,
    setup: Setup,
    passes: Mapping[str, Section],
    held: Mapping[str, Any],
    activations: float,
    tuned: TunedModel | None = None,
    fused: bool = True,
) -> tuple[int, str]:
    """Give the most bytes that stand at once in a training step, and where: `train_peak` and `peak_at` of `training`.

    `held` is what `states` counts, `activations` what `sum_activations` does.
    """
    moments = list_moments(spec, setup, passes, held, activations, tuned, fused)
    where = max(moments, key=lambda name: sum(moments[name].values()))
    return round(sum(held[name] for name in STAYS) + sum(moments[where].values())), where


def count_kept(passes: Mapping[str, Section], setup: Setup) -> dict[str, int]:
    """Count the bytes that each section keeps for its backward pass: its input alone where it runs again."""
    again = setup.recompute
    return {name: each.input + each.lent if keeps_input(name, again) else each.bytes for name, each in passes.items()}


def trace_passes(
    spec: Any, setup: Setup, *, fused: bool = True, tuned: TunedModel | None = None
) -> Mapping[str, Section]:
    """Trace the passes of a microbatch on one rank alone. Raises UnknownOperation, and ConfigError for more tokens than
    the model reads."""
    return list_sections(spec, shape_pass(setup, setup.tokens(spec), setup.batch)._replace(fused=fused, model=tuned))


def shape_pass(setup: Setup, context: int, batch: int) -> PassShape:
    """Give the shape of a training pass on a CUDA device."""
    return PassShape(
        context=context,
        batch=batch,
        dtype="fp32" if setup.precision in ("fp32", "amp") else setup.dtype,
        autocast=setup.dtype if setup.precision == "amp" else None,
        selective=setup.recompute == "selective",
    )


def name_layers(spec: Any, sections: Mapping[str, Value]) -> dict[tuple[str, str], Value]:
    """Take the sections that are layers, by stack and kind."""
    return {
        (name, kind): sections[f"{name}.layer:{kind}" if name else f"layer:{kind}"]
        for name, tower in spec.towers().items()
        for kind in dict.fromkeys(tower.pattern)
    }


def sum_ends(kept: Mapping[str, Amount]) -> tuple[Amount, Amount]:
    """Sum up what sections keep before the layers, with what layers share, and behind them."""
    sums: dict[str, Amount] = {"embedding": 0, "shared": 0, "head": 0}
    for name, size in kept.items():
        piece = name.split(".")[-1]
        if piece in sums:
            sums[piece] += size
    return sums["embedding"] + sums["shared"], sums["head"]


def _loss_bytes(spec: Any, setup: Setup) -> float | None:
    """The peak bytes of logits, their probabilities and gradients; None without logits."""
    if (head := find_head(spec)) is None:
        return None
    return count_loss(_count_logits(head, spec, setup) / (setup.tp * setup.cp), setup)


def find_head(spec: Any) -> Any:
    """Find the head that gives a model's logits; None where it has none."""
    return next((tower.head for tower in spec.towers().values() if tower.head.n_logits), None)


def _count_logits(head: Any, spec: Any, setup: Setup) -> int:
    """Count the logits of a batch: of each token, or of each row."""
    return head.n_logits * setup.batch * (1 if head.reads_rows else setup.tokens(spec))


def count_loss(values: Amount, setup: Setup) -> Amount:
    """Count the bytes that the loss of so many logits takes at most: see `training`."""
    if not setup.chunked_loss:
        return values * 12
    width = 4 if setup.precision == "fp32" else DTYPES[setup.dtype]
    return take_smaller(values * width, CHUNK) + take_smaller(values * 4, CHUNK)


# ---------------------------------------------------------------- the peak


def list_moments(
    spec: Any,
    setup: Setup,
    passes: Mapping[str, Section],
    held: Mapping[str, Any],
    activations: float,
    tuned: TunedModel | None = None,
    fused: bool = True,
) -> dict[str, dict[str, int]]:
    """List the fullest moments of a step by where it is (`peak_at`). Each lists, by name, the bytes of what stands then
    and does not stay."""
    if setup.ranks == 1:
        found = _single(_pieces(spec, setup, passes, tuned), spec, setup, passes, held, fused)
    else:
        found = _many(spec, setup, passes, held, activations)
    found["step"] = {"gradients": held["gradients"], "step": held["step"]}
    return {where: {name: round(size) for name, size in parts.items()} for where, parts in found.items()}


def _pieces(spec: Any, setup: Setup, passes: Mapping[str, Section], tuned: TunedModel | None = None) -> list[PassRun]:
    found = []
    for name, tower in spec.towers().items():
        prefix = f"{name}." if name else ""
        embedding, table = passes[f"{prefix}embedding"], _met_again(spec, name, tower, setup, tuned)
        met = 0 if setup.chunked_loss else table  # Zoo's loss has added its own to the weight's by then, in place
        found.append(PassRun((PassPiece("embedding", embedding, embedding.bytes, embedding.gradients - table, met),)))
        firsts = _mark_first_gradients(tower)
        layers = tower.pattern if firsts is None else tuple(zip(tower.pattern, firsts, strict=True))
        made: dict[Any, PassPiece] = {}
        for each in dict.fromkeys(layers):
            kind, first = (each, True) if firsts is None else each
            section = passes[f"{prefix}layer:{kind}"]
            again = keeps_input(f"layer:{kind}", setup.recompute) and section.bytes > 0
            kept = section.input + section.lent if again else section.bytes
            gradients = section.gradients if first else 0  # the others' are there already
            made[each] = PassPiece("layer", section, kept, gradients, 0, again)
        found += [PassRun(tuple(made[each] for each in block), times) for block, times in find_repeats(layers)]
        last = passes[f"{prefix}head"]
        if f"{prefix}loss" in passes and not setup.chunked_loss:
            last = passes[f"{prefix}loss"]
        label = "loss" if f"{prefix}loss" in passes else "head"
        waits = met or (table if setup.precision == "megatron" else 0)  # for fp32, till its 16 bits are whole
        found.append(PassRun((PassPiece(label, last, last.bytes, last.gradients, table=waits),)))
    return found


def _mark_first_gradients(tower: Any) -> list[bool] | None:
    """Mark of each layer whether its backward pass is the first to leave a gradient of its weights; None where each
    has its own."""
    if not tower.shared_layers and tower.loop is None:
        return None
    weights = [name_stored(kind) for kind in tower.pattern] if tower.shared_layers else tower.layer_weights
    last = {each: place for place, each in enumerate(weights)}  # which is undone before the others
    return [last[each] == place for place, each in enumerate(weights)]


def _met_again(spec: Any, name: str, tower: Any, setup: Setup, tuned: TunedModel | None = None) -> int:
    """Bytes of a token table's gradient where a head or another tower's embedding has given it one before; torch sums
    the two up in a third."""
    if tuned is not None and "embedding.tokens.weight" in tuned.ends[name].frozen:
        return 0
    tied = getattr(tower.head, "tied", False)
    if name == "encoder":
        tied = tied or spec.towers()["decoder"].embedding.tied is not None
    return tower.vocab_size * (tower.embedding.width or tower.d_model) * _computed_width(setup) if tied else 0


def _computed_width(setup: Setup) -> int:
    """Bytes of a value of the gradients that a pass computes."""
    return 4 if setup.precision in ("fp32", "amp") else max(DTYPES[setup.dtype], 2)


def _single(
    runs: list[PassRun],
    spec: Any,
    setup: Setup,
    passes: Mapping[str, Section],
    held: Mapping[str, Any],
    fused: bool,
) -> dict[str, dict[str, float]]:
    """Most bytes of activations and gradients in the passes of each kind of piece, all on one rank: the pieces are
    undone last to first, each beside what those before it keep and the gradients of those behind it.

    Where passes are accumulated, all gradients stand from the first pass on. A weight's new gradient goes as soon as it
    is added, a tied table's when its second one has come.
    """
    standing = held["gradients"] if setup.accumulate > 1 else 0
    wider = widths(setup)[1] / _computed_width(setup)  # Megatron's gradients are fp32, those of its passes are not
    shared = {name: section for name, section in passes.items() if name.split(".")[-1] == "shared"}
    before = sum(each.input if keeps_input(name, setup.recompute) else each.bytes for name, each in shared.items())
    before += sum(sum(piece.kept for piece in run.pieces) * run.times for run in runs)
    gradients = beside = waiting = 0
    peaks: dict[str, dict[str, float]] = {}
    for piece in (step for run in reversed(runs) for step in list_decisive(run)):
        section = piece.section
        before -= piece.kept
        undone = section.moving if standing else section.peak + (wider - 1) * section.gradients
        if piece.again:  # its forward pass a second time, beside the gradient of its result
            undone = max(undone + (0 if section.keeps_input else section.input), section.forward + section.input)
        there = {"gradients": standing or gradients * wider, "shared gradients": beside, "the table's": waiting}
        backward = {**there, "its backward pass": undone, "sum": piece.sum}
        if piece.label == "loss" and setup.chunked_loss:
            most = _chunked_loss(spec, setup, section, fused) | ({"accumulated": standing} if standing else {})
        else:
            forward = {"gradients": standing, "its forward pass": section.forward}
            most = max(backward, forward, key=lambda parts: sum(parts.values()))
        moment = {"kept before it": before, **most}
        peaks[piece.label] = max(peaks.get(piece.label, {}), moment, key=lambda parts: sum(parts.values()))
        gradients += piece.gradients
        waiting = 0 if piece.label == "embedding" else max(waiting, piece.table if standing else 0)
        beside = 0 if piece.label == "embedding" else max(beside, section.beside)
    return peaks


def _chunked_loss(spec: Any, setup: Setup, head: Section, fused: bool) -> dict[str, float]:
    """List what stands at a chunk of the loss: the hidden states, their gradient, and the more of the chunk with its
    softmax, or with the gradients that it gives the head's weights. Those of the chunks before stand beside both.

    A CPU takes the softmax of BLOCK bytes at a time, of 16 bits in a float32 copy.
    """
    values = _count_logits(find_head(spec), spec, setup)
    width = 4 if setup.precision == "fp32" else DTYPES[setup.dtype]
    logits, block = min(values * width, CHUNK), CHUNK if fused else BLOCK
    softmax = min(values * 4, block) * (1 if fused or width == 4 else 2)
    before = head.gradients if values * width > CHUNK else 0
    there = {"hidden states": head.bytes, "their gradient": head.input, "gradients": before, "logits": logits}
    if softmax >= head.gradients:
        return {**there, "their softmax": softmax}
    return {**there, "a chunk's gradients": head.gradients}


def _many(
    spec: Any, setup: Setup, passes: Mapping[str, Section], held: Mapping[str, Any], activations: float
) -> dict[str, dict[str, float]]:
    """The same where the model is shared out, as a bound: all gradients, all activations, and beside them the loss or
    what one layer's backward pass takes."""
    share, layers = setup.tp * setup.cp, name_layers(spec, passes).values()
    made = {"gradients": held["gradients"], "whole gradients": held["reducing"]}
    layer = {"its backward pass": max(each.peak - each.bytes - each.gradients for each in layers) / share}
    if setup.recompute == "full" or read_every(setup.recompute):
        layer["its forward pass"] = max(each.bytes - each.input for each in layers) / share
    found = {"layer": {**made, "activations": activations, **layer}}
    loss = _loss_bytes(spec, setup)
    if loss is not None:
        found["loss"] = {**made, "activations": activations, "loss_head": loss}
    table = max(_met_again(spec, name, tower, setup) for name, tower in spec.towers().items())
    return {**found, "embedding": {**made, "its gradient and sum": 2 * table / setup.tp}}
