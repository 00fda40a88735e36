"""Read the architecture of one of our own checkpoints: its zoo.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, ConfigError
from zoo.grammar.plain import from_dict
from zoo.runs import ARCHITECTURE
from zoo.untrusted import Shape, check_shape, parse_yaml, quote

FORMAT = 1


class Architecture(Shape):
    """What a zoo.yaml holds."""

    format: Any
    model: dict[str, Any]


def read_spec(folder: Path) -> Any:
    """Read the architecture of a checkpoint. Raises CheckpointError."""
    file = folder / ARCHITECTURE
    try:
        node = check_shape(parse_yaml(file), dict[str, Any], str(file))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint, it has no {ARCHITECTURE} (a folder that zoo wrote)") from None
    if "format" in node:
        check_format(file, node["format"])
    return read_model(file, check_shape(node, Architecture, str(file))["model"])


def read_model(file: Path, node: Any) -> Any:
    """Read the Spec that a file of ours states as plain data. Raises CheckpointError."""
    try:
        return from_dict(check_shape(node, dict[str, Any], str(file)))
    except ConfigError as error:
        raise CheckpointError(*(f"{file}: {fault}" for fault in error.faults)) from error


def check_format(file: Path, stated: Any) -> None:
    """Raise CheckpointError when another version of zoo wrote the file in another layout."""
    if stated != FORMAT:
        found = f"is of format {quote(stated)}, this zoo reads {FORMAT}"
        raise CheckpointError(f"{file}: {found} (the version that wrote it)")
