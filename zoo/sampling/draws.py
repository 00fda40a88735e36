"""Hold the sampling state of one sequence: options, random numbers, tokens so far, a grammar."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence
from copy import copy as clone
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from zoo.lazy import torch
from zoo.sampling.options import Sampling

if TYPE_CHECKING:
    from zoo.sampling.guide import Guide

BLOCK = 64  # random numbers made at a time


def make_generator(seed: int, prompt: tuple[int, ...], copy: int, stream: str = "") -> torch.Generator:
    """Make the random generator of one sequence from the seed, the prompt, and the sequence's number `copy` among equal
    prompts. The random numbers depend neither on batch nor on device. Another `stream` gives independent numbers."""
    key = f"{seed} {copy} {prompt}{stream}".encode()
    return torch.Generator().manual_seed(int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1)


class UniformPoints:
    """Uniform random numbers in [0, 1), indexed by position. They are made BLOCK at a time, but equal those of a single
    `torch.rand` call with the same generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._made: list[float] = []

    def __getitem__(self, position: int) -> float:
        while len(self._made) <= position:
            self._made += torch.rand(BLOCK, dtype=torch.float64, generator=self._generator).tolist()
        return self._made[position]


class Tally:
    """A sequence's distinct tokens, and how often each was generated, in arrays that are quick to copy."""

    def __init__(self, context: Iterable[int]) -> None:
        self.tokens = array("q", dict.fromkeys(context))
        self.counts = array("f", bytes(4 * len(self.tokens)))
        self._slots = {token: slot for slot, token in enumerate(self.tokens)}

    def add(self, token: int) -> None:
        """Count a generated token."""
        slot = self._slots.setdefault(token, len(self.tokens))
        if slot == len(self.tokens):
            self.tokens.append(token)
            self.counts.append(0)
        self.counts[slot] += 1

    def copy(self) -> Tally:
        """Return an independent copy."""
        other = clone(self)
        other.tokens, other.counts, other._slots = self.tokens[:], self.counts[:], dict(self._slots)
        return other


class DrawState:
    """The sampling state of one sequence. It is made once and survives preemption.

    A sequence's draws depend on its seed, its prompt, its number among copies of the prompt, and the position. They
    never depend on the batch, on how the prompt was chunked, or on how often the sequence was preempted.

    `prompt` seeds the random numbers. `context` has the tokens before the first generated one, which the repetition
    penalty counts: the prompt, or an encoder-decoder's start token. `stop_ids` are forbidden until `min_tokens` tokens
    were generated.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        copy: int = 0,
        *,
        context: Sequence[int] | None = None,
        stop_ids: Collection[int] = (),
        guide: Guide | None = None,
    ) -> None:
        self.sampling = sampling.seeded()
        self.prompt = tuple(prompt)
        self.context = self.prompt if context is None else tuple(context)
        self.copy = copy
        self.stop_ids = tuple(sorted(stop_ids))
        self.generated: list[int] = []
        self.matcher: Any = None if guide is None else guide.start()
        repeats = sampling.repetition_penalty != 1
        counts = repeats or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self.tally = Tally(self.context if repeats else ()) if counts else None
        self._streams: dict[str, UniformPoints] = {}

    @property
    def finished(self) -> bool:
        """Whether the grammar is complete: only the end of the text may follow."""
        return self.matcher is not None and self.matcher.finished

    @property
    def fault(self) -> str | None:
        """The reason why the grammar can no longer be followed, or None. A row with a fault gets no token."""
        return None if self.matcher is None else self.matcher.fault

    @property
    def plain(self) -> bool:
        """Whether the next token depends only on logits, temperature, top_k, top_p, min_p and the position's uniform
        number. The device can then choose it without the host. Once true, it stays true."""
        asked = self.sampling
        edited = asked.logit_bias or asked.bad_words or asked.process or self.tally is not None
        barring = len(self.generated) < asked.min_tokens
        return not (edited or barring or self.matcher is not None) and asked.typical_p in (None, 1)

    def point(self, stream: str = "", later: int = 0) -> float:
        """Return the uniform random number for the draw at this position, or `later` positions further. Each `stream`
        has independent numbers."""
        points = self._streams.get(stream)
        if points is None:
            generator = make_generator(self.sampling.seed or 0, self.prompt, self.copy, stream)
            points = self._streams[stream] = UniformPoints(generator)
        return points[len(self.generated) + later]

    def advance(self, *tokens: int) -> None:
        """Append chosen tokens, and update the grammar and the penalties' counts."""
        for token in tokens:
            self.generated.append(token)
            if self.tally is not None:
                self.tally.add(token)
            if self.matcher is not None:
                self.matcher.consume(token)

    def ahead(self, draft: Sequence[int]) -> list[DrawState]:
        """Return the states before a draft and after each of its tokens, to verify it in one pass.

        The list ends early if the grammar forbids a draft token, or if the draft ends the text.
        """
        masks = None if self.matcher is None else self.matcher.ahead(draft)
        states: list[DrawState] = [self]
        for token in draft[: None if masks is None else len(masks) - 1]:
            state = clone(states[-1])
            state.generated = [*state.generated, token]
            if state.tally is not None:
                state.tally = state.tally.copy()
                state.tally.add(token)
            states.append(state)
        for state, mask in zip(states[1:], masks[1:] if masks else (), strict=masks is not None):
            state.matcher = mask
        return states

    def barred(self) -> list[int]:
        """List the tokens that must not come next: stop ids before `min_tokens`, and the last token of each bad word
        whose other tokens have just been written."""
        tokens = [] if len(self.generated) >= self.sampling.min_tokens else list(self.stop_ids)
        if self.sampling.bad_words:
            longest = max(map(len, self.sampling.bad_words)) - 1
            past = self.generated[-longest:] if longest else []
            past = (*(self.context[len(past) - longest :] if len(past) < longest else ()), *past)
            tokens += [
                word[-1]
                for word in self.sampling.bad_words
                if len(word) - 1 <= len(past) and past[len(past) - len(word) + 1 :] == word[:-1]
            ]
        return tokens
