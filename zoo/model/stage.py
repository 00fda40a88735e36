"""Some consecutive layers of a decoder: what one stage of a pipeline computes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from zoo.model.tower import Decoder
from zoo.spec import LOGITS, Stack, Tied

BEFORE, AFTER = ("embedding", "position"), ("norm", "project", "pooler", "head")
"""What stands before a stack's layers, and after them."""


class DecoderStage(Decoder):
    """Layers `first` to `first` + len(`pattern`) of the `of` layers of a decoder, with what stands before the first one
    and after the last one. A table that the head reads, too, and positions that act inside layers are on every stage
    that reads them (Narayanan et al., 2021)."""

    first: int = 0
    of: int = 0

    @property
    def begins(self) -> bool:
        """Whether the first layer here is the model's first."""
        return self.first == 0

    @property
    def ends(self) -> bool:
        return self.first + len(self.pattern) == self.of

    @property
    def stack(self) -> Stack:
        return Stack(self.blocks, self.pattern, first=self.first)

    def parts(self, d_model: int) -> dict[str, Any]:
        whole = super().parts(d_model)
        return {name: part for name, part in whole.items() if self._has(name, whole)}

    def _has(self, name: str, whole: dict[str, Any]) -> bool:
        if name in BEFORE:
            inside = name == "position" and self.position.inside
            return self.begins or inside or (name == "embedding" and self.ends and reads_table(self))
        return self.ends if name in AFTER else True


def reads_table(tower: Any) -> bool:
    """Whether the head reads the table of tokens."""
    parts = tower.head.parts(tower.out_width or tower.d_model).values()
    return any(isinstance(part, Tied) and part.role == LOGITS for part in parts)


def cut_stages(tower: Decoder, ways: int) -> list[DecoderStage]:
    """Cut a decoder into so many sections: as many layers in each, one more in the earlier where they do not come out
    even."""
    least, more = divmod(len(tower.pattern), ways)
    own = {each.name: getattr(tower, each.name) for each in fields(tower)}
    cut, first = [], 0
    for index in range(ways):
        last = first + least + (index < more)
        cut.append(replace(DecoderStage(**own), pattern=tower.pattern[first:last], first=first, of=len(tower.pattern)))
        first = last
    return cut
