"""Add the file and line of a faulty key to messages. The user's files are read again only after a fault."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError
from zoo.spec.foreign import FOREIGN
from zoo.untrusted.json_file import read_json
from zoo.untrusted.yaml_file import list_lines, parse_yaml, read_yaml_text

YAML = (".yaml", ".yml")
_KEY = re.compile(r"[\w.\[\]-]+")
_NAME = re.compile(r"[\w./-]{1,200}")
_ITEM = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class StatedFile:
    """A file that the user named: its name in messages (`label`), and the key of the config that it fills (`root`)."""

    file: Path
    label: str
    root: str = ""


@contextmanager
def locating(sources: Sequence[StatedFile], overrides: Iterable[str] = ()) -> Iterator[None]:
    """Add file and line to the faults of a ConfigError raised in the `with` block."""
    try:
        yield
    except ConfigError as error:
        error.faults = locate_faults(error.faults, sources, overrides)
        error.args = ("\n".join(error.faults),)
        raise


def locate_faults(faults: Iterable[str], sources: Sequence[StatedFile], overrides: Iterable[str] = ()) -> list[str]:
    """Prefix each fault with `mine.yaml:12: `, the place of the fault's key or of a key above it. Files other than
    YAML, such as a config.json, have no line. Faults of keys in `overrides` are unchanged."""
    sources = [each for source in sources for each in _follow_defaults(source)]
    lines = {each: _read_lines(each, each.file.stat().st_mtime_ns if each.file.exists() else 0) for each in sources}
    parts = (text.lstrip("+~").partition("=") for text in overrides)
    named = {name.partition("@")[0]: value for name, _, value in parts}
    typed = {name: value for name, value in named.items() if name not in {each.root for each in sources}}
    return [_locate(fault, lines, typed) for fault in faults]


@functools.lru_cache(8)
def _read_lines(source: StatedFile, changed: int) -> dict[str, int]:
    """Map the keys of a file, as paths in the config, to their lines. Empty if it is no readable YAML. Cached by
    modification time (`changed`), because a sweep may have thousands of faults."""
    if source.file.suffix not in YAML:
        return {}
    try:
        found = list_lines(read_yaml_text(source.file))
    except (ConfigError, OSError):
        return {}
    return {f"{source.root}.{key}" if source.root else key: line for key, line in found.items()}


def _follow_defaults(source: StatedFile, above: tuple[Path, ...] = ()) -> Iterator[StatedFile]:
    """Yield a file, then the files in its folder that its defaults list includes."""
    yield source
    if source.file.suffix not in YAML or source.file in above:
        return
    try:
        body = parse_yaml(source.file)
    except (ConfigError, OSError):
        return
    body = body if isinstance(body, dict) else {}
    entries = body.get("defaults")
    words = [{key: value} for key, value in body.items() if isinstance(value, str)]  # `attention: mine`
    for entry in [*(entries if isinstance(entries, list) else ()), *words]:
        group, option = next(iter(entry.items())) if isinstance(entry, dict) and entry else (entry, None)
        path, _, package = (
            str(group).rpartition(" ")[2].lstrip("/").partition("@")
        )  # `override /attention@model.attention`
        name = f"{path}/{option}" if option else path
        file = source.file.parent / f"{name}.yaml"
        if not _NAME.fullmatch(name) or ".." in name.split("/") or not file.is_file():
            continue
        package = "" if package == "_here_" else package or ".".join(name.split("/")[:-1])
        root = ".".join(each for each in (source.root, package) if each)
        label = str(Path(source.label).parent / f"{name}.yaml")
        yield from _follow_defaults(StatedFile(file, label, root), (*above, source.file))


def _locate(fault: str, lines: Mapping[StatedFile, Mapping[str, int]], typed: Mapping[str, str]) -> str:
    label = next((each.label for each in lines if fault.startswith(f"{each.label}: ")), None)
    text = fault if label is None else fault[len(label) + 2 :]
    key, colon, _ = text.partition(": ")
    if not colon or not _KEY.fullmatch(key):
        return fault
    if any(f"{each.split('.')[-1]}=" in text for each in typed):  # `n_kv_heads=3 is no divisor …`
        return fault
    inner = {each.root for each in lines if each.root}
    if (typed_name := _find_typed(key, typed, inner, lines)) is not None:
        return _strip_root(fault, key, inner - {typed_name.split(".")[0]})
    for place in _list_places(key, text, inner):
        if any(place in (each, *(f"{root}.{each}" for root in inner)) for each in typed):
            return fault
        for source, known in lines.items():
            own = place if label is None or not source.root else f"{source.root}.{place}"
            if own in known and label in (None, source.label):
                return f"{source.label}:{known[own]}: {_strip_root(text, key, {source.root})}"
    others = (each for each in lines if each.file.suffix not in YAML or ": is missing" in text)
    whole = next((each for each in others if each.root in ("", key.split(".")[0])), None)
    return f"{whole.label}: {_strip_root(text, key, {whole.root})}{_name_fields(whole, text)}" if whole else fault


def _find_typed(
    key: str, typed: Mapping[str, str], roots: Collection[str], lines: Mapping[StatedFile, Mapping[str, int]]
) -> str | None:
    """Return the override that caused a fault; None if none did. An override of the fault's key counts. If no file sets
    that key, overrides of keys above and below count too. If a file does, an override of a key above counts only if its
    value names the fault's key."""
    bare = _strip_root(key, key, roots)
    stated = any(key in known or bare in known for known in lines.values())
    for each, value in typed.items():
        name = _strip_root(each, each, roots)
        inside = bare.startswith(f"{name}.") and (not stated or bare.rpartition(".")[2] in value)
        if name == bare or inside or (name.startswith(f"{bare}.") and not stated):
            return each
    return None


def _strip_root(text: str, key: str, roots: Collection[str]) -> str:
    """Remove the key that a file fills from the start of a fault: `model.d_ff: …` becomes `d_ff: …`."""
    root = next((root for root in roots if root and key.startswith(f"{root}.")), None)
    return text if root is None else text[len(root) + 1 :]


def _list_places(key: str, text: str, roots: Collection[str]) -> Iterator[str]:
    """Yield the keys that may have caused a fault, the likeliest first: keys with values in the text, the last one
    first (n_kv_heads in `attention: n_heads=8 is not a multiple of n_kv_heads=3`); the fault's own key; the keys above
    it."""
    parts = _ITEM.sub(r".\1", key).split(".")
    top = parts[:1] if parts[0] in roots else []
    for name in reversed(re.findall(r"\b(\w+)=", text.split(" (")[0])):
        yield from (".".join([*parts[:depth], name]) for depth in range(len(parts), len(top) - 1, -1))
    yield ".".join(parts)
    if key == "model":  # only the model's kind can cause a fault of the whole model
        yield ".".join([*top, "kind"])
    yield from (".".join(parts[:depth]) for depth in range(len(parts) - 1, len(top), -1))


def _name_fields(source: StatedFile, text: str) -> str:
    """Return a note with the config.json fields behind Zoo's fields in a fault's text: num_key_value_heads for
    n_kv_heads. Empty for other files."""
    if source.file.suffix != ".json":
        return ""
    try:
        stated = read_json(source.file, dict[str, Any])
    except (ConfigError, OSError):
        return ""
    inner = stated.get("text_config")
    fields = {*stated, *(inner if isinstance(inner, dict) else ())}
    found = [theirs for theirs, ours in FOREIGN.items() if theirs in fields and re.search(rf"\b{ours}\b", text)]
    return f" ({' and '.join(found)} of the file)" if found else ""
