# B batch, T tokens, K kv heads, V a value's width
"""Mix the values of the first layer into those of later layers (Zhou et al., 2024, value residual learning)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.model.channels import Channel, Fault, Shadows

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step
    from zoo.model.tower import Tower


class FirstValues(Channel, name="first_values"):
    """The values [B, T, K, V] of the first layer that has a value residual; None before it. They have no cache of their
    own, because each layer caches values that are already mixed."""

    staying: ClassVar[str] = "layers read the values of the first one, which another stage may have"

    def wants(self, index: int) -> bool:
        return self.last is None

    @classmethod
    def trace(cls, at: Shadows) -> Any:
        counts = dict(zip(at.tower.pattern, cls.count_read(at.tower), strict=False))
        shape = (*at.x.shape[:2], *at.tower.blocks[at.kind].attention.attended()["v"])
        return at.make(shape, at.x.dtype, "first", at.x.wants_grad) if counts[at.kind] else None

    @classmethod
    def count_read(cls, tower: Tower) -> list[int]:
        """Count the first layer's values that each layer reads: 1 in layers with a value residual, 0 in the first of
        them. Example: 0, 1, 1 for three such layers, and 0 for the end of the tower."""
        reads = [cls.name in tower.blocks[name].attention.takes for name in tower.pattern]
        return [int(read and any(reads[:place])) for place, read in enumerate(reads)] + [0]

    @classmethod
    def find_faults(cls, tower: Tower) -> Iterator[Fault]:
        """Yield a fault for each kind of layer whose values have another shape than the first layer's, and one if only
        one layer has a value residual."""
        readers = [name for name in tower.pattern if cls.name in tower.blocks[name].attention.takes]
        shapes = {name: tower.blocks[name].attention.attended()["v"] for name in dict.fromkeys(readers)}
        for name, shape in shapes.items():
            if shape != shapes[readers[0]]:
                found = f"{shape[0]} heads of {shape[1]} channels, and '{readers[0]}' layers {shapes[readers[0]]}"
                yield ("blocks", name, "attention", "value_residual"), f"is of {found} (the same)"
        if len(readers) == 1:
            text = "mixes in the values of the first layer that has one, and no other layer has (two or more)"
            yield ("blocks", readers[0], "attention", "value_residual"), text


def mix_first(v: Tensor, share: float, step: Step) -> Tensor:
    """Return (1 − share)·v + share·v₁ for values v [B, T, K, V] and the first layer's v₁. The first layer passes v on
    and returns it."""
    first = step.read(FirstValues.name)
    return step.give(FirstValues.name, v) if first is None else (1 - share) * v + share * first
