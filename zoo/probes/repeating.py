# B rows, T tokens, K keys, V vocabulary
"""Define probes of in-context recall: among noise (noisy), and with keys of several tokens (fuzzy)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from zoo.errors import ConfigError
from zoo.probes.base import IGNORED, MAD, Examples, OneLength, fill

Part = tuple[int, ...]
"""The tokens of a key or of a value."""

Pair = tuple[Part, Part]

GUESSED = 300
"""Sequences drawn to estimate the accuracy of an informed guess at `fuzzy`, which has no closed form."""


@dataclass(frozen=True, kw_only=True)
class Noisy(OneLength, name="noisy"):
    """In-context recall among noise (Poli et al., 2024, MAD, the tasks in-context recall and noisy recall).

    Of V tokens, the first half are keys, the second half values; each sequence has its own one-to-one map from keys to
    values. A sequence is T/2 pairs of a random key and its value; with a probability of `level` per cent a pair is two
    tokens of a noise vocabulary instead. The answer at a key that has occurred before is its value. Level 0 is
    in-context recall. Chance is 2/V; a guess among the values so far is better, because few values precede the first
    repeated keys. Controls: attention behind short convolutions must reach levels; without token mixing, accuracy is at
    chance.

    MAD trains each level separately: 20,000 steps of 128 sequences of 128 tokens, at width 128 and with feed-forwards.
    """

    level_is: ClassVar[str] = "% of noise"
    small: ClassVar[Mapping[str, Any]] = {"context": 32, "levels": (0, 20), "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {**MAD, "context": 128, "levels": (0, 20, 40, 60, 80)}

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

    def baseline(self, level: int) -> float:
        """Compute the accuracy of a guess among the values so far: expected right guesses ÷ expected answers.

        p is the probability of noise, h the number of keys, m of which were seen in j pairs. The next pair has an
        answer with probability (1 − p)·m/h, guessed right at 1/m. E[m] = h·(1 − (1 − (1 − p)/h)^j), and m is 0 with
        probability p^j.
        """
        noise, half, before = level / 100, self.vocab // 2, np.arange(self.context // 2)
        asked = half * (1 - (1 - (1 - noise) / half) ** before)
        return float((1 - noise**before).sum() / asked.sum())

    def next_level(self) -> int:
        return min((max(self.levels) + 100) // 2, 90)  # beyond, most rows have no answer

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

    Of V tokens, 0 pads, 1 to V/2 − 1 are parts of keys, V/2 to V − 1 parts of values. Each sequence draws K different
    keys, and for each a value of 1 to `longest` different parts. Random pairs of a key and its value fill the sequence,
    after padding. The answers are the parts of a value whose key has occurred before. The level is the number of parts
    of every key; training draws it for each key. With `keys` 0 each pair draws any of the possible keys, as in MAD, and
    the last pair repeats one of the first half. Chance is 2/V. An informed guess knows the values so far, but not their
    keys. It names the likeliest next part among the values that begin like the answer, and is right at half of the
    answers or more. Controls: attention behind short convolutions must reach levels; without token mixing, accuracy is
    hardly above chance, as a value repeats no part.

    MAD draws from all possible keys, of three tokens. At our smaller sizes each sequence has few keys, so that long
    keys are repeated, too. That is a different task: its results neither confirm nor refute MAD's. MAD trains 20,000
    steps of 128 sequences of 128 tokens, at width 128 and with feed-forwards.
    """

    level_is: ClassVar[str] = "tokens a key"
    small: ClassVar[Mapping[str, Any]] = {"context": 32, "levels": (1, 2), "longest": 2, "keys": 3, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {**MAD, "context": 128, "keys": 0, "levels": (3,)}

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

    def baseline(self, level: int) -> float:
        return _simulate_guesses(self, level)

    def make_room(self, level: int) -> dict[str, int]:
        longest = max(self.longest, level)
        return {
            "longest": longest,
            "context": max(self.context, 8 * longest),
            "vocab": max(self.vocab, 2 * longest + 2),
        }

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        made = fill(rows, self.context)
        for row in range(rows):
            tokens, labels = self._write_row(self.draw_pairs(rng, level))
            made.tokens[row, self.context - len(tokens) :] = tokens
            made.labels[row, self.context - len(tokens) :] = labels
        return made

    def draw_pairs(self, rng: np.random.Generator, level: int | None) -> list[Pair]:
        """Draw the pairs of a sequence, as many as fit into `context` tokens."""
        facts: dict[Part, Part] = {}
        while len(facts) < self.keys:
            key = self._draw_key(rng, level)
            facts[key] = self._draw_value(rng)
        known, pairs, room = list(facts), [], self.context
        chosen = (known[at] for at in rng.integers(0, self.keys, self.context)) if self.keys else None
        for key in chosen or (self._draw_key(rng, level) for _ in range(self.context)):
            if key not in facts:
                facts[key] = self._draw_value(rng)
            pair = (key, facts[key])
            if room < measure(pair):
                break
            pairs.append(pair)
            room -= measure(pair)
        if not self.keys:  # few of all possible keys come again by chance
            again = pairs[rng.integers(len(pairs) // 2)]
            while room < measure(again):
                room += measure(pairs.pop())
            pairs.append(again)
        return pairs

    def _draw_key(self, rng: np.random.Generator, level: int | None) -> Part:
        count = level or int(rng.integers(1, self.longest + 1))
        return tuple((1 + rng.permutation(self.vocab // 2 - 1)[:count]).tolist())

    def _draw_value(self, rng: np.random.Generator) -> Part:
        half = self.vocab // 2
        return tuple((half + rng.permutation(half)[: rng.integers(1, self.longest + 1)]).tolist())

    def _write_row(self, pairs: list[Pair]) -> tuple[list[int], list[int]]:
        """Return the tokens and labels of a sequence of pairs."""
        tokens: list[int] = []
        labels: list[int] = []
        seen: set[Part] = set()
        for key, value in pairs:
            tokens += [*key, *value]
            answers = value if key in seen else [IGNORED] * len(value)
            labels += [*[IGNORED] * (len(key) - 1), *answers, IGNORED]
            seen.add(key)
        return tokens, labels


@cache
def _simulate_guesses(probe: Fuzzy, level: int) -> float:
    """Simulate an informed guess, which knows the values so far. Return its expected accuracy."""
    rng, right, asked = probe.make_generator(0, "map", level=level), 0.0, 0
    for _ in range(GUESSED):
        facts: dict[Part, Part] = {}
        for key, value in probe.draw_pairs(rng, level):
            for at in range(len(value) if key in facts else 0):
                follow = Counter(each[at] for each in facts.values() if each[:at] == value[:at] and len(each) > at)
                right += max(follow.values()) / follow.total()
                asked += 1
            facts[key] = value
    return right / asked


def measure(pair: Pair) -> int:
    """Count the tokens of a pair."""
    return sum(map(len, pair))
