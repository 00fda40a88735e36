"""Share keys and values between layers (Brandon et al., 2024, cross-layer attention), or the first layer's values (Peng
et al., 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from zoo.lazy import Tensor
from zoo.model.channels import Channel, Fault, Shadows

if TYPE_CHECKING:
    from zoo.model.block.base import Block
    from zoo.model.step import Weights
    from zoo.model.tower import Tower


class Loan(NamedTuple):
    """Keys and values of another layer that a layer reads in place of its own, or values that it mixes with its own."""

    lender: str
    """Kind of layer that lends: the reader takes the keys or values of the last layer of this kind before it."""
    field: str = "kv_from"
    """The field of the attention that names the lender."""
    alike: tuple[str, ...] = ()
    """The fields in which both attentions must agree."""


def find_sources(blocks: Mapping[str, Block], pattern: Sequence[str]) -> dict[int, int]:
    """Find, for each layer that reads another layer's keys and values, the layer to read: the last one before it of the
    kind that its attention names. Returns {index of the reader: index of the layer read}, without readers for which
    there is no such layer.

    Example: if layers of kind `shared` read those of kind `full`, the pattern full, shared, near, full, shared gives
    {1: 0, 4: 3}.
    """
    lenders = {name: loan.lender for name, block in blocks.items() if (loan := block.attention.loan)}
    last: dict[str, int] = {}
    found = {}
    for index, name in enumerate(pattern) if lenders else ():
        if lenders.get(name) in last:
            found[index] = last[lenders[name]]
        last[name] = index
    return found


class LentKeys(Channel, name="keys"):
    """The keys and values that layers lend, each kept until its last reader takes it. With a cache they are the
    lender's own pools, so that nothing is stored twice."""

    staying: ClassVar[str] = "layers read keys or values of earlier ones, which another stage may have"
    ordered: ClassVar[bool] = True

    def __init__(self, tower: Tower, m: Weights, ids: Tensor, x: Tensor) -> None:
        self._sources = find_sources(tower.blocks, tower.pattern)
        self._last = {source: index for index, source in self._sources.items()}  # the last layer that reads each
        self._lent: dict[int, tuple[Tensor, ...]] = {}

    def take(self, index: int) -> tuple[Tensor, ...]:
        source = self._sources[index]
        return self._lent.pop(source) if self._last[source] == index else self._lent[source]

    def wants(self, index: int) -> bool:
        return index in self._last

    def give(self, index: int, value: tuple[Tensor, ...]) -> None:
        self._lent[index] = value

    @classmethod
    def lends(cls, tower: Tower, kind: str) -> bool:
        return any(loan.lender == kind for block in tower.blocks.values() if (loan := block.attention.loan))

    @classmethod
    def trace(cls, at: Shadows) -> Any:
        loan = at.tower.blocks[at.kind].attention.loan
        assert loan is not None
        lent = at.given[loan.lender]
        return tuple(at.make(each.shape, each.dtype, "lent", each.wants_grad) for each in lent)

    @classmethod
    def find_faults(cls, tower: Tower) -> Iterator[Fault]:
        """Yield a fault for each kind of layer that cannot take the keys and values that its attention names."""
        blocks, sources = tower.blocks, find_sources(tower.blocks, tower.pattern)
        for name, block in blocks.items():
            own, loan = block.attention, block.attention.loan
            if loan is None:
                continue
            path, lender = ("blocks", name, "attention", loan.field), loan.lender
            missing = [place for place, each in enumerate(tower.pattern) if each == name and place not in sources]
            if lender not in blocks:
                yield path, f"is {lender!r}, and the kinds of layer are: {', '.join(blocks)} (one of them)"
            elif missing:
                found = f"no layer before layer {missing[0]} is of that kind"
                yield path, f"is {lender!r}, and {found} (a pattern with one)"
            elif blocks[lender].attention.kind != own.kind or blocks[lender].attention.loan is not None:
                yield path, f"is {lender!r}, whose layers make none of their own by head (a kind that does)"
            elif differ := [n for n in loan.alike if getattr(blocks[lender].attention, n) != getattr(own, n)]:
                which = f"whose layers have other {', '.join(differ)}, and they are read as they are"
                yield path, f"is {lender!r}, {which} (the same)"
