# B rows, T tokens
"""Define the base of probes: examples are a pure function of seed and number, and the chance accuracy is known."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from zoo.errors import ConfigError

IGNORED = -100
"""The label of a position without an answer, which the loss ignores (torch's convention)."""

CONVOLVED = ("llama-tiny", "attention.short_conv=3")
"""A model with short convolutions before attention, which show each token its predecessors."""

SIGNED = ("llama-tiny", "attention=gated_delta", "position=none", "attention.beta_scale=2.0")
"""A model with a delta rule whose state may change sign, so that it can count modulo 2."""

MAD = {"d_model": 128, "mixer_alone": False, "steps": 20_000, "rows": 128}
"""Width, layers and training budget of the tasks of MAD (Poli et al., 2024)."""

MOST = (512, 2048, 8192)
"""Limits of an extended probe: tokens of a training sequence, tokens of a scored sequence, size of the vocabulary."""

STREAMS = ("train", "choose", "report", "map")
"""Independent streams of random numbers: examples for training, for choosing the learning rate and for reporting, and a
map that is fixed for a seed (`memorise`)."""


class Examples(NamedTuple):
    """Token ids and labels [B, T]. The label (answer) at a position follows from the tokens up to it. It is IGNORED at
    positions without an answer."""

    tokens: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A synthetic task. `levels` are its difficulties, easiest first, in the unit `level_is`. Training calls `draw`
    without a level, which mixes all levels with equal probability; a probe may override `draw`.

    A training has `steps` updates on `rows` sequences each.
    """

    kinds: ClassVar[dict[str, type[Probe]]] = {}
    name: ClassVar[str]
    level_is: ClassVar[str]
    exact: ClassVar[bool] = False
    """Whether a sequence counts as one answer, correct only if all of its answers are; otherwise each answer counts."""
    scaled: ClassVar[bool] = False
    """Whether accuracies are also given as (accuracy − chance) / (1 − chance)."""
    positive: ClassVar[tuple[str, ...]] = CONVOLVED
    """The positive control: a model and overrides that must reach levels."""
    small: ClassVar[Mapping[str, Any]] = {}
    """Settings that differ from the defaults at `--size small`."""
    paper: ClassVar[Mapping[str, Any]] = {}
    """The paper's settings, used at `--size paper`."""

    levels: tuple[int, ...]
    d_model: int = 64
    mixer_alone: bool = True
    """Whether layers have only a token mixer, without a feed-forward."""
    steps: int
    rows: int

    def __init_subclass__(cls, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name:
            cls.name = name
            Probe.kinds[name] = cls

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""
        raise NotImplementedError

    @property
    def seq_len(self) -> int:
        """Number of tokens of a sequence in training."""
        raise NotImplementedError

    def trains(self, level: int) -> bool:
        """Whether training has sequences of this level. The other levels measure extrapolation."""
        return True

    def length(self, level: int) -> int:
        """Return the number of tokens of a sequence of this level."""
        return self.seq_len

    def chance(self, level: int) -> float:
        """Return the accuracy of the best guess that does not read the sequence."""
        raise NotImplementedError

    def baseline(self, level: int) -> float:
        """Return the accuracy of an informed guess, which knows the answers that the sequence makes possible but not
        the right one (it names the value of any key, say). Equal to `chance` if the sequence rules out no answer."""
        return self.chance(level)

    def mixed_baseline(self) -> float:
        """Return the accuracy of an informed guess (`baseline`) on training sequences, which mix the levels."""
        trained = [level for level in self.levels if self.trains(level)]
        return sum(map(self.baseline, trained)) / len(trained)

    def next_level(self) -> int:
        """Return the level after the hardest one."""
        return 2 * max(self.levels)

    def make_room(self, level: int) -> dict[str, int]:
        """Return the settings that must change for sequences of a harder level."""
        return {}

    def extend(self) -> Self | None:
        """Return the same probe with one more level. None if sequences or vocabulary would exceed MOST."""
        level = self.next_level()
        made = replace(self, levels=(*self.levels, level), **self.make_room(level))
        sizes = (made.seq_len, made.length(level), made.vocab_size)
        fits = all(size <= most for size, most in zip(sizes, MOST, strict=True))
        return made if fits and level > max(self.levels) else None

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        """Draw `rows` sequences of a level. Without a level they are of all levels, shuffled."""
        if level is not None:
            return self.draw_level(rng, rows, level, seed)
        counts = rng.multinomial(rows, [1 / len(self.levels)] * len(self.levels))
        parts = [self.draw_level(rng, int(n), each, seed) for n, each in zip(counts, self.levels, strict=True) if n]
        order = rng.permutation(rows)
        return Examples(*(np.concatenate(each)[order] for each in zip(*parts, strict=True)))

    def draw_level(self, rng: np.random.Generator, rows: int, level: int, seed: int) -> Examples:
        """Draw `rows` sequences of a level."""
        raise NotImplementedError

    def examples(self, seed: int, stream: str, number: int, rows: int, level: int | None = None) -> Examples:
        """Draw the batch `number` of a stream, as a pure function of the settings and the arguments."""
        return self.draw(self.make_generator(seed, stream, number, level), rows, level, seed)

    def make_generator(self, seed: int, stream: str, number: int = 0, level: int | None = None) -> np.random.Generator:
        """Make the random generator of one batch, different for each probe, seed, stream, number and level."""
        key = [zlib.crc32(self.name.encode()), seed, STREAMS.index(stream), number, 0 if level is None else 1 + level]
        return np.random.default_rng(np.random.SeedSequence(key))

    def make_readout(self, d_model: int, seed: int) -> Any | None:
        """Make a torch module that computes the answers from the output at each sequence's last token. It is trained
        with the model. None if the model's own head computes the answer at each position."""
        return None

    def measure(self, level: int, accuracy: float, loss: float, params: int) -> dict[str, float]:
        """Compute a level's additional figures from the accuracy, the loss (nats per answer) and the number of
        parameters."""
        return {"scaled": (accuracy - self.chance(level)) / (1 - self.chance(level))} if self.scaled else {}

    def list_changes(self) -> list[str]:
        """List the settings that differ from the paper's, each with the paper's value in brackets."""
        source = type(self)(**self.paper).settings()
        own = {key: value for key, value in self.settings().items() if value != source[key]}
        return [f"{key} {format_setting(value)} ({format_setting(source[key])})" for key, value in own.items()]

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class OneLength(Probe):
    """Base of the probes whose training sequences have `context` tokens, from a vocabulary of `vocab` tokens."""

    context: int
    vocab: int

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def seq_len(self) -> int:
        return self.context

    def chance(self, level: int) -> float:
        """Return the probability of any one value: half of the vocabulary are values."""
        return 2 / self.vocab

    def check_room(self, needed: int, what: str, fewer: str = "keys", setting: str = "levels") -> None:
        """Raise ConfigError if `what` takes `needed` tokens but a sequence has fewer."""
        if needed > self.context:
            found = f"{what} take {needed} tokens, found context={self.context}"
            raise ConfigError(f"{self.name}.{setting}: {found} (fewer {fewer}, or a longer context)")


def format_setting(value: Any) -> str:
    """Format a setting. A list is formatted as its first and last item: `2 to 16`."""
    if isinstance(value, list):
        return f"{value[0]} to {value[-1]}" if len(value) > 1 else str(value[0])
    return str(value).lower() if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else str(value)


def fill(rows: int, length: int, filler: int = 0) -> Examples:
    """Make a batch [rows, length] of one filler token, without answers."""
    return Examples(np.full((rows, length), filler, np.int64), np.full((rows, length), IGNORED, np.int64))


def choose_distinct(rng: np.random.Generator, rows: int, count: int, low: int, high: int) -> np.ndarray:
    """Draw `count` different numbers from low to high − 1 for each sequence, in random order: [rows, count]."""
    drawn = rng.random((rows, high - low))
    least = drawn.argpartition(count - 1, 1)[:, :count]  # sorting all of 4,096 values would take longer than a step
    order = np.take_along_axis(drawn, least, 1).argsort(1)
    return low + np.take_along_axis(least, order, 1)


def place(target: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
    """Write values [B, N] into `target` [B, T] at the time indices `columns` [B, N]."""
    np.put_along_axis(target, columns, values, 1)
