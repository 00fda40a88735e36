# V vocabulary
"""Run beam search inside the engine's batch: each beam of a request is one of the engine's sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.cache.cached_row import copy_row
from zoo.errors import ConfigError
from zoo.generation.request import Event, Reason, Request
from zoo.lazy import Tensor, torch
from zoo.sampling.options import Sampling

if TYPE_CHECKING:
    from zoo.generation.scheduler import RunningSequence


class Finished(NamedTuple):
    """A finished beam. `score` is the log-probability of the new `tokens` ÷ (number of new tokens)^length_penalty."""

    score: float
    tokens: list[int]
    reason: Reason


@dataclass
class Beams:
    """The running and the finished beams of one request.

    The rules are those of transformers with `early_stopping=False`. The continuations of all beams are ranked together.
    If a continuation ends, by a stop id or by its length, it is kept if it ranks among the first `n_beams`. The best
    `n_beams` continuations that do not end are continued. The search is over when there are `n_beams` finished beams
    and no running beam scores above the worst of them.
    """

    first: RunningSequence  # which the engine knows: the search starts with it, and starts over with it
    running: list[RunningSequence] = field(init=False)
    scores: list[float] = field(default_factory=lambda: [0.0])
    finished: list[Finished] = field(default_factory=list)
    spare: list[RunningSequence] = field(default_factory=list)  # their rows are free for a beam that branches

    def __post_init__(self) -> None:
        self.running = [self.first]

    @property
    def asked(self) -> Request:
        """The request of this search."""
        return self.first.asked

    def advance(self, found: Mapping[RunningSequence, Tensor]) -> bool:
        """Choose the next tokens from each beam's logits [1, V]. Return False when the search is over."""
        asked, width = self.asked, self.asked.n_beams
        candidates = self._rank([found[each] for each in self.running], (1 + len(asked.stop_ids)) * width)
        going: list[tuple[float, RunningSequence, int]] = []
        for place, (score, parent, token) in enumerate(candidates):
            tokens = [*parent.ids[parent.prompt :], token]
            stops = token in asked.stop_ids
            if not stops and len(tokens) < asked.max_new_tokens:
                going.append((score, parent, token))
            elif place < width:
                self._keep(Finished(self._weigh(score, len(tokens)), tokens, "stop" if stops else "length"))
        if not going:
            return False
        self._branch(going[:width])
        best = self._weigh(self.scores[0], len(self.running[0].ids) - self.running[0].prompt)
        return len(self.finished) < width or best > self.finished[-1].score

    def _rank(self, logits: Sequence[Tensor], count: int) -> list[tuple[float, RunningSequence, int]]:
        """Return the `count` likeliest continuations of all beams, best first: (score, beam, token)."""
        scores = torch.tensor(self.scores, device=logits[0].device)[:, None]
        log_probs = (torch.cat(list(logits)).float().log_softmax(-1) + scores).flatten()
        values, places = log_probs.topk(min(count, len(log_probs)))
        size = logits[0].shape[-1]
        pairs = zip(values.tolist(), places.tolist(), strict=True)
        return [(value, self.running[place // size], place % size) for value, place in pairs]

    def _weigh(self, score: float, length: int) -> float:
        return score / length**self.asked.length_penalty

    def _keep(self, beam: Finished) -> None:
        self.finished = sorted([*self.finished, beam], key=lambda each: -each.score)[: self.asked.n_beams]

    def _branch(self, chosen: Sequence[tuple[float, RunningSequence, int]]) -> None:
        """Continue with the chosen (score, beam, token). A beam that is chosen once keeps its row. For each further
        choice, the row is copied over that of an unused beam, from the first differing token."""
        parents = [parent for _, parent, _ in chosen]
        free = [each for each in self.running if each not in parents] + self.spare
        kept: dict[RunningSequence, list[int]] = {}
        running = []
        for _, parent, token in chosen:
            ids = [*kept.get(parent, parent.ids), token]
            if parent in kept:
                each = free.pop()
                copy_row(parent.row, each.row, _agree(kept[parent], each.ids))  # type: ignore[arg-type]
            else:
                each = parent
                kept[parent] = list(parent.ids)
            each.ids = ids
            running.append(each)
        self.spare = free
        self.running, self.scores = running, [score for score, _, _ in chosen]

    def broken(self, found: Mapping[RunningSequence, Tensor]) -> bool:
        """Whether a beam's logits are NaN, or all −inf."""
        best = torch.cat([found[each] for each in self.running]).amax(-1)
        return not bool((best > -math.inf).all())  # NaN is above nothing

    def tell(self, number: int) -> list[Event]:
        """Return the events of the best `n` beams of request `number`. Called when the search is over."""
        events = []
        for sample, beam in enumerate(self.finished[: self.asked.n]):
            for place, token in enumerate(beam.tokens, 1):
                last = place == len(beam.tokens)
                events.append(Event(number, sample, token, beam.reason if last else None))
        return events


def _agree(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the leading tokens that two token lists have in common."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def check_beams(request: Request, vocab_size: int) -> None:
    """Check a request's beam search. Raises ConfigError for options that beam search cannot honour, such as sampling
    options, and for a number of beams that is below 1, below `n`, or too large for the vocabulary."""
    if request.n_beams == 1:
        return
    if request.n_beams < 1 or request.n > request.n_beams:
        found = f"{request.n_beams} beams for the best {request.n}"
        raise ConfigError(f"n_beams: {found} (as many beams as samples, at least)")
    plain = Sampling(seed=request.sampling.seed)
    asked: dict[str, Any] = {
        **{each.name: getattr(request.sampling, each.name) != getattr(plain, each.name) for each in fields(plain)},  # type: ignore[arg-type]
        "logprobs": request.logprobs is not None,
        "prompt_logprobs": request.prompt_logprobs is not None,
        "guide": request.guide is not None,
    }
    for name, given in asked.items():
        if given:
            raise ConfigError(f"{name}: a beam search looks for the likeliest text (leave it out, or n_beams=1)")
    if (1 + len(request.stop_ids)) * request.n_beams > vocab_size:
        raise ConfigError(f"n_beams: {request.n_beams} are more than a vocabulary of {vocab_size} can branch into")
