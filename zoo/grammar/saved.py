"""Read the model in a run's folder: a checkpoint's architecture (zoo.yaml) and the training config (config.yaml)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.errors import CheckpointError, ConfigError
from zoo.grammar.interpolation import RESOLVERS, find_foreign
from zoo.grammar.plain import from_dict, to_dict
from zoo.runs import ARCHITECTURE
from zoo.untrusted.json_file import JsonShape, check_shape
from zoo.untrusted.printable import quote, shorten
from zoo.untrusted.yaml_file import parse_yaml, read_yaml_text

FORMAT = 1


class Architecture(JsonShape):
    """The keys of a zoo.yaml."""

    format: Any
    model: dict[str, Any]


def read_spec(folder: Path) -> Any:
    """Read the architecture of a checkpoint. Raises CheckpointError if the file is missing, broken or of another
    format."""
    file = folder / ARCHITECTURE
    try:
        node = check_shape(parse_yaml(file), dict[str, Any], str(file))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint, it has no {ARCHITECTURE} (a folder that zoo wrote)") from None
    if "format" in node:
        check_format(file, node["format"])
    return read_model(file, check_shape(node, Architecture, str(file))["model"])


def write_spec(spec: Any, folder: Path) -> None:
    """Write the architecture of a checkpoint into its folder."""
    node = {"format": FORMAT, "model": to_dict(spec)}
    text = yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120)
    (folder / ARCHITECTURE).write_text(text, encoding="utf-8")


def read_model(file: Path, node: object) -> Any:
    """Read a Spec from the plain data that `to_dict` wrote into a file. Raises CheckpointError for faulty data."""
    try:
        return from_dict(check_shape(node, dict[str, Any], str(file)))
    except ConfigError as error:
        raise CheckpointError(*(f"{file}: {fault}" for fault in error.faults)) from error


def check_format(file: Path, stated: object) -> None:
    """Raise CheckpointError if another version of zoo wrote the file in another format."""
    if stated != FORMAT:
        found = f"is of format {quote(stated)}, this zoo reads {FORMAT}"
        raise CheckpointError(f"{file}: {found} (the version that wrote it)")


# ---------------------------------------------------------------- a training config


class SavedConfig(JsonShape):
    """The keys of a run's config.yaml that are read before the training settings are checked."""

    model: dict[str, Any]
    data: dict[str, Any] | None = None


def read_config(file: Path) -> DictConfig:
    """Read the training config of a run, interpolations unresolved. Raises FileNotFoundError for a missing file, and
    CheckpointError for a broken one or an interpolation other than the grammar's, such as an environment variable."""
    plain = check_shape(parse_yaml(file), dict[str, Any], str(file))
    if "model" not in plain:
        raise CheckpointError(f"{file}: is no config of a run, it has no model (the file that zoo train wrote)")
    try:
        config = OmegaConf.create(read_yaml_text(file))  # OmegaConf's loader reads 1e-3 as a number
        node = OmegaConf.to_container(config, resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        found = shorten(str(error))
        raise CheckpointError(f"{file}: cannot be read, found {found} (the file that zoo train wrote)") from error
    check_shape(node, SavedConfig, str(file))
    if faults := [*_find_foreign(node, str(file), "")]:
        raise CheckpointError(*faults[:5])
    assert isinstance(config, DictConfig)
    return config


def _find_foreign(node: object, place: str, key: str) -> Iterator[str]:
    """Yield a line for each text with an interpolation other than the grammar's."""
    if isinstance(node, dict):
        for name, each in node.items():
            yield from _find_foreign(name, place, f"{key}{name}")
            yield from _find_foreign(each, place, f"{key}{name}.")
    elif isinstance(node, list):
        for at, each in enumerate(node):
            yield from _find_foreign(each, place, f"{key}{at}.")
    elif isinstance(node, str) and [*find_foreign(node)]:
        known = " and ".join(f"${{{each}:…}}" for each in RESOLVERS)
        name = shorten(key.removesuffix("."), 60)
        yield f"{place}: {name}: holds {quote(node)}, which a run's folder may not ask for ({known})"
