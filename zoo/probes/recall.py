# B rows, T tokens, K keys, V vocabulary
"""Define probes of recall: of values in the sequence (mqar, overwrite, bind, needle), or in the weights (memorise)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from zoo.errors import ConfigError
from zoo.probes.base import MAD, MOST, Examples, OneLength, Probe, choose_distinct, fill, place
from zoo.probes.guessing import expect_most

POWER = 0.01
"""The exponent a in the distribution of the gap g between a pair and its query: p(g) ∝ a·g^(a−1)."""

ZOOLOGY = {"vocab": 8192, "d_model": 128, "steps": 22_500, "rows": 256}
"""Vocabulary and training budget of the tasks in Zoology's code: 180,000 sequences, 32 epochs."""


@dataclass(frozen=True, kw_only=True)
class MQAR(OneLength, name="mqar"):
    """Multi-query associative recall (Arora et al., 2023, "Zoology").

    Of V tokens, 0 is a filler, 1 to V/2 − 1 are keys, V/2 to V − 1 values. A sequence is k₁ v₁ … k_K v_K, K different
    keys with K different values, then T − 2K slots, counted from 0: key i is repeated at slot 2(gᵢ − 1), other slots
    are filler. Gaps gᵢ are drawn without replacement from 1 to (T − 2K)/2 with p(g) ∝ a·g^(a−1), a = 0.01. The answer
    at a repeated key is its value. The level is K; training draws all levels equally often. Chance is 2/V, the
    probability of any value; a guess among the sequence's values is right at 1/K.

    The paper's code trains 180,000 sequences for 32 epochs, with a vocabulary of 8,192, 4 to 64 keys and up to 256
    tokens. Our smaller sizes have fewer keys and a vocabulary small enough to be learned token by token.
    """

    level_is: ClassVar[str] = "keys"
    small: ClassVar[Mapping[str, Any]] = {"context": 32, "vocab": 32, "levels": (2, 4, 8), "steps": 400}
    paper: ClassVar[Mapping[str, Any]] = {**ZOOLOGY, "context": 256, "levels": (4, 8, 16, 32, 64)}

    levels: tuple[int, ...] = (2, 4, 8, 16)
    context: int = 64
    vocab: int = 40
    steps: int = 600
    rows: int = 32

    def __post_init__(self) -> None:
        for keys in self.levels:
            self.check_room(4 * keys, f"{keys} keys")
            if keys >= self.vocab // 2:
                most = f"{keys} keys are more than the {self.vocab // 2 - 1} of a vocabulary of {self.vocab}"
                raise ConfigError(f"{self.name}.levels: {most} (fewer keys, or more vocab)")

    def baseline(self, level: int) -> float:
        return 1 / level

    def make_room(self, level: int) -> dict[str, int]:
        return {"context": max(self.context, 4 * level), "vocab": max(self.vocab, 2 * level + 2)}

    def draw_level(self, rng: np.random.Generator, rows: int, level: int, seed: int) -> Examples:
        keys, values = draw_pairs(rng, rows, level, level, self.vocab)
        made = fill(rows, self.context)
        write_pairs(made.tokens, 0, keys, values)
        ask(made, rng, 2 * level, keys, values)
        return made


def draw_pairs(
    rng: np.random.Generator, rows: int, keys: int, values: int, vocab: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `keys` different keys and `values` different values for each sequence: [rows, keys] and [rows, values]."""
    half = vocab // 2
    return choose_distinct(rng, rows, keys, 1, half), choose_distinct(rng, rows, values, half, vocab)


def write_pairs(tokens: np.ndarray, start: int, keys: np.ndarray, values: np.ndarray) -> None:
    """Write k₁ v₁ k₂ v₂ … from column `start` on."""
    end = start + 2 * keys.shape[1]
    tokens[:, start:end:2], tokens[:, start + 1 : end : 2] = keys, values


def ask(made: Examples, rng: np.random.Generator, start: int, keys: np.ndarray, values: np.ndarray) -> None:
    """Write each key again into a random slot from column `start` on, with its value as the label."""
    rows, count = keys.shape
    columns = draw_slots(rng, rows, start, made.tokens.shape[1], count)
    place(made.tokens, columns, keys)
    place(made.labels, columns, values)


def draw_slots(rng: np.random.Generator, rows: int, start: int, end: int, count: int) -> np.ndarray:
    """Draw `count` different two-token slots for each sequence, from column `start` to `end`, with power-law gaps.
    Return the first column of each slot [B, count]."""
    gaps = np.arange(1, (end - start) // 2 + 1)
    weights = gaps ** (POWER - 1.0)
    # The `count` smallest exponential variates ÷ weight are a weighted sample without replacement (Efraimidis and
    # Spirakis, 2006).
    drawn = (rng.exponential(size=(rows, len(gaps))) / weights).argsort(1)[:, :count]
    return start + 2 * drawn


@dataclass(frozen=True, kw_only=True)
class Overwrite(MQAR, name="overwrite"):
    """Recall of overwritten values: `mqar` in which some keys get a second value (Arora et al., 2023, the task
    `forgetting_mqar` of their code).

    After the K pairs, U of the keys are repeated in random order, each with a new value; the new values are not among
    the K old ones. Then come the queries, as in mqar. The answer is a key's last value. The level is U. Chance is 2/V;
    a guess among the keys' last values is right at 1/K.

    The paper's code trains 4 to 36 keys of a vocabulary of 8,192. The number of overwritten keys is our choice.
    """

    level_is: ClassVar[str] = "keys overwritten"
    small: ClassVar[Mapping[str, Any]] = {"keys": 2, "levels": (1, 2), "context": 16, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {**ZOOLOGY, "context": 256, "keys": 36, "levels": (4, 12, 36)}

    levels: tuple[int, ...] = (1, 2, 4)
    keys: int = 4
    vocab: int = 32
    context: int = 32
    steps: int = 500

    def __post_init__(self) -> None:
        for changed in self.levels:
            if changed > self.keys:
                raise ConfigError(
                    f"{self.name}.levels: has {changed}, there are {self.keys} keys ({self.keys} at most)"
                )
            self.check_room(4 * self.keys + 2 * changed, f"{changed} of {self.keys} keys overwritten")
            if self.keys + changed > self.vocab // 2:
                found = f"{self.keys + changed} values, a vocabulary of {self.vocab} has {self.vocab // 2}"
                raise ConfigError(f"{self.name}.levels: {changed} takes {found} (fewer keys, or more vocab)")

    def baseline(self, level: int) -> float:
        return 1 / self.keys

    def make_room(self, level: int) -> dict[str, int]:
        keys = max(self.keys, level)
        context, vocab = 4 * keys + 2 * level, 2 * (keys + level)
        return {"keys": keys, "context": max(self.context, context), "vocab": max(self.vocab, vocab)}

    def draw_level(self, rng: np.random.Generator, rows: int, level: int, seed: int) -> Examples:
        keys, drawn = draw_pairs(rng, rows, self.keys, self.keys + level, self.vocab)
        first, second = drawn[:, : self.keys], drawn[:, self.keys :]
        changed = choose_distinct(rng, rows, level, 0, self.keys)
        made = fill(rows, self.context)
        write_pairs(made.tokens, 0, keys, first)
        write_pairs(made.tokens, 2 * self.keys, np.take_along_axis(keys, changed, 1), second)
        last = first.copy()
        place(last, changed, second)
        ask(made, rng, 2 * (self.keys + level), keys, last)
        return made


@dataclass(frozen=True, kw_only=True)
class Bind(MQAR, name="bind"):
    """Recall by keys of two tokens, neither of which alone identifies the value (Arora et al., 2023, the task
    `compositional_mqar` of their code).

    √K first and √K second parts make K keys, each with a different value: a sequence is a₁ b₁ v₁ … a_K b_K v_K in
    random order. Then each key is repeated, in a two-token slot drawn as in mqar. The answer at the second part is the
    key's value. The level is K, a square. Chance is 2/V; a guess among the values of keys that share one part is right
    at 1/√K. Controls: attention behind short convolutions must reach levels; without token mixing, accuracy is at
    chance.

    The paper's code trains 4 to 36 keys of a vocabulary of 8,192 in up to 256 tokens.
    """

    small: ClassVar[Mapping[str, Any]] = {"context": 32, "vocab": 24, "levels": (4,), "steps": 400}
    paper: ClassVar[Mapping[str, Any]] = {**ZOOLOGY, "context": 256, "levels": (4, 9, 16, 25, 36)}

    levels: tuple[int, ...] = (4, 9)

    def __post_init__(self) -> None:
        for keys in self.levels:
            if math.isqrt(keys) ** 2 != keys:
                raise ConfigError(f"{self.name}.levels: {keys} is no square (4, 9, 16, …)")
            self.check_room(5 * keys, f"{keys} keys")
            if keys > self.vocab // 2:
                most = f"{keys} values are more than the {self.vocab // 2} of a vocabulary of {self.vocab}"
                raise ConfigError(f"{self.name}.levels: {most} (fewer keys, or more vocab)")

    def baseline(self, level: int) -> float:
        return 1 / math.isqrt(level)

    def next_level(self) -> int:
        return (math.isqrt(max(self.levels)) + 1) ** 2

    def make_room(self, level: int) -> dict[str, int]:
        return {"context": max(self.context, 5 * level), "vocab": max(self.vocab, 2 * level)}

    def draw_level(self, rng: np.random.Generator, rows: int, level: int, seed: int) -> Examples:
        side, half = math.isqrt(level), self.vocab // 2
        parts = choose_distinct(rng, rows, 2 * side, 1, half)
        order = rng.random((rows, level)).argsort(1)
        first = np.take_along_axis(parts[:, :side], order // side, 1)
        second = np.take_along_axis(parts[:, side:], order % side, 1)
        values = choose_distinct(rng, rows, level, half, self.vocab)
        made, end = fill(rows, self.context), 3 * level
        made.tokens[:, :end:3], made.tokens[:, 1:end:3], made.tokens[:, 2:end:3] = first, second, values
        columns = draw_slots(rng, rows, end, self.context, level)
        place(made.tokens, columns, first)
        place(made.tokens, columns + 1, second)
        place(made.labels, columns + 1, values)
        return made


@dataclass(frozen=True, kw_only=True)
class Needle(MQAR, name="needle"):
    """Recall over longer distances than in training: `mqar` with K = `keys` keys, trained on sequences of `context`
    tokens. The level is a sequence's number of tokens; the added tokens are filler between the pairs and the queries'
    slots.

    Chance is 2/V; a guess among the sequence's values is right at 1/K.

    No paper has this task. At size `paper` it has the vocabulary and the training budget of mqar.
    """

    level_is: ClassVar[str] = "tokens"
    small: ClassVar[Mapping[str, Any]] = {"context": 16, "levels": (16, 32, 64), "keys": 2, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {**ZOOLOGY, "context": 64, "levels": (64, 128, 256, 512, 1024)}

    levels: tuple[int, ...] = (32, 64, 128, 256, 512)
    keys: int = 4
    vocab: int = 32
    context: int = 32
    steps: int = 500

    def __post_init__(self) -> None:
        self.check_room(4 * self.keys, f"{self.keys} keys", setting="keys")
        if min(self.levels) < self.context:
            found = f"has {min(self.levels)} tokens, and the context of training is {self.context}"
            raise ConfigError(f"{self.name}.levels: {found} ({self.context} at least)")

    def trains(self, level: int) -> bool:
        return level == self.context

    def length(self, level: int) -> int:
        return level

    def baseline(self, level: int) -> float:
        return 1 / self.keys

    def make_room(self, level: int) -> dict[str, int]:
        return {}

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        length = self.context if level is None else level
        keys, values = draw_pairs(rng, rows, self.keys, self.keys, self.vocab)
        made = fill(rows, length)
        write_pairs(made.tokens, 0, keys, values)
        ask(made, rng, 2 * self.keys + length - self.context, keys, values)
        return made


@dataclass(frozen=True, kw_only=True)
class Memorise(Probe, name="memorise"):
    """Memorisation of facts in weights: a map from keys to values that is fixed for a seed (Poli et al., 2024, MAD).

    Of V tokens, 0 is a blank, 1 to V/2 − 1 are keys, V/2 to V − 1 values. A sequence is `pairs` pairs of a random key
    and a blank; the answer at the blank is the key's value, which the sequence never shows. The level is V/2 − 1, the
    number of facts. Bits learned are facts × (log₂(V/2) − loss in bits), at least 0. Chance is 2/V; a guess of the
    value that most keys have is better.

    MAD has 127 facts and trains 20,000 steps of 128 sequences, at width 128.
    """

    level_is: ClassVar[str] = "facts"
    small: ClassVar[Mapping[str, Any]] = {"vocab": 128, "levels": (63,)}
    paper: ClassVar[Mapping[str, Any]] = {**MAD, "vocab": 256, "levels": (127,)}

    levels: tuple[int, ...] = (1023,)
    vocab: int = 2048
    pairs: int = 16
    mixer_alone: bool = False
    steps: int = 200
    rows: int = 32

    def __post_init__(self) -> None:
        if self.levels != (self.vocab // 2 - 1,):
            found = f"is {self.levels}, a vocabulary of {self.vocab} has {self.vocab // 2 - 1} facts"
            raise ConfigError(f"{self.name}.levels: {found} (({self.vocab // 2 - 1},))")

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def seq_len(self) -> int:
        return 2 * self.pairs

    def chance(self, level: int) -> float:
        return 2 / self.vocab

    def baseline(self, level: int) -> float:
        return expect_most(level, self.vocab // 2) / level

    def extend(self) -> Self | None:
        vocab = 2 * self.vocab
        return replace(self, vocab=vocab, levels=(vocab // 2 - 1,)) if vocab <= MOST[-1] else None

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        facts = self.make_generator(seed, "map").integers(self.vocab // 2, self.vocab, self.vocab // 2)
        keys = rng.integers(1, self.vocab // 2, (rows, self.pairs))
        made = fill(rows, self.seq_len)
        made.tokens[:, ::2], made.labels[:, 1::2] = keys, facts[keys]
        return made

    def measure(self, level: int, accuracy: float, loss: float, params: int) -> dict[str, float]:
        bits = level * max(0.0, math.log2(self.vocab // 2) - loss / math.log(2))
        return {"bits": bits, "bits_per_parameter": bits / params}
