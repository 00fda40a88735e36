"""Choose the products that get a low-rank adapter (LoRA; Hu et al., 2021), from the Spec alone."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt

from zoo.errors import ConfigError, did_you_mean
from zoo.spec import Experts, Group, Linear, Part, Reused, Sized, Spec, Stack, Tied


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
    """Folder of an adapter over the same base that is gone on with: a checkpoint of such a run, or peft's files."""

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
        if faults:
            raise ConfigError(*dict.fromkeys(faults))
        return tuple(chosen)


class LoraTarget(NamedTuple):
    """A matrix product of a model: its path, the axis of its component, why it cannot have an adapter, or None, and
    whether it is of stacked experts."""

    path: str
    axis: str
    refused: str | None
    stacked: bool


def list_products(spec: Spec, d_model: int, prefix: str = "") -> Iterator[LoraTarget]:
    """List every matrix product of a model, layer by layer."""
    for name, part in spec.parts(d_model).items():
        path = prefix + name
        if isinstance(part, Stack):
            for index, kind in enumerate(part.stored()):
                yield from list_products(part.kinds[kind], d_model, f"{path}.{index}.")
        elif isinstance(part, Group):
            yield from (_describe(inner, f"{path}.{leaf}", spec) for leaf, inner in part.parts.items() if _is(inner))
        elif isinstance(part, Part):
            if _is(part):
                yield _describe(part, path, spec)
        else:
            sub = part if isinstance(part, Sized) else Sized(part, d_model)
            yield from list_products(sub.spec, sub.d_model, f"{path}.")


def _is(part: Part) -> bool:
    if isinstance(part, Reused):
        return False
    return isinstance(part, Linear | Experts) or (isinstance(part, Tied) and isinstance(part.of, Linear))


def _describe(part: Part, path: str, owner: Spec) -> LoraTarget:
    refused = None
    if isinstance(part, Tied):
        refused = f"is tied to {part.to}, which an adapter would part it from (another product; or head.tied=false)"
    elif isinstance(part, Linear) and part.bare:
        refused = "is also read as a plain weight, which would pass by its adapter (another product)"
    return LoraTarget(path, owner.axis, refused, isinstance(part, Experts))
