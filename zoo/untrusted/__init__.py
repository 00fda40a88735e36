"""Read what strangers may have written: JSON and YAML within budgets, paths within their folder, text for a terminal.

Every loader of a model, a run, a recipe or a data set reads its files through this room (docs/security.md). A name is
looked up when it is first used: `zoo --help` escapes control characters, and imports neither pydantic nor PyYAML."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.untrusted.json_file import FILE as FILE
    from zoo.untrusted.json_file import NESTED as NESTED
    from zoo.untrusted.json_file import SETTINGS as SETTINGS
    from zoo.untrusted.json_file import Shape as Shape
    from zoo.untrusted.json_file import check_shape as check_shape
    from zoo.untrusted.json_file import parse_json as parse_json
    from zoo.untrusted.json_file import read_bytes as read_bytes
    from zoo.untrusted.json_file import read_json as read_json
    from zoo.untrusted.lines import LINE as LINE
    from zoo.untrusted.lines import read_lines as read_lines
    from zoo.untrusted.paths import find_inside as find_inside
    from zoo.untrusted.text import check_text as check_text
    from zoo.untrusted.text import escape_controls as escape_controls
    from zoo.untrusted.text import quote as quote
    from zoo.untrusted.text import shorten as shorten
    from zoo.untrusted.yaml_file import check_yaml as check_yaml
    from zoo.untrusted.yaml_file import describe_yaml_error as describe_yaml_error
    from zoo.untrusted.yaml_file import parse_yaml as parse_yaml
    from zoo.untrusted.yaml_file import read_yaml_text as read_yaml_text

_HOMES = {
    **dict.fromkeys(("check_text", "escape_controls", "quote", "shorten"), "text"),
    **dict.fromkeys(("FILE", "NESTED", "SETTINGS", "Shape", "check_shape"), "json_file"),
    **dict.fromkeys(("parse_json", "read_bytes", "read_json"), "json_file"),
    **dict.fromkeys(("check_yaml", "describe_yaml_error", "parse_yaml", "read_yaml_text"), "yaml_file"),
    **dict.fromkeys(("LINE", "read_lines"), "lines"),
    "find_inside": "paths",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo.untrusted' has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"zoo.untrusted.{_HOMES[name]}"), name)
    return value
