"""Submit jobs to the engine, and decode its events to text as the texts grow."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError, ZooError
from zoo.generation.engine import Engine, serving
from zoo.generation.engine_sizes import size_engine
from zoo.generation.request import Event, Request
from zoo.run.cache_layout import name_kernels
from zoo.sampling.sampler import Logprob
from zoo.text.detokenize import TextStream
from zoo.text.jobs import JobMaker, TextJob
from zoo.text.prompts import Options
from zoo.text.reader import find_weight

if TYPE_CHECKING:
    from zoo.data.chat.template import ChatTemplate
    from zoo.data.tokenizer import Tokenizer
    from zoo.run.layer import Model


@dataclass
class WrittenSample:
    """One of a job's texts in progress. `tokens` include the token that ended the text; `text` excludes that token, or
    the stop string."""

    job: TextJob
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
        """Say why a failed sample has no next token: "token 4 has logits that are NaN …"."""
        return f"token {len(self.tokens) + 1} {self.fault}"

    def take(self, event: Event) -> str:
        """Add an event of the engine and return the text that is final now."""
        piece = ""
        if event.token is not None:
            self.tokens.append(event.token)
            self.logprobs.append(event.logprob)
            if event.token not in self.job.request.stop_ids:  # a stop token has no text; a grammar's end has
                piece = self.stream.push(event.token)
        self.reason, self.fault = "stop" if self.stream.stopped else event.finished, event.fault
        if self.reason:
            piece += self.stream.finish()
        self.parts.append(piece)
        return piece


def make_engine(model: Model, jobs: Sequence[TextJob], kernel: str | None = None, **serving: Any) -> Engine:
    """Make an engine with room for these jobs, or for as many at a time as fit in a GPU's free memory. `serving` are
    the Engine's options `draft`, `speculate`, `deterministic`, `graphs` and `note`.

    A single prompt is computed in one pass, because no other row would wait for it.
    """
    tokens, source = measure(jobs)
    drafted = serving.get("speculate", 0) + 1
    defaults = size_engine(find_weight(model).device, model.spec.output_vocab_size, drafted)
    rows = count_rows((job.request for job in jobs), defaults.rows)
    budget = defaults.budget if rows > 1 else max(defaults.budget, source)
    sizes = {"rows": rows, "tokens": tokens, "source": source, "budget": budget, "memory": defaults.memory}
    return Engine(model, **sizes, reuse=rows > 1, kernel=kernel, **serving)


def describe_cache(engine: Engine) -> str:
    """Describe the sizes that a paged engine has chosen: rows, tokens of a step, the memory that it has allocated and
    what CUDA graphs will add, and the kernels that read the cache."""
    store, graphs = engine.store, engine.passes.graphs
    kernels = name_kernels(engine.writer, store.dtype, engine.device, engine.kernel or engine.model.kernel, store.page)
    size = f"{store.nbytes / 1e9:,.2f} GB in pages of {store.page} tokens, read by {' and '.join(kernels)}"
    later = "" if graphs is None or graphs.refusal else ", and memory for each step that is recorded as a CUDA graph"
    rows = f"{engine.scheduler.rows} rows of up to {engine.tokens:,} tokens"
    return f"cache: {rows}, {size}{later}; a step computes up to {engine.scheduler.budget:,} tokens"


def count_rows(asked: Iterable[Request | Options], most: int) -> int:
    """Count the rows that serve these requests: one for each sample or beam, at most `most` unless one request has more
    beams."""
    wanted = [(max(each.n, each.n_beams), each.n_beams) for each in asked]
    least = max((beams for _, beams in wanted), default=1)
    return max(least, min(most, sum(rows for rows, _ in wanted)))


def measure(jobs: Sequence[TextJob]) -> tuple[int, int]:
    """Return the lengths in tokens of the longest sequence and of the longest prompt."""
    longest = max((len(job.before or [0]) + job.request.max_new_tokens for job in jobs), default=1)
    return longest, max((len(job.request.ids) for job in jobs), default=1)


def complete(
    model: Model,
    tokenizer: Tokenizer,
    given: Mapping[str, Any],
    options: Options,
    *,
    ends: Sequence[int] = (),
    template: ChatTemplate | None = None,
    kernel: str | None = None,
    **serving: Any,
) -> Iterator[str]:
    """Stream the model's continuation of a prompt, or its answer to messages (`JobMaker`). The text ends before an
    end-of-text token (the tokenizer's, one of `ends`, or the template's) or a stop string. `serving` are options of the
    Engine (`make_engine`).

    During iteration the model is in eval mode and uses the attention `kernel`. Raises ConfigError, at the call, for
    invalid arguments.
    """
    job = JobMaker(model, tokenizer, ends, template).make_job(given, options, "")
    engine = make_engine(model, [job], kernel, **serving)
    return _serve(engine, write(engine, job, tokenizer))


def _serve(engine: Engine, pieces: Generator[str]) -> Iterator[str]:
    with serving(engine.model, engine.kernel), closing(pieces):
        yield from pieces


def write(engine: Engine, job: TextJob, tokenizer: Tokenizer) -> Generator[str]:
    """Stream one text in pieces. Raises ConfigError as `follow` does, and ZooError if the text fails (NaN logits)."""
    return _write(follow(engine, [job], tokenizer))


def _write(texts: Generator[tuple[WrittenSample, str]]) -> Generator[str]:
    with closing(texts):
        for sample, piece in texts:
            if piece:
                yield piece
            if sample.reason == "failed":
                raise ZooError(f"generate: {sample.describe_fault()}")


def follow(engine: Engine, jobs: Sequence[TextJob], tokenizer: Tokenizer) -> Generator[tuple[WrittenSample, str]]:
    """Submit all jobs to the engine and stream their texts as (sample, new piece). A sample with a `reason` is done.

    Raises ConfigError, at the call, with the faults of all jobs that cannot be served. Closing the iterator cancels the
    jobs that are not done.
    """
    return _follow(engine, _add_all(engine, jobs, tokenizer))


def _follow(engine: Engine, live: dict[int, list[WrittenSample]]) -> Generator[tuple[WrittenSample, str]]:
    try:
        while live and engine.busy:
            for event in engine.step():
                samples = live.get(event.request)
                if samples is None or samples[event.sample].reason:
                    continue
                if event.prompt is not None:  # sent once, for all samples
                    for each in samples:
                        each.prompt_logprobs = event.prompt
                sample = samples[event.sample]
                piece = sample.take(event)
                if sample.reason and event.finished is None:  # by a stop string, which the engine does not know
                    engine.abort(event.request, event.sample)
                if all(each.reason for each in samples):
                    del live[event.request]
                yield sample, piece
    finally:
        for number in live:
            engine.abort(number)


def _add_all(engine: Engine, jobs: Sequence[TextJob], tokenizer: Tokenizer) -> dict[int, list[WrittenSample]]:
    live: dict[int, list[WrittenSample]] = {}
    faults: list[str] = []
    for job in jobs:
        try:
            number = engine.add(job.request)
        except ConfigError as error:
            faults += [f"{job.where}: {fault}" if job.where else fault for fault in error.faults]
            continue
        streams = [TextStream(tokenizer.backend, job.before, job.stop) for _ in range(job.request.n)]
        live[number] = [WrittenSample(job, index, stream) for index, stream in enumerate(streams)]
    if faults:
        for number in live:
            engine.abort(number)
        raise ConfigError(*faults)
    return live
