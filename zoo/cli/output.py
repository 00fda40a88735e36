r"""Write to the terminal only text: control characters of strangers' texts are shown as escapes, `\x1b` for ESC.

Everything that a command prints passes here: a title, a tensor's name, a template's error, a generated text. Rich's
consoles (`zoo.report.console`) clean their texts themselves, and write their own codes to the stream below.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from zoo.untrusted.text import escape_controls

BOLD = ("\ufdd0", "\ufdd1")
"""Marks that stand for the codes of bold and of plain in what `zoo.report.make_bold` gives: noncharacters of Unicode,
which are for a program's own use. A stranger's text that holds them becomes bold, and nothing worse."""


class SafeStream:
    """A text stream that escapes control characters. Whatever else is asked of it, the stream below answers.

    A carriage return that begins a write passes: progress bars of other packages (tqdm) return so to their line.
    """

    bold = BOLD

    def __init__(self, stream: Any) -> None:
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
    """Let any text be printed: escaped where the terminal would obey it, or where its encoding lacks it (× in ASCII, √
    on a Windows code page); and to nowhere where the stream was closed (`zoo list >&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for the process's life)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, SafeStream(stream))


def print_generated(text: str, end: str = "\n") -> None:
    """Print a generated text to standard output: exactly into a file or a pipe, as it is what was asked for, and
    escaped on a terminal."""
    stream = sys.stdout
    exact = stream if stream.isatty() else getattr(stream, "unescaped", stream)
    exact.write(text + end)
    exact.flush()
