"""List a Spec as a table of rows. Parameters, FLOPs, operators and explanations are sums over this table.

`tabulate(spec)` visits every component and part once. A row is a part (a matrix, a table, a vector), an attention or a
router. All layers of a kind share their rows. A row counts how often it is used, so no table grows with depth. A row
has **roles**, one for each step down from its layer or tower: `("ffn", "experts", "")` for an expert's matrix,
`("head", "logits")` for the head's. A part that states no role has the role ""; if it lies directly in a layer or a
tower, its role is its name. Paths only identify tensors: code learns what a tensor is from its roles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from zoo.costs.pairs import Look
from zoo.model.moe import MoE
from zoo.spec import CROSS, SHARED, Part, Spec, Tied, rows

if TYPE_CHECKING:
    from zoo.model.attention.base import Attention
    from zoo.model.attention.indexer import Indexer
    from zoo.model.block.base import Block
    from zoo.model.router import Router
    from zoo.model.tower import Tower


class Priced(Protocol):
    """Anything that can be priced: a whole model, a tower, or a pipeline stage's part of a model."""

    @property
    def d_model(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_seq_len(self) -> int: ...

    def towers(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class PricedPart:
    """A model that is priced with the towers `held` in place of its own. They are parts of the model's towers, or have
    the same layers under other names of kinds. Functions that count a model's cache or activations take a PricedPart as
    well."""

    held: Mapping[str, Any]
    spec: Priced

    def towers(self) -> Mapping[str, Any]:
        return self.held

    @property
    def max_seq_len(self) -> int:
        return self.spec.max_seq_len

    @property
    def d_model(self) -> int:
        return self.spec.d_model

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size


def list_blocks(spec: Priced) -> list[Block]:
    """List the layers of all towers, one of each kind."""
    return [block for tower in spec.towers().values() for block in tower.blocks.values()]


def generates(spec: Priced) -> bool:
    """Whether a model generates tokens: an encoder does not."""
    return any(tower.causal for tower in spec.towers().values())


def trains_more(spec: Priced) -> bool:
    """Whether training also runs modules that generation leaves out (`Topology.served`)."""
    return any(tower.served is not tower for tower in spec.towers().values())


def change_copy(spec: Any, **changes: Any) -> Any:
    """Copy a Spec with some fields changed. Unlike `replace` this does not validate, so that traced dimensions stay
    traced (`zoo.analysis.explain`)."""
    made = copy(spec)
    vars(made).update(changes)
    return made


def change_towers(spec: Priced, change: Callable[[Tower], Tower]) -> Priced:
    """Apply `change` to each tower of a model: a PricedPart with the new towers, or the model itself if `change`
    returns every tower unchanged."""
    towers = {name: change(tower) for name, tower in spec.towers().items()}
    same = all(tower is own for tower, own in zip(towers.values(), spec.towers().values(), strict=True))
    return spec if same else PricedPart(towers, spec)


def count_values(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the values of tensors, given their shapes by name."""
    return sum(map(math.prod, shapes.values()))


class PartRow(NamedTuple):
    """A part of a component. `where` names its tower ("" in a model with one tower), `kind` its kind of layer (None
    outside layers). `stored` and `used` count how often the part is stored, and used in a pass; `learns` says whether
    it has a gradient."""

    where: str
    kind: str | None
    path: str
    roles: tuple[str, ...]
    owner: Spec
    part: Part
    stored: int
    used: int
    learns: bool

    @property
    def slot(self) -> str:
        """The place in its layer or tower that the part belongs to: attention, ffn, norm, embedding, head …"""
        return self.roles[0]


class AttentionRow(NamedTuple):
    """An attention of a kind of layer, or the indexer that selects its keys. `look` says which keys its queries see,
    `used` how often a pass goes through it."""

    where: str
    tower: Tower
    kind: str | None
    roles: tuple[str, ...]
    attention: Attention | Indexer
    look: Look
    used: int
    path: str

    @property
    def slot(self) -> str:
        return self.roles[0]

    @property
    def learns(self) -> bool:
        """Whether the row has a backward pass: an indexer's choice has no gradient."""
        return self.slot != "indexer"

    def pair_flops(self, pairs: int, *, decoding: bool = False) -> int:
        """FLOPs of QKᵀ and PV for `pairs` pairs. With `decoding` MLA attends over its latents, without expanding
        them."""
        return (self.attention.decode_flops if decoding else self.attention.core_flops)(pairs)

    def other_flops(self, new: int, held: int = 0) -> int:
        """Other FLOPs of `new` tokens after `held` earlier ones: updating and reading recurrent states, and products
        that all tokens share (with landmarks, with a table of positions). Products of parts and `pair_flops` leave them
        out."""
        return self.attention.state_flops() * new + self.attention.pass_flops(self.tower.d_model, new, held)


class RouterRow(NamedTuple):
    """A router of a kind of layer; a pass uses it `used` times. Its experts read vectors of `width`. `experts` counts
    those that compute anything; a token goes through `expected` of these on average."""

    where: str
    kind: str | None
    roles: tuple[str, ...]
    router: Router
    used: int
    width: int
    experts: int
    expected: float
    learns: bool = True


@dataclass(frozen=True)
class CostTable:
    """The rows of the model `spec`, top to bottom."""

    spec: Any
    towers: Mapping[str, Tower]
    parts: tuple[PartRow, ...]
    attentions: tuple[AttentionRow, ...]
    routers: tuple[RouterRow, ...]

    def select(self, kept: Callable[[Any], bool]) -> CostTable:
        """Select the rows for which `kept` is true."""
        parts, attentions, routers = (filter(kept, every) for every in (self.parts, self.attentions, self.routers))
        return replace(self, parts=tuple(parts), attentions=tuple(attentions), routers=tuple(routers))

    def of(self, where: str) -> CostTable:
        """The rows of one tower."""
        tower = self.towers[where]
        return replace(self.select(lambda row: row.where == where), spec=tower, towers={where: tower})

    @property
    def served(self) -> CostTable:
        """The rows without modules that training alone runs (`Topology.served`)."""
        towers = {name: tower.served for name, tower in self.towers.items()}
        return self if towers == self.towers else tabulate_towers(towers, towers.get("", self.spec))

    def forward_only(self) -> CostTable:
        """The rows without a backward pass: those of indexers, whose choice has no gradient."""
        return self.select(lambda row: not row.learns)

    @cached_property
    def ties(self) -> dict[str, str | None]:
        """Map each part's path to that of the part that it is tied to (None if untied), for `zoo.spec.owner_of`."""
        return {row.path: row.part.to if isinstance(row.part, Tied) else None for row in self.parts}


def tabulate(spec: Priced | CostTable) -> CostTable:
    """List the rows of a model. A CostTable is returned as it is, so that a Spec is walked only once."""
    return spec if isinstance(spec, CostTable) else tabulate_towers(spec.towers(), spec)


def tabulate_towers(towers: Mapping[str, Tower], spec: Any = None) -> CostTable:
    """List the rows of towers, given by name."""
    parts: list[PartRow] = []
    attentions: list[AttentionRow] = []
    routers: list[RouterRow] = []
    for where, tower in towers.items():
        mixture: Any = None  # the MoE around the router that comes next
        for row in rows(tower, tower.d_model, where):
            own: Any = row.component
            if row.part is not None:
                how = (row.stored, row.used, row.learns)
                parts.append(PartRow(where, row.kind, row.path, row.roles, own, row.part, *how))
            elif own.axis == "attention" and row.roles[:-1] in ((), (SHARED,)):  # the outer one counts inner ones
                look = Look(bool(tower.causal), CROSS in row.roles, **own.sight._asdict())
                chooser = own.chooser
                if chooser is not None:
                    if chooser.owns:  # the indexer scores every visible key
                        scored = look._replace(rate=chooser.pooled * own.sight.rate, near=0)
                        attentions.append(
                            AttentionRow(where, tower, row.kind, ("indexer",), chooser, scored, row.used, row.path)
                        )
                    chosen = {"top_k": chooser.most_keys, "granule": chooser.granule, "tail": chooser.adds_tail}
                    look = look._replace(**chosen)
                attentions.append(AttentionRow(where, tower, row.kind, row.roles, own, look, row.used, row.path))
            elif own.axis == "router":
                experts, width = mixture.n_computing, mixture.latent.width if mixture.latent else row.d_model
                expected = own.top_k if experts == own.n_experts else own.top_k * experts / own.n_experts
                routers.append(RouterRow(where, row.kind, row.roles, own, row.used, width, experts, expected))
            elif isinstance(own, MoE):
                mixture = own
    return CostTable(spec, towers, tuple(parts), tuple(attentions), tuple(routers))


def absorbs(attention: Attention | Indexer) -> bool:
    """Whether decoding computes over the latent cache, unlike a prefill (MLA absorbed)."""
    return attention.decode_flops(1) != attention.core_flops(1)
