# B rows, T tokens
"""Base of the probes: examples are a pure function of seed and number, and the chance accuracy is known."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from zoo.errors import ConfigError

IGNORED = -100
"""The label of a position without an answer (torch's convention)."""

CONVOLVED = ("llama-tiny", "attention.short_conv=3")
"""Attention behind short convolutions, which show each token the one before."""

SIGNED = ("llama-tiny", "attention=gated_delta", "position=none", "attention.beta_scale=2.0")
"""A delta rule whose state may change sign, so that it can count modulo 2."""

MAD = {"d_model": 128, "mixer_alone": False, "steps": 20_000, "rows": 128}
"""Width, layers and budget of the tasks of MAD (Poli et al., 2024)."""

MOST = (512, 2048, 8192)
"""Most tokens of a row in training and in scoring, and most tokens of a vocabulary, to which a probe is extended."""

STREAMS = ("train", "choose", "report", "map")
"""Streams of random numbers, independent of each other: examples for training, for choosing the learning rate, for
reporting; and a map that is fixed for a seed (`memorise`)."""


class Examples(NamedTuple):
    """Token ids and labels [B, T]. The label (answer) at a position follows from the tokens up to it; it is IGNORED
    where no answer is asked for."""

    tokens: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A synthetic task. `levels` are its difficulties, easiest first, in the unit `level_is`. Training calls `draw`
    without a level, which mixes all levels with equal probability; a probe may override `draw`.

    A run is `steps` updates on `rows` rows each.
    """

    kinds: ClassVar[dict[str, type[Probe]]] = {}
    name: ClassVar[str]
    level_is: ClassVar[str]
    exact: ClassVar[bool] = False
    """Whether a row is correct only if all of its answers are; else each answer counts by itself."""
    scaled: ClassVar[bool] = False
    """Whether accuracies are also given as (accuracy − chance) / (1 − chance)."""
    positive: ClassVar[tuple[str, ...]] = CONVOLVED
    """The positive control: a model, and overrides, that must reach levels."""
    small: ClassVar[Mapping[str, Any]] = {}
    """Settings that differ at `--size small`."""
    paper: ClassVar[Mapping[str, Any]] = {}
    """Settings that differ at `--size paper`: those of the source."""

    levels: tuple[int, ...]
    d_model: int = 64
    mixer_alone: bool = True
    """Whether layers have no feed-forward, so that the token mixer does all the work."""
    steps: int
    rows: int

    def __init_subclass__(cls, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name:
            cls.name = name
            Probe.kinds[name] = cls

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary."""
        raise NotImplementedError

    @property
    def seq_len(self) -> int:
        """The number of tokens of a row in training."""
        raise NotImplementedError

    def trains(self, level: int) -> bool:
        """Whether training has rows of a level; other levels measure extrapolation."""
        return True

    def length(self, level: int) -> int:
        """Give the number of tokens of a row of a level."""
        return self.seq_len

    def chance(self, level: int) -> float:
        """Give the accuracy of the best guess without reading the row."""
        raise NotImplementedError

    def baseline(self, level: int) -> float:
        """Give the accuracy of the best guess that knows which answers a row makes possible, but not which one is
        right: the value of any key in the row, for example. It equals `chance` if a row does not narrow the answers."""
        return self.chance(level)

    def mixed_baseline(self) -> float:
        """Give the accuracy of the best informed guess (`baseline`) on rows as in training, which mix the levels."""
        trained = [level for level in self.levels if self.trains(level)]
        return sum(map(self.baseline, trained)) / len(trained)

    def next_level(self) -> int:
        """Give the level that follows the hardest one."""
        return 2 * max(self.levels)

    def make_room(self, level: int) -> dict[str, int]:
        """Give the settings that rows of a harder level need."""
        return {}

    def extend(self) -> Self | None:
        """Make the same probe with one more level; None if rows or vocabulary would exceed the limits."""
        level = self.next_level()
        made = replace(self, levels=(*self.levels, level), **self.make_room(level))
        sizes = (made.seq_len, made.length(level), made.vocab_size)
        fits = all(size <= most for size, most in zip(sizes, MOST, strict=True))
        return made if fits and level > max(self.levels) else None

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        """Draw rows of `level`; if it is None, of all levels, shuffled."""
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
        """Make examples as a pure function of the settings and the arguments."""
        return self.draw(self.make_generator(seed, stream, number, level), rows, level, seed)

    def make_generator(self, seed: int, stream: str, number: int = 0, level: int | None = None) -> np.random.Generator:
        """Make the random generator of one batch, different for each probe, seed, stream, number and level."""
        key = [zlib.crc32(self.name.encode()), seed, STREAMS.index(stream), number, 0 if level is None else 1 + level]
        return np.random.default_rng(np.random.SeedSequence(key))

    def make_readout(self, d_model: int, seed: int) -> Any | None:
        """Make a torch module, trained with the model, that computes the answers from the outputs at the last token of
        each row. Returns None if the model's own head computes each answer from the output at its position."""
        return None

    def measure(self, level: int, accuracy: float, loss: float, params: int) -> dict[str, float]:
        """Compute further figures of a level from the accuracy, the loss (nats per answer) and the number of
        parameters."""
        return {"scaled": (accuracy - self.chance(level)) / (1 - self.chance(level))} if self.scaled else {}

    def list_changes(self) -> list[str]:
        """List the settings that differ from the source's, each with the source's value."""
        source = type(self)(**self.paper).settings()
        own = {key: value for key, value in self.settings().items() if value != source[key]}
        return [f"{key} {format_setting(value)} ({format_setting(source[key])})" for key, value in own.items()]

    def settings(self) -> dict[str, Any]:
        """Give the settings as plain data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class OneLength(Probe):
    """Base of the probes with training rows of `context` tokens and a vocabulary of `vocab` tokens."""

    context: int
    vocab: int

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def seq_len(self) -> int:
        return self.context

    def chance(self, level: int) -> float:
        """Give the probability of any value: values are half of the vocabulary."""
        return 2 / self.vocab

    def check_room(self, needed: int, what: str, fewer: str = "keys", setting: str = "levels") -> None:
        """Raise ConfigError if `what` takes more tokens than a row has."""
        if needed > self.context:
            found = f"{what} take {needed} tokens, found context={self.context}"
            raise ConfigError(f"{self.name}.{setting}: {found} (fewer {fewer}, or a longer context)")


def format_setting(value: Any) -> str:
    """Format a setting. Of several levels, the first and the last are shown."""
    if isinstance(value, list):
        return f"{value[0]} to {value[-1]}" if len(value) > 1 else str(value[0])
    return str(value).lower() if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else str(value)


def fill(rows: int, length: int, filler: int = 0) -> Examples:
    """Make rows [rows, length] of a filler token, without answers."""
    return Examples(np.full((rows, length), filler, np.int64), np.full((rows, length), IGNORED, np.int64))


def choose_distinct(rng: np.random.Generator, rows: int, count: int, low: int, high: int) -> np.ndarray:
    """Draw `count` different numbers from low to high − 1 for each row, in random order: [rows, count]."""
    drawn = rng.random((rows, high - low))
    least = drawn.argpartition(count - 1, 1)[:, :count]  # sorting all of 4,096 values would take longer than a step
    order = np.take_along_axis(drawn, least, 1).argsort(1)
    return low + np.take_along_axis(least, order, 1)


def place(target: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
    """Write values [B, N] at columns [B, N] of a target [B, T]."""
    np.put_along_axis(target, columns, values, 1)
