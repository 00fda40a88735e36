"""Serve the prompts of `zoo generate` as a batch: a progress bar, texts in order on the screen, or lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.cli.output import print_generated
from zoo.errors import ConfigError, ZooError

if TYPE_CHECKING:
    from rich.progress import Progress

    from zoo.data.tokenizer import Tokenizer
    from zoo.text.follow import WrittenSample
    from zoo.text.loading import Loaded
    from zoo.text.prompts import Prompt
    from zoo.text.results import Results


def run(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    results: Results | None,
    *,
    template: str | None,
    kernel: str | None,
    serving: Mapping[str, Any],
    note: Callable[[str], object],
    writes: bool = True,
) -> None:
    """Generate all texts, and write them to `results`, or to standard output in the order of the prompts. With `writes`
    False, this process only computes, as all but the main process of tensor parallelism do."""
    from zoo.data.chat import template as chat
    from zoo.generation.engine import serving as serve
    from zoo.text.follow import describe_cache, follow, make_engine, measure, write
    from zoo.text.jobs import JobMaker

    wanted = prompts if results is None else results.missing
    if len(wanted) < len(prompts):
        note(f"{len(prompts) - len(wanted)} of {len(prompts)} prompts are done already")
    talks = any("messages" in prompt.given for prompt in wanted)
    if template is not None and not talks:
        raise ConfigError("template: is for messages, and there are none (prompts are continued as they are)")
    written = chat.load(loaded.folder, template, loaded.tokenizer) if talks else None
    jobs = JobMaker(loaded.model, loaded.tokenizer, loaded.ends, written).make_jobs(wanted)
    longest, _ = measure(jobs)
    if longest > loaded.model.spec.max_seq_len:
        trained = loaded.model.spec.max_seq_len
        note(f"{longest} tokens may come, the model is made for {trained}: what lies beyond may make less sense")
    keep = _Printed(len(jobs)).add if results is None else results.add
    alone = results is None and len(jobs) == 1 and jobs[0].request.n == 1 and not jobs[0].where
    if not writes:
        keep, results = (lambda text, tokenizer: None), None
    engine = make_engine(loaded.model, jobs, kernel, **serving)
    if engine.store.paged:
        note(describe_cache(engine))
    with serve(loaded.model, kernel):
        if alone:
            _stream(write(engine, jobs[0], loaded.tokenizer), writes)
            return
        texts = follow(engine, jobs, loaded.tokenizer)
        if results is not None:
            results.begin()  # after all checks that may refuse
        bar = _make_bar(shown=writes and (results is not None or not sys.stdout.isatty()))
        _serve(texts, sum(job.request.n for job in jobs), bar, lambda text: keep(text, loaded.tokenizer), note)


def _stream(pieces: Iterable[str], writes: bool) -> None:
    for piece in pieces:
        if writes:
            print_generated(piece, "")
    if writes:
        print_generated("")


def _serve(
    texts: Generator[tuple[WrittenSample, str]],
    count: int,
    bar: Progress,
    keep: Callable[[WrittenSample], Any],
    note: Callable[[str], object],
) -> None:
    """Generate the texts to their ends, and keep each finished text at once, so that Ctrl-C loses none of them."""
    failed: list[WrittenSample] = []
    done = tokens = 0
    begun = shown = time.monotonic()
    try:
        with bar:
            task = bar.add_task("", total=count, speed="")
            for sample, _ in texts:
                tokens += 1
                if sample.reason:
                    failed, done = [*failed, *([sample] if sample.reason == "failed" else [])], done + 1
                    keep(sample)
                if (now := time.monotonic()) - shown > 0.1:  # updating the bar costs more than a fast model's token
                    bar.update(task, completed=done, speed=f"{tokens / (now - begun):,.0f} tokens/s")
                    shown = now
    finally:
        texts.close()
        seconds = max(time.monotonic() - begun, 1e-9)
        if done:
            note(f"{done} of {count} texts, {tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s)")
    if failed:
        where = f"{failed[0].job.where}: " if failed[0].job.where else ""
        more = f" (and {len(failed) - 1} more of {count} texts failed)" if len(failed) > 1 else ""
        raise ZooError(f"generate: {where}{failed[0].describe_fault()}{more}")


def _make_bar(*, shown: bool) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from zoo.report.console import make_bar

    speed = TextColumn("{task.fields[speed]}")
    return make_bar(BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn(), shown=shown)


class _Printed:
    """Print texts in the order of their prompts, each as soon as all texts before it are printed."""

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts
        self._ready: dict[tuple[int, int], WrittenSample] = {}
        self._next = (0, 0)

    def add(self, sample: WrittenSample, tokenizer: Tokenizer) -> None:
        assert sample.job.prompt is not None
        self._ready[sample.job.prompt.index, sample.number] = sample
        while (found := self._ready.pop(self._next, None)) is not None:
            self._print(found)
            index, number = self._next
            self._next = (index, number + 1) if number + 1 < found.job.request.n else (index + 1, 0)

    def _print(self, sample: WrittenSample) -> None:
        """Print a line that names the prompt, then the text."""
        prompt = sample.job.prompt
        assert prompt is not None
        several = f", text {sample.number + 1} of {sample.job.request.n}" if sample.job.request.n > 1 else ""
        given = prompt.given.get("prompt") or prompt.given.get("messages") or prompt.given.get("ids")
        start = " ".join(str(given).split())
        shown = start if len(start) <= 60 else start[:59] + "…"
        text = f"(no text: {sample.describe_fault()})" if sample.reason == "failed" else sample.text
        print(f"--- {prompt.index + 1} of {self.prompts}{several}: {shown}")
        print_generated(text, "\n\n")
