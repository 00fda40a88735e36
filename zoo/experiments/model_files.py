"""Resolve the model files that an experiment's file names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from zoo.compose.sources import StatedFile, locate_faults
from zoo.errors import refuse


def place_models(node: dict[str, Any], file: Path) -> dict[str, Any]:
    """Replace each `model=FILE` in `shared` and in the arms by an existing path: in the working directory, or else next
    to `file`. Raises ConfigError for a missing file."""
    faults: list[str] = []

    def place(overrides: Any, key: str) -> Any:
        if isinstance(overrides, list):
            return [place(each, key) for each in overrides]
        if not isinstance(overrides, str):
            return overrides
        return re.sub(r"(?<!\S)model=(\S+\.ya?ml)", lambda word: find(word[1], key), overrides)

    def find(name: str, key: str) -> str:
        beside = file.parent / name
        if not Path(name).exists() and not beside.exists():
            faults.append(f"{file}: {key}: model={name}: no such file, nor beside {file.name}")
        return f"model={name if Path(name).exists() else beside}"

    placed = {"shared": place(node["shared"], "shared")} if "shared" in node else {}
    if isinstance(arms := node.get("arms"), dict):
        placed["arms"] = {name: place(each, f"arms.{name}") for name, each in arms.items()}
    refuse(locate_faults(faults, [StatedFile(file, str(file))]))
    return node | placed
