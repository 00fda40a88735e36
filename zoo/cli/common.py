"""Define what several verbs share: their arguments, and composing the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.completing import complete_override, complete_target

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.compose.composing import Composed


class ConfigPart(StrEnum):
    """The form in which `--cfg` shows a model: as it was composed, or as a person would write it."""

    job = "job"
    plain = "plain"


class Fp8(StrEnum):
    """How values are scaled into float8's range (`zoo.run.fp8`)."""

    tensorwise = "tensorwise"
    rowwise = "rowwise"
    weight_only = "weight_only"


class Weights(StrEnum):
    """Storage of linear layers' weights (`zoo.run.linear`)."""

    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"


Target = Annotated[
    str,
    typer.Argument(
        help="A packaged model from `zoo list`, a YAML, config.json or GGUF file, or a folder with a model or a run.",
        autocompletion=complete_target,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Hydra overrides: key=value, +key=value, ~key.", autocompletion=complete_override),
]
Cfg = Annotated[
    ConfigPart | None,
    typer.Option("--cfg", help="Print the YAML instead: as it was composed (job), or as one would write it (plain)."),
]
Resolve = Annotated[bool, typer.Option("--resolve", help="Print the composed YAML, its interpolations resolved.")]


TEMPERATURE = 0.8
"""What text is drawn at where neither the command line nor the checkpoint says it."""


def print_note(line: str) -> None:
    """Say something on standard error that is no fault."""
    print(f"zoo: note: {line}", file=sys.stderr)


def keep_memory_on(device: str) -> None:
    """Let this process keep the memory that it frees, where it computes on a CPU (`zoo.run.memory`)."""
    from zoo.run.builder import pick_device
    from zoo.run.memory import keep_memory

    if pick_device(device).type == "cpu":
        keep_memory()


def read_folder_options(folder: Path, given: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Read the options that a checkpoint's folder states for its model, and say which hold beside those `given`.

    Returns what completes the options of a request: with the folder's, and with a temperature.
    """
    from zoo.text.defaults import read_defaults

    defaults = read_defaults(folder)

    def complete(asked: Mapping[str, Any]) -> dict[str, Any]:
        asked = {name: value for name, value in asked.items() if value is not None}
        whole = {**defaults.beside(asked).options, **asked}
        return {"temperature": TEMPERATURE if whole.get("n_beams", 1) == 1 else 0, **whole}

    stated = {name: value for name, value in given.items() if value is not None}
    if (line := defaults.beside(stated).describe()) is not None:
        print_note(line)
    return complete


def compose_target(target: str, overrides: Sequence[str] | None) -> Composed:
    """Compose the model, and print on stderr what may be a mistake but is legal."""
    from zoo.compose.targets import compose_model

    found = compose_model(target, overrides or ())
    for note in found.notes:
        print_note(note)
    return found


def show_config(config: Composed, resolve: bool, part: ConfigPart | None = None) -> None:
    """Print a composed config as YAML. Raises ConfigError for faulty overrides, and when it cannot be resolved."""
    from zoo.compose.targets import spec_of_composed, to_plain_yaml, to_yaml

    config.refuse_faults()
    plain = part is ConfigPart.plain
    if plain:
        spec_of_composed(config)  # what is shown as Zoo reads it is a model that it does read
    print(to_plain_yaml(config.cfg, config.inherited) if plain else to_yaml(config.cfg, resolve=resolve), end="")
