"""`zoo eval`: evaluate a model: its loss on text or data, also at lower precision; tasks; vectors of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo import report, runs
from zoo.cli.common import (
    Data,
    Device,
    Dtype,
    Evaluated,
    Fp8,
    Kernel,
    Pooling,
    WeightStorage,
    keep_memory_on,
    print_note,
)
from zoo.cli.options import flag, option, options
from zoo.cli.showing import Json

BOTH = ("weights", "fp8", "kernel", "dtype", "context")
TAKEN = {
    None: (*BOTH, "file", "stride"),
    "tasks": (*BOTH, "limit", "num_fewshot", "trust"),
    "similarity": ("pooling",),
    "retrieval": ("pooling",),
}
"""The options that have an effect in each mode; None is the mode of a text or data."""


@options()
class Scored:
    """Options for scoring texts."""

    file: list[Path] | None = option(
        "A text file to score by next-token prediction; - reads standard input. May be given several times."
    )
    context: int | None = option("Context length in tokens. [default: the model's or the run's]")
    stride: int | None = option("New tokens scored per window. [default: half the context]")
    weights: WeightStorage | None = option(
        "Also evaluate with linear layers' weights in this format, on a CPU; with --tasks, only in this format."
    )
    fp8: Fp8 | None = option("Also evaluate in float8 (CUDA; weight_only: any device); with --tasks, only in float8.")
    kernel: Kernel = None
    dtype: Dtype = None


@options("Tasks of lm-evaluation-harness")
class Tasks:
    """Options for tasks of lm-evaluation-harness."""

    tasks: list[str] | None = option("A task, by name or YAML file. May be given several times.")
    limit: int | None = option("Examples per task. [default: all]", min=1)
    num_fewshot: int | None = option("Number of few-shot examples. [default: the task's]", min=0)
    trust: bool = flag("Allow a task's YAML file to run code.")


@options("Embedding benchmarks")
class Vectors:
    """Options for benchmarks of text vectors."""

    similarity: Path | None = option(
        "Sentence pairs with human similarity scores (STS): .jsonl, .csv or .tsv with sentence1, sentence2, score."
    )
    retrieval: Path | None = option("Queries and their documents: .jsonl, .csv or .tsv with query, positive.")
    pooling: Pooling | None = option("Pooling of token vectors. [default: the folder's, else mean]")


def run(
    folder: Evaluated = None,
    overrides: Data = None,
    *,
    scored: Scored,
    tasks: Tasks,
    vectors: Vectors,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a model: loss, perplexity and bits per byte on a text file, a dataset, or a run's validation split.

    A decoder scores each token once, in overlapping windows: with a stride of half the context, each token has at least
    half a window of context. Other models score the targets of their training objective; an override can change it.
    With --weights or --fp8 a second row has the loss at that precision.

    --tasks runs lm-evaluation-harness on a decoder; --similarity and --retrieval evaluate text embeddings.
    """
    import zoo
    from zoo.cli import eval_options

    folder, overrides = eval_options.tell_apart(folder, overrides or [])
    asked: dict[str, Any] = {**vars(scored), **vars(tasks), **vars(vectors), "trust": tasks.trust or None}
    modes = {name: asked.pop(name) for name in TAKEN if name is not None}
    mode = eval_options.choose_mode(modes)
    taken = (*TAKEN[mode], *(() if mode else overrides))
    eval_options.refuse_idle({**dict.fromkeys(overrides, True), **asked}, taken, mode)
    how = {name: asked[name] for name in taken if name in asked and name != "file"}
    if mode is None:
        how |= {"texts": eval_options.read_texts(scored.file) if scored.file else None, "overrides": overrides}
    else:
        how[mode] = modes[mode]
    keep_memory_on(device)
    with eval_options.showing_progress() as progress:
        if mode in (None, "tasks"):
            how["progress"] = progress
        place = runs.last_run() if folder is None else folder
        found = zoo.evaluate(place, **how, device=device, note=print_note)
    files = [each for each in (vectors.similarity, vectors.retrieval, *(scored.file or ())) if each is not None]
    print(report.format_json(found) if as_json else report.format_evaluation(found, files))
