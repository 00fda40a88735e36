# B rows, T tokens, K keys, V vocabulary
"""Probes of the recall of repeated pairs: among noise (noisy), and with keys of several tokens (fuzzy)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from zoo.errors import ConfigError
from zoo.probes.base import IGNORED, Examples, OneLength, fill


@dataclass(frozen=True, kw_only=True)
class Noisy(OneLength, name="noisy"):
    """In-context recall among noise (Poli et al., 2024, MAD, the tasks in-context recall and noisy recall).

    Of V tokens, the first half are keys, the second half values; each row has its own one-to-one map from keys to
    values. A row is T/2 pairs of a random key and its value; with a probability of `level` per cent a pair is two
    tokens of a noise vocabulary instead. The answer at a key that has occurred before is its value. Level 0 is
    in-context recall. Chance is 2/V.
    """

    level_is: ClassVar[str] = "% of noise"
    small: ClassVar[Mapping[str, Any]] = {"context": 32, "levels": (0, 20), "steps": 300}

    levels: tuple[int, ...] = (0, 20, 40, 60)
    context: int = 64
    vocab: int = 16
    noise: int = 16
    steps: int = 500
    rows: int = 32

    def __post_init__(self) -> None:
        if self.context % 2 or self.context < 4:
            raise ConfigError(f"noisy.context: is {self.context} (an even number, 4 at least)")
        if not all(0 <= level < 100 for level in self.levels):
            raise ConfigError(f"noisy.levels: are {self.levels} (per cent, 0 to 99)")

    @property
    def vocab_size(self) -> int:
        return self.vocab + self.noise

    def draw_level(self, rng: np.random.Generator, rows: int, level: int, seed: int) -> Examples:
        half, pairs = self.vocab // 2, self.context // 2
        values = half + rng.random((rows, half)).argsort(1)
        keys = rng.integers(0, half, (rows, pairs))
        noisy = rng.random((rows, pairs)) < level / 100
        noise = rng.integers(self.vocab, self.vocab_size, (rows, pairs, 2))
        answers = np.take_along_axis(values, keys, 1)
        made = fill(rows, self.context)
        made.tokens[:, ::2] = np.where(noisy, noise[:, :, 0], keys)
        made.tokens[:, 1::2] = np.where(noisy, noise[:, :, 1], answers)
        # [B, pair, earlier pair]: the same key, and neither of them noise
        alike = (keys[:, :, None] == keys[:, None, :]) & ~noisy[:, :, None] & ~noisy[:, None, :]
        known = np.tril(alike, -1).any(2)
        made.labels[:, ::2] = np.where(known, answers, IGNORED)
        return made


@dataclass(frozen=True, kw_only=True)
class Fuzzy(OneLength, name="fuzzy"):
    """In-context recall of keys and values of several tokens (Poli et al., 2024, MAD, the task fuzzy recall).

    Of V tokens, 0 pads, 1 to V/2 − 1 are parts of keys, V/2 to V − 1 parts of values. Each row draws K different keys,
    and for each a value of 1 to `longest` different parts. Random pairs of these fill the row; padding precedes them.
    The answers are the parts of a value whose key has occurred before. The level is the number of parts of every key;
    training draws it for each key. MAD draws pairs from all possible keys; here K keys are drawn first, so that long
    keys are repeated. Chance is 2/V.
    """

    level_is: ClassVar[str] = "tokens a key"
    small: ClassVar[Mapping[str, Any]] = {"context": 32, "levels": (1, 2), "longest": 2, "keys": 3, "steps": 300}

    levels: tuple[int, ...] = (1, 2, 3)
    context: int = 64
    vocab: int = 16
    keys: int = 6
    longest: int = 3
    steps: int = 500
    rows: int = 32

    def __post_init__(self) -> None:
        parts = self.vocab // 2 - 1
        if not 1 <= min(self.levels) <= max(self.levels) <= self.longest:
            raise ConfigError(f"fuzzy.levels: are {self.levels}, and training has keys of 1 to {self.longest} tokens")
        if self.longest > parts or self.keys > parts:
            found = f"keys={self.keys}, longest={self.longest}"
            raise ConfigError(f"fuzzy.vocab: {self.vocab} has {parts} parts of keys, found {found} ({parts} at most)")
        if self.context < 4 * self.longest:
            raise ConfigError(f"fuzzy.context: is {self.context} ({4 * self.longest} at least, two pairs)")

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        made = fill(rows, self.context)
        for row in range(rows):
            tokens, labels = self._draw_row(rng, level)
            made.tokens[row, self.context - len(tokens) :] = tokens
            made.labels[row, self.context - len(tokens) :] = labels
        return made

    def _draw_row(self, rng: np.random.Generator, level: int | None) -> tuple[list[int], list[int]]:
        half = self.vocab // 2
        facts: dict[tuple[int, ...], list[int]] = {}
        while len(facts) < self.keys:
            count = level or int(rng.integers(1, self.longest + 1))
            key = tuple((1 + rng.permutation(half - 1)[:count]).tolist())
            facts[key] = (half + rng.permutation(half)[: rng.integers(1, self.longest + 1)]).tolist()
        tokens, labels, seen = [], [], set()
        for chosen in rng.integers(0, self.keys, self.context).tolist():
            key, value = list(facts.items())[chosen]
            if len(tokens) + len(key) + len(value) > self.context:
                break
            tokens += [*key, *value]
            answers = value if key in seen else [IGNORED] * len(value)
            labels += [*[IGNORED] * (len(key) - 1), *answers, IGNORED]
            seen.add(key)
        return tokens, labels
