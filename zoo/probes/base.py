# B rows, T tokens
"""Base of the probes: each makes fresh examples from a seed and a number, and says what a guess would score."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

IGNORED = -100
"""The label of a position without an answer (torch's convention)."""

STREAMS = ("train", "choose", "report", "map")
"""Kinds of examples, which have no random number in common: those of training steps, those that the learning rate is
chosen by, those that are reported, and what belongs to a seed as a whole."""


class Examples(NamedTuple):
    """Token ids and answers [B, T]. The answer at a position follows from the tokens up to it; IGNORED where none is
    asked for."""

    tokens: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A synthetic task. `levels` are its difficulties, easiest first: what `level_is` names. Training draws rows as
    `draw` makes them without a level, of all difficulties that are trained: equally many of each, where all rows have
    one length (`draw_level` makes those of one).

    A run is `steps` updates on `rows` rows each.
    """

    kinds: ClassVar[dict[str, type[Probe]]] = {}
    name: ClassVar[str]
    level_is: ClassVar[str]
    exact: ClassVar[bool] = False
    """Whether a row counts as right only where all of its answers are; else each answer counts by itself."""
    scaled: ClassVar[bool] = False
    """Whether accuracies are also given as (accuracy − chance) / (1 − chance)."""
    mixer_alone: ClassVar[bool] = True
    """Whether the feed-forward is left out, so that the mixer of tokens does all the work."""
    small: ClassVar[Mapping[str, Any]] = {}
    """The settings that differ at `--size small`."""

    levels: tuple[int, ...]
    steps: int
    rows: int

    def __init_subclass__(cls, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name:
            cls.name = name
            Probe.kinds[name] = cls

    @property
    def vocab_size(self) -> int:
        """Tokens that there are; the head tells all of them apart."""
        raise NotImplementedError

    @property
    def seq_len(self) -> int:
        """Tokens of a row in training."""
        raise NotImplementedError

    def trains(self, level: int) -> bool:
        """Whether rows of a level are among those of training; others show extrapolation."""
        return True

    def length(self, level: int) -> int:
        """Tokens of a row of a level."""
        return self.seq_len

    def chance(self, level: int) -> float:
        """The accuracy of the best guess that reads nothing of the row."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        """Draw rows of a level, or of those of training, in random order."""
        if level is not None:
            return self.draw_level(rng, rows, level, seed)
        counts = rng.multinomial(rows, [1 / len(self.levels)] * len(self.levels))
        parts = [self.draw_level(rng, int(n), each, seed) for n, each in zip(counts, self.levels, strict=True) if n]
        order = rng.permutation(rows)
        return Examples(*(np.concatenate(each)[order] for each in zip(*parts, strict=True)))

    def draw_level(self, rng: np.random.Generator, rows: int, level: int, seed: int) -> Examples:
        """Draw rows of a level."""
        raise NotImplementedError

    def examples(self, seed: int, stream: str, number: int, rows: int, level: int | None = None) -> Examples:
        """Make examples that follow from the settings and these numbers alone."""
        return self.draw(self.make_generator(seed, stream, number, level), rows, level, seed)

    def make_generator(self, seed: int, stream: str, number: int = 0, level: int | None = None) -> np.random.Generator:
        """Make the generator of one batch: that of no other probe, seed, stream, number or level."""
        key = [zlib.crc32(self.name.encode()), seed, STREAMS.index(stream), number, 0 if level is None else 1 + level]
        return np.random.default_rng(np.random.SeedSequence(key))

    def make_readout(self, d_model: int, seed: int) -> Any | None:
        """Make the torch module that gives the answers from a model's outputs at the last tokens of rows, and that is
        trained beside it. None: its own head gives them, each from the output at the answer's position."""
        return None

    def measure(self, level: int, accuracy: float, loss: float, params: int) -> dict[str, float]:
        """Further figures of a level, from accuracy, loss in nats an answer and the model's parameters."""
        return {"scaled": (accuracy - self.chance(level)) / (1 - self.chance(level))} if self.scaled else {}

    def settings(self) -> dict[str, Any]:
        """The settings as plain data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class OneLength(Probe):
    """Base of the probes whose rows of training have `context` tokens, of a vocabulary of `vocab`."""

    context: int
    vocab: int

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def seq_len(self) -> int:
        return self.context


def fill(rows: int, length: int, filler: int = 0) -> Examples:
    """Rows of a filler, without answers."""
    return Examples(np.full((rows, length), filler, np.int64), np.full((rows, length), IGNORED, np.int64))


def choose_distinct(rng: np.random.Generator, rows: int, count: int, low: int, high: int) -> np.ndarray:
    """Choose `count` different numbers from low to high − 1 in each row, in random order: [rows, count]."""
    return low + rng.random((rows, high - low)).argsort(1)[:, :count]


def place(target: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
    """Write values [B, N] at columns [B, N] of a target [B, T]."""
    np.put_along_axis(target, columns, values, 1)
