"""Count the training states of one rank in bytes: weights, gradients, optimizer states, master copy.

Bytes a parameter, with AdamW and a dtype of 2 bytes, before ZeRO:

| precision | weights | gradients | states | master | as in |
| --- | --- | --- | --- | --- | --- |
| mixed | 2 | 2 | 8 | 4 | Rajbhandari et al., 2020 (ZeRO), §3.1 |
| bf16_master | 2 | 4 | 8 | 4 | Megatron-LM, and Zoo: gradients are accumulated in fp32 |
| fp32 | 4 | 4 | 8 | 0 | |
| bf16 | 4 | 4 | 8 | 0 | torch.autocast, which casts operands of products; with ZeRO 3 FSDP2, which casts weights |
| bf16_pure | 2 | 2 | 4 | 0 | torch.optim: states have the parameter's dtype; Zoo's bf16_pure rounds stochastically |

With fp32 weights there is no master copy. Step counters (a number or two a tensor) are left out.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, NamedTuple

from zoo.costs.layer_cut import BEFORE
from zoo.costs.muon_stacks import list_stack_bytes
from zoo.costs.rank_tensors import RankTensor, Stage, fullest
from zoo.costs.rows import Priced
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.sums import Amount
from zoo.costs.tuning import TunedModel
from zoo.costs.update_flops import LONGEST
from zoo.costs.zero_shards import count_sharded, shard_shape, sum_sharded, ways, widths
from zoo.spec import Buffer, tensors

BLOCK, SMALL = 256, 4096
"""8-bit states: elements that share a scale (BLOCK); tensors with fewer than SMALL elements have AdamW's states."""

TABLES = 2 * 256 * 4
"""Bytes of a tensor's code tables for 8-bit states: 256 fp32 values for each of two moments."""

PIECE, CPU_PIECE = 1 << 26, 1 << 22
"""Elements of a piece in a piecewise update (`zoo.training.optim.piecewise`) on a GPU, where launches cost, and on a
CPU, where a piece should stay in its caches. Prices are those of a GPU."""

IN_FLIGHT = 2
"""Pieces of offloaded states that are on the device at once: one is updated while others are read and written."""

VALUES = {"adamw": 2, "adamw8bit": 2, "lion": 1, "schedule_free": 2, "sgd": 1, "soap": 2}
"""Values that an optimizer keeps for each element: AdamW (Loshchilov and Hutter, 2017), Lion (Chen et al., 2023),
schedule-free (Defazio et al., 2024), SGD with momentum. For adamw8bit: tensors that are not kept in 8 bits."""

ORTHOGONAL = ("muon", "normuon")
"""Optimizers that orthogonalise the matrices inside layers."""

EVEN = ("adamw", "lion", "schedule_free", "sgd")
"""Optimizers that keep the same number of values for each element of any tensor."""

SETTLING = {"cautious": 2, "hyperball": 1}
"""Temporary values for each element of a tensor whose weight decay is not uniform, in addition to its copy."""

PASSING = {"adafactor": 1, "lion": 1, "schedule_free": 2}
"""Temporary values for each element of a tensor during its update."""


def states(spec: Priced, setup: Setup, stage: Stage | None = None, tuned: TunedModel | None = None) -> dict[str, Any]:
    """Count the bytes of training states on one rank of `stage` (None: the stage with most parameters).

    `weights`, `gradients` and `optimizer` are a rank's share under ZeRO, `total` their sum. `optimizer` includes the
    master copy, which `master` also gives alone, but not the states on the host (`offloaded`). Temporary memory: `cast`
    is autocast's copies during a step's passes, `step` the update's scratch memory; under FSDP `gathered`,
    `gathered_last`, `gathered_first` and `reducing` are whole weights and gradients (`GatheredBytes`). `learning` is
    the number of parameters that get a gradient, before ZeRO. `updated` is the bytes that the update moves on the GPU:
    it reads gradients, and reads and writes weights, the master copy and states. `bytes_per_param` divides by the
    rank's `parameters` before ZeRO. `tuned` is `setup.tune(spec)`, if known already.

    Raises ConfigError for dimensions that the ranks do not divide, and for `bf16_pure` in 8 bits.
    """
    stage = fullest(spec, setup) if stage is None else stage
    tuned = setup.tune(spec) if tuned is None else tuned
    pieces = stage.pieces if tuned is None else tuned.list_own(stage.pieces)
    active = pieces if tuned is None else tuned.trained(stage.pieces)
    trained = [each for each in active if each.learns]
    rows = list_state_rows(pieces, setup, active)
    weights, gradients, master = (rows[name].bytes for name in ("weights", "gradients", "master"))
    weights += 0 if tuned is None else tuned.held
    own = optimizer_bytes(trained, setup)
    away = own if setup.offload == "states" else 0
    kept = {"weights": weights, "gradients": gradients, "optimizer": own - away + master, "master": master}
    kept["total"] = kept["weights"] + kept["gradients"] + kept["optimizer"]
    gathered = gathered_bytes(stage, setup)
    changed = list_state_rows(trained, setup)
    return {
        **kept,
        "offloaded": away,
        "updated": gradients + 2 * (own - away + changed["weights"].bytes + changed["master"].bytes),
        "cast": cast_bytes(active, setup) + (0 if tuned is None else _dequantised_bytes(stage, setup, tuned)),
        "step": step_bytes(trained, setup),
        "gathered": gathered.most,
        "gathered_last": gathered.last,
        "gathered_first": gathered.first,
        "reducing": gathered.reducing,
        "learning": sum(each.params for each in trained),
        "parameters": stage.params,
        "bytes_per_param": {name: size / stage.params for name, size in kept.items()},
    }


def count_trained(spec: Priced, setup: Setup, tuned: TunedModel) -> dict[str, Any]:
    """Count the trained `parameters` of a run, how many of them are `adapters`, their `share` of all parameters, and
    the bytes of a `checkpoint`. A checkpoint has the weights (with adapters only the trained ones, and buffers) and the
    optimizer's states.

    Step counters, random states and headers, a few KB, are left out.
    """
    alone = replace(setup, dp=1, cp=1, replicas=1, zero=0)
    pieces = fullest(spec, alone).pieces
    trained, added = tuned.trained(pieces), sum(each.params for each in tuned.adapters)
    count, (weight, _, _, master) = sum(each.params for each in trained), widths(setup)
    saved = count if added else sum(each.params for each in pieces)
    parts = [part for tower in spec.towers().values() for _, part, _ in tensors(tower, tower.d_model)]
    sizes = ((each.shape, int(re.sub(r"\D", "", each.dtype)) // 8) for each in parts if isinstance(each, Buffer))
    buffers = sum(math.prod(shape) * size for shape, size in sizes)
    learning = [each for each in trained if each.learns]
    return {
        "parameters": count,
        "adapters": added,
        "share": count / (sum(each.params for each in pieces) + added),
        "checkpoint": saved * (master or weight) + buffers + optimizer_bytes(learning, alone),
    }


class StateRow(NamedTuple):
    """One of a rank's training states: `elements` elements with `values` values each, of `width` bytes each."""

    elements: Amount
    width: Amount
    values: Amount = 1

    @property
    def bytes(self) -> Amount:
        return self.elements * self.values * self.width


def list_state_rows(
    pieces: Iterable[RankTensor], setup: Setup, active: Iterable[RankTensor] | None = None
) -> dict[str, StateRow]:
    """List a rank's states: `weights`, `gradients`, `master` copy, and the optimizer's `states`. The row `states` is
    absent if elements have different numbers of values, or if ZeRO 1 or 2 shards the states: use `optimizer_bytes`
    then. Only `active` tensors (None: all) that learn have gradients and states. With `bf16_master` frozen weights have
    a master copy too; with `mixed` (ZeRO) they have none."""
    pieces, (weight, gradient, state, master) = list(pieces), widths(setup)
    active = pieces if active is None else list(active)
    trained = [each for each in active if each.learns]
    rows = {
        "weights": StateRow(count_sharded(pieces, setup, 3), weight),
        "gradients": StateRow(count_sharded(trained, setup, 2), gradient),
        "master": StateRow(count_sharded(active if setup.precision == "mixed" else pieces, setup, 1), master),
    }
    if setup.optimizer in EVEN and setup.zero in (0, 3):  # ZeRO 1 and 2 divide the bytes of all states together
        rows["states"] = StateRow(count_sharded(trained, setup, 1), state, VALUES[setup.optimizer])
    return rows


def optimizer_bytes(pieces: Iterable[RankTensor], setup: Setup) -> int:
    """Count the bytes of the optimizer's states on a rank, without the master copy."""
    width, pieces = widths(setup)[2], list(pieces)
    rows = row_bytes(pieces, width) if setup.optimizer == "normuon" else 0
    return rows + sum_sharded(
        pieces, setup, 1, lambda shape, hidden: state_bytes(setup.optimizer, shape, hidden, width)
    )


def row_bytes(pieces: Iterable[RankTensor], width: int) -> int:
    """Count the bytes of NorMuon's second moments of rows, which every rank holds completely."""
    return width * sum(each.params // each.shape[-1] for each in pieces if each.hidden)


def state_bytes(optimizer: str, shape: tuple[int, ...], hidden: bool, width: int) -> int:
    """Count the bytes of an optimizer's states of one tensor, with values of `width` bytes. `optimizer` is a kind of
    conf/optim.

    - adamw8bit (Dettmers et al., 2021), as in torchao 0.18: two codes of a byte for each element, two fp32 scales for
      each 256 elements, and two tables of 256 fp32 values. Tensors with fewer than 4096 elements, or not a multiple of
      256, have AdamW's states.
    - adafactor (Shazeer and Stern, 2018): row and column means of each matrix, and one value for each element of a
      vector, as torch.optim.Adafactor.
    - muon (Jordan et al., 2024): one value for each element of `hidden` matrices, experts' included; AdamW's states for
      tables, heads, vectors and convolutions. normuon (Li et al., 2025) has one for each row too, which `row_bytes`
      counts.
    - soap (Vyas et al., 2024): AdamW's two values; for each side of a hidden matrix that is rotated, a preconditioner
      and a basis, both square.
    """
    elements = math.prod(shape)
    if optimizer == "adamw8bit" and elements >= SMALL and elements % BLOCK == 0:
        return 2 * elements + 8 * elements // BLOCK + TABLES
    if optimizer == "adafactor":
        return width * (elements // shape[-1] + elements // shape[-2] if len(shape) > 1 else elements)
    if optimizer in ORTHOGONAL:
        return width * elements * (1 if hidden else VALUES["adamw"])
    if optimizer == "soap" and hidden:
        squares = sum(2 * side**2 for side in shape[-2:] if side <= LONGEST)
        return width * (2 * elements + math.prod(shape[:-2]) * squares)
    return width * elements * VALUES[optimizer]


def step_bytes(pieces: Iterable[RankTensor], setup: Setup) -> int:
    """Count the scratch bytes of the update, with the GPU defaults of the optimizers in conf/optim (measured, torch
    2.13).

    adamw's `foreach` has a temporary value for every element; `fused=True` has none. The others update tensor by
    tensor: schedule_free takes two values for each element of the largest tensor, adafactor and lion take one. muon
    takes one stack of matrices of one shape (`zoo.costs.muon_stacks`). soap takes four squares of a side and the update
    when it refreshes a basis. muon and soap take at least AdamW's temporary values for their other tensors. sgd and
    adamw8bit work in place. A `decay` that is not uniform takes a copy of the decayed weights, and at least one or two
    values for each element of the largest (SETTLING). `bf16_pure` in 16 bits with a `fused_optimizer`, and offloaded
    states, are updated piece by piece: see `_piecewise_bytes`.
    """
    pieces = list(pieces)
    if setup.decay == "uniform":
        return _rule_bytes(pieces, setup)
    concerned = [each for each in pieces if (each.hidden if setup.decay == "hyperball" else len(each.shape) > 1)]
    copied = count_sharded(concerned, setup, 1) * widths(setup)[2]
    sizes = (math.prod(shard_shape(each.shape, setup, each.expert)) for each in concerned)
    settling = SETTLING[setup.decay] * widths(setup)[2] * max(sizes, default=0)
    return copied + max(_rule_bytes(pieces, setup), settling)


def _rule_bytes(pieces: list[RankTensor], setup: Setup) -> int:
    """Count the scratch bytes of an update rule, without its weight decay."""
    width = widths(setup)[2]
    shapes = [shard_shape(each.shape, setup, each.expert) for each in pieces]
    if setup.offload == "states" or (setup.precision == "bf16_pure" and width == 2 and setup.fused_optimizer):
        found = zip(shapes, pieces, strict=True)
        return max(_piecewise_bytes(setup, shape, each.hidden, width) for shape, each in found)
    if setup.optimizer == "adamw":
        return 0 if setup.fused_optimizer else count_sharded(pieces, setup, 1) * width
    if setup.optimizer in PASSING:
        return PASSING[setup.optimizer] * width * max(map(math.prod, shapes))
    if setup.optimizer in (*ORTHOGONAL, "soap"):
        others = [piece for piece in pieces if not piece.hidden]
        foreach = 0 if setup.fused_optimizer else count_sharded(others, setup, 1) * width
        hidden = [piece.shape for piece in pieces if piece.hidden]
        soap = setup.optimizer == "soap"
        stacks = [width * _count_turning(each) for each in hidden] if soap else list_stack_bytes(pieces, setup, width)
        return max([foreach, *stacks])
    return 0


def _count_turning(shape: tuple[int, ...]) -> int:
    """Count the temporary values of SOAP's step of matrices [..., A, B]."""
    squares = [side**2 for side in shape[-2:] if side <= LONGEST]
    elements = math.prod(shape)
    return elements + 4 * math.prod(shape[:-2]) * max(squares) if squares else 3 * elements


def _piecewise_bytes(setup: Setup, shape: tuple[int, ...], hidden: bool, width: int) -> int:
    """Count the scratch bytes of updating one tensor by pieces (`zoo.training.optim.piecewise`).

    With rounding a piece has fp32 weights, gradients and states, and the larger of the optimizer's temporaries and the
    random bits of rounding (2 bytes an element). Without rounding a piece has its offloaded states and the optimizer's
    temporaries. Of offloaded states IN_FLIGHT pieces are on the device. If an update needs the whole tensor (adafactor;
    muon's hidden matrices), the tensor is one piece.
    """
    optimizer, elements, rounds = setup.optimizer, math.prod(shape), setup.precision == "bf16_pure" and width == 2
    orthogonal = optimizer in ORTHOGONAL and hidden
    whole = optimizer == "adafactor" or orthogonal
    piece = elements if whole else -(-elements // -(-elements // PIECE))
    wide = 4 if rounds else width
    own = state_bytes(optimizer, shape, hidden, wide) * piece // elements
    passing = wide * piece * PASSING.get(optimizer, 0)
    if orthogonal:
        squares = elements // max(shape[-2:]) * min(shape[-2:])
        passing = max((wide + 2) * elements, 2 * (2 * elements + 2 * squares))
    flying = min(IN_FLIGHT, -(-elements // piece)) if setup.offload == "states" else 1
    if not rounds:
        return flying * own + passing
    return 2 * wide * piece + flying * own + max(passing, 2 * piece)


def cast_bytes(pieces: Iterable[RankTensor], setup: Setup) -> int:
    """Count the bytes of autocast's copies of weights in matrix products; 0 under FSDP, which casts gathered
    weights."""
    if setup.autocast is None or DTYPES[setup.dtype] >= 4:
        return 0
    return sum(piece.params for piece in pieces if piece.product) * DTYPES[setup.dtype]


def _dequantised_bytes(stage: Stage, setup: Setup, tuned: TunedModel) -> int:
    """Count the bytes of the largest weight in bfloat16 or quantised: each product converts it to its own dtype."""
    held = (each.params // each.copies for each in stage.pieces if tuned.apart.get(each.path))
    return max(held, default=0) * (4 if setup.precision == "fp32" else max(DTYPES[setup.dtype], 2))


class WholeUnits(NamedTuple):
    """Numbers of parameters in FSDP's units. `layers` and `experts` are those of one layer, by tower and kind;
    `experts` counts only experts that are a separate unit. `beside` counts everything else: the parts outside the
    layers, and layers that share weights. `last` is `beside` without the parts before the layers."""

    layers: dict[tuple[str, str], int]
    experts: dict[tuple[str, str], int]
    beside: int
    last: int


class GatheredBytes(NamedTuple):
    """Peaks of FSDP2 in a step, in bytes. `most` is the peak of gathered weights. `last` is those gathered at the last
    layer and the head. `first` is those gathered at the first layer of a chunk, where the backward pass ends.
    `reducing` is unsharded gradients together with the buffer of the largest reduce-scatter."""

    most: int = 0
    last: int = 0
    first: int = 0
    reducing: int = 0


def gathered_bytes(stage: Stage, setup: Setup) -> GatheredBytes:
    """Count FSDP2's whole weights and gradients; all are 0 if passes compute with the weights themselves
    (`Setup.gathers`). Under autocast weights are gathered in their own dtype, and autocast then copies them.

    Parts outside the layers stay gathered from the forward pass to the end of the backward pass. Two neighbouring
    layers of a chunk are gathered at once, because the next layer is prefetched; the last layer is gathered at the
    loss. Over one shard (ddp) torch copies a layer's weights only when it needs them. Experts that are a separate unit
    are gathered for one layer at a time. If backward passes are split, all weights stay gathered: nothing gathers them
    for the second half.
    """
    if not setup.gathers:
        return GatheredBytes()
    units, learning = (_list_units(stage, setup, only) for only in (False, True))
    runs = stage.runs()
    alone, reduced = (
        {kind: each.layers.get(kind, 0) + each.experts.get(kind, 0) for kind in chain(*runs)}
        for each in (units, learning)
    )
    pairs = [
        units.layers.get(later, 0) + units.experts.get(later, 0) + units.layers.get(before, 0)
        for before, later in dict.fromkeys(chain(*map(pairwise, runs)))
    ]
    computed = widths(setup)[0] if setup.autocast else DTYPES[setup.computed]
    gradient = max(computed, 2)
    both = gradient + widths(setup)[1]
    reducing = max(learning.last * gradient + max(reduced.values(), default=0) * both, learning.beside * both)
    prefetches = setup.zero == 3
    last = units.beside + (alone[runs[-1][-1]] if prefetches and runs and runs[-1] else 0)
    first = units.beside + max((alone[run[0]] for run in runs if run), default=0)
    most = units.beside + max([*alone.values(), *(pairs if prefetches else ())], default=0)
    if stage.schedule.splits_backward:
        most = last = first = stage.params
    return GatheredBytes(most * computed, last * computed, first * computed, reducing)


def _list_units(stage: Stage, setup: Setup, learning: bool) -> WholeUnits:
    """List FSDP's units as the program makes them (`zoo.training.layout`): each layer with weights of its own, its
    experts if ranks hold different ones, and the rest. Experts that no two ranks share are in no unit, because nothing
    shards them. With `learning` only weights that get a gradient count."""
    layers: dict[tuple[str, str], int] = {}
    experts: dict[tuple[str, str], int] = {}
    beside = last = 0
    for piece in stage.pieces:
        if learning and not piece.learns:
            continue
        tower = stage.held.get(piece.where)
        if piece.kind is None or tower is None or len(tower.stack.stored()) < len(tower.pattern):
            beside += piece.params
            last += piece.params if piece.slot not in BEFORE else 0
            continue
        key = (piece.where, piece.kind)
        size = piece.params // max(tower.stack.stored().count(piece.kind), 1)  # a stage may have no layer of this kind
        if not piece.expert or setup.ep == 1:
            layers[key] = layers.get(key, 0) + size
        elif ways(setup, True) > 1:
            experts[key] = experts.get(key, 0) + size
    return WholeUnits(layers, experts, beside, last)
