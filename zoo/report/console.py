"""Make rich consoles that print texts literally: without markup, and with control characters escaped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from zoo.untrusted.printable import escape_controls

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class SafeConsole(Console):
    """A console that escapes the control characters of texts, except rich's own codes and a lone carriage return."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control or text == "\r" else escape_controls(text), style, control)

    def _stream(self) -> Any:
        """Return the unescaped stream: `zoo.cli.output.SafeStream` would escape rich's own codes too."""
        stream = Console.file.fget(self)  # type: ignore[attr-defined]
        return getattr(stream, "unescaped", stream)

    file = property(_stream, Console.file.fset)  # type: ignore[attr-defined, assignment]


def make_console(**settings: Any) -> Console:
    """Make a console with rich's `settings`, but without markup, so that markup in an untrusted text has no effect."""
    return SafeConsole(**{"highlight": False, "markup": False, "emoji": False, **settings})


def make_bar(*columns: ProgressColumn, shown: bool = True) -> Progress:
    """Make a progress bar on standard error, hidden if not `shown`, or if there is no terminal."""
    from rich.progress import Progress

    console = make_console(stderr=True)
    hidden = not (shown and console.is_terminal)
    return Progress(*columns, console=console, disable=hidden, transient=True, redirect_stdout=False)
