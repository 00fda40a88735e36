"""Read the architecture of one of our own checkpoints: its zoo.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from zoo.errors import CheckpointError, ConfigError, short
from zoo.grammar.plain import from_dict
from zoo.runs import ARCHITECTURE

FORMAT = 1


def read_spec(folder: Path) -> Any:
    """Read the architecture of a checkpoint. Raises CheckpointError."""
    file = folder / ARCHITECTURE
    try:
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
        stated, model = node["format"], node["model"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint, it has no {ARCHITECTURE} (a folder that zoo wrote)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: cannot be read, found {short(error)} (a file that zoo wrote)") from error
    check_format(file, stated)
    try:
        return from_dict(model)
    except ConfigError as error:
        raise CheckpointError(*(f"{file}: {fault}" for fault in error.faults)) from error


def check_format(file: Path, stated: Any) -> None:
    """Raise CheckpointError when another version of zoo wrote the file in another layout."""
    if stated != FORMAT:
        raise CheckpointError(f"{file}: is of format {stated}, this zoo reads {FORMAT} (the version that wrote it)")
