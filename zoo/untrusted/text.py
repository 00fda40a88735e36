"""Make a stranger's text safe to show: its control characters are escaped, and it is shortened."""

from __future__ import annotations

import re
from typing import Any

from zoo.errors import ConfigError

LONGEST = 120
"""Characters of a stranger's text that a message quotes."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]")
"""C0 without tab and newline, DEL, C1, what reorders text in sight (Boucher and Anderson, 2021), lone surrogates."""


def check_text(text: str, place: str) -> str:
    r"""Return a text that UTF-8 can hold. Raises ConfigError for one with half of a surrogate pair: JSON can write one
    (`"\ud83d"`), and so can a command line whose bytes are not UTF-8. No tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x} alone at character {error.start:,}"
        raise ConfigError(f"{place}: has half a character, found {half} (both halves, or neither)") from None
    return text


def escape_controls(text: str) -> str:
    r"""Write control characters as escapes, `\x1b` for ESC: a terminal that met them raw would obey them."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def shorten(text: str, longest: int = LONGEST) -> str:
    """Put a text on one line without control characters, and cut it."""
    line = " ".join(escape_controls(text[: 4 * longest]).split())
    return line if len(line) <= longest and len(text) <= 4 * longest else f"{line[:longest]}…"


def quote(value: Any, longest: int = 60) -> str:
    """Quote a stranger's value for a message: a container by its kind and size, a text or a number shortened."""
    if isinstance(value, dict | list | tuple | set):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind} of {len(value):,}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length():,} bits"
    return shorten(repr(value[: 2 * longest] if isinstance(value, str | bytes) else value), longest)
