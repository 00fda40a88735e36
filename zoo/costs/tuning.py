# R rank
"""Describe how a run tunes a model: frozen weights, low-rank adapters, dropout; and the set-up of such a run.

A kind whose layers are tuned differently is split into several kinds (`PricedPart`), because pricing takes all layers
of a kind to be equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from zoo.costs.again import name_part
from zoo.costs.rank_tensors import RankTensor
from zoo.costs.rows import Priced, PricedPart, change_copy
from zoo.costs.setup import Setup
from zoo.errors import ConfigError
from zoo.model.block.base import Block
from zoo.model.channels import count_reads
from zoo.model.tower import Tower
from zoo.spec import Buffer, Experts, Tied, owner_of, placed_tensors, rows

LOW_RANK = "lora"
"""The name of an adapter in tensor paths, below the product that it adapts."""


@dataclass(frozen=True)
class Tuning:
    """Say which weights of a model a run trains, which adapters it adds, and where it applies dropout.

    `trained` names the weights that train (None: all), `adapted` the paths of the linear layers that have an adapter of
    `rank`. `drops_adapted` says whether dropout is applied to the input of adapters; `drops` names the other places of
    dropout: attention, residual, embedding, ffn, layers. Some frozen weights are no parameters, but are stored in
    bfloat16 or quantised: `held` has the bytes of each. With `dora` an adapter has a vector of magnitudes.
    """

    trained: frozenset[str] | None = None
    adapted: tuple[str, ...] = ()
    rank: int = 0
    drops_adapted: bool = False
    drops: frozenset[str] = frozenset()
    held: Mapping[str, int] = field(default_factory=dict, compare=False)
    dora: bool = False

    @property
    def plain(self) -> bool:
        """Whether all weights train, with neither adapters nor dropout."""
        return self == Tuning()


@dataclass(frozen=True)
class PartTuning:
    """The tuning of one module of a model: paths, below the module, of `frozen` tensors and `adapted` products.
    `reached` is False if the module's input needs no gradient, because nothing before it trains. `whole` is the model's
    Tuning."""

    frozen: frozenset[str] = frozenset()
    adapted: frozenset[str] = frozenset()
    reached: bool = True
    whole: Tuning = field(default_factory=Tuning)

    def below(self, name: str) -> PartTuning:
        """Give the tuning of a submodule by its name; of the module itself for an empty name."""
        if not name:
            return self
        frozen, adapted = (
            frozenset(path[len(name) + 1 :] for path in paths if path.startswith(f"{name}."))
            for paths in (self.frozen, self.adapted)
        )
        return replace(self, frozen=frozen, adapted=adapted)


class TunedModel(NamedTuple):
    """A model (`spec`) in which layers of a kind are tuned alike, with the tuning of each tower outside its layers
    (`ends`) and of each kind of layer. `reached` says whether the input of a tower's head needs a gradient; `copies`
    counts the trained copies of each tensor by path (None: all train); `adapters` are the adapters' tensors. `apart`
    counts the copies of each tensor that are stored in bfloat16 or quantised (`Tuning.held`), `held` their bytes."""

    spec: Priced
    ends: Mapping[str, PartTuning]
    layers: Mapping[tuple[str, str], PartTuning]
    reached: Mapping[str, bool]
    copies: Mapping[str, int] | None
    adapters: tuple[RankTensor, ...]
    apart: Mapping[str, int]
    held: int

    @property
    def partly(self) -> bool:
        """Whether some weights are frozen, or adapters are added."""
        return self.copies is not None or bool(self.adapters)

    def list_own(self, pieces: Collection[RankTensor]) -> list[RankTensor]:
        """Select the tensors that are stored as plain parameters (not `apart`), and add the adapters' tensors."""
        kept = [each._replace(copies=each.copies - self.apart.get(each.path, 0)) for each in pieces]
        return [*(each for each in kept if each.copies), *self.adapters]

    def trained(self, pieces: Collection[RankTensor]) -> list[RankTensor]:
        """Select the tensors that train, and add the adapters' tensors."""
        kept = pieces
        if self.copies is not None:
            kept = [each._replace(copies=self.copies.get(each.path, 0)) for each in pieces]
        return [*(each for each in kept if each.copies), *self.adapters]


@dataclass(frozen=True, kw_only=True)
class TunedSetup(Setup):
    """The set-up of a run that trains only some weights, or adds adapters or dropout: `tuning` gives a model's Tuning.

    Raises ConfigError for tensor, pipeline or expert parallelism, because a rank's part of the adapters is not known.
    """

    tuning: Callable[[Any], Tuning]
    tunes: ClassVar[bool] = True

    def tune(self, spec: Priced) -> TunedModel | None:
        tuning = self.tuning(spec)
        if tuning.adapted and self.tp * self.pp * self.ep > 1:
            raise ConfigError("lora: is priced without tp, pp and ep (--dp, --cp, --zero)")
        if self.zero:  # shards are of parameters alone, in the dtype of all
            tuning = replace(tuning, held={})
        return None if tuning.plain else apply_tuning(spec, tuning)


def apply_tuning(spec: Priced, tuning: Tuning) -> TunedModel:
    """Split the kinds of layer of a model by their tuning. Takes time in proportion to depth."""
    towers, ends, layers, reached = {}, {}, {}, {}
    memory = False  # whether an encoder's output needs a gradient
    for where, tower in spec.towers().items():
        frozen, index = _list_frozen(spec, where, tower, tuning), tower.stack.index
        ends[where] = PartTuning(frozen, frozenset(tuning.adapted), True, tuning).below(where)
        own = [ends[where].below(f"blocks.{index(i)}") for i in range(len(tower.pattern))]
        before = _trains_first(where, tower, ends[where])
        labels: dict[tuple[str, PartTuning, tuple[int, ...]], str] = {}
        pattern = []
        reads = count_reads(tower) or [()] * len(own)
        for kind, each, read in zip(tower.pattern, own, reads, strict=True):
            key, block = (kind, replace(each, reached=before), read), tower.blocks[kind]
            label = labels.setdefault(key, name_part(kind, len(labels)))
            pattern.append(label)
            layers[where, label] = key[1]
            before = before or (memory and block.cross is not None) or _trains(block, tower.d_model, each)
        memory = memory or before
        reached[where] = before
        blocks = {label: tower.blocks[kind] for (kind, *_), label in labels.items()}
        towers[where] = change_copy(tower, pattern=tuple(pattern), blocks=blocks)
    adapters = tuple(_list_adapters(spec, tuning))
    trained = None if tuning.trained is None else _count_copies(spec, tuning.trained)
    apart, held = _count_copies(spec, tuning.held), sum(tuning.held.values())
    return TunedModel(PricedPart(towers, spec), ends, layers, reached, trained, adapters, apart, held)


def _list_frozen(spec: Priced, where: str, tower: Tower, tuning: Tuning) -> frozenset[str]:
    """List the paths of a tower's frozen tensors, and of tied parts that read a frozen tensor."""
    if tuning.trained is None:
        return frozenset()
    placed = list(placed_tensors(tower, tower.d_model, where))
    frozen = {name for name, row, _ in placed if name not in tuning.trained}
    every = [row for path, each in spec.towers().items() for row in rows(each, each.d_model, path) if row.part]
    ties = {row.path: row.part.to if isinstance(row.part, Tied) else None for row in every}
    for row in every:
        if isinstance(row.part, Tied) and f"{owner_of(row.path, ties)}.weight" not in tuning.trained:
            frozen.add(f"{row.path}.weight")
    return frozenset(frozen)


def _trains_first(where: str, tower: Tower, ends: PartTuning) -> bool:
    """Whether anything trains before a tower's layers."""
    prefix = f"{where}." if where else ""
    for row in rows(tower, tower.d_model, where):
        path = row.path.removeprefix(prefix)
        if row.part is not None and row.kind is None and path.startswith(("embedding.", "position.")):
            read = row.part.of if isinstance(row.part, Tied) else row.part
            leaves = [f"{path}.{leaf}" if leaf else path for leaf in read.shapes()]
            if not isinstance(row.part, Buffer) and not ends.frozen.issuperset(leaves):
                return True
    return False


def _trains(block: Block, d_model: int, part: PartTuning) -> bool:
    names = {name for name, row, _ in placed_tensors(block, d_model) if not isinstance(row.part, Buffer)}
    return bool(part.adapted) or bool(names - part.frozen)


def _count_copies(spec: Priced, names: Collection[str]) -> dict[str, int]:
    """Count the copies of each tensor, by its path, that have one of the `names`."""
    found: Counter[str] = Counter()
    for where, tower in spec.towers().items():
        for name, row, leaf in placed_tensors(tower, tower.d_model, where):
            if name in names:
                found[f"{row.path}.{leaf}" if leaf else row.path] += 1
    return dict(found)


def _list_adapters(spec: Priced, tuning: Tuning) -> Iterator[RankTensor]:
    """List the tensors of all adapters: a [R, d_in] and b [d_out, R]; of stacked experts a and b for each expert."""
    adapted = {f"{path}.weight" for path in tuning.adapted}
    for where, tower in spec.towers().items() if adapted else ():
        for name, row, leaf in placed_tensors(tower, tower.d_model, where):
            if name not in adapted or row.part is None:
                continue
            *experts, d_out, d_in = row.part.shapes()[leaf]
            shapes = {"a": (*experts, tuning.rank, d_in), "b": (*experts, d_out, tuning.rank)}
            for each, shape in (shapes | ({"m": (d_out,)} if tuning.dora else {})).items():
                path, expert = f"{row.path}.{LOW_RANK}.{each}", isinstance(row.part, Experts) and row.part.spread
                yield RankTensor(path, where, row.kind, row.roles[0], shape, 1, expert, False, True)
