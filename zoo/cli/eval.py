"""`zoo eval`: how likely a model finds a text or any data, what fewer bits for its weights cost; tasks, and vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.common import Fp8, Weights, keep_memory_on, print_note
from zoo.cli.completing import complete_evaluation
from zoo.cli.embed import Pooling

TASKS, VECTORS = "Tasks of lm-evaluation-harness", "Vectors of texts"
"""Panels of the help."""

BOTH = ("weights", "fp8", "kernel", "dtype", "context")
TAKEN = {
    None: (*BOTH, "file", "stride"),
    "tasks": (*BOTH, "limit", "num_fewshot", "trust"),
    "similarity": ("pooling",),
    "retrieval": ("pooling",),
}
"""The options that have an effect, by what is evaluated."""


def run(
    folder: Annotated[
        Path | None, typer.Argument(help="A checkpoint, a run, or a Hugging Face folder. [default: the last run]")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Data to score, all of it, and its objective, as `zoo train` takes them: data=jsonl data.path=FILE. "
            "[default: the run's validation split]",
            autocompletion=complete_evaluation,
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(help="A text to score by the next token; - reads standard input. May be given several times."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens that the model reads at once. [default: the model's or the run's length]")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="New tokens that each window scores. [default: half the context]")
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(
            help="Evaluate again with the weights of linear layers in fewer bits, on a CPU; tasks with these alone."
        ),
    ] = None,
    fp8: Annotated[
        Fp8 | None,
        typer.Option(help="Evaluate again in float8 (CUDA), tasks in it alone; weight_only runs on any device."),
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="The attention kernel (`zoo doctor`). [default: the first that can run]")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="A task, by name or YAML file. May be given several times.", rich_help_panel=TASKS),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Examples of each task. [default: all]", rich_help_panel=TASKS)
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(min=0, help="Solved examples before each. [default: as the task says]", rich_help_panel=TASKS),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Let the YAML file of a task run what it names.", rich_help_panel=TASKS),
    ] = False,
    similarity: Annotated[
        Path | None,
        typer.Option(
            help="Pairs that people judged: .jsonl, .csv or .tsv with sentence1, sentence2, score.",
            rich_help_panel=VECTORS,
        ),
    ] = None,
    retrieval: Annotated[
        Path | None,
        typer.Option(
            help="Queries and their documents: .jsonl, .csv or .tsv with query, positive.", rich_help_panel=VECTORS
        ),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            help="How token vectors become one. [default: as the folder says, else mean]", rich_help_panel=VECTORS
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16. [default: as in the checkpoint]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data.")] = False,
) -> None:
    """Evaluate a model: loss, perplexity and bits per byte of a text, of any data, or of a run's validation split.

    A decoder's tokens are scored once each, in windows that overlap: with a stride of half the context, each has at
    least half a window before it. Other models score the targets of their objective. With --weights or --fp8 a second
    row says what that precision costs.

    --tasks has lm-evaluation-harness score a decoder's answers; --similarity and --retrieval judge vectors of texts.
    """
    import zoo
    from zoo import report, runs
    from zoo.cli import evaluating

    folder, overrides = evaluating.tell_apart(folder, overrides or [])
    mode = evaluating.choose_mode({"tasks": tasks, "similarity": similarity, "retrieval": retrieval})
    asked: dict[str, Any] = {
        **{"file": file, "context": context, "stride": stride, "weights": weights, "fp8": fp8, "kernel": kernel},
        **{"dtype": dtype, "limit": limit, "num_fewshot": num_fewshot, "pooling": pooling},
        "trust": trust or None,
    }
    taken = (*TAKEN[mode], *(() if mode else overrides))
    evaluating.refuse_idle({**dict.fromkeys(overrides, True), **asked}, taken, mode)
    options = {name: asked[name] for name in taken if name in asked and name != "file"}
    if mode is None:
        options |= {"texts": evaluating.read_texts(file) if file else None, "overrides": overrides}
    else:
        options[mode] = {"tasks": tasks, "similarity": similarity, "retrieval": retrieval}[mode]
    keep_memory_on(device)
    with evaluating.showing_progress() as progress:
        if mode in (None, "tasks"):
            options["progress"] = progress
        place = runs.last_run() if folder is None else folder
        found = zoo.evaluate(place, **options, device=device, note=print_note)
    files = [each for each in (similarity, retrieval, *(file or ())) if each is not None]
    print(json.dumps(found, indent=2) if as_json else report.format_evaluation(found, files))
