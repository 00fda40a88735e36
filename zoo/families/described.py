"""A config.json, or any folder with a model in it, as a model's body in our grammar. No torch, no weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError
from zoo.families import family as families
from zoo.families.family import Body

CONFIG = "config.json"


def is_folder(path: Path) -> bool:
    """Whether a path is a Hugging Face folder."""
    return (path / CONFIG).is_file()


def is_config(path: Any) -> bool:
    """Whether a target is a config.json, or a folder with one."""
    path = Path(path)
    return path.suffix == ".json" or (path.is_dir() and is_folder(path))


def read_body(
    path: Path, changes: Mapping[str, Any] | None = None, stated: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Body]:
    """A config.json, or that of a folder, and the model it describes; `stated` are fields that are known better than it
    says. No torch. Raises CheckpointError."""
    file = path / CONFIG if path.is_dir() else path
    config = {**read_json(file), **(stated or {})}
    return config, families.family_of_config(config, str(file)).body(config, str(file), changes)


def describe_config(path: Path) -> tuple[Body, list[str]]:
    """The model that a config.json describes, for a price: what its weights are stored as is no part of it, of a model
    of text and more it is the text's, and of one with a head that no class here has it is the model below. With what
    that leaves out, in words. Raises CheckpointError."""
    file = path / CONFIG if path.is_dir() else path
    stated = read_json(file)
    config, note = families.text_of(stated)
    method = (stated.get("quantization_config") or {}).get("quant_method", "a method that is not named")
    notes = [f"{file}: {note}"] if note else []
    family = families.family_of_config(config, str(file))
    wanted = (config.get("architectures") or [""])[0]
    bare = next((name for name in family.architectures if name.endswith("Model")), None)
    if wanted and wanted not in family.architectures and bare:
        config = {**config, "architectures": [bare]}
        notes.append(f"{file}: {wanted}: without its head, as {bare}")
    if stated.get("quantization_config"):
        notes.append(f"{file}: its weights are quantised ({method}), which is not priced (--dtype says what is)")
    return family.body(config, str(file)), notes


FLOAT = "__float__"
"""What transformers writes a float as that JSON has no word for: {"__float__": "Infinity"}."""


def _float(node: dict[str, Any]) -> Any:
    return float(node[FLOAT]) if set(node) == {FLOAT} else node


def jsonable(node: Any) -> Any:
    """Plain data with such floats written so."""
    if isinstance(node, dict):
        return {key: jsonable(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [jsonable(value) for value in node]
    if isinstance(node, float) and not math.isfinite(node):
        return {FLOAT: json.dumps(node)}
    return node


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CheckpointError."""
    try:
        node = json.loads(file.read_text(encoding="utf-8"), object_hook=_float)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON, found {' '.join(str(error).split())[:120]}") from error
    if not isinstance(node, dict):
        raise CheckpointError(f"{file}: holds a {type(node).__name__}, not an object")
    return node
