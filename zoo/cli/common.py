"""Define what several verbs share: their arguments, and composing the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.completing import complete_override, complete_target

if TYPE_CHECKING:
    from zoo.compose.composing import Composed


class ConfigPart(StrEnum):
    """The part of a composed config that `--cfg` shows."""

    job = "job"


Target = Annotated[
    str,
    typer.Argument(
        help="A packaged model from `zoo list`, a YAML file, a config.json, or a folder with a model or a run.",
        autocompletion=complete_target,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Hydra overrides: key=value, +key=value, ~key.", autocompletion=complete_override),
]
Cfg = Annotated[ConfigPart | None, typer.Option("--cfg", help="Print the composed YAML instead.")]
Resolve = Annotated[bool, typer.Option("--resolve", help="Print the composed YAML, its interpolations resolved.")]


def compose_target(target: str, overrides: Sequence[str] | None) -> Composed:
    """Compose the model, and print on stderr what may be a mistake but is legal."""
    from zoo.compose.targets import compose_model

    found = compose_model(target, overrides or ())
    for note in found.notes:
        print("zoo: note:", note, file=sys.stderr)
    return found


def show_config(config: Composed, resolve: bool) -> None:
    """Print a composed config as YAML. Raises ConfigError for faulty overrides, and when it cannot be resolved."""
    from zoo.compose.targets import to_yaml

    config.refuse_faults()
    print(to_yaml(config.cfg, resolve=resolve), end="")
