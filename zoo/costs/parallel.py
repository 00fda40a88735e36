# b sequences, s tokens, d model width, t = tp, p = pp
"""What one rank holds when a model is spread over many, and what it sends in a step.

Tensor and expert parallelism: `zoo.costs.shards`. Pipeline parallelism (Narayanan et al., 2021): consecutive layers on
each stage, as many on each, one more on the earlier where they do not come out even; the embedding is on the first
stage, the last norm and the head on the last, and a table that both read is on both. Context parallelism divides
tokens and no weights. The ranks of dp × cp hold the same weights, which ZeRO shards among them (Rajbhandari et al.,
2020); those of ep hold other experts, so that an expert is shared out among dp × cp / ep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zoo.costs.again import keeps_input
from zoo.costs.rows import CostTable, PartRow, Priced, PricedPart, tabulate_towers
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.shards import expert_faults, numel, shard_tower, tensor_faults
from zoo.costs.sums import Amount
from zoo.errors import ConfigError
from zoo.model.tower import Tower
from zoo.spec import Buffer, Conv, Experts, Linear, Tied, is_hidden_matrix, owner_of

FIRST, LAST = ("embedding", "position"), ("norm", "project", "pooler", "head")
"""The components before a stack's layers, and those after them."""


class RankTensor(NamedTuple):
    """A tensor of a rank, before ZeRO: of tower `where`, in a `kind` of layer or beside the layers, in a `slot` there
    (attention, embedding …)."""

    path: str
    where: str
    kind: str | None
    slot: str
    shape: tuple[int, ...]
    copies: int
    expert: bool  # one of those that expert parallelism spreads
    hidden: bool  # the matrix of a product inside a layer, or a stack of such: what Muon orthogonalises
    product: bool  # of a matrix product, so that autocast casts it

    @property
    def params(self) -> int:
        return numel(self.shape) * self.copies


@dataclass(frozen=True)
class Stage(PricedPart):
    """One stage of a pipeline, on one rank of tensor parallelism.

    `held` has the rank's part of its towers by name, with the layers of this stage alone. `ends` says which slots
    beside the layers (embedding, head …) the stage has of each tower. A Stage has a model's `towers()`, `max_seq_len`,
    `d_model` and `vocab_size`, so a function that counts a model's cache or activations counts a stage's.
    """

    index: int
    of: int
    ends: Mapping[str, tuple[str, ...]]
    pieces: tuple[RankTensor, ...]

    @property
    def params(self) -> int:
        """Count the parameters on the rank, before ZeRO."""
        return sum(piece.params for piece in self.pieces)

    @property
    def in_flight(self) -> int:
        """Most micro-batches whose activations it holds at once. 1F1B fills the later stages first (Narayanan et al.,
        2021, §2.2); a step is taken to have at least as many micro-batches as stages."""
        return self.of - self.index

    def layers(self) -> Iterator[tuple[str, str, int]]:
        """List the stage's layers: tower, kind, and number of layers."""
        for name, tower in self.held.items():
            yield from ((name, kind, tower.pattern.count(kind)) for kind in dict.fromkeys(tower.pattern))


def share_out(spec: Priced, setup: Setup) -> dict[str, Tower]:
    """Give a rank's part of each tower under tensor parallelism. Raises ConfigError with a line for each dimension that
    the set-up's ranks do not divide, and for each component that does not say how it splits."""
    towers, shared, found = spec.towers(), {}, []
    for name, tower in towers.items():
        try:
            shared[name] = shard_tower(tower, setup.tp)
        except ConfigError as error:
            found += list(tensor_faults(tower, setup.tp)) or error.faults
    found += expert_faults(spec, setup.ep)
    layers = sum(len(tower.pattern) for tower in towers.values())
    if layers < setup.pp:
        found.append(f"pp: {setup.pp} stages for {layers} layers (at most {layers} would do)")
    if found:
        raise ConfigError(*dict.fromkeys(found))
    return shared


def stages(spec: Priced, setup: Setup) -> tuple[Stage, ...]:
    """List the stages of the pipeline. Raises ConfigError where `share_out` does."""
    whole = share_out(spec, setup)
    table = tabulate_towers(whole)
    least, more = divmod(sum(len(tower.pattern) for tower in whole.values()), setup.pp)
    made: dict[Any, tuple[RankTensor, ...]] = {}
    found, start = [], 0
    for index in range(setup.pp):
        end = start + least + (index < more)
        held, ends = _cut(whole, start, end)
        key = (tuple((name, tower.pattern) for name, tower in held.items()), tuple(ends.items()))
        if key not in made:  # the stages in the middle mostly hold the same
            own = table if setup.pp == 1 else tabulate_towers(held)
            made[key] = tuple(_tensors_of(own, ends, table, setup.ep))
        found.append(Stage(held, spec, index, setup.pp, ends, made[key]))
        start = end
    return tuple(found)


def fullest(spec: Priced, setup: Setup) -> Stage:
    """Find the stage with the most parameters. Raises ConfigError where `share_out` does."""
    return max(stages(spec, setup), key=lambda stage: stage.params)


def _cut(whole: Mapping[str, Any], start: int, end: int) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """Cut layers `start` to `end` out of the concatenated stacks, with the components before or after them."""
    held, ends, before = {}, {}, 0
    for name, tower in whole.items():
        low, high = max(start - before, 0), min(end - before, len(tower.pattern))
        if low < high:
            held[name] = tower if high - low == len(tower.pattern) else replace(tower, pattern=tower.pattern[low:high])
            inside = ("position",) if tower.position.inside and low else ()  # which each layer reads
            last = LAST if high == len(tower.pattern) else ()
            ends[name] = (*(FIRST if low == 0 else inside), *last)
        before += len(tower.pattern)
    return held, ends


def _tensors_of(held: CostTable, ends: Mapping[str, Any], whole: CostTable, ep: int) -> Iterator[RankTensor]:
    """List every tensor of a stage: those of its layers and ends, and a table that a tied part here reads."""
    borrowed: dict[str, bool] = {}  # tables that something here reads, and whether in a matrix product
    own: list[RankTensor] = []
    for row in held.parts:
        slot = row.slot if row.slot in (*FIRST, *LAST) else "head"  # one that is not known stands behind the layers
        if row.kind is None and slot not in ends[row.where]:
            continue
        own += _tensors(row, row.stored, ep)
        if isinstance(row.part, Tied):
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
    expert = isinstance(row.part, Experts)
    part = row.part.shard(ep) if isinstance(row.part, Experts) else row.part
    product = isinstance(part, Linear | Experts | Conv | Tied)
    for leaf, shape in part.shapes().items():
        hidden = is_hidden_matrix(row.kind, part, leaf)
        path = f"{row.path}.{leaf}" if leaf else row.path
        yield RankTensor(path, row.where, row.kind, row.slot, shape, copies, expert, hidden, product)


def activation_bytes(
    spec: Priced, setup: Setup, layers: Mapping[tuple[str, str], float], first: float = 0.0, last: float = 0.0
) -> float:
    """Activations on the rank that has most of them, when one rank alone would keep `layers` bytes a layer, by stack
    and kind, and `first` and `last` bytes beside them.

    Tensor with sequence parallelism divides all of them by t (Korthikanti et al., 2022, eq. 4), context parallelism the
    tokens; a stage holds those of its layers for each micro-batch in flight, which makes the first the fullest.
    """

    return sum_activations(spec, setup, layers, first, last).bytes


class StageActivations(NamedTuple):
    """What the passes of a stage keep: `layers` (tower, kind, number, bytes of one), what stands before (`first`) and
    behind them (`last`), the micro-batches `in_flight`, and over how many ranks all is `split`; `gathered` is what
    layers keep of keys and values beside (`count_gathered`)."""

    layers: tuple[tuple[str, str, Amount, Amount], ...]
    first: Amount
    last: Amount
    in_flight: Amount
    split: Amount
    gathered: Amount = 0

    @property
    def bytes(self) -> Amount:
        own = sum(count * each for _, _, count, each in self.layers) + self.first
        return (own * self.in_flight + self.last) / self.split + self.gathered * self.in_flight


def sum_activations(
    spec: Priced,
    setup: Setup,
    layers: Mapping[tuple[str, str], float],
    first: float,
    last: float,
    pipeline: Iterable[Stage] | None = None,
) -> StageActivations:
    """Find the stage that keeps most; see `activation_bytes`. `pipeline` are its stages, where they are known."""
    found = (
        StageActivations(
            tuple((name, kind, count, layers[name, kind]) for name, kind, count in stage.layers()),
            first if stage.index == 0 else 0.0,
            last if stage.index == setup.pp - 1 else 0.0,
            stage.in_flight,
            setup.tp * setup.cp,
            count_gathered(stage, setup),
        )
        for stage in (stages(spec, setup) if pipeline is None else pipeline)
    )
    return max(found, key=lambda stage: stage.bytes)


def count_gathered(stage: Stage, setup: Setup) -> int:
    """Count the bytes that the layers of a stage keep of keys and values beside those of a rank's own tokens. Layers
    that run again keep none. Round a ring none is kept of other ranks' tokens, nor what is expanded of the rank's own,
    which makes the number negative for MLA."""
    if setup.cp == 1:
        return 0
    own = setup.batch * setup.tokens(stage) // setup.cp
    sent = made = 0
    for name, kind, count in stage.layers():
        if not keeps_input(f"layer:{kind}", setup.recompute):
            attention = stage.held[name].blocks[kind].attention
            sent += count * sum(map(math.prod, attention.cache().values()))
            made += count * attention.expanded
    values = -own * made if setup.cp_comm == "ring" else own * (setup.cp - 1) * (sent + made)
    return values * (4 if setup.precision == "fp32" else DTYPES[setup.dtype])
