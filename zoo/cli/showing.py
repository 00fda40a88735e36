"""Define what the pricing verbs share: output options, splitting models from overrides, and printing figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo import report
from zoo.cli.common import compose_target, print_note
from zoo.cli.options import options
from zoo.errors import ConfigError, refuse

if TYPE_CHECKING:
    from zoo.model.decoder import Decoder

FEW = 3
"""Maximum differences between a folder's tensors and its architecture that are printed after a price."""


class Shown(StrEnum):
    """The format in which figures are printed."""

    text = "text"
    json = "json"
    csv = "csv"
    md = "md"


Json = Annotated[bool, typer.Option("--json", help="Print JSON with every value, unrounded.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")]
Markdown = Annotated[bool, typer.Option("--md", help="Print a Markdown table.")]
Plot = Annotated[Path | None, typer.Option(help="Plot the costs to a .png or .svg file.")]


@options()
class OutputOptions:
    """Options for the format of figures; at most one may be given."""

    as_json: Json = False
    as_csv: Csv = False
    as_md: Markdown = False

    @property
    def shown(self) -> Shown:
        """The chosen format, text by default. Raises ConfigError for two formats."""
        formats = ((self.as_json, Shown.json), (self.as_csv, Shown.csv), (self.as_md, Shown.md))
        asked = [shown for wanted, shown in formats if wanted]
        if len(asked) > 1:
            raise ConfigError(f"output: {' and '.join(f'--{each}' for each in asked)} are two formats (leave one out)")
        return asked[0] if asked else Shown.text


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into models and overrides. An override has an `=`, or starts with `~` or `+`.

    An existing path with an `=` is a model. Raises ConfigError if no model is named.
    """
    overrides = [word for word in words if is_override(word)]
    targets = [word for word in words if not is_override(word)]
    if not targets:
        raise ConfigError(
            "target: is missing (a packaged model from `zoo list`, a YAML file, a config.json, a GGUF file, a folder)"
        )
    return targets, overrides


def is_override(word: str) -> bool:
    """Tell whether an argument is an override rather than a model."""
    path = os.sep in word.partition("=")[0] and os.path.exists(word)
    return word.startswith(("~", "+")) or ("=" in word and not path)


def load_specs(targets: Sequence[str], overrides: Sequence[str]) -> list[Decoder]:
    """Load the Spec of each model under the overrides. Raises ConfigError with the faults of all models."""
    from zoo.compose.targets import note_positions, note_sizes, spec_of_composed

    found, faults = [], []
    for target in targets:
        try:
            composed = compose_target(target, overrides)
            found.append(spec_of_composed(composed))
            for note in [*note_sizes(overrides, composed.cfg), *note_positions(found[-1])]:
                print_note(note)
        except ConfigError as error:
            alone = len(targets) == 1 or all(
                fault.startswith(target.rstrip(os.sep).removeprefix(f".{os.sep}")) for fault in error.faults
            )
            faults += error.faults if alone else [f"{target}: {fault}" for fault in error.faults]
    refuse(faults)
    return found


def shorten_labels(labels: Sequence[str]) -> list[str]:
    """Shorten labels and keep them unique: a path becomes its last part if that is unique; equal labels get a
    number."""
    short = [Path(label).name if os.sep in label else label for label in labels]
    short = [label if short.count(short[i]) > 1 and os.sep in label else short[i] for i, label in enumerate(labels)]
    return [
        f"{label} ({short[: i + 1].count(label)})" if short.count(label) > 1 else label for i, label in enumerate(short)
    ]


def print_prices(
    titles: Sequence[str],
    targets: Sequence[str],
    priced: Sequence[Mapping[str, Any]],
    shown: Shown,
    first: Sequence[tuple[str, str]] = (),
) -> None:
    """Print the figures of one model or of several. `first` has labels and sentences to print before the figures of a
    single model."""
    labels = shorten_labels(targets)
    if shown is Shown.json:
        many = [{"model": label, **figures} for label, figures in zip(labels, priced, strict=True)]
        print(report.format_json(priced[0] if len(priced) == 1 else many))
    elif shown is Shown.csv:
        from zoo.analysis.compare import flatten

        print(report.format_csv(["figure", *labels], report.list_exact_rows([flatten(each) for each in priced])))
    elif shown is Shown.md:
        print(_markdown(labels, priced, first))
    elif len(priced) == 1:
        print(report.format_cost_table(priced[0], titles[0], first))
    else:
        from zoo.report.models import make_model_tables

        report.print_tables(*make_model_tables(labels, priced))


def _markdown(labels: Sequence[str], priced: Sequence[Mapping[str, Any]], first: Sequence[tuple[str, str]]) -> str:
    if len(priced) > 1:
        from zoo.report.models import list_model_rows

        header, rows = list_model_rows(labels, priced)
        return report.format_markdown(header, rows, right=range(1, len(header)))
    rows = [[label, "", told] for label, told in first]
    for title, lines in report.list_cost_rows(priced[0]):
        rows += [[f"**{title}**", "", ""], *([label.strip(), exact, short] for label, exact, short in lines)]
    return report.format_markdown([labels[0], "exact", ""], rows, right=(1, 2))


def compare_headers(targets: Sequence[str]) -> None:
    """Print, for each folder with weights, whether the tensors in its files match the priced architecture."""
    from zoo.compose.targets import is_file

    for target in targets:
        folder = Path(target)
        if not is_file(target) or not folder.is_dir() or not any(folder.rglob("*.safetensors")):
            continue
        from zoo.checkpoint.tensor_check import compare_tensors

        try:
            found = compare_tensors(folder)
            faults = list(found.faults)
        except ConfigError as error:
            found, faults = None, error.faults
        if not faults:
            print(f"\n{found}")
        elif len(faults) > FEW:
            faults = [*faults[:FEW], f"{len(faults) - FEW} more like these (`zoo check {target}` lists them)"]
        for fault in faults:
            print_note(fault)
