"""Find the lines of a YAML text at which its keys stand. It is within the budgets of `zoo.untrusted.yaml_file`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def list_lines(text: str) -> dict[str, int]:
    """List the dotted keys of a text, and the line of each, from 1. A place in a list is a number: `pattern.0`."""
    return {".".join(path): stated.start_mark.line + 1 for path, stated, _ in _walk(yaml.compose(text, LOADER), ())}


def find_key(text: str, index: int) -> str:
    """Find the dotted key that begins, or whose value begins, at a character of the text."""
    found = (path for path, *nodes in _walk(yaml.compose(text, LOADER), ()) if index in _begin(nodes))
    return ".".join(next(found, ()))


def _begin(nodes: list[Any]) -> list[int]:
    return [node.start_mark.index for node in nodes]


def _walk(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield the path of each item of a node, the node that states it, and its value."""
    for name, stated, value in _list_items(node):
        yield (*path, name), stated, value
        yield from _walk(value, (*path, name))


def _list_items(node: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the node that states it, and the value of each item of a mapping or a list. What `<<` merges in
    are items of the mapping."""
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
