"""Edit one value in the text of a model's YAML. All other lines and comments are unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf


def edit_text(text: str, path: Sequence[str], value: object) -> str:
    """Set the value at a path of keys, such as (`attention`, `softcap`), and return the new text; None removes the
    value. Raises yaml.YAMLError for invalid YAML.

    `attention: mla` becomes `attention: {kind: mla, window: 512}` when a field is set, and a word again when the field
    is removed. Only the lines of the path's first key are rewritten.
    """
    body = _lay(parse_text(text), path, value)
    top = path[0]
    line = _dump({top: body[top]}) if top in body else ""
    start, end = _find_lines(text, top)
    if start is None:
        return f"{text.rstrip()}\n{line}" if text.strip() else line
    rest = text[end:]
    return text[:start] + (line.rstrip("\n") + rest if line else rest.partition("\n")[2])


def parse_text(text: str) -> dict[str, Any]:
    """Parse a YAML text as plain data; {} unless it is a mapping. Numbers such as 1e6 are parsed as Zoo does."""
    parsed: Any = OmegaConf.to_container(OmegaConf.create(text or "{}"), resolve=False)
    return parsed if isinstance(parsed, dict) else {}


def _dump(body: dict[str, Any]) -> str:
    """Write one key with its value as YAML. A flat mapping or list is in braces or brackets after the key."""
    (value,) = body.values()
    inline = None if isinstance(value, dict | list) else False
    return yaml.safe_dump(body, sort_keys=False, default_flow_style=inline, width=100, allow_unicode=True)


def _lay(node: Any, path: Sequence[str], value: object) -> dict[str, Any]:
    """Copy a node with `value` at the path. A word on the path becomes a mapping with that kind."""
    key, *rest = path
    body: dict[str, Any] = {"kind": node} if isinstance(node, str) else dict(node) if isinstance(node, dict) else {}
    below = _fold(_lay(body.get(key), rest, value)) if rest else value
    if below is None:
        body.pop(key, None)
    else:
        body[key] = below
    return body


def _fold(node: dict[str, Any]) -> Any:
    """Shorten a mapping: one with only a kind becomes a word, an empty one None."""
    return node["kind"] if [*node] == ["kind"] else node or None


def _find_lines(text: str, key: str) -> tuple[int | None, int]:
    """Return the start of a top-level key (None if it is missing) and the end of its value, as character offsets."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for name, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if name.value == key:
            return name.start_mark.index, max(_find_end(value), name.end_mark.index + 1)
    return None, 0


def _find_end(node: yaml.Node) -> int:
    """Return where a node's text ends. A block's own end mark is after the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _find_end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index
