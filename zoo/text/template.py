"""Run the process that renders chat templates, and end it when a template takes too long."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from zoo.errors import ConfigError, ZooError
from zoo.untrusted.printable import shorten

WORKER = Path(__file__).with_name("template_worker.py")
START = 60.0  # seconds that the process may take to start, on a busy machine
PATIENCE = 5.0  # seconds of wall-clock time for one text; the process itself stops after 0.5 s of processor time


class Renderer:
    """A process that renders templates, started for the first template and again after one that had to be stopped.

    The renderer ends at `close`, or when this process ends in any way, because that closes the renderer's input.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, template: str, values: Mapping[str, object], where: str = "chat template") -> str:
        """Render a jinja2 template with these values, which are plain data. Raises ConfigError if it fails, or exceeds
        the limits of time, memory or length."""
        job = json.dumps({"template": template, "values": dict(values)}) + "\n"
        with self._lock:
            process = self._started()
            line = _ask(process, job, PATIENCE)
            if not line:
                self._end()
                raise ConfigError(f"{where}: was stopped, it took too much time or memory (a template that ends)")
        found = json.loads(line)
        if "error" in found:
            raise ConfigError(f"{where}: {shorten(found['error'], 400)}")
        return found["text"]

    def close(self) -> None:
        """End the process."""
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
