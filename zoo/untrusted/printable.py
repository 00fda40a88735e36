"""Make untrusted text safe to print: escape its control characters and shorten it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from zoo.errors import ConfigError

FIRST = 10
"""Maximum number of listed faults of one kind. The rest are counted."""
LONGEST = 120
"""Maximum number of quoted characters of an untrusted text in a message."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]")
"""Matches C0 without tab and newline, DEL, C1, line and paragraph separators, characters that reorder text (Boucher and
Anderson, 2021), and lone surrogates."""


def check_text(text: str, place: str) -> str:
    r"""Check that UTF-8 can encode a text, and return it. Raises ConfigError for half of a surrogate pair, which
    tokenizers refuse. JSON (`"\ud83d"`) or a command line with invalid UTF-8 may contain one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x} alone at character {error.start:,}"
        raise ConfigError(f"{place}: has half a character, found {half} (both halves, or neither)") from None
    return text


def escape_controls(text: str) -> str:
    r"""Replace control characters by escapes, `\x1b` for ESC, because a terminal would obey them."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def shorten(text: str, longest: int = LONGEST) -> str:
    """Put a text on one line without control characters, cut after `longest` characters."""
    line = " ".join(escape_controls(text[: 4 * longest]).split())
    return line if len(line) <= longest and len(text) <= 4 * longest else f"{line[:longest]}…"


def quote(value: object, longest: int = 60) -> str:
    """Format an untrusted value for a message: a container as its kind and size, a text or number shortened, `null` and
    `true` as in YAML and JSON."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict | list | tuple | set):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind} of {len(value):,}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length():,} bits"
    return shorten(repr(value[: 2 * longest] if isinstance(value, str | bytes) else value), longest)


def list_first(names: Sequence[str], describe: Callable[[str], str], place: object) -> list[str]:
    """Describe the first faulty names, a line each, and count the rest in one more line."""
    lines = [describe(name) for name in names[:FIRST]]
    more = len(names) - FIRST
    return [*lines, f"{place}: … and {more:,} more like {shorten(names[FIRST - 1])}"] if more > 0 else lines
