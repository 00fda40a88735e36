"""Run the process that renders chat templates, and end it when a template takes too long."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from zoo.errors import ConfigError, ZooError
from zoo.untrusted.printable import shorten

WORKER = Path(__file__).with_name("template_worker.py")
START = 60.0  # seconds that the process may take to start, on a busy machine
PATIENCE = 5.0  # seconds of wall-clock time for one text; the process itself stops after 0.5 s of processor time

VIEWS = 16
"""The largest number of texts in one job."""


class BrokenTemplate(ConfigError):
    """Raised for a chat template that is not valid jinja2, and so cannot render any conversation."""


class RenderedView(NamedTuple):
    """A rendered conversation, or its beginning, and the spans (in characters) that the template marks as the
    assistant's."""

    text: str
    spans: list[tuple[int, int]]


class Renderer:
    """A process that renders templates. It is started for the first template, and again if a template had to be
    stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, template: str, values: Mapping[str, object]) -> str:
        """Render a jinja2 template with these values, which are plain data. Raises ConfigError if it fails, or exceeds
        the limits of time, memory or length."""
        return self.render_views(template, values, [(None, bool(values.get("add_generation_prompt")))])[0].text

    def render_views(
        self, template: str, values: Mapping[str, object], views: Sequence[tuple[int | None, bool]], day: str = ""
    ) -> list[RenderedView]:
        """Render a text for each of the `views`, which give the number of leading messages (None: all) and
        add_generation_prompt. `day` is the template's present date, in ISO form (empty: the real one). Raises
        ConfigError as `render` does, BrokenTemplate for a syntax error."""
        if len(views) > VIEWS:  # the limits are for a few texts
            parts = [views[first : first + VIEWS] for first in range(0, len(views), VIEWS)]
            return [each for part in parts for each in self.render_views(template, values, part, day)]
        job = json.dumps({"template": template, "values": dict(values), "views": views, "day": day}) + "\n"
        with self._lock:
            process = self._started()
            line = _ask(process, job, PATIENCE)
            if not line:
                self._end()
                raise ConfigError(
                    "chat template: was stopped because it took too much time or memory (a simpler template)"
                )
        found = json.loads(line)
        if "error" in found:
            kind = BrokenTemplate if found.get("broken") else ConfigError
            raise kind(f"chat template: {shorten(found['error'], 400)}")
        return [RenderedView(each["text"], [tuple(span) for span in each["spans"]]) for each in found["views"]]

    def close(self) -> None:
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self._end()
        # -P: the script's folder is not searched, so that no file of zoo hides another package's module.
        command = [sys.executable, "-P", str(WORKER)]
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=none, text=True, encoding="utf-8")
        if not _ask(process, "", START):
            process.kill()
            process.wait()
            raise ZooError("chat template: the process that renders templates did not start (pip install jinja2)")
        self._process, self._owner = process, os.getpid()
        atexit.register(self.close)
        return process

    def _end(self) -> None:
        atexit.unregister(self.close)
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():  # after a fork the process is the parent's
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]


def _ask(process: subprocess.Popen[str], job: str, seconds: float) -> str:
    """Send a job and return the line that answers it; "" if `seconds` have passed or the process has ended."""
    assert process.stdin is not None and process.stdout is not None
    alarm = threading.Timer(seconds, process.kill)
    alarm.start()
    try:
        process.stdin.write(job)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:  # it has ended
        return ""
    finally:
        alarm.cancel()


RENDERER = Renderer()
"""One process for all templates: starting it takes longer than rendering hundreds of texts."""
