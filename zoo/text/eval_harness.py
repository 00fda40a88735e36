"""Run tasks of lm-evaluation-harness on a decoder, through a subclass of its `LM` that generates with the engine.

Importing this module imports lm_eval, so it is imported only to run tasks.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval import utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.evaluator import evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

from zoo.data.tokenizer import find_tokenizer_file, read_special_token
from zoo.errors import ConfigError, ZooError, did_you_mean, refuse, short
from zoo.generation.engine import Engine
from zoo.generation.engine_sizes import size_engine
from zoo.generation.passes import serving
from zoo.text.continuations import Continuation, score_continuations
from zoo.text.follow import follow
from zoo.text.jobs import JobMaker, TextJob
from zoo.text.loading import Loaded
from zoo.text.prompts import Options
from zoo.text.reader import find_weight
from zoo.text.task_files import is_task_file

SEEDS = {"random": 0, "other": 1234}
"""Default seeds of the harness: `random` for Python's generator, `other` for numpy's and for few-shot examples."""

NEW_TOKENS = 256
"""Maximum number of new tokens if a task states none, as for the harness's `hf` models."""

Progress = Callable[[str, int, int], None]


class Harness(TemplateLM):
    """A decoder and its tokenizer as a model of lm-evaluation-harness.

    The base class splits contexts from continuations, and chooses the token before an empty context. Texts are encoded
    as the harness's `hf` models do, so that scores are comparable: the tokenizer's file adds special tokens, unless the
    text begins with the start token already. A context that is too long loses its beginning.
    """

    def __init__(self, loaded: Loaded, limit: int, *, kernel: str | None, progress: Progress | None) -> None:
        super().__init__()
        self.model, self.texts, self.ends = loaded.model, loaded.tokenizer, loaded.ends
        self.max_length, self.kernel = limit, kernel
        self.report: Progress = progress or (lambda what, done, total: None)
        bos = read_special_token(find_tokenizer_file(loaded.folder, "tokenizer"), "bos_token", "tokenizer")
        opening = None if bos is None else self.texts.backend.token_to_id(bos)
        self.opening: int = self.texts.eos_id if opening is None else opening
        self.opening_word: str = self.texts.decode([self.opening], special=True)

    @property
    def eot_token_id(self) -> int:
        return self.texts.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.opening

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.opening_word)
        return self.texts.encode(string) if add_special_tokens else self.texts.encode_rendered(string)

    # ---------------------------------------------------------------- likelihoods

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        found = self._score([Continuation(context, tokens) for _, context, tokens in requests])
        for (key, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", key, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Compute the log-likelihoods of whole texts, in nats, in windows as long as the model reads."""
        asked, owners = [], []
        for number, (text,) in enumerate(request.args for request in requests):
            windows = utils.get_rolling_token_windows(self.tok_encode(text), self.opening, self.max_length, 1)
            for window in map(utils.make_disjoint_window, windows):
                asked.append(Continuation(*window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (logprob, _) in zip(owners, self._score(asked), strict=True):
            totals[number] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _score(self, asked: Sequence[Continuation]) -> list[tuple[float, bool]]:
        advance = self._count("scoring answers", len(asked))
        with serving(self.model, self.kernel):
            return [*score_continuations(self.model, asked, self.max_length, advance)]  # a Likelihood is such a tuple

    # ---------------------------------------------------------------- texts

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Generate the continuation of each context, up to a stop string. The engine serves all of them together."""
        jobs, copies = [], Counter[tuple[str, str]]()
        encoder = JobMaker(self.model, self.texts, self.ends)
        for number, (context, how) in enumerate(request.args for request in requests):
            copy, copies[context, repr(how)] = copies[context, repr(how)], copies[context, repr(how)] + 1
            jobs.append((number, self._make_job(encoder, context, how, copy)))
        jobs.sort(key=lambda each: (-len(each[1].request.ids), each[1].request.ids))  # equal prefixes adjacent
        texts = self._write([job for _, job in jobs])
        found = {number: text for (number, _), text in zip(jobs, texts, strict=True)}
        answers = [found[number] for number in range(len(requests))]
        for request, text in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return answers

    def _make_job(self, encoder: JobMaker, context: str, how: Mapping[str, Any], copy: int) -> TextJob:
        """Make the job of a context. Raises ConfigError for invalid options."""
        options = read_options(how, self.texts.eos)
        room = self.max_length - options.max_new_tokens
        if room < 1:
            found = f"max_gen_toks is {options.max_new_tokens}, and the model reads {self.max_length}"
            raise ConfigError(f"tasks: {found} (fewer, in the task's generation_kwargs)")
        ids = self.tok_encode(context)[-room:] or [self.opening]
        job = encoder.make_job({"ids": ids}, options, "tasks")
        # `hf` models decode an answer without its context: some tokenizers then drop its leading space
        return replace(job, before=(), request=replace(job.request, copy=copy))

    def _write(self, jobs: Sequence[TextJob]) -> list[str]:
        """Generate the texts of jobs. Raises ZooError if a text fails (NaN logits)."""
        advance = self._count("writing answers", len(jobs))
        tokens = max(len(job.request.ids) + job.request.max_new_tokens for job in jobs)
        sizes = size_engine(find_weight(self.model).device, self.model.spec.output_vocab_size)
        rows = min(sizes.rows, len(jobs))
        engine = Engine(self.model, rows=rows, tokens=tokens, memory=sizes.memory, kernel=self.kernel)
        found: dict[int, str] = {}
        with serving(self.model, self.kernel):
            for sample, _ in follow(engine, jobs, self.texts):
                if sample.reason == "failed":
                    raise ZooError(f"tasks: {sample.describe_fault()}")
                if sample.reason:
                    found[id(sample.job)] = sample.text
                    advance(1)
        return [found[id(job)] for job in jobs]

    def _count(self, what: str, total: int) -> Callable[[int], None]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.report(what, done, total)

        return advance


def read_options(how: Mapping[str, Any], eos: str) -> Options:
    """Read a task's generation_kwargs. Raises ConfigError for options that the engine lacks."""
    given = dict(normalize_gen_kwargs(dict(how), NEW_TOKENS))
    stop = [word for word in (*given.pop("until"), eos) if word]
    own = {"stop": list(dict.fromkeys(stop)), "max_new_tokens": given.pop("max_gen_toks")}
    if not given.pop("do_sample"):
        given["temperature"] = 0.0
    if "num_beams" in given:
        own["n_beams"] = given.pop("num_beams")
    try:
        return Options.checked({"seed": SEEDS["other"], **given, **own})
    except ConfigError as error:
        raise ConfigError(*(f"tasks: generation_kwargs: {fault}" for fault in error.faults)) from error


# ---------------------------------------------------------------- tasks


def run_tasks(lm: Harness, names: Sequence[str], *, limit: int | None, num_fewshot: int | None) -> dict[str, Any]:
    """Run tasks, named or in YAML files. Raises ConfigError for tasks that cannot be loaded."""
    import lm_eval  # pyright: ignore[reportMissingImports]

    if not names:
        raise ConfigError("tasks: there are none (a name or a YAML file)")
    with seeded(), quiet():
        loaded = load_tasks(names)
        settle_fewshot(loaded["tasks"], num_fewshot)
        found = evaluate(lm, loaded, limit=limit, log_samples=False)
    about = {"limit": limit, "context": lm.max_length, "lm_eval": lm_eval.__version__}
    return {**about, "tasks": {name: describe_task(found, name) for name in found["results"]}}


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Load tasks with their data. The harness's own index of tasks is read only if a task is given by name. Raises
    ConfigError for tasks that are unknown or cannot be loaded."""
    files = {name: Path(name).expanduser() for name in names if is_task_file(name)}
    missing = [name for name, file in files.items() if not file.is_file()]
    refuse(f"tasks: {name} is no file (a task's YAML)" for name in missing)
    manager = TaskManager(include_defaults=len(files) < len(names))
    there = manager.all_tasks
    if unknown := [name for name in names if name not in files and name not in there]:
        hint = " (`lm-eval ls tasks` lists them; or a YAML file)"
        raise ConfigError(*(f"tasks: there is no {name!r}{did_you_mean(name, there) or hint}" for name in unknown))
    try:
        return manager.load([str(files.get(name, name)) for name in names])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f"tasks: {', '.join(names)} cannot be loaded, found {short(error)}") from error


def settle_fewshot(tasks: Mapping[str, Any], num_fewshot: int | None) -> None:
    """Set the number of few-shot examples of each task. Raises ConfigError for tasks that fix it at 0."""
    fixed = [name for name, task in tasks.items() if num_fewshot and task.get_config("num_fewshot") == 0]
    if fixed:
        raise ConfigError(*(f"num_fewshot: the task {name} itself fixes it at 0 (leave it out)" for name in fixed))
    for task in tasks.values():
        if num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=SEEDS["other"])


def describe_task(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Describe the outcome of a task as plain data: each metric's `value`, its `stderr` if any, and whether higher is
    better. A metric under several filters has one entry per filter: `exact_match,strict`."""
    results, better = found["results"][name], found.get("higher_is_better", {}).get(name, {})
    metrics = {}
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, str):
            continue
        stderr = results.get(f"{metric}_stderr,{filtered}")
        metrics[metric if filtered == "none" else key] = {
            "value": _finite(value),
            "stderr": _finite(stderr),
            "higher_is_better": better.get(metric),
        }
    return {
        "metrics": metrics,
        "examples": found["n-samples"].get(name, {}).get("effective"),
        "num_fewshot": found["n-shot"].get(name),
        "version": found["versions"].get(name),
    }


def _finite(value: object) -> float | None:
    """Return a finite number, which JSON can hold, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@contextmanager
def seeded() -> Iterator[None]:
    """Seed Python's and numpy's generators, as the harness does, and restore their states afterwards."""
    import numpy as np

    before = random.getstate(), np.random.get_state()
    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["other"])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of `datasets`, which would mix with zoo's own."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
