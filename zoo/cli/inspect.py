"""`zoo inspect`: what a trained model does inside, as pictures and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import print_note
from zoo.cli.completing import complete_evaluation
from zoo.cli.showing import Json


def run(
    folder: Annotated[
        Path | None, typer.Argument(help="A run, a checkpoint, or a Hugging Face folder. [default: the last run]")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Data to read, as for `zoo train`: data=text data.path=FILE. [default: the run's validation split]",
            autocompletion=complete_evaluation,
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that heads, activations and routing are measured on.")] = 8,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a row. [default: the run's or the model's, 256 at most]")
    ] = None,
    noise_rows: Annotated[
        int, typer.Option(min=0, help="Rows that the gradient noise scale is measured on; 0 leaves it out.")
    ] = 32,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The folder of pictures. [default: inspect in the run, or here]"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    as_json: Json = False,
) -> None:
    """Look into a trained model: attention maps, heads, activations, routing and gradient noise.

    Of each attention with a softmax the mean map over rows, and of each of its heads the entropy beside that of equal
    shares, and the effective rank. The RMS of what each layer adds, the share of each expert and dead ones, and the
    gradient noise scale (McCandlish et al., 2018). A page (index.html), pictures, inspect.json and maps.safetensors are
    written.
    """
    from zoo import report, runs
    from zoo.cli import evaluating
    from zoo.inspection import inspect_model
    from zoo.report.inspected import format_lines, make_tables, write_inspection

    folder, overrides = evaluating.tell_apart(folder, overrides or [])
    place = runs.last_run() if folder is None else folder
    with evaluating.showing_progress() as progress:
        found = inspect_model(
            place,
            overrides,
            rows=rows,
            noise_rows=noise_rows,
            context=context,
            device=device,
            note=print_note,
            progress=progress,
        )
    where = out or (place if (place / runs.CONFIG).is_file() else Path()) / "inspect"
    files = write_inspection(found.figures, found.maps, where)
    if as_json:
        print(report.format_json(found.figures))
        return
    report.print_tables(*make_tables(found.figures))
    for line in format_lines(found.figures):
        print(line)
    print(f"written: {', '.join(map(str, files))}, and pictures")
