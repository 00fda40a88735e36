"""Describe faults of composing, one line each: the YAML path, the value found, a cure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.compose.hydra_engine import HydraException
from zoo.spec.foreign import open_options

FAULTS = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError)
"""The exceptions that Hydra raises when it composes faulty files."""

MANY = 30
"""Maximum number of options that a message lists."""


def shorten_error(error: BaseException, names: dict[str, str] | None = None) -> str:
    """Put a message of Hydra or OmegaConf on one line, without search path and links. `names` maps internal names to
    those that the user knows."""
    if isinstance(error, RecursionError):
        return "defaults: leads back to where it starts (a file cannot include itself)"
    text = str(error) or str(error.__cause__ or type(error).__name__)
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text}: {error.__cause__}"
    text = re.split(r"\n(?:Config search path|Search path|See https?:)", text)[0]
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not re.match(r"(full_key|object_type|reference_type)[:=]|\^$", line)]
    text = re.sub(r"^In '[^']*': Could not (?:load|find) '([^']*)'.*", r"defaults: there is no '\1'", " ".join(kept))
    text = re.sub(r"LexerNoViableAltException: .*", "a character that has no place there", text)
    for ours, theirs in (names or {}).items():
        text = text.replace(ours, theirs)
    return text


def describe_missing_option(group: str, value: str, options: Iterable[str], place: str = "") -> str:
    """Describe an unknown option of a group, with the nearest option, and all options if they are few. `place` is the
    key with the option, if that is not the group's name."""
    options = sorted(options)
    shown = "zoo list" if group == "model" else f"zoo list --axis {group}"
    there = ", ".join(options) if len(options) <= MANY else f"{len(options)}, listed by `{shown}`"
    return f"{place or group}: no option '{value}'{open_options(value, options)}there are: {there})"


def descend(cfg: DictConfig, key: str) -> tuple[DictConfig | None, list[str]]:
    """Return the deepest existing node on the way to a dotted key, and the remaining segments of the key.

    The node is None if a value or an interpolation is in its place. Interpolations are not followed.
    """
    node: DictConfig | None = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if node is None or part not in {str(key) for key in node}:
            return node, parts[depth:]
        node = find_mapping(node, part)
    return node, []


def list_children(cfg: DictConfig) -> Iterator[tuple[str, DictConfig | None]]:
    """Yield each key of a mapping and the mapping under it (None for other values, and for interpolations)."""
    for key in cfg:
        yield str(key), find_mapping(cfg, str(key))


def find_mapping(cfg: DictConfig, name: str) -> DictConfig | None:
    """Return the mapping under an existing key. None for a value, an interpolation or a missing value (`???`)."""
    child = None if OmegaConf.is_interpolation(cfg, name) or OmegaConf.is_missing(cfg, name) else cfg[name]
    return child if isinstance(child, DictConfig) else None


def list_keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a config, shallow keys first at each level. Interpolations are not followed."""
    for name, _ in list_children(cfg):
        yield f"{prefix}{name}"
    for name, child in list_children(cfg):
        if child is not None:
            yield from list_keys(child, f"{prefix}{name}.")


def describe_unknown_key(cfg: DictConfig, key: str, extra: Iterable[str] = ()) -> str:
    """Describe an unknown key of a config, with the nearest existing key, or else the keys of the enclosing mapping.
    `extra` are further keys to suggest."""
    node, missing = descend(cfg, key)
    parent = key[: len(key) - len(".".join(missing))]
    options = list(dict.fromkeys([*list_keys(cfg), *extra]))
    here = [o.removeprefix(parent) for o in options if o.startswith(parent) and "." not in o.removeprefix(parent)]
    near = [".".join([parent + name, *missing[1:]]) for name in difflib.get_close_matches(missing[0], here, n=3)]
    same = sorted((o for o in options if o.split(".")[-1] == key.split(".")[-1]), key=lambda o: o.count("."))
    there = [option for option in near if option in options]
    ranked = [*there, *same] if "." in key else [*same, *there]  # a bare name probably lacks its prefix
    best = [*ranked, *near, *difflib.get_close_matches(key, options, n=1)]
    if best:
        return f"{key}: unknown key (did you mean '{best[0]}'?)"
    if node is None:
        return f"{key}: unknown key ('{parent.rstrip('.')}' is not a mapping)"
    names = ", ".join(str(name) for name in node)
    return f"{key}: unknown key ({parent.rstrip('.') or 'the top level'} has: {names})"
