# B rows, T tokens
"""Define a probe of compression: a whole sequence is reconstructed from one vector, the output at its last token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from zoo.probes.base import MAD, Examples, OneLength, fill
from zoo.probes.guessing import expect_most

PAD, END = 0, 1


@dataclass(frozen=True, kw_only=True)
class Compress(OneLength, name="compress"):
    """Compression (Poli et al., 2024, MAD): reconstruct all tokens of a sequence from the model's output at the last
    token.

    A sequence is padding, then M letters out of V − 2, and an end token. The answer at a letter is the letter; a
    readout computes it from the output at the end token (`zoo.probes.readout`). The level is M. Chance is 1/(V − 2); a
    guess of the sequence's most frequent letter is better. Controls: attention behind short convolutions must reach
    levels; without token mixing, which shows the end token alone, accuracy is at chance.

    In MAD sequences have no padding, and training takes 20,000 steps of 128 sequences at width 128.
    """

    level_is: ClassVar[str] = "letters"
    small: ClassVar[Mapping[str, Any]] = {"levels": (1, 2, 4), "context": 8, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {**MAD, "levels": (31,)}

    levels: tuple[int, ...] = (2, 4, 8, 16, 31)
    context: int = 32
    vocab: int = 16
    mixer_alone: bool = False
    steps: int = 500
    rows: int = 32

    def __post_init__(self) -> None:
        for letters in self.levels:
            self.check_room(letters + 1, f"{letters} letters and an end", "letters")

    def chance(self, level: int) -> float:
        return 1 / (self.vocab - 2)

    def baseline(self, level: int) -> float:
        return expect_most(level, self.vocab - 2) / level

    def make_readout(self, d_model: int, seed: int) -> Any:
        from zoo.probes.readout import make_readout

        return make_readout(d_model, self.vocab, seed)

    def make_room(self, level: int) -> dict[str, int]:
        return {"context": max(self.context, level + 1)}

    def draw_level(self, rng: np.random.Generator, rows: int, level: int, seed: int) -> Examples:
        letters = rng.integers(2, self.vocab, (rows, level))
        made = fill(rows, self.context, PAD)
        made.tokens[:, -level - 1 : -1] = made.labels[:, -level - 1 : -1] = letters
        made.tokens[:, -1] = END
        return made
