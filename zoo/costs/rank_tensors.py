# b sequences, s tokens, d model width, t = tp, p = pp
"""Find the weights and activations that one rank of a parallel model holds.

Tensor and expert parallelism: `zoo.costs.rank_model`. Pipeline parallelism (Narayanan et al., 2021): each stage has
chunks of consecutive layers (`zoo.costs.layer_cut`, `zoo.distributed.pipeline_schedule`); the embedding is with the
first layer, the final norm and the head with the last; a table that embedding and head both read is on both stages.
Context parallelism divides tokens, not weights. ZeRO shards weights among the dp × cp ranks that hold the same ones
(Rajbhandari et al., 2020); ranks of ep hold different experts, so an expert is sharded among dp × cp / ep ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from zoo.costs.again import keeps_input
from zoo.costs.layer_cut import BEFORE, BEHIND, cut_layers
from zoo.costs.rank_model import context_faults, expert_faults, layer_faults, shard_tower
from zoo.costs.rows import CostTable, PartRow, Priced, PricedPart, absorbs, tabulate_towers
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.sums import Amount
from zoo.distributed.pipeline_schedule import PipelineSchedule
from zoo.errors import collect_faults, refuse
from zoo.model.attention.base import Attention
from zoo.model.tower import Tower
from zoo.spec import Buffer, Conv, Experts, Linear, Reused, Tied, components, is_hidden_matrix, owner_of
from zoo.spec.parts import count_kinds


class RankTensor(NamedTuple):
    """A tensor of a rank before ZeRO, with its tower (`where`), its `kind` of layer (None outside layers) and its
    `slot` (attention, embedding …). `copies` counts such tensors, one for each layer with weights of its own."""

    path: str
    where: str
    kind: str | None
    slot: str
    shape: tuple[int, ...]
    copies: int
    expert: bool  # spread by expert parallelism
    hidden: bool  # a matrix inside a layer, or a stack of matrices: Muon orthogonalises it
    product: bool  # used in a matrix product: autocast casts it
    learns: bool = True  # gets a gradient from the loss

    @property
    def params(self) -> int:
        return math.prod(self.shape) * self.copies


@dataclass(frozen=True)
class Stage(PricedPart):
    """One stage of a pipeline, on one rank of tensor parallelism.

    `held` has the rank's part of each tower by name, with the layers of this stage only. `chunks` counts the layers of
    each chunk by tower and kind. `ends` names, for each tower, the slots outside the layers (embedding, head …) that
    the stage has. `pieces` are the stage's tensors. A Stage has a model's `towers()`, `max_seq_len`, `d_model` and
    `vocab_size`, so functions that count a model's cache or activations also count a stage's.
    """

    index: int
    schedule: PipelineSchedule
    chunks: tuple[Mapping[tuple[str, str], int], ...]
    ends: Mapping[str, tuple[str, ...]]
    pieces: tuple[RankTensor, ...]

    @property
    def params(self) -> int:
        """Count the parameters on the rank, before ZeRO."""
        return sum(piece.params for piece in self.pieces)

    @property
    def begins(self) -> bool:
        """Whether the stage has the model's first layer."""
        return self.schedule.find_stage(0) == self.index

    @property
    def finishes(self) -> bool:
        """Whether the stage has the model's last layer."""
        return self.schedule.find_stage(self.schedule.n_chunks - 1) == self.index

    def layers(self) -> Iterator[tuple[str, str, int]]:
        """List the stage's layers: tower, kind, and number of layers."""
        for name, tower in self.held.items():
            yield from ((name, kind, count_kinds(tower.pattern)[kind]) for kind in dict.fromkeys(tower.pattern))

    def runs(self) -> list[list[tuple[str, str]]]:
        """List the layers of each chunk in order, by tower and kind."""
        shared = {(name, kind): (name, kind) for name, kind, _ in self.layers()}  # one object for all layers of a kind
        layers = (shared[name, kind] for name, tower in self.held.items() for kind in tower.pattern)
        return [list(islice(layers, sum(kinds.values()))) for kinds in self.chunks]


def share_out(spec: Priced, setup: Setup) -> dict[str, Tower]:
    """Give a rank's part of each tower under tensor parallelism. Raises ConfigError with a line for each dimension that
    the set-up's ranks do not divide, each component that has no `shard` or needs whole rows, and layers that cannot be
    cut into the stages."""
    found: list[str] = []
    shared = {name: collect_faults(found, partial(shard_tower, each, setup.tp)) for name, each in spec.towers().items()}
    found += context_faults(spec, setup.cp)
    found += expert_faults(spec, setup.ep)
    found += layer_faults(spec, setup.pipeline)
    refuse(dict.fromkeys(found))
    return shared


def stages(spec: Priced, setup: Setup) -> tuple[Stage, ...]:
    """List the stages of the pipeline. Raises ConfigError as `share_out` does."""
    whole, schedule = share_out(spec, setup), setup.pipeline
    table = tabulate_towers(whole)
    cut = cut_layers(spec, setup.tokens(spec), schedule.n_chunks)
    made: dict[Any, tuple[RankTensor, ...]] = {}
    found = []
    for index in range(setup.pp):
        chunks = [cut[each] for each in schedule.list_chunks(index)]
        held, ends = _take(whole, chunks)
        key = (tuple((name, tower.pattern) for name, tower in held.items()), tuple(ends.items()))
        if key not in made:  # the middle stages are mostly equal
            own = table if setup.pp == 1 else tabulate_towers(held)
            made[key] = tuple(_tensors_of(own, ends, table, setup.ep))
        kinds = tuple(_count_kinds(whole, *chunk) for chunk in chunks)
        found.append(Stage(held, spec, index, schedule, kinds, ends, made[key]))
    return tuple(found)


def list_distinct(pipeline: Iterable[Stage]) -> list[Stage]:
    """List the first of each set of equal stages, which have the same layers and ends. Most middle stages are equal."""
    found: dict[Any, Stage] = {}
    for stage in pipeline:
        chunks = tuple(tuple(chunk.items()) for chunk in stage.chunks)
        found.setdefault((chunks, tuple(stage.ends.items())), stage)
    return [*found.values()]


def fullest(spec: Priced, setup: Setup) -> Stage:
    """Find the stage with the most parameters. Raises ConfigError as `share_out` does."""
    return max(stages(spec, setup), key=lambda stage: stage.params)


def _take(
    whole: Mapping[str, Any], chunks: Sequence[tuple[int, int]]
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """Select the part of each tower that the `chunks` of the towers' concatenated layers cover, and the slots outside
    the layers (embedding, head …) that go with it."""
    held, ends = {}, {}
    for name, tower, runs in _list_runs(whole, chunks):
        pattern = sum((tower.pattern[start:end] for start, end in runs), ())
        if pattern:
            held[name] = tower if len(pattern) == len(tower.pattern) else replace(tower, pattern=pattern)
            begins = any(start == 0 < end for start, end in runs)
            inside = ("position",) if tower.position.inside and not begins else ()  # a position that each layer reads
            last = BEHIND if any(end == len(tower.pattern) for start, end in runs if start < end) else ()
            ends[name] = (*(BEFORE if begins else inside), *last)
    return held, ends


def _count_kinds(whole: Mapping[str, Any], start: int, end: int) -> dict[tuple[str, str], int]:
    return {
        (name, kind): count
        for name, tower, ((low, high),) in _list_runs(whole, [(start, end)])
        for kind, count in count_kinds(tower.pattern[low:high]).items()
    }


def _list_runs(
    whole: Mapping[str, Any], chunks: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, Any, list[tuple[int, int]]]]:
    """List each tower with the runs (start, end) of its layers that fall into each chunk of the towers' concatenated
    layers; (0, 0) for a chunk with no layer of the tower."""
    before = 0
    for name, tower in whole.items():
        count = len(tower.pattern)
        runs = [(max(start - before, 0), min(end - before, count)) for start, end in chunks]
        yield name, tower, [run if run[0] < run[1] else (0, 0) for run in runs]
        before += count


def _tensors_of(held: CostTable, ends: Mapping[str, Any], whole: CostTable, ep: int) -> Iterator[RankTensor]:
    """List every tensor of a stage: those of its layers and ends, and any table that a tied part of the stage reads."""
    borrowed: dict[str, bool] = {}  # path of a table that a tied part reads → whether in a matrix product
    own: list[RankTensor] = []
    for row in held.parts:
        slot = row.slot if row.slot in (*BEFORE, *BEHIND) else "head"  # any other slot is behind the layers
        if row.kind is None and slot not in ends[row.where]:
            continue
        own += _tensors(row, row.stored, ep)
        if isinstance(row.part, Tied) and not isinstance(row.part, Reused):
            owner = owner_of(row.path, whole.ties)
            borrowed[owner] = borrowed.get(owner, False) or isinstance(row.part.of, Linear)
    here = {tensor.path for tensor in own}
    for owner, product in borrowed.items():
        if f"{owner}.weight" not in here:
            own += _tensors(next(row for row in whole.parts if row.path == owner), 1, ep)
        own = [each._replace(product=product) if each.path == f"{owner}.weight" else each for each in own]
    yield from own


def _tensors(row: PartRow, copies: int, ep: int) -> Iterator[RankTensor]:
    if isinstance(row.part, Buffer):
        return
    expert = isinstance(row.part, Experts) and row.part.spread
    part = row.part.shard(ep) if isinstance(row.part, Experts) else row.part
    product = isinstance(part, Linear | Experts | Conv | Tied)
    for leaf, shape in part.shapes().items():
        hidden = is_hidden_matrix(row.kind, part, leaf)
        path = f"{row.path}.{leaf}" if leaf else row.path
        yield RankTensor(path, row.where, row.kind, row.slot, shape, copies, expert, hidden, product, row.learns)


class ChunkActivations(NamedTuple):
    """The activations of a chunk of layers, in bytes of one micro-batch. `layers` are (tower, kind, number of layers,
    bytes of one layer); `first` and `last` are the bytes before and behind the layers. All these are divided among
    `split` ranks. `gathered` is the bytes of other ranks' tensors that each rank saves as well
    (`count_gathered`). `in_flight` is the number of micro-batches whose activations exist at the stage's peak."""

    layers: tuple[tuple[str, str, Amount, Amount], ...]
    first: Amount
    last: Amount
    split: Amount
    gathered: Amount = 0
    in_flight: Amount = 1

    @property
    def bytes(self) -> Amount:
        """Bytes of one micro-batch, on a rank."""
        own = sum(count * each for _, _, count, each in self.layers) + self.first + self.last
        return own / self.split + self.gathered


def sum_chunks(chunks: Iterable[ChunkActivations]) -> Amount:
    """Sum the bytes of a pipeline stage's activations."""
    return sum(chunk.bytes * chunk.in_flight for chunk in chunks)


def find_activations(
    spec: Priced,
    setup: Setup,
    layers: Mapping[tuple[str, str], float],
    first: float,
    last: float,
    pipeline: Iterable[Stage] | None = None,
) -> list[ChunkActivations]:
    """Find the activations of the stage that has most, by chunk. `layers[tower, kind]` are the bytes that a layer saves
    on a single rank (with context parallelism, on all its ranks together). `first` and `last` are the bytes that the
    slots before and behind the layers save. `pipeline` has the stages, if they exist already.

    Tensor parallelism together with sequence parallelism divides all activations by t (Korthikanti et al., 2022, eq.
    4). Context parallelism divides the tokens. A stage holds the activations of each micro-batch in flight; with 1F1B
    the first stage is the fullest. A step is taken to have at least as many micro-batches as the schedule needs.
    """
    found = []
    for stage in stages(spec, setup) if pipeline is None else pipeline:
        schedule = stage.schedule
        chunks = [
            ChunkActivations(
                tuple((*place, count, layers[place]) for place, count in kinds.items()),
                first if number == 0 else 0.0,
                last if number == schedule.n_chunks - 1 else 0.0,
                setup.tp * setup.cp,
                count_gathered(stage, kinds, setup),
            )
            for number, kinds in zip(schedule.list_chunks(stage.index), stage.chunks, strict=True)
        ]
        kept = schedule.count_kept(stage.index, setup.accumulate, [chunk.bytes for chunk in chunks])
        found.append([chunk._replace(in_flight=each) for chunk, each in zip(chunks, kept, strict=True)])
    return max(found, key=sum_chunks)


def count_gathered(stage: Stage, layers: Mapping[tuple[str, str], int], setup: Setup) -> int:
    """Count the bytes of other ranks' tensors that a stage saves under tensor parallelism: the gathered inputs of its
    sub-layers. `layers` is the number of its layers by tower and kind. Recomputed layers save none. MLA in a ring of
    context parallelism counts negative bytes: it does not save the expanded keys and values of the rank's own
    tokens."""
    read = made = 0
    for (name, kind), count in layers.items():
        if not keeps_input(f"layer:{kind}", setup.recompute):
            block = stage.held[name].blocks[kind]
            read += count * count_read(block.gathers, stage, setup)
            parts = components(block, stage.held[name].d_model)
            latent = ((each, used) for _, each, used in parts if isinstance(each, Attention) and absorbs(each))
            made += count * sum(
                used * each.core_flops(1) // 2 for each, used in latent
            )  # a multiply-add for each value
    if setup.cp == 1 or setup.cp_comm != "ring":
        return read
    return read - setup.batch * setup.tokens(stage) // setup.cp * made * DTYPES[setup.computed]


def count_read(gathers: int, spec: Priced, setup: Setup) -> int:
    """Count the bytes of other ranks' tokens that `gathers` all-gathers of the residual stream bring under tensor
    parallelism. The rank's own tokens are a share 1/t of each."""
    tokens = setup.batch * setup.tokens(spec) // setup.cp
    return gathers * (setup.tp - 1) * tokens // setup.tp * spec.d_model * DTYPES[setup.computed]
