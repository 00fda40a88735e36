"""Find the lines of the keys in a YAML text that `zoo.untrusted.yaml_file` has checked against its budgets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def list_lines(text: str) -> dict[str, int]:
    """Map the dotted keys of a text to their lines, from 1. An entry of a list has its index: `pattern.0`."""
    return {".".join(path): stated.start_mark.line + 1 for path, stated, _ in _walk(yaml.compose(text, LOADER), ())}


def find_key(text: str, index: int) -> str:
    """Return the dotted path of the key or value that starts at character `index` of the text; "" if there is none."""
    found = (path for path, *nodes in _walk(yaml.compose(text, LOADER), ()) if index in _begin(nodes))
    return ".".join(next(found, ()))


def _begin(nodes: list[yaml.Node]) -> list[int]:
    return [node.start_mark.index for node in nodes]


def _walk(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield each item below a node, at any depth: path, node of the key, node of the value."""
    for name, stated, value in _list_items(node):
        yield (*path, name), stated, value
        yield from _walk(value, (*path, name))


def _list_items(node: yaml.Node | None) -> Iterator[tuple[str, Any, Any]]:
    """Yield each item of a mapping or list: its name (a key or an index), the node of the key (for a list, the entry),
    and the node of the value. Items merged by `<<` are included."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "<<":
                for each in value.value if isinstance(value, yaml.SequenceNode) else (value,):
                    yield from _list_items(each)
            else:
                yield str(key.value), key, value
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), value, value
