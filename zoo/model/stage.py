"""Some of the layers of a decoder: what one stage of a pipeline computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from zoo.model.decoder import Decoder
from zoo.model.tower import Tower
from zoo.spec import LOGITS, Stack, Tied

if TYPE_CHECKING:
    from zoo.model.step import Inputs

AFTER = ("norm", "project", "pooler", "head")
"""Names of the parts that come after a stack's layers."""


class DecoderStage(Decoder):
    """The layers of a decoder that one stage of a pipeline holds. The stage with the first layer also holds the
    embedding; the stage with the last layer also holds the final norm, the pooler and the head. A token table shared
    with the head, and positions inside layers, are on every stage that reads them (Narayanan et al., 2021). A pass runs
    one chunk."""

    chunks: tuple[tuple[int, int], ...] = ()
    """Runs of layers that the stage holds, each as the numbers of its first layer and of the one after its last."""
    of: int = 0
    """Number of layers of the whole decoder."""

    def begins(self, chunk: int) -> bool:
        """Whether a chunk begins with the model's first layer."""
        return self.chunks[chunk][0] == 0

    def ends(self, chunk: int) -> bool:
        """Whether a chunk ends with the model's last layer, so that the head follows."""
        return self.chunks[chunk][1] == self.of

    @property
    def depth(self) -> int:
        return self.of

    @property
    def stack(self) -> Stack:
        return Stack(self.blocks, self.pattern, numbers=[each for chunk in self.chunks for each in range(*chunk)])

    def find_section(self, inputs: Inputs) -> tuple[range, bool]:
        before = sum(end - start for start, end in self.chunks[: inputs.chunk])
        start, end = self.chunks[inputs.chunk]
        return range(before, before + end - start), self.ends(inputs.chunk)

    @property
    def has_first(self) -> bool:
        """Whether the stage has the model's first layer."""
        return any(map(self.begins, range(len(self.chunks))))

    @property
    def has_last(self) -> bool:
        """Whether the stage has the model's last layer."""
        return any(map(self.ends, range(len(self.chunks))))

    @property
    def has_position(self) -> bool:
        return super().has_position and (self.has_first or self.position.inside)

    def parts(self, d_model: int) -> dict[str, Any]:
        here: dict[str, bool] = {name: self.has_last for name in AFTER}
        here["embedding"] = self.has_first or (self.has_last and reads_table(self))
        return {name: part for name, part in super().parts(d_model).items() if here.get(name, True)}


def reads_table(tower: Tower) -> bool:
    """Whether the head reads the table of tokens."""
    parts = tower.head.parts(tower.out_width or tower.d_model).values()
    return any(isinstance(part, Tied) and part.role == LOGITS for part in parts)


def take_chunks(tower: Decoder, chunks: Sequence[tuple[int, int]]) -> DecoderStage:
    """Take a pipeline stage's layers: each chunk (start, end) is layers start … end − 1."""
    own = {each.name: getattr(tower, each.name) for each in fields(tower)}
    pattern = tuple(kind for start, end in chunks for kind in tower.pattern[start:end])
    return replace(DecoderStage(**own), pattern=pattern, chunks=tuple(chunks), of=len(tower.pattern))
