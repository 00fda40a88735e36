"""Many prompts through one engine: from text to requests, and from events back to text."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from zoo.errors import ConfigError
from zoo.generation.engine import Engine, serving
from zoo.generation.guide import Guide, GuideCompiler, Kind
from zoo.generation.request import Event, Logprob, Request
from zoo.generation.sampling import Sampling
from zoo.generation.towers import find_writer
from zoo.text.chat import ChatTemplate
from zoo.text.detokenize import TextStream
from zoo.text.prompts import Options, Prompt

if TYPE_CHECKING:
    from zoo.data.tokenizer import Tokenizer


class Serves(Protocol):
    """What an engine offers."""

    @property
    def busy(self) -> bool: ...

    def add(self, request: Request) -> int: ...

    def abort(self, number: int, /) -> Any: ...

    def step(self) -> list[Event]: ...


@contextmanager
def open_engine(model: Any, *, tokens: int, source: int | None = None, kernel: str | None = None) -> Iterator[Serves]:
    """Open an engine for sequences of up to `tokens` tokens, and sources of `source`; the model serves it until the
    block ends."""
    made = Engine(model, tokens=tokens, source=source, kernel=kernel)
    with serving(model, kernel):
        yield made


@dataclass(frozen=True)
class Job:
    """A request and what makes text of it. `before` are the tokens that its text follows."""

    request: Request
    where: str
    stop: tuple[str, ...] = ()
    before: Sequence[int] = ()
    prompt: Prompt | None = None


@dataclass
class Sample:
    """One text that is being written for a job: its tokens so far, with the token that ended it, and its text without
    what ended it."""

    job: Job
    number: int
    stream: TextStream
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprob | None] = field(default_factory=list)
    prompt_logprobs: tuple[Logprob | None, ...] | None = None
    parts: list[str] = field(default_factory=list)
    reason: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def take(self, event: Event) -> str:
        """Take an event of the engine's and return the text that is certain now."""
        piece = ""
        if event.token is not None:
            self.tokens.append(event.token)
            self.logprobs.append(event.logprob)
            if event.finished != "stop":
                piece = self.stream.push(event.token)
        self.reason = "stop" if self.stream.stopped else event.finished
        if self.reason:
            piece += self.stream.finish()
        self.parts.append(piece)
        return piece


class Encoder:
    """Make jobs of prompts, for one model and its tokenizer.

    `ends` are the tokens that end a text besides the tokenizer's own. `template` is for conversations.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, ends: Sequence[int] = (), template: ChatTemplate | None = None
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.ends = {tokenizer.eos_id, *ends}
        self.continues = find_writer(model.spec) is model.spec  # else a decoder of its own begins a text of its own
        self._vocab_size: int = find_writer(model.spec).vocab_size
        self._compilers: dict[frozenset[int], GuideCompiler] = {}
        self._guides: dict[tuple[str, str, frozenset[int]], Guide] = {}
        self._special = {each.content: id for id, each in tokenizer.backend.get_added_tokens_decoder().items()}

    def make_job(self, given: Mapping[str, Any], options: Options, where: str, prompt: Prompt | None = None) -> Job:
        """Make a job of a prompt, token ids or messages. Raises ConfigError for messages without a template, and for
        those that it refuses."""
        ids, stop, ends = self._encode(given), list(options.stop), {*options.stop_ids}
        if not options.ignore_eos:
            ends |= self.ends
            if "messages" in given:
                found, words = self._answer_end
                stop, ends = [*stop, *words], ends | {*found}
        # A special token is no text, so a stop string that spells one could not be found in the text.
        ends |= {self._special[word] for word in stop if word in self._special}
        request = Request(
            ids=ids,
            max_new_tokens=options.max_new_tokens,
            sampling=self._complete(options),
            guide=None if options.guide is None else self._compile(*options.guide, frozenset(ends)),
            stop_ids=frozenset(ends),
            n=options.n,
            logprobs=options.logprobs,
            prompt_logprobs=options.prompt_logprobs,
        )
        return Job(request, where, tuple(stop), ids if self.continues else (), prompt)

    def _complete(self, options: Options) -> Sampling:
        """The sampling parameters, with the words that were given as text."""
        sampling = options.sampling
        if options.bad_words:
            words = encode_words(self.tokenizer, options.bad_words)
            sampling = replace(sampling, bad_words=(*sampling.bad_words, *words))
        sampling.check_vocabulary(self._vocab_size)
        return sampling

    def _compile(self, kind: Kind, source: Any, ends: frozenset[int]) -> Guide:
        """Compile a grammar, once for all requests that have it."""
        if ends not in self._compilers:
            self._compilers[ends] = GuideCompiler(self.tokenizer, self._vocab_size, ends)
        key = (kind, json.dumps(source), ends)
        if key not in self._guides:
            self._guides[key] = self._compilers[ends].compile(kind, source)
        return self._guides[key]

    @cached_property
    def _answer_end(self) -> tuple[list[int], list[str]]:
        return ([], []) if self.template is None else self.template.find_end(self.tokenizer)

    def _encode(self, given: Mapping[str, Any]) -> list[int]:
        if "ids" in given:
            return list(given["ids"])
        if "prompt" in given:
            return self.tokenizer.encode(given["prompt"], special=True) or [self.tokenizer.eos_id]
        if self.template is None:
            raise ConfigError("messages: the model has no chat template (--template FILE, or a prompt)")
        return self.template.encode(self.tokenizer, given["messages"], tools=given.get("tools"))

    def make_jobs(self, prompts: Sequence[Prompt]) -> list[Job]:
        """Make a job of each prompt. Raises ConfigError with the faults of all of them."""
        jobs: list[Job] = []
        faults: list[str] = []
        for prompt in prompts:
            try:
                jobs.append(self.make_job(prompt.given, prompt.options, prompt.where, prompt))
            except ConfigError as error:
                faults += [f"{prompt.where}: {fault}" for fault in error.faults]
        if faults:
            raise ConfigError(*faults)
        return jobs


def encode_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences that spell these words, at the start of a text and after a space.

    A word can be spelled by other tokens too: `bad_words` bars the spellings that the tokenizer itself gives.
    """
    if "" in words:
        raise ConfigError("bad_words: an empty word bars nothing (leave it out)")
    spelled = [tuple(tokenizer.encode(prefix + word)) for word in words for prefix in ("", " ")]
    return tuple(dict.fromkeys(ids for ids in spelled if ids))


def measure(jobs: Sequence[Job]) -> tuple[int, int]:
    """The longest sequence and the longest prompt of some jobs, in tokens."""
    longest = max((len(job.before or [0]) + job.request.max_new_tokens for job in jobs), default=1)
    return longest, max((len(job.request.ids) for job in jobs), default=1)


def follow(serves: Serves, jobs: Sequence[Job], tokenizer: Tokenizer) -> Generator[tuple[Sample, str]]:
    """Put all jobs to an engine, and give each text as it grows: the sample, and its new piece. `reason` of a sample
    says that it is done.

    Raises ConfigError with the faults of all jobs that cannot be served, at the call. Jobs that are not done when the
    iterator is closed are dropped.
    """
    return _follow(serves, _add_all(serves, jobs, tokenizer))


def _follow(serves: Serves, live: dict[int, list[Sample]]) -> Generator[tuple[Sample, str]]:
    try:
        while live and serves.busy:
            for event in serves.step():
                samples = live.get(event.request)
                if samples is None or samples[event.sample].reason:
                    continue
                if event.prompt is not None:  # said once, of all samples
                    for each in samples:
                        each.prompt_logprobs = event.prompt
                sample = samples[event.sample]
                piece = sample.take(event)
                if all(each.reason for each in samples):
                    serves.abort(event.request)  # a stop string is nothing that the engine knows of
                    del live[event.request]
                yield sample, piece
    finally:
        for number in live:
            serves.abort(number)


def _add_all(serves: Serves, jobs: Sequence[Job], tokenizer: Tokenizer) -> dict[int, list[Sample]]:
    live: dict[int, list[Sample]] = {}
    faults: list[str] = []
    for job in jobs:
        try:
            number = serves.add(job.request)
        except ConfigError as error:
            faults += [f"{job.where}: {fault}" if job.where else fault for fault in error.faults]
            continue
        streams = [TextStream(tokenizer.backend, job.before, job.stop) for _ in range(job.request.n)]
        live[number] = [Sample(job, index, stream) for index, stream in enumerate(streams)]
    if faults:
        for number in live:
            serves.abort(number)
        raise ConfigError(*faults)
    return live
