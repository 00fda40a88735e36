"""Find a model's matrix products, group those with the same input, and determine the precision that each may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.lazy import nn, torch
from zoo.run.linear.base import EXACT
from zoo.run.linear.probe import LinearShape
from zoo.spec import CROSS, LOGITS, Experts, Linear, Part, Sized, Spec, Tied

if TYPE_CHECKING:
    from zoo.run.layer import Layer

AXES = ("attention", "ffn")
"""The axes whose weights `weights=` stores in fewer bits, in addition to the head's."""


@dataclass(eq=False)
class ProductGroup:
    """Linears with the same input, to be computed as one product. If `pinned`, the plain weight stays in memory,
    because other code reads it."""

    modules: list[Any]
    precision: str
    pinned: bool
    way: str = "plain"

    @property
    def shape(self) -> LinearShape:
        weights = [module.weight for module in self.modules]
        dtype = str(weights[0].dtype).removeprefix("torch.")
        return LinearShape(sum(weight.shape[0] for weight in weights), weights[0].shape[1], dtype)

    def joins(self, other: ProductGroup) -> bool:
        """Whether two groups can be one product: d_in, dtype and precision are equal, and neither is pinned."""
        alike = self.shape[1:] == other.shape[1:] and self.precision == other.precision
        return alike and not self.pinned | other.pinned


def find_groups(model: nn.Module, precision: str) -> tuple[list[ProductGroup], Counter[str]]:
    """Find the products to prepare, grouped by input, and count the reasons why some stay exact if `precision` is
    lower."""
    from zoo.run.layer import Borrowed, Layer

    lent = {id(module._owner[0]) for module in model.modules() if isinstance(module, Borrowed)}
    left: Counter[str] = Counter()
    groups: list[ProductGroup] = []
    done: set[int] = set()
    crossed = {id(layer) for layer in _list_cross(model)}
    for layer in model.modules():
        if not isinstance(layer, Layer):
            continue
        joins = () if id(layer) in crossed else layer.spec.joins
        found: dict[str, ProductGroup] = {}
        for name, module, part in _list_linears(layer):
            if id(module) in done:
                continue
            done.add(id(module))
            own, why = _precision_of(layer.spec, part, precision)
            if why:
                left[why] += 1
            pinned = isinstance(part, Tied) or part.bare or id(module) in lent
            groups.append(ProductGroup([module], own, pinned))
            found[name] = groups[-1]
        for names in joins:
            _join([found[name] for name in names if name in found], groups)
        if precision != EXACT:
            parts = [part for _, part, _ in layer.spec.children(layer.d_model)]
            left["stacked experts"] += sum(isinstance(part, Experts) for part in parts)
    return groups, +left


def _list_cross(model: nn.Module) -> Iterator[nn.Module]:
    """List the layers of cross-attention, whose products read different tokens (decoder and encoder)."""
    from zoo.run.layer import Layer

    for layer in model.modules():
        if isinstance(layer, Layer):
            for name, part, slot in layer.spec.children(layer.d_model):
                if isinstance(part, Sized) and CROSS in slot.roles:
                    yield layer.get_submodule(name)


def _list_linears(layer: Layer) -> Iterator[tuple[str, Any, Any]]:
    """List a Layer's own plain Linears on a CPU or GPU: neither quantised nor sharded, wrapped or parametrised."""
    from zoo.run.layer import LinearModule, TiedLinear

    for name, part, _ in layer.spec.children(layer.d_model):
        if not isinstance(part, Part) or not isinstance(part, Linear | Tied):
            continue
        module = getattr(layer, name, None) if "." not in name else None
        if type(module) not in (LinearModule, TiedLinear):
            continue
        weight: Any = module.weight  # type: ignore[union-attr]
        here = type(weight) is torch.nn.Parameter and weight.device.type in ("cpu", "cuda")
        if here and weight.dtype.is_floating_point:
            yield name, module, part  # type: ignore[misc]


def _precision_of(owner: Spec, part: Any, wanted: str) -> tuple[str, str | None]:
    """Return the precision in which a linear layer is computed. If that is EXACT although a lower one was wanted, also
    return the reason."""
    if wanted == EXACT:
        return EXACT, None
    if LOGITS in (part.role, getattr(getattr(part, "of", None), "role", "")):
        return ("int8" if wanted == "int4" else wanted), None  # a logit's error is not averaged by later layers
    if owner.axis not in AXES:
        return EXACT, owner.axis
    if part.precise:
        return EXACT, "precise by design"
    return (EXACT, "read as a plain weight") if part.bare else (wanted, None)


def _join(members: list[ProductGroup], groups: list[ProductGroup]) -> None:
    """Merge the groups that can be one product, in place."""
    while members:
        first, *rest = members
        alike = [each for each in rest if first.joins(each)]
        for each in alike:
            first.modules += each.modules
            groups.remove(each)
        members = [each for each in rest if each not in alike]
