# B rows, T tokens
"""Define a probe of mental arithmetic: the model evaluates expressions without writing down a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from zoo.errors import ConfigError
from zoo.probes.base import Examples, Probe, fill

OPERATIONS = (np.add, np.subtract, np.multiply)


@dataclass(frozen=True, kw_only=True)
class Mano(Probe, name="mano"):
    """Evaluate an expression modulo p (Allen-Zhu, 2025, "Physics of language models: part 4.1", the task Mano).

    A sequence is padding and an expression in prefix notation: n operations +, − and ×, each followed by its two
    operands, and n + 1 numbers below p. Operations and numbers are equally likely, and so are all splits of the
    operations between two operands. The last token's label is the value. The level is n; training draws n from 1 to the
    highest level. Chance is the probability of the likeliest value (the number 0). Controls: attention behind short
    convolutions must reach levels; without token mixing, which shows the last number alone, accuracy is at chance.

    The paper uses 10 operations and more, and wider models with 12 layers. The steps and width of size `paper` are our
    choice (`n_layers=12`).
    """

    level_is: ClassVar[str] = "operations"
    small: ClassVar[Mapping[str, Any]] = {"levels": (1, 2), "modulus": 7, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {
        **{"levels": (1, 2, 4, 6, 8, 10), "steps": 20_000, "d_model": 256},
    }

    levels: tuple[int, ...] = (1, 2, 3, 4)
    modulus: int = 23
    mixer_alone: bool = False
    steps: int = 600
    rows: int = 128

    def __post_init__(self) -> None:
        if min(self.levels) < 1:
            raise ConfigError(f"mano.levels: has {min(self.levels)} operations (1 at least)")
        if self.modulus < 2:
            raise ConfigError(f"mano.modulus: is {self.modulus} (2 at least)")

    @property
    def vocab_size(self) -> int:
        return self.modulus + len(OPERATIONS) + 1

    @property
    def seq_len(self) -> int:
        return 2 * max(self.levels) + 1

    def chance(self, level: int) -> float:
        return max(find_values(level, self.modulus))

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        made = fill(rows, self.seq_len, self.vocab_size - 1)
        counts = rng.integers(1, max(self.levels) + 1, rows) if level is None else np.full(rows, level)
        for row, count in enumerate(counts.tolist()):
            tokens, made.labels[row, -1] = self._draw_expression(rng, count)
            made.tokens[row, -len(tokens) :] = tokens
        return made

    def _draw_expression(self, rng: np.random.Generator, operations: int) -> tuple[list[int], int]:
        """Draw an expression. Return its tokens and its value."""
        if not operations:
            number = int(rng.integers(self.modulus))
            return [number], number
        chosen, first = int(rng.integers(len(OPERATIONS))), int(rng.integers(operations))
        left, a = self._draw_expression(rng, first)
        right, b = self._draw_expression(rng, operations - 1 - first)
        return [self.modulus + chosen, *left, *right], int(OPERATIONS[chosen](a, b)) % self.modulus


@cache
def find_values(operations: int, modulus: int) -> tuple[float, ...]:
    """Compute the probability of each value 0 … modulus − 1 of a random expression."""
    if not operations:
        return (1 / modulus,) * modulus
    numbers, found = np.arange(modulus), np.zeros(modulus)
    for first in range(operations):
        left, right = (find_values(each, modulus) for each in (first, operations - 1 - first))
        both = np.outer(left, right) / (operations * len(OPERATIONS))
        for operation in OPERATIONS:
            np.add.at(found, operation.outer(numbers, numbers) % modulus, both)
    return tuple(found.tolist())
