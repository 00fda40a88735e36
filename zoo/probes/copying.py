# B rows, T tokens
"""Define probes of copying: letters among blanks (select), strings (copy), the token after a marker (induction)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from zoo.probes.base import IGNORED, MAD, Examples, OneLength, Probe, fill, place
from zoo.probes.guessing import expect_most

BLANK, GO = 0, 1


@dataclass(frozen=True, kw_only=True)
class Select(OneLength, name="select"):
    """Selective copying (Gu and Dao, 2023; Poli et al., 2024, MAD).

    A sequence is M letters out of V − 2, at random places among T − 2M − 1 blanks, then a go token, then the letters
    again in order. Each repeated letter is the answer at the token before it. The level is M. Chance is 1/(V − 2). An
    informed guess knows the r letters that remain (r from M to 1) but not their order, and names the most frequent one.

    MAD copies 16 letters in 256 tokens, and trains 20,000 steps of 128 sequences, at width 128 and with feed-forwards.
    """

    level_is: ClassVar[str] = "letters"
    small: ClassVar[Mapping[str, Any]] = {"levels": (2, 4), "context": 16, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {**MAD, "context": 256, "levels": (16,)}

    levels: tuple[int, ...] = (2, 4, 8)
    context: int = 32
    vocab: int = 16
    steps: int = 500
    rows: int = 32

    def __post_init__(self) -> None:
        for letters in self.levels:
            self.check_room(2 * letters + 1, f"{letters} letters", "letters")

    def chance(self, level: int) -> float:
        return 1 / (self.vocab - 2)

    def baseline(self, level: int) -> float:
        return sum(expect_most(left, self.vocab - 2) / left for left in range(1, level + 1)) / level

    def make_room(self, level: int) -> dict[str, int]:
        return {"context": max(self.context, 4 * level)}

    def draw_level(self, rng: np.random.Generator, rows: int, level: int, seed: int) -> Examples:
        go = self.context - level - 1
        letters = rng.integers(2, self.vocab, (rows, level))
        made = fill(rows, self.context, BLANK)
        place(made.tokens, np.sort(rng.random((rows, go)).argsort(1)[:, :level], 1), letters)
        made.tokens[:, go], made.tokens[:, go + 1 :] = GO, letters
        made.labels[:, go:-1] = letters
        return made


LETTERS, START, BAR, END, PAD = 26, 26, 27, 28, 29


@dataclass(frozen=True, kw_only=True)
class Copy(Probe, name="copy"):
    """Copy strings, including strings longer than in training (Jelassi et al., 2024, "Repeat after me").

    A sequence is `$ s | s .` with a string s over 26 letters, then padding. The answers are the second s and the full
    stop; a sequence is correct if all of them are. The level n is the length of s, in training from `shortest` to
    `longest`. Chance is 26^−n. A guess that knows the letters but not their order has accuracy C(n + 25, n)·26^−n: the
    number of multisets ÷ the number of strings.

    The paper trains models of 160 M parameters on strings of up to 50 letters, and tests up to 1,000. The steps and the
    width of size `paper` are our choice.
    """

    level_is: ClassVar[str] = "letters"
    exact: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"levels": (3, 5, 10), "longest": 5, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {
        "levels": (10, 20, 50, 100, 200, 400),
        "longest": 50,
        "steps": 20_000,
        "rows": 64,
        "d_model": 128,
    }

    levels: tuple[int, ...] = (3, 5, 10, 20, 40)
    shortest: int = 3
    longest: int = 10
    steps: int = 500
    rows: int = 48

    @property
    def vocab_size(self) -> int:
        return PAD + 1

    @property
    def seq_len(self) -> int:
        return self.length(self.longest)

    def trains(self, level: int) -> bool:
        return self.shortest <= level <= self.longest

    def length(self, level: int) -> int:
        return 2 * level + 3

    def chance(self, level: int) -> float:
        return float(LETTERS) ** -level

    def baseline(self, level: int) -> float:
        return math.comb(level + LETTERS - 1, level) * self.chance(level)

    def mixed_baseline(self) -> float:
        lengths = range(self.shortest, self.longest + 1)
        return sum(map(self.baseline, lengths)) / len(lengths)

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        lengths = rng.integers(self.shortest, self.longest + 1, rows) if level is None else np.full(rows, level)
        longest = self.longest if level is None else level
        letters = rng.integers(0, LETTERS, (rows, longest))
        made = fill(rows, self.length(longest), PAD)
        for row, count in enumerate(lengths):
            text = letters[row, :count]
            made.tokens[row, : 2 * count + 3] = [START, *text, BAR, *text, END]
            made.labels[row, count + 1 : 2 * count + 2] = [*text, END]
        return made


@dataclass(frozen=True, kw_only=True)
class Induction(Probe, name="induction"):
    """Induction head: predict the token that followed an earlier marker (Olsson et al., 2022; Gu and Dao, 2023).

    Tokens are drawn from `symbols`. One marker is at a random place, a second at the end of the sequence. The answer at
    the end is the token after the first marker. Training sequences have `context` tokens; the level is a sequence's
    length as a multiple of `context`. Chance is 1/symbols; a guess of the sequence's most frequent token is somewhat
    better.

    Gu and Dao train 204,800 steps of 8 sequences of 256 tokens, and test up to 2^20 tokens.
    """

    level_is: ClassVar[str] = "times the length"
    small: ClassVar[Mapping[str, Any]] = {"levels": (1, 2, 4), "context": 16, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {
        "levels": (1, 2, 4, 8, 16, 32, 64),
        "context": 256,
        "steps": 204_800,
        "rows": 8,
    }

    levels: tuple[int, ...] = (1, 2, 4, 8, 16)
    context: int = 32
    symbols: int = 16
    steps: int = 500
    rows: int = 48

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    @property
    def seq_len(self) -> int:
        return self.context

    def trains(self, level: int) -> bool:
        return level == 1

    def length(self, level: int) -> int:
        return level * self.context

    def chance(self, level: int) -> float:
        return 1 / self.symbols

    def baseline(self, level: int) -> float:
        tokens = self.length(level) - 2  # all but the two markers
        return expect_most(tokens, self.symbols) / tokens

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        length = self.length(level or 1)
        tokens = rng.integers(0, self.symbols, (rows, length))
        first = rng.integers(0, length - 2, (rows, 1))
        place(tokens, first, np.full((rows, 1), self.symbols))
        tokens[:, -1] = self.symbols
        labels = np.full((rows, length), IGNORED, np.int64)
        labels[:, -1] = np.take_along_axis(tokens, first + 1, 1)[:, 0]
        return Examples(tokens, labels)
