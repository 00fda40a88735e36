# B rows, T tokens, G elements of a group
"""Define probes of state tracking: the parity of bits, and word problems of finite groups (the product of all elements
so far)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import Any, ClassVar

import numpy as np

from zoo.errors import ConfigError, name_options
from zoo.probes.base import IGNORED, SIGNED, Examples, Probe, fill

PAD = 2


@dataclass(frozen=True, kw_only=True)
class Parity(Probe, name="parity"):
    """Parity of a sequence of bits (Hahn, 2020; Grazzi et al., 2024).

    The answer at a bit is the sum modulo 2 of all bits up to it. Training sequences have `shortest` to `longest` bits,
    then padding. In training every bit has a label, or only the last bit if `cumulative` is false; in scoring only the
    last bit. The level is the number of bits. Chance is 1/2.

    Grazzi et al. train lengths 3 to 40, 5.1 M sequences, and test 40 to 256.
    """

    level_is: ClassVar[str] = "bits"
    scaled: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = SIGNED
    small: ClassVar[Mapping[str, Any]] = {"levels": (4, 8, 16), "longest": 8, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {
        **{"levels": (40, 64, 128, 256), "longest": 40},
        **{"steps": 20_000, "rows": 256, "d_model": 128},
    }

    levels: tuple[int, ...] = (8, 16, 40, 64, 128, 256)
    shortest: int = 3
    longest: int = 16
    cumulative: bool = True
    mixer_alone: bool = False
    steps: int = 500
    rows: int = 32

    @property
    def vocab_size(self) -> int:
        return PAD + 1

    @property
    def seq_len(self) -> int:
        return self.longest

    def trains(self, level: int) -> bool:
        return self.shortest <= level <= self.longest

    def length(self, level: int) -> int:
        return level

    def chance(self, level: int) -> float:
        return 0.5

    def mixed_baseline(self) -> float:
        # each row's first answer is its first bit
        return 0.5 + 1 / (self.shortest + self.longest) if self.cumulative else 0.5

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        lengths = rng.integers(self.shortest, self.longest + 1, rows) if level is None else np.full(rows, level)
        width = self.longest if level is None else level
        bits = rng.integers(0, 2, (rows, width))
        columns, last = np.arange(width), lengths[:, None] - 1
        asked = columns <= last if self.cumulative and level is None else columns == last
        return Examples(np.where(columns <= last, bits, PAD), np.where(asked, bits.cumsum(1) % 2, IGNORED))


class FiniteGroup:
    """A finite group of permutations. `table[a, b]` is the product a·b (first a, then b); `swaps` are the indices of
    its transpositions."""

    def __init__(self, elements: list[tuple[int, ...]]) -> None:
        """Make the group from its permutations. A permutation p maps i to p[i]."""
        number = {each: index for index, each in enumerate(elements)}
        self.table = np.array([[number[tuple(b[i] for i in a)] for b in elements] for a in elements])
        moved = [sum(i != j for i, j in enumerate(each)) for each in elements]
        self.swaps = np.array([index for index, count in enumerate(moved) if count == 2])

    def __len__(self) -> int:
        return len(self.table)


def turn(size: int, by: int, start: int = 0) -> list[int]:
    """Return the cyclic permutation that shifts `size` elements, numbered from `start`, by `by` places."""
    return [start + (i + by) % size for i in range(size)]


def is_even(order: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in combinations(order, 2)) % 2 == 0


@functools.cache
def make_group(name: str) -> FiniteGroup:
    """Make a group by its name: Z2 to Z120, S2 to S5, A4, A5, A4xZ5. Raises ConfigError for an unknown name."""
    if name[:1] == "Z" and name[1:].isdigit() and 2 <= int(name[1:]) <= 120:
        return FiniteGroup([tuple(turn(int(name[1:]), by)) for by in range(int(name[1:]))])
    if name in ("S2", "S3", "S4", "S5"):
        return FiniteGroup(list(permutations(range(int(name[1])))))
    if name in ("A4", "A5"):
        return FiniteGroup([each for each in permutations(range(int(name[1]))) if is_even(each)])
    if name == "A4xZ5":
        even = [each for each in permutations(range(4)) if is_even(each)]
        return FiniteGroup([(*each, *turn(5, by, 4)) for each, by in product(even, range(5))])
    known = ("Z6", "Z60", "S3", "S4", "S5", "A4", "A5", "A4xZ5")
    raise ConfigError(f"word.group: is {name!r}{name_options(name, known)}")


@dataclass(frozen=True, kw_only=True)
class Word(Probe):
    """The word problem of a group: at every position, the product of the elements so far (Liu et al., 2022; Merrill et
    al., 2024; Grazzi et al., 2024).

    Tokens are elements of `group`, or only its transpositions with `swaps_only`; answers are any elements. A sequence
    is correct if all of its answers are. The level is the length T, in training `context`. Chance is c^−T, where c is
    the number of possible tokens: each answer has c possible values given the previous one. The first answer is the
    first token, so a guess that reads it is right at c^(1 − T). Controls: a delta rule whose state may change sign must
    reach levels; without token mixing, at most c^(1 − T) of the sequences are right.

    Grazzi et al. train 32 elements and test up to 512; size `paper` has the training budget that they use for parity.
    """

    level_is: ClassVar[str] = "elements"
    exact: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = SIGNED
    small: ClassVar[Mapping[str, Any]] = {"levels": (2, 4, 8), "context": 4, "steps": 300}
    paper: ClassVar[Mapping[str, Any]] = {
        **{"levels": (32, 64, 128, 256, 512), "context": 32},
        **{"steps": 20_000, "rows": 256, "d_model": 128},
    }

    levels: tuple[int, ...] = (4, 8, 16, 32, 64)
    group: str = "S3"
    swaps_only: bool = False
    context: int = 8
    mixer_alone: bool = False
    steps: int = 500
    rows: int = 64

    def __post_init__(self) -> None:
        if self.swaps_only and not len(make_group(self.group).swaps):
            raise ConfigError(f"word.swaps_only: no element of {self.group} exchanges two things (false, or S5)")

    @property
    def vocab_size(self) -> int:
        return len(make_group(self.group))

    @property
    def seq_len(self) -> int:
        return self.context

    def trains(self, level: int) -> bool:
        return level <= self.context

    def length(self, level: int) -> int:
        return level

    def chance(self, level: int) -> float:
        group = make_group(self.group)
        choices = len(group.swaps) if self.swaps_only else len(group)
        return float(choices) ** -level

    def baseline(self, level: int) -> float:
        return self.chance(level - 1)

    def mixed_baseline(self) -> float:
        return self.baseline(self.context)

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        group, length = make_group(self.group), self.context if level is None else level
        choices = group.swaps if self.swaps_only else np.arange(len(group))
        made = fill(rows, length)
        made.tokens[:] = choices[rng.integers(0, len(choices), (rows, length))]
        done = made.tokens[:, 0]
        made.labels[:, 0] = done
        for column in range(1, length):
            done = group.table[done, made.tokens[:, column]]
            made.labels[:, column] = done
        return made


@dataclass(frozen=True, kw_only=True)
class WordZ6(Word, name="word_z6"):
    """The word problem of Z6, addition modulo 6: a commutative group. The controls are those of `Word`."""

    group: str = "Z6"


@dataclass(frozen=True, kw_only=True)
class WordS3(Word, name="word_s3"):
    """The word problem of S3, permutations of three elements: the smallest non-commutative group."""

    group: str = "S3"


@dataclass(frozen=True, kw_only=True)
class WordS5(Word, name="word_s5"):
    """The word problem of S5, permutations of five elements: the smallest group whose word problem no circuit of
    constant depth solves (unless TC⁰ = NC¹). The controls are those of `Word`; at size small the positive one fails."""

    group: str = "S5"


@dataclass(frozen=True, kw_only=True)
class WordS5Swaps(Word, name="word_s5_swaps"):
    """The word problem of S5 with transpositions as tokens (Grazzi et al., 2024). The controls are those of `Word`."""

    group: str = "S5"
    swaps_only: bool = True
