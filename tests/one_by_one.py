"""The slow reference of an engine: it computes every request alone, by a full forward for each token.

What stands above the engine (files of prompts, chat) is tested on it where the question is what to ask and what to do
with the answers. Each step gives a token of every request, so that short ones end before long ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zoo.errors import ConfigError
from zoo.generation.draws import DrawState
from zoo.generation.generate import stream
from zoo.generation.request import Event, Logprob, Request
from zoo.generation.sampler import Sampler


class OneByOne:
    def __init__(self, model) -> None:
        self.model, self.requests, self.seen, self.aborted = model, {}, [], []

    @property
    def busy(self) -> bool:
        return bool(self.requests)

    def add(self, request: Request) -> int:
        number = len(self.seen)
        if not request.ids:
            raise ConfigError("ids: there are none")
        ids = torch.tensor([list(request.ids)] * request.n)
        tokens = stream(self.model, ids, request.max_new_tokens, stop_ids=sorted(request.stop_ids))
        if self.model.spec.kind == "decoder":  # any option; a stream checks the prompt and has the plain ones
            tokens = self._drawn(request)
        self.requests[number] = self._events(number, request, tokens)
        self.seen.append(request)
        return number

    def abort(self, number: int) -> None:
        self.aborted.append(number)
        events = self.requests.pop(number, None)
        if events is not None:
            events.close()

    def step(self) -> list[Event]:
        found = []
        for number, events in list(self.requests.items()):
            new = next(events, None)
            if new is None:
                del self.requests[number]
            else:
                found += new
        return found

    def _events(self, number: int, request: Request, tokens: Iterator[torch.Tensor]) -> Iterator[list[Event]]:
        written: list[list[int]] = [[] for _ in range(request.n)]
        ended: set[int] = set()
        for count, step in enumerate(tokens, 1):
            events = []
            for sample, token in enumerate(step.tolist()):
                if sample in ended:
                    continue
                reason = "stop" if token in request.stop_ids else "length" if count == request.max_new_tokens else None
                logprob = None if request.logprobs is None else self._logprob(request, written[sample], token)
                first = count == 1 and sample == 0 and request.prompt_logprobs is not None
                prompt = self._prompt(request) if first else None
                events.append(Event(number, sample, token, reason, logprob, prompt))
                written[sample].append(token)
                if reason:
                    ended.add(sample)
            yield events

    def _drawn(self, request: Request) -> Iterator[torch.Tensor]:
        """The next token of every sample, by a full forward each."""
        sampling, options = request.sampling.seeded(), {"stop_ids": request.stop_ids, "guide": request.guide}
        states = [DrawState(sampling, request.ids, copy, **options) for copy in range(request.n)]
        for _ in range(request.max_new_tokens):
            logits = torch.stack([self._scores([*request.ids, *state.generated])[-1] for state in states])
            tokens = Sampler().choose(logits, states)
            yield torch.tensor(tokens)
            for state, token in zip(states, tokens, strict=True):
                state.advance(token)

    def _logprob(self, request: Request, written: list[int], token: int) -> Logprob:
        values = self._scores([*request.ids, *written])[-1]
        top = values.topk(request.logprobs or 0)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return Logprob(values[token].item(), tuple(pairs))

    def _prompt(self, request: Request) -> tuple[Logprob | None, ...]:
        values = self._scores(list(request.ids))
        return (None, *(Logprob(values[i, token].item()) for i, token in enumerate(request.ids[1:])))

    @torch.inference_mode()
    def _scores(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


@contextmanager
def open_one_by_one(model, *, tokens: int, source: int | None = None, kernel: str | None = None):
    """What takes the place of `zoo.text.batch.open_engine`."""
    yield OneByOne(model)
