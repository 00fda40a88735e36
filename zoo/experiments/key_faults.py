"""Describe pydantic's faults in plain data by the keys of the file."""

from __future__ import annotations

import re
from typing import Any


def find_place(loc: tuple[Any, ...], node: Any, absent: bool) -> tuple[str, ...]:
    """Return the path of a faulty key in the file. Names of types, which pydantic adds, are removed."""
    place: list[str] = []
    for each in loc:
        inside = each in node if isinstance(node, dict) else isinstance(node, list) and each in range(len(node))
        if inside:
            node, place = node[each], [*place, str(each)]
    return (*place, str(loc[-1])) if absent else tuple(place)


_WANTED = {"integer": "a whole number", "string": "a text", "boolean": "true or false", "dictionary": "a mapping"}


def say_wanted(item: Any) -> str:
    """Describe the values that a key accepts, from pydantic's fault. Empty for other sorts of faults."""
    if item["type"] == "literal_error":
        return "one of: " + ", ".join(re.findall("'([^']*)'", item["ctx"]["expected"]))
    if wanted := re.match(r"Input should be (?:a valid )?(\w+)(?: than (or equal to )?(.*))?", item["msg"]):
        least = f"{wanted[3]} or more" if wanted[2] else f"a number above {wanted[3]}"
        return least if wanted[3] else _WANTED.get(wanted[1], f"a {wanted[1]}")
    return ""
