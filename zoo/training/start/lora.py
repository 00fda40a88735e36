"""Choose the products that get a low-rank adapter (LoRA; Hu et al., 2021), from the Spec alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt

from zoo.checkpoint.adapter_files import read_plan
from zoo.checkpoint.finding import find
from zoo.errors import ConfigError, did_you_mean, refuse
from zoo.grammar.vocabulary import write_value
from zoo.spec import Experts, Group, Linear, Part, Sized, Spec, Stack, Tied
from zoo.spec.parts import is_product

if TYPE_CHECKING:
    from zoo.run.adapters import Adapters


OWN = ("rank", "alpha", "dropout", "dora")
"""Fields of Lora that a stored adapter has too."""


class Lora(Spec, axis="lora", kind="lora", default="lora"):
    """Train W + (alpha / rank)·B·A in place of W, with W frozen (Hu et al., 2021)."""

    rank: PositiveInt = 8
    """Rank of B·A."""
    alpha: PositiveFloat = 16.0
    """Scale of B·A times the rank."""
    on: tuple[str, ...] = ("attention",)
    """Axes whose products are adapted (attention, ffn, head …), or products by pattern (`blocks.*.attention.[qv]`)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate of an adapter's inputs."""
    quantise: Literal["nf4", "int8"] | None = None
    """Format that the frozen matrices of the layers are quantised to as they are read (QLoRA; Dettmers et al., 2023);
    null: they are held as they are stored."""
    dora: bool = False
    """Whether each row of the sum is scaled to a learned norm (DoRA; Liu et al., 2024)."""
    adapter: str | None = None
    """Folder of an adapter over the same base, to continue its training: a run's checkpoint, or peft's files. Fields
    that are not stated are the adapter's."""

    def choose(self, spec: Any) -> tuple[str, ...]:
        """List the paths of the products that get an adapter. Raises ConfigError for a name that matches none, and for
        products that cannot have an adapter."""
        products = list(list_products(spec, spec.d_model))
        axes = list(dict.fromkeys(each.axis for each in products))
        chosen: dict[str, LoraTarget] = {}
        faults: list[str] = [] if self.on else ["lora.on: is empty (lora.on=[attention])"]
        for name in self.on:
            found = [each for each in products if name == each.axis or fnmatchcase(each.path, name)]
            if not found:
                hint = did_you_mean(name, axes) or f" (there are {', '.join(axes)}, and patterns as {products[0].path})"
                faults.append(f"lora.on: {name!r} names no product{hint}")
            chosen |= {each.path: each for each in found}
        faults += [f"lora.on: {each.path} {each.refused}" for each in chosen.values() if each.refused]
        stacked = [each.path for each in chosen.values() if each.stacked and self.dora]
        faults += [f"lora.dora: {path} is of stacked experts, whose rows have no magnitudes here" for path in stacked]
        refuse(dict.fromkeys(faults))
        return tuple(chosen)


def complete_lora(node: Any) -> Any:
    """Fill in a `lora` node that names an `adapter`: rank, alpha, dropout, dora and products that the node does not
    state come from the adapter. Raises ConfigError for a folder without adapters, and for a stated value that differs
    from the adapter's."""
    adapter = node.get("adapter") if isinstance(node, Mapping) else None
    if not isinstance(adapter, str) or {*OWN, "on"} <= node.keys():
        return node
    plan = read_adapter(adapter)
    refuse(list_contradictions(node, plan, adapter))
    return {**{name: getattr(plan, name) for name in OWN}, "on": [*plan.paths], **node}


def list_contradictions(stated: Mapping[str, Any], plan: Adapters, adapter: str) -> Iterator[str]:
    """List the fields of `lora` whose `stated` values differ from those of its adapter, one message each."""
    for name in ("rank", "alpha", "dora"):
        own = getattr(plan, name)
        if stated.get(name, own) != own:
            given, found = (
                f"{each:g}" if isinstance(each, float) else write_value(each) for each in (stated[name], own)
            )
            yield f"lora.{name}: is {given}, that of {adapter} is {found} ({name}:{found})"


def read_adapter(adapter: str) -> Adapters:
    """Read the rank, scale and products of an adapter. Raises ConfigError for a folder without adapters."""
    if (plan := read_plan(find(adapter))) is None:
        raise ConfigError(f"lora.adapter: {adapter} has no adapters (a checkpoint of a run with lora=…, or peft's)")
    return plan


class LoraTarget(NamedTuple):
    """A matrix product of a model: its path, the axis of its component, the reason why it cannot have an adapter (None
    if it can), and whether it belongs to stacked experts."""

    path: str
    axis: str
    refused: str | None
    stacked: bool


def list_products(spec: Spec, d_model: int, prefix: str = "", first: bool = True) -> Iterator[LoraTarget]:
    """List every matrix product of a model, layer by layer. Parts that the layers of a kind share are listed once, with
    the `first` such layer."""
    for name, part in spec.parts(d_model).items():
        path = prefix + name
        if isinstance(part, Stack):
            kinds = part.stored()
            for index, kind in enumerate(kinds):
                again = kind in kinds[:index]
                yield from list_products(part.kinds[kind], d_model, f"{path}.{index}.", not again)
        elif isinstance(part, Group):
            yield from (
                _describe(inner, f"{path}.{leaf}", spec) for leaf, inner in part.parts.items() if is_product(inner)
            )
        elif isinstance(part, Part):
            if is_product(part):
                yield _describe(part, path, spec)
        else:
            sub = part if isinstance(part, Sized) else Sized(part, d_model)
            if first or not sub.common:
                yield from list_products(sub.spec, sub.d_model, f"{path}.")


def _describe(part: Part, path: str, owner: Spec) -> LoraTarget:
    refused = None
    if isinstance(part, Tied):
        refused = f"is tied to {part.to}, which an adapter would part it from (another product; or head.tied=false)"
    elif isinstance(part, Linear) and part.bare:
        refused = "is also read as a plain weight, which would pass by its adapter (another product)"
    return LoraTarget(path, owner.axis, refused, isinstance(part, Experts))
