"""Put jobs to an engine, and turn its events back to text: each text as it grows."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError, ZooError
from zoo.generation.engine import BUDGET, ROWS, Engine, serving
from zoo.generation.request import Event, Request
from zoo.sampling.sampler import Logprob
from zoo.text.detokenize import TextStream
from zoo.text.jobs import Encoder, Job
from zoo.text.prompts import Options

if TYPE_CHECKING:
    from zoo.data.tokenizer import Tokenizer


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
    fault: str = ""

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def describe_fault(self) -> str:
        """Why a sample that failed has no next token: "token 4 has logits that are NaN …"."""
        return f"token {len(self.tokens) + 1} {self.fault}"

    def take(self, event: Event) -> str:
        """Take an event of the engine's and return the text that is certain now."""
        piece = ""
        if event.token is not None:
            self.tokens.append(event.token)
            self.logprobs.append(event.logprob)
            if event.token not in self.job.request.stop_ids:  # a grammar may end a text with a token of its own
                piece = self.stream.push(event.token)
        self.reason, self.fault = "stop" if self.stream.stopped else event.finished, event.fault
        if self.reason:
            piece += self.stream.finish()
        self.parts.append(piece)
        return piece


def make_engine(model: Any, jobs: Sequence[Job], kernel: str | None = None, **serving: Any) -> Engine:
    """Make an engine with room for these jobs. `serving` are Engine's `draft`, `speculate`, `deterministic`, `graphs`
    and `note`.

    A prompt that is alone goes through the model in one piece: there is nobody else to wait for it.
    """
    tokens, source = measure(jobs)
    rows = count_rows(job.request for job in jobs)
    sizes = {"rows": rows, "tokens": tokens, "source": source, "budget": BUDGET if rows > 1 else max(BUDGET, source)}
    return Engine(model, **sizes, reuse=rows > 1, kernel=kernel, **serving)


def describe_cache(engine: Engine) -> str:
    """Say what an engine that reads by page has allocated, and what comes to it as steps are recorded."""
    size = f"{engine.store.nbytes / 1e9:,.2f} GB in pages of {engine.store.page} tokens"
    graphs = engine.passes.graphs
    later = "" if graphs is None or graphs.refusal else ", and memory for each step that is recorded as a CUDA graph"
    return f"cache: {engine.scheduler.rows} rows of up to {engine.tokens:,} tokens, {size}{later}"


def count_rows(asked: Iterable[Request | Options]) -> int:
    """How many rows serve these: one for each sample or beam, up to the engine's own number, or the beams of one."""
    wanted = [(max(each.n, each.n_beams), each.n_beams) for each in asked]
    most = max((beams for _, beams in wanted), default=1)
    return max(most, min(ROWS, sum(rows for rows, _ in wanted)))


def measure(jobs: Sequence[Job]) -> tuple[int, int]:
    """The longest sequence and the longest prompt of some jobs, in tokens."""
    longest = max((len(job.before or [0]) + job.request.max_new_tokens for job in jobs), default=1)
    return longest, max((len(job.request.ids) for job in jobs), default=1)


def complete(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    options: Options,
    *,
    ends: Sequence[int] = (),
    kernel: str | None = None,
) -> Iterator[str]:
    """Stream what the model writes after `prompt`, up to an end-of-text token (the tokenizer's, or one of `ends`) or a
    stop string, neither of which is part of the text.

    While the iterator is at work the model is in eval mode and uses `kernel`. Raises ConfigError, at the call, for
    everything that will not do.
    """
    job = Encoder(model, tokenizer, ends).make_job({"prompt": prompt}, options, "")
    engine = make_engine(model, [job], kernel)
    return _serve(engine, write(engine, job, tokenizer))


def _serve(engine: Engine, pieces: Generator[str]) -> Iterator[str]:
    with serving(engine.model, engine.kernel), closing(pieces):
        yield from pieces


def write(engine: Engine, job: Job, tokenizer: Tokenizer) -> Generator[str]:
    """Follow one text: its pieces. Raises ConfigError as `follow` does, and ZooError where there is no next token."""
    return _write(follow(engine, [job], tokenizer))


def _write(texts: Generator[tuple[Sample, str]]) -> Generator[str]:
    with closing(texts):
        for sample, piece in texts:
            if piece:
                yield piece
            if sample.reason == "failed":
                raise ZooError(f"generate: {sample.describe_fault()}")


def follow(engine: Engine, jobs: Sequence[Job], tokenizer: Tokenizer) -> Generator[tuple[Sample, str]]:
    """Put all jobs to an engine, and give each text as it grows: the sample, and its new piece. `reason` of a sample
    says that it is done.

    Raises ConfigError with the faults of all jobs that cannot be served, at the call. Jobs that are not done when the
    iterator is closed are dropped.
    """
    return _follow(engine, _add_all(engine, jobs, tokenizer))


def _follow(engine: Engine, live: dict[int, list[Sample]]) -> Generator[tuple[Sample, str]]:
    try:
        while live and engine.busy:
            for event in engine.step():
                samples = live.get(event.request)
                if samples is None or samples[event.sample].reason:
                    continue
                if event.prompt is not None:  # said once, of all samples
                    for each in samples:
                        each.prompt_logprobs = event.prompt
                sample = samples[event.sample]
                piece = sample.take(event)
                if sample.reason and event.finished is None:  # by a stop string, of which the engine does not know
                    engine.abort(event.request, event.sample)
                if all(each.reason for each in samples):
                    del live[event.request]
                yield sample, piece
    finally:
        for number in live:
            engine.abort(number)


def _add_all(engine: Engine, jobs: Sequence[Job], tokenizer: Tokenizer) -> dict[int, list[Sample]]:
    live: dict[int, list[Sample]] = {}
    faults: list[str] = []
    for job in jobs:
        try:
            number = engine.add(job.request)
        except ConfigError as error:
            faults += [f"{job.where}: {fault}" if job.where else fault for fault in error.faults]
            continue
        streams = [TextStream(tokenizer.backend, job.before, job.stop) for _ in range(job.request.n)]
        live[number] = [Sample(job, index, stream) for index, stream in enumerate(streams)]
    if faults:
        for number in live:
            engine.abort(number)
        raise ConfigError(*faults)
    return live
