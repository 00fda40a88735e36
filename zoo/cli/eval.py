"""`zoo eval`: how likely a model finds a text, and what fewer bits for its weights cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import Fp8, Weights, keep_memory_on, print_note

if TYPE_CHECKING:
    from zoo.training.evaluate import Text


def run(
    folder: Annotated[
        Path | None, typer.Argument(help="A checkpoint, a run, or a Hugging Face folder. [default: the last run]")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            help="A text; - reads standard input. May be given several times. [default: the run's validation split]"
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens that the model reads at once. [default: the model's length]")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="New tokens that each window scores. [default: half the context]")
    ] = None,
    weights: Annotated[
        Weights | None, typer.Option(help="Evaluate again with the weights of products in fewer bits, on a CPU.")
    ] = None,
    fp8: Annotated[
        Fp8 | None, typer.Option(help="Evaluate again in float8 (CUDA); weight_only runs on any device.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="The attention kernel (`zoo doctor`). [default: the first that can run]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16. [default: as in the checkpoint]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data.")] = False,
) -> None:
    """Evaluate a language model: loss, perplexity and bits per byte of a text.

    Each token is scored once, in windows that overlap: with a stride of half the context, each has at least half a
    window before it. With --weights or --fp8 a second row says what that precision costs.
    """
    from zoo import runs
    from zoo.training.evaluate import evaluate

    texts = None if not file else _read_texts(file)
    keep_memory_on(device)
    with _showing_progress() as progress:
        found = evaluate(
            runs.last_run() if folder is None else folder,
            texts,
            context=context,
            stride=stride,
            weights=weights,
            fp8=fp8,
            dtype=dtype,
            kernel=kernel,
            device=device,
            note=print_note,
            progress=progress,
        )
    print(json.dumps(found, indent=2) if as_json else _format(found, file))


def _read_texts(files: list[Path]) -> list[Text]:
    """Read files as they are, line ends included, as their bytes are counted. Raises ConfigError for all faults at
    once."""
    from zoo.errors import ConfigError
    from zoo.training.evaluate import Text

    found, faults = [], []
    for file in files:
        try:
            data = sys.stdin.buffer.read() if str(file) == "-" else file.expanduser().read_bytes()
            found.append(Text(f"file: {file}", data.decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            place = f"byte 0x{error.object[error.start]:02x} at {error.start}"
            faults.append(f"file: {file} is not UTF-8, found {place} (convert it)")
        except OSError as error:
            faults.append(f"file: cannot read {file}, found {error.strerror} (a UTF-8 file)")
    if faults:
        raise ConfigError(*faults)
    return found


@contextmanager
def _showing_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True, redirect_stdout=False
    ) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield progress


def _format(found: Mapping[str, Any], files: list[Path] | None) -> str:
    """What was scored, how, and a row for each precision."""
    from zoo import report

    context, stride, rows = found["context"], found["stride"], found["results"]
    text = ", ".join(map(str, files)) if files else "the run's validation split"
    least = context - stride + 1
    before = f"{least:,} to {context:,}" if least < context else f"{context:,}"
    lines = [
        f"{found['model']} on {text}: {found['tokens']:,} tokens, {found['bytes']:,} bytes",
        f"windows of {context:,} tokens, one every {stride:,}: each token is predicted from the {before} before it, "
        "or from all where there are fewer",
        "",
    ]
    above = "loss over exact" if len(rows) > 1 else ""
    table: list[tuple[str, ...]] = [("weights", "computes in", "loss", "perplexity", "bits per byte", above)]
    for row in rows:
        perplexity = row["perplexity"]
        shown = "above 1e304" if perplexity is None else f"{perplexity:,.4f}"
        more = f"{row['loss_difference']:+.4f}" if "loss_difference" in row else ""
        table.append((row["weights"], row["dtype"], f"{row['loss']:.4f}", shown, f"{row['bits_per_byte']:.4f}", more))
    lines.append(report.align_columns(table, right=(2, 3, 4, 5)))
    lines += ["", *(row["made"] for row in rows if "made" in row)] if len(rows) > 1 else []
    return "\n".join(lines)
