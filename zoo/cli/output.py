r"""Escape the control characters in everything that a command prints, such as `\x1b` for ESC.

Titles, tensor names, templates' errors and generated texts come from untrusted files. Rich's consoles
(`zoo.report.console`) escape texts themselves, and write their own control codes to the unescaped stream.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from zoo.untrusted.printable import escape_controls

BOLD = ("\ufdd0", "\ufdd1")
"""Marks of `zoo.report.make_bold` for the codes that start and end bold text: noncharacters of Unicode, which are for a
program's internal use. An untrusted text that holds them becomes bold, and nothing worse."""


class SafeStream:
    """A text stream that escapes control characters in `write`. Other attributes are those of the wrapped stream.

    A carriage return at the start of a write passes, because progress bars of other packages (tqdm) need it.
    """

    bold = BOLD

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)

    def write(self, text: str) -> int:
        safe = escape_controls(text)
        if safe is not text and text.startswith("\r"):
            safe = "\r" + escape_controls(text[1:])
        if BOLD[0] in safe:
            safe = safe.replace(BOLD[0], "\033[1m").replace(BOLD[1], "\033[0m")
        self.unescaped.write(safe)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def settle_output() -> None:
    """Make stdout and stderr accept any text: control characters, and characters that the encoding lacks (× in ASCII),
    are escaped; a closed stream (`zoo list >&-`) is replaced by os.devnull."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for the process's life)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, SafeStream(stream))


def print_own_warnings() -> None:
    """Print the warnings that Zoo itself gives as notes, one line each; those of other packages stay as they are."""
    plain, own = warnings.showwarning, str(Path(__file__).parents[1])

    def show(message: Any, category: Any, filename: str, *more: Any, **named: Any) -> None:
        if category is not UserWarning or not filename.startswith(own):
            return plain(message, category, filename, *more, **named)
        from zoo.cli.common import print_note

        print_note(str(message))

    warnings.showwarning = show


def print_generated(text: str, end: str = "\n") -> None:
    """Print a generated text to standard output: unchanged into a file or a pipe, escaped on a terminal."""
    stream = sys.stdout
    exact = stream if stream.isatty() else getattr(stream, "unescaped", stream)
    exact.write(text + end)
    exact.flush()
