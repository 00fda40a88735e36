"""Refuse files that name code, before Hydra processes their content.

Hydra instantiates Python objects from its own node (callbacks, launcher, sweeper, logging), and a training config can
contain shell commands. The user may type these on the command line. A file may come from someone else. Therefore a
model, a training config (`-c`), a recipe, and the files that these include, must not name code, unless the user trusts
the file (`--trust`).

`check_body` checks a file as it is read. `check_merged` checks it again at the place in the config where a defaults
list puts it, such as `@_global_.hydra.callbacks.e`. tests/untrusted/test_trust.py lists every place at which Hydra and
OmegaConf run code that a config names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import Container, OmegaConf

from zoo.errors import ConfigError
from zoo.grammar.interpolation import find_foreign
from zoo.untrusted.printable import quote

STATED = "zoo-file"
"""Provider name, in Hydra's records, of a config from an untrusted file."""

TRUST = "only the command line may, and a file of -c with --trust"

SPECIAL = frozenset({"_target_", "_args_", "_partial_", "_recursive_", "_convert_"})
"""Keys by which Hydra instantiates Python objects."""

TYPED_ALONE = {
    "launcher.lines": "lines for a shell",
    "logger.uri": "where to send what is logged",
    "logger.space": "where to send what is logged",
    "logger.entity": "where to send what is logged",
}
"""Keys of a training config that name code or another machine. Only the command line may set them."""

FETCHED = "_hub"
"""Name suffix of attention kernels that are downloaded at their first use."""


def check_body(body: Mapping[str, Any], label: str) -> None:
    """Check a file's keys, its interpolations and its defaults list. Raises ConfigError with all faults."""
    if faults := list(dict.fromkeys(_find_faults(body, ""))):
        raise ConfigError(*(f"{label}: {fault}" for fault in faults))


def check_merged(loaded: Container, package: str, label: str) -> None:
    """Check a file's content at the key (`package`) where a defaults list puts it. Raises ConfigError with all
    faults."""
    content: Any = OmegaConf.to_container(loaded, resolve=False)
    for part in reversed(package.split(".") if package else []):
        content = {part: content}
    if isinstance(content, Mapping):
        check_body({key: value for key, value in content.items() if key != "defaults"}, label)


def check_overrides(overrides: Iterable[str], label: str) -> None:
    """Check overrides in a file, such as a recipe's arms. Raises ConfigError with all faults."""
    faults = [fault for text in overrides for fault in _find_override_faults(text)]
    if faults:
        raise ConfigError(*(f"{label}: {fault}" for fault in faults))


def _find_override_faults(text: str) -> Iterator[str]:
    key, _, value = text.partition("=")
    place = key.strip().lstrip("+~").strip("'\"")
    group, _, package = place.partition("@")
    if any(re.fullmatch(r"(_global_\.)?hydra([./:].*)?", each.lstrip("/")) for each in (group, *package.split(":"))):
        yield f"{quote(text)}: sets Hydra's own settings ({TRUST})"
    elif named := next((word for word in sorted(SPECIAL) if word in text), None):
        yield f"{quote(text)}: holds {named}, which names code ({TRUST})"
    elif refused := _find_typed_alone(place, value):
        yield f"{quote(text)}: states {TYPED_ALONE[refused]} ({TRUST})"
    elif place == "kernel" and FETCHED in value:
        yield f"{quote(text)}: fetches a kernel from the hub ({TRUST})"
    else:
        yield from (f"{quote(text)}: {fault}" for fault in _find_resolvers(text))


def _find_typed_alone(place: str, value: str) -> str | None:
    for key in TYPED_ALONE:
        outer, _, inner = key.partition(".")
        if place == key or place.startswith(f"{key}.") or (place == outer and re.search(rf"\b{inner}\b", value)):
            return key
    return None


# ---------------------------------------------------------------- a body


def _find_faults(node: object, path: str) -> Iterator[str]:
    """Yield a line for each key or text in a config, at any depth, that names code, another machine or a kernel to
    download."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            place = f"{path}.{key}" if path else str(key)
            if place == "hydra" or place.startswith("hydra."):
                names = ", ".join(map(str, value)) if isinstance(value, Mapping) else quote(value)
                yield f"hydra: sets Hydra's own settings, found {quote(names)} ({TRUST})"
            elif key in SPECIAL:
                yield f"{place}: names code, found {quote(value)} ({TRUST})"
            elif place in TYPED_ALONE and value not in (None, [], ()):
                yield f"{place}: states {TYPED_ALONE[place]}, found {quote(value)} ({TRUST})"
            elif place == "kernel" and str(value).endswith(FETCHED):
                yield f"kernel: is {quote(value)}, which is fetched from the hub ({TRUST})"
            elif place == "defaults":
                yield from _find_faulty_entries(value)
            else:
                yield from (f"{place}: {fault}" for fault in _find_resolvers(str(key)))
                yield from _find_faults(value, place)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _find_faults(value, f"{path}[{index}]")
    elif isinstance(node, str):
        yield from (f"{path}: {fault}" for fault in _find_resolvers(node))


def _find_faulty_entries(entries: object) -> Iterator[str]:
    """Yield a line for each entry of a defaults list outside Zoo's groups and the file's own folder."""
    for entry in entries if isinstance(entries, list) else []:
        pairs = entry.items() if isinstance(entry, Mapping) else [(entry, None)]
        for key, value in pairs:
            words = str(key).split()
            group, _, package = (words[-1] if words else "").partition("@")
            chosen = value if isinstance(value, list) else [value]
            if group.lstrip("/").split("/")[0] == "hydra":
                yield f"defaults: chooses {quote(group)}, which is Hydra's own ({TRUST})"
            elif re.match(r"(_global_\.)?hydra(\.|$)", package):
                yield f"defaults: puts {quote(group)} into Hydra's own settings, at {quote(package)} ({TRUST})"
            elif any(".." in str(each).split("/") or "//" in str(each) for each in (group, *chosen)):
                yield f"defaults: {quote(value or group)} leads out of the file's folder (a file in it)"
            else:
                texts = [str(key), *(each for each in chosen if isinstance(each, str))]
                yield from (f"defaults: {fault}" for text in texts for fault in _find_resolvers(text))


def _find_resolvers(text: str) -> Iterator[str]:
    """Yield a line for each interpolation in a text that calls a resolver other than the grammar's own."""
    for name in find_foreign(text):
        yield f"asks {quote('${' + name + ':…}')} (a value, or ${{up:…}} and ${{or:…}}; {TRUST})"
