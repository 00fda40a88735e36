"""Count the bytes that training keeps of each parameter on one rank: weights, gradients, optimizer states, master copy.

Bytes a parameter, with AdamW and a dtype of 2 bytes, before ZeRO:

| precision | weights | gradients | states | master | as in |
| --- | --- | --- | --- | --- | --- |
| mixed | 2 | 2 | 8 | 4 | Rajbhandari et al., 2020 (ZeRO), §3.1 |
| megatron | 2 | 4 | 8 | 4 | Megatron-LM, whose gradients are summed up in fp32 |
| fp32 | 4 | 4 | 8 | 0 | |
| amp | 4 | 4 | 8 | 0 | torch.autocast, which copies what enters matrix products |
| pure | 2 | 2 | 4 | 0 | torch.optim, whose states take the parameter's dtype; Zoo's bf16_pure, which rounds |

Where the weights are fp32 already there is no master copy. Every parameter is trained. Counters (a number or two a
tensor) are left out.
"""

from collections.abc import Iterable
from itertools import chain, pairwise
from typing import Any, NamedTuple

from zoo.costs.layer_cut import BEFORE
from zoo.costs.parallel import RankTensor, Stage, fullest
from zoo.costs.rows import Priced
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.shards import ceil_share, dim0_share, numel
from zoo.costs.sums import Amount
from zoo.costs.tuning import TunedModel
from zoo.errors import ConfigError

BLOCK, SMALL = 256, 4096
"""Of 8-bit states: values that share a scale, and elements below which a tensor has AdamW's states."""

TABLES = 2 * 256 * 4
"""Bytes of the tables of a tensor's 8-bit codes, one a moment."""

STACK = 1 << 24
"""Elements that Muon orthogonalises at once (`zoo.training.optim.rules`)."""

PIECE = 1 << 22
"""Elements that an update takes at once where it rounds (`zoo.training.optim.piecewise`)."""

VALUES = {"adamw": 2, "adamw8bit": 2, "lion": 1, "schedule_free": 2, "sgd": 1}
"""Values an optimizer keeps of each element: Loshchilov and Hutter, 2017; Chen et al., 2023; Defazio et al., 2024; SGD
with momentum. In adamw8bit those of tensors that are not in 8 bits."""

EVEN = ("adamw", "lion", "schedule_free", "sgd")
"""Those that keep as many values of each element, whatever the tensor."""

PASSING = {"adafactor": 2, "lion": 1, "schedule_free": 2}
"""Values of each element of a tensor that its update holds at once."""


def states(spec: Priced, setup: Setup, stage: Stage | None = None, tuned: TunedModel | None = None) -> dict[str, Any]:
    """Bytes of training states on one rank: one of `stage`, or of the stage with most parameters.

    `weights`, `gradients`, `optimizer` (the master copy among it, and `master` once more apart) are what ZeRO leaves
    there, `total` their sum; `offloaded` is what the host keeps of the optimizer's. What comes and goes: `cast`,
    autocast's copies, kept for a step's passes; `step`, what the update itself takes; with ZeRO 3 `gathered` and
    `reducing`, what is whole in between (`gathered_bytes`). `updated` is what the update moves: gradients, which it
    reads, and weights, copies and states, which it reads and writes. `bytes_per_param` is over the rank's `parameters`
    before ZeRO. `tuned` says what trains, and which adapters there are; None is all, and none.

    Raises ConfigError for dimensions that the ranks do not divide, and for `pure` in 8 bits.
    """
    stage = fullest(spec, setup) if stage is None else stage
    pieces = stage.pieces if tuned is None else (*stage.pieces, *tuned.adapters)
    active = pieces if tuned is None else tuned.trained(stage.pieces)
    trained = [each for each in active if each.learns]
    rows = list_state_rows(pieces, setup, trained)
    weights, gradients, master = (rows[name].bytes for name in ("weights", "gradients", "master"))
    own = rows["states"].bytes if "states" in rows else optimizer_bytes(trained, setup)
    away = own if setup.offload == "states" else 0
    kept = {"weights": weights, "gradients": gradients, "optimizer": own - away + master, "master": master}
    kept["total"] = kept["weights"] + kept["gradients"] + kept["optimizer"]
    gathered, reducing = gathered_bytes(stage, setup)
    changed = list_state_rows(trained, setup)
    return {
        **kept,
        "offloaded": away,
        "updated": gradients + 2 * (own - away + changed["weights"].bytes + changed["master"].bytes),
        "cast": cast_bytes(active, setup),
        "step": step_bytes(trained, setup),
        "gathered": gathered,
        "reducing": reducing,
        "parameters": stage.params,
        "bytes_per_param": {name: size / stage.params for name, size in kept.items()},
    }


class StateRow(NamedTuple):
    """A row of a rank's states: `values` of each of so many `elements`, of `width` bytes."""

    elements: Amount
    width: Amount
    values: Amount = 1

    @property
    def bytes(self) -> Amount:
        return self.elements * self.values * self.width


def list_state_rows(
    pieces: Iterable[RankTensor], setup: Setup, trained: Iterable[RankTensor] | None = None
) -> dict[str, StateRow]:
    """List what a rank holds: `weights`, `gradients`, the `master` copy, and the optimizer's `states` where each
    element has as many values (otherwise they are counted tensor by tensor). Gradients and states are those of
    `trained` tensors, of all that learn unless given."""
    pieces, (weight, gradient, state, master) = list(pieces), widths(setup)
    trained = [each for each in pieces if each.learns] if trained is None else list(trained)
    rows = {
        "weights": StateRow(count_sharded(pieces, setup, 3), weight),
        "gradients": StateRow(count_sharded(trained, setup, 2), gradient),
        "master": StateRow(count_sharded(pieces, setup, 1), master),
    }
    if setup.optimizer in EVEN and setup.zero in (0, 3):  # 1 and 2 share out the bytes of all states
        rows["states"] = StateRow(count_sharded(trained, setup, 1), state, VALUES[setup.optimizer])
    return rows


def widths(setup: Setup) -> tuple[int, int, int, int]:
    """Bytes of a weight, of its gradient, of a value of the optimizer's states, and of its master copy.

    Gradients have 16 bits or more, whatever the weights are kept in. Raises ConfigError for `pure` in 8 bits.
    """
    width = DTYPES[setup.dtype]
    if setup.precision in ("fp32", "amp"):
        return 4, 4, 4, 0
    if setup.precision == "pure":
        if width < 2:
            raise ConfigError(f"precision: pure keeps states in {setup.dtype}, as no optimizer does (mixed would do)")
        return width, width, width, 0
    return width, 4 if setup.precision == "megatron" else max(width, 2), 4, 4 if width < 4 else 0


def ways(setup: Setup, expert: bool) -> int:
    """Count the ranks that hold the same weights, over which ZeRO shards them."""
    return setup.count_holders(expert)[0]


def count_sharded(pieces: Iterable[RankTensor], setup: Setup, since: int) -> int:
    """Count the elements that a rank holds of what ZeRO shards from stage `since` on.

    Stages 1 and 2 cut all parameters, one after the other, in equal parts (DeepSpeed, Megatron-LM); 3 cuts each tensor
    (FSDP2), of which the first rank has the most.
    """
    if setup.zero == 3 or setup.zero < since:
        return sum(numel(shape) * copies for shape, copies, _ in _optimized(pieces, setup))
    sums = {True: 0, False: 0}
    for piece in pieces:
        sums[piece.expert] += piece.params
    return sum(ceil_share(elements, ways(setup, expert)) for expert, elements in sums.items())


def _optimized(pieces: Iterable[RankTensor], setup: Setup) -> list[tuple[tuple[int, ...], int, bool]]:
    """Shape, copies and whether it is a hidden matrix, of each tensor as an optimizer meets it; FSDP2's are shards."""
    cut = setup.zero == 3
    return [
        (
            dim0_share(piece.shape, ways(setup, piece.expert), expert=piece.expert) if cut else piece.shape,
            piece.copies,
            piece.hidden,
        )
        for piece in pieces
    ]


def optimizer_bytes(pieces: Iterable[RankTensor], setup: Setup) -> int:
    """Bytes of an optimizer's states on a rank, the master copy apart.

    ZeRO 1 and 2 leave an equal part of what there would be without.
    """
    width = widths(setup)[2]
    if setup.zero in (0, 3):
        return sum(
            state_bytes(setup.optimizer, shape, hidden, width) * copies
            for shape, copies, hidden in _optimized(pieces, setup)
        )
    sums = {True: 0, False: 0}
    for piece in pieces:
        sums[piece.expert] += state_bytes(setup.optimizer, piece.shape, piece.hidden, width) * piece.copies
    return sum(ceil_share(size, ways(setup, expert)) for expert, size in sums.items())


def state_bytes(optimizer: str, shape: tuple[int, ...], hidden: bool, width: int) -> int:
    """Bytes of an optimizer's states of one tensor, with values of `width` bytes. The kinds are those of conf/optim.

    adamw8bit (Dettmers et al., 2021), as torchao 0.18 has it: two codes of a byte, two fp32 scales for each 256
    elements and two tables of 256 fp32 values; tensors below 4096 elements, or of no multiple of 256, have AdamW's
    states. adafactor (Shazeer and Stern, 2018): a row's and a column's means of each matrix, of each in a stack, and
    one value an element of a vector (torch.optim.Adafactor). muon (Jordan et al., 2024): one value for the `hidden`
    matrices, those of experts too; AdamW for tables, heads, vectors and convolutions.
    """
    elements = numel(shape)
    if optimizer == "adamw8bit" and elements >= SMALL and elements % BLOCK == 0:
        return 2 * elements + 8 * elements // BLOCK + TABLES
    if optimizer == "adafactor":
        return width * (elements // shape[-1] + elements // shape[-2] if len(shape) > 1 else elements)
    if optimizer == "muon":
        return width * elements * (1 if hidden else VALUES["adamw"])
    return width * elements * VALUES[optimizer]


def step_bytes(pieces: Iterable[RankTensor], setup: Setup) -> int:
    """Bytes that the update itself takes, by the defaults on a GPU of the optimizers in conf/optim (measured, torch
    2.13).

    adamw's `foreach` holds one value for every element at once; `fused=True` takes nothing. The others go tensor by
    tensor: two values for each element of the largest (adafactor, schedule_free) or one (lion); muon a stack of
    matrices of one shape; sgd and adamw8bit work in place. With a `fused_optimizer`, `pure` in 16 bits goes by pieces,
    as states of the host do: see `_piecewise_bytes`.
    """
    width, pieces = widths(setup)[2], list(pieces)
    tensors = _optimized(pieces, setup)
    if setup.offload == "states" or (setup.precision == "pure" and width == 2 and setup.fused_optimizer):
        return max(_piecewise_bytes(setup, shape, hidden, width) for shape, _, hidden in tensors)
    if setup.optimizer == "adamw":
        return 0 if setup.fused_optimizer else count_sharded(pieces, setup, 1) * width
    if setup.optimizer in PASSING:
        return PASSING[setup.optimizer] * width * max(numel(shape) for shape, _, _ in tensors)
    if setup.optimizer == "muon":
        others = [piece for piece in pieces if not piece.hidden]
        foreach = 0 if setup.fused_optimizer else count_sharded(others, setup, 1) * width
        return max([foreach, *_stack_bytes(pieces, width)])
    return 0


def _piecewise_bytes(setup: Setup, shape: tuple[int, ...], hidden: bool, width: int) -> int:
    """Bytes of the update of one tensor by pieces (`zoo.training.optim.piecewise`).

    Of a piece there are, in fp32 where it is rounded, weights, gradients and states; beside them the more of what the
    rule passes through and of what rounding draws (2 bytes an element, on CUDA a flag besides). Of states from the host
    there are those of the piece. Where a rule needs the whole tensor (adafactor; muon's hidden matrices) it is one.
    """
    optimizer, elements, rounds = setup.optimizer, numel(shape), setup.precision == "pure" and width == 2
    orthogonal = optimizer == "muon" and hidden
    whole = optimizer == "adafactor" or orthogonal
    piece = elements if whole else -(-elements // -(-elements // PIECE))
    wide = 4 if rounds else width
    own = state_bytes(optimizer, shape, hidden, wide) * piece // elements
    passing = wide * piece * (1 if optimizer == "adafactor" else PASSING.get(optimizer, 0))  # of no tensor before
    if orthogonal:
        squares = elements // max(shape[-2:]) * min(shape[-2:])
        passing = max((wide + 2) * elements, 2 * (2 * elements + 2 * squares))
    if not rounds:
        return own + passing
    return 2 * wide * piece + own + max(passing, 2 * piece)


def _stack_bytes(pieces: Iterable[RankTensor], width: int) -> Iterable[int]:
    """Bytes of orthogonalising each stack of matrices: an update in the states' dtype beside the stack in bf16; then
    the stack before and after an iteration, and two square matrices of the short side each.

    Shards are put together first, so each matrix is whole. A stack has at most STACK elements, or one tensor.
    """
    alike: dict[tuple[int, int], dict[int, int]] = {}
    for piece in pieces:
        if piece.hidden:
            sizes = alike.setdefault((min(piece.shape[-2:]), max(piece.shape[-2:])), {})
            sizes[numel(piece.shape)] = sizes.get(numel(piece.shape), 0) + piece.copies
    for (short, long), sizes in alike.items():
        largest = max(sizes)
        whole = sum(size * copies for size, copies in sizes.items())
        stack = max(largest, min(whole, STACK // largest * largest))
        squares = stack // long * short
        yield max(width * largest + 2 * stack, 2 * (2 * stack + 2 * squares))


def cast_bytes(pieces: Iterable[RankTensor], setup: Setup) -> int:
    """Bytes of the copies that autocast keeps of the weights and biases of matrix products; FSDP casts what it
    gathers."""
    if setup.precision != "amp" or setup.zero == 3 or DTYPES[setup.dtype] >= 4:
        return 0
    return sum(piece.params for piece in pieces if piece.product) * DTYPES[setup.dtype]


class WholeUnits(NamedTuple):
    """Parameters of what FSDP gathers by itself: by tower and kind a `layers`' own, its `experts` where these are a
    unit of their own, all that stands `beside` the layers, and of that what stands behind them (`last`)."""

    layers: dict[tuple[str, str], int]
    experts: dict[tuple[str, str], int]
    beside: int
    last: int


def gathered_bytes(stage: Stage, setup: Setup) -> tuple[int, int]:
    """Bytes of the weights that FSDP2 makes whole at once in a step's passes; and of whole gradients, with the buffer
    that the largest are reduced from.

    What stands beside the layers stays whole from the first pass to the end of the second. Of the layers of a chunk two
    neighbours are whole, of which the second is fetched meanwhile; of spread experts those of the one layer.
    """
    if setup.zero < 3:
        return 0, 0
    units, learning = (_list_units(stage, setup, only) for only in (False, True))
    runs = stage.runs()
    own, reduced = (
        [each.layers.get(kind, 0) + each.experts.get(kind, 0) for kind in dict.fromkeys(chain(*runs))]
        for each in (units, learning)
    )
    pairs = [
        units.layers.get(later, 0) + units.experts.get(later, 0) + units.layers.get(before, 0)
        for before, later in dict.fromkeys(chain(*map(pairwise, runs)))
    ]
    computed = 4 if setup.precision == "fp32" else DTYPES[setup.dtype]
    gradient = max(computed, 2)
    both = gradient + widths(setup)[1]
    reducing = max(learning.last * gradient + max(reduced, default=0) * both, learning.beside * both)
    return (units.beside + max([*own, *pairs], default=0)) * computed, reducing


def _list_units(stage: Stage, setup: Setup, learning: bool) -> WholeUnits:
    """List the units of FSDP as the program has them (`zoo.training.layout`): each layer that is used once, the experts
    of each where other ranks have others, and what is left; all of their weights, or those that are `learning`."""
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
        size = piece.params // max(tower.stack.stored().count(piece.kind), 1)  # no layer of this kind is here: nothing
        if not piece.expert or setup.ep == 1:
            layers[key] = layers.get(key, 0) + size
        elif ways(setup, True) > 1:
            experts[key] = experts.get(key, 0) + size
    return WholeUnits(layers, experts, beside, last)
