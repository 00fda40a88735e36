"""Read a config.json as a model in Zoo's grammar. Needs no torch and reads no weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError
from zoo.families import family as families
from zoo.families.body import Body
from zoo.families.gguf import describe_gguf, is_gguf, read_gguf
from zoo.families.multimodal import find_wrapper
from zoo.model_hub import find_snapshot, is_hub_name
from zoo.runs import ARCHITECTURE
from zoo.untrusted.json_file import SETTINGS, JsonShape
from zoo.untrusted.json_file import read_json as read_any
from zoo.untrusted.printable import quote, shorten

CONFIG, PEFT = "config.json", "adapter_config.json"


def is_folder(path: Path) -> bool:
    """Whether a path is a Hugging Face folder: one with a config.json."""
    return (path / CONFIG).is_file()


def is_config(path: str | Path) -> bool:
    """Whether a path names a config.json, a folder with one, or a GGUF file. False for a checkpoint of Zoo, even if it
    has a config.json for `zoo.hf`: its zoo.yaml describes it."""
    path = Path(path)
    published = path.is_dir() and is_folder(path) and not (path / ARCHITECTURE).is_file()
    return path.suffix == ".json" or is_gguf(path) or published


class PeftBase(JsonShape):
    """The keys of an adapter_config.json that name the base, and its revision on the hub."""

    base_model_name_or_path: str | None = None
    revision: str | None = None


def is_peft(path: str | Path) -> bool:
    """Whether a path is the folder of an adapter in peft's format that holds no model itself."""
    folder = Path(path).expanduser()
    return (folder / PEFT).is_file() and not any((folder / name).exists() for name in (CONFIG, ARCHITECTURE))


def find_peft_base(folder: Path) -> Path:
    """Find the base of an adapter in peft's format: the model at the path that its adapter_config.json names, absolute
    or below the working folder or the adapter's, or the model of that name in the hub's cache. Nothing is downloaded,
    as the file may be a stranger's. Raises CheckpointError if there is no such model."""
    stated = read_json(folder / PEFT, PeftBase)
    name = stated.get("base_model_name_or_path") or ""
    with suppress(ValueError, OSError, RuntimeError):  # no path: a NUL in it, too long, another user's home
        for place in (Path(name).expanduser(), folder / name):
            if name and place.exists():
                return place
    if is_hub_name(name) and (cached := find_snapshot(name, stated.get("revision"))) is not None:
        return cached
    cure = f"`hf download {name}`" if is_hub_name(name) else "the path of the base model"
    raise CheckpointError(f"{folder / PEFT}: base_model_name_or_path: {quote(name)} is no folder here ({cure})")


def read_body(
    path: Path, changes: Mapping[str, Any] | None = None, stated: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Body]:
    """Read a config.json (or a folder's) and the model it describes; for a multimodal model, the text model's. `stated`
    replaces fields of the config, `changes` those of the model. Raises CheckpointError for a faulty config, and for an
    unknown family."""
    file = path / CONFIG if path.is_dir() else path
    config = read_config(file)
    wrapper = find_wrapper(config)
    config = {**(wrapper.text if wrapper else config), **(stated or {})}
    return config, families.family_of_config(config, str(file)).body(config, str(file), changes)


def describe_config(path: Path) -> tuple[Body, list[str]]:
    """Read the model that a config.json describes, for pricing, and notes on parts that are left out.

    For a multimodal model the text model is read; for a class with an unknown head, the model below the head. Quantised
    weights are priced as they run, dequantised. Raises CheckpointError as `read_body` does.
    """
    if is_gguf(path):
        config = describe_gguf(read_gguf(path))
        return families.family_of_config(config, str(path)).body(config, str(path)), []
    file = path / CONFIG if path.is_dir() else path
    stated = read_config(file)
    wrapper = find_wrapper(stated)
    config = wrapper.text if wrapper else stated
    notes = [f"{file}: {wrapper}"] if wrapper else []
    family = families.family_of_config(config, str(file))
    for place in family.towers.values():
        beside = config.get(place.outer) if place.outer else None
        beside = beside if isinstance(beside, Mapping) else {}
        rest = ", ".join(key for key in beside if key.endswith("_config") and f"{place.outer}.{key}" != place.field)
        notes += [f"{file}: {family.name}: its text towers alone, without {place.outer}'s {rest}"] if rest else []
    wanted = (config.get("architectures") or [""])[0]
    bare = next((name for name in family.architectures if name.endswith("Model")), None)
    if wanted and wanted not in family.architectures and bare:
        config = {**config, "architectures": [bare]}
        notes.append(f"{file}: {shorten(wanted)}: without its head, as {bare}")
    if settings := stated.get("quantization_config"):
        named = shorten(str(settings.get("quant_method", "a method that is not named")))
        notes.append(f"{file}: its weights are quantised ({named}); it runs dequantised, in the --dtype that is priced")
    return family.body(config, str(file)), notes


FLOAT = "__float__"
"""transformers' key for floats that JSON cannot express: {"__float__": "Infinity"}."""
FLOATS = ("Infinity", "-Infinity", "NaN")


def read_float(node: dict[str, Any]) -> Any:
    """Return the float that a mapping stands for (FLOAT), or any other mapping unchanged."""
    return float(node[FLOAT]) if node.get(FLOAT) in FLOATS and len(node) == 1 else node


def to_jsonable(node: object) -> Any:
    """Replace infinite floats and NaN in plain data by {"__float__": …}, as transformers does."""
    if isinstance(node, dict):
        return {key: to_jsonable(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [to_jsonable(value) for value in node]
    if isinstance(node, float) and not math.isfinite(node):
        return {FLOAT: json.dumps(node)}
    return node


def read_json(file: Path, shape: type[JsonShape] = JsonShape, most: int = SETTINGS) -> dict[str, Any]:
    """Read a JSON file of at most `most` bytes that holds an object of this shape. Raises CheckpointError for any other
    file, and if there is none."""
    try:
        return read_any(file, shape, most=most, hook=read_float)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None


def write_json(file: Path, node: object, *, sort_keys: bool = False) -> None:
    """Write plain data as a JSON file, infinite floats as transformers does. Raises OSError."""
    text = json.dumps(to_jsonable(node), indent=2, sort_keys=sort_keys)
    file.write_text(text + "\n", encoding="utf-8")


def read_config(file: Path) -> dict[str, Any]:
    """Read a config.json. Raises CheckpointError as `read_json` does."""
    from zoo.families.config_types import ConfigFile  # creates pydantic classes, which takes milliseconds

    return read_json(file, ConfigFile)
