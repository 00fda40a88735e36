"""Read what strangers may have written: JSON and YAML within budgets, paths within their folder, text for a terminal.

Every loader of a model, a run, a recipe or a data set reads its files through this room (docs/security.md)."""

from zoo.untrusted.json_file import (
    COUNTED,
    FILE,
    NESTED,
    SETTINGS,
    Shape,
    check_shape,
    parse_json,
    read_bytes,
    read_json,
)
from zoo.untrusted.paths import find_inside
from zoo.untrusted.text import escape_controls, quote, shorten
from zoo.untrusted.yaml_file import check_yaml, parse_yaml, read_yaml_text

__all__ = [
    "COUNTED",
    "FILE",
    "NESTED",
    "SETTINGS",
    "Shape",
    "check_shape",
    "check_yaml",
    "escape_controls",
    "find_inside",
    "parse_json",
    "parse_yaml",
    "quote",
    "read_bytes",
    "read_json",
    "read_yaml_text",
    "shorten",
]
