"""Run one case in this process and judge it: what it printed, how it ended, what it left behind."""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .kinds import Case
from .values import SECRET, VARIABLE, Place

LONGEST = 20.0
"""Seconds of a processor's time that a case may take, and half of what it may take by the clock."""
LARGEST = 4 << 30
"""Bytes of memory that a case may hold."""
LINE, TOTAL = 2_000, 20_000
"""Characters of one line of errors, and of all."""
ESCAPED = 99
"""The exit code of a case out of which an exception came."""
WRITES_TEXT = ("generate", "chat", "fill")
"""Verbs that print what a model writes: any bytes."""
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NOT_FINITE = re.compile(r"""(?<![\w./'"-])[-+]?(?:nan|inf|infinity)(?![\w./'"-])""", re.IGNORECASE)
"""A number that is none. In quotes it is a text, which a config that is shown may hold."""
OWN_MISTAKE = re.compile(r"a mistake of Zoo|Zoo's (?:own )?mistake", re.IGNORECASE)
"""The wording of the last net (zoo/cli): an exception that no one foresaw."""


@dataclass
class Verdict:
    """What came of a case. It passed where `faults` is empty."""

    kind: str
    seed: int
    case: int
    words: list[str]
    about: str
    code: int = 0
    faults: list[str] = field(default_factory=list)
    frames: str = ""
    """The last frames of a traceback, where there is one: failures are grouped by them."""
    errors: str = ""
    seconds: float = 0.0
    """By the clock."""
    cpu: float = 0.0
    """Of processors, those of ended children too."""
    memory: int = 0

    def group(self) -> str:
        """Name the group of failures that it belongs to."""
        fault = re.sub(r"\d[\d,.]*", "N", self.faults[0].split(":")[0]) if self.faults else ""
        frames = self.frames.strip().splitlines()
        return f"{fault} | {frames[-1] if frames else next(iter(self.words), '')}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_case(case: Case, place: Place, name: str, seed: int, number: int) -> Verdict:
    """Run a case whose files are laid out, in this process, and judge it."""
    made = Verdict(name, seed, number, [each[:300] for each in case.words], case.about[:500])
    before = list_outside(place)
    _reset_peak()
    began, spent = time.monotonic(), sum(os.times()[:4])
    with surroundings(place, case.stdin):
        made.code, trace = call_zoo(case.words)
    made.seconds, made.memory = time.monotonic() - began, read_peak()
    made.cpu = sum(os.times()[:4]) - spent
    out, err = ((place.root / each).read_text("utf-8", "surrogateescape") for each in ("stdout", "stderr"))
    made.errors = err[-3000:]
    made.faults, made.frames = list(judge_output(case, made.code, out, err)), shorten_trace(trace)
    if trace:
        made.faults.insert(0, f"an exception escaped: {trace.strip().splitlines()[-1][:200]}")
    traces = [text for file in list_files(place.root / "cache") if "Traceback (most" in (text := read_text(file))]
    if not trace and (traces or OWN_MISTAKE.search(err)):
        said = traces[0] if traces else err
        made.faults.insert(0, f"the last net caught: {said.strip().splitlines()[-1][:200]}")
        made.frames = shorten_trace(said)
    made.faults += judge_files(place, before, out + err, case.words)
    return made


def call_zoo(words: list[str]) -> tuple[int, str]:
    """Run a command line as the program does; gives its exit code, and the traceback of what escaped."""
    from zoo.cli import main

    try:
        main(words)
    except SystemExit as ended:
        return (ended.code if isinstance(ended.code, int) else int(ended.code is not None)), ""
    except BaseException:  # a panic of Rust's is no Exception
        return ESCAPED, traceback.format_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()


def judge_output(case: Case, code: int, out: str, err: str) -> Iterator[str]:
    """Judge what a case printed and its exit code."""
    verb, debug = case.words[0] if case.words else "", "--debug" in case.words
    if code not in (0, 1, 2, 130, ESCAPED):
        yield f"exit code {code}"
    if case.exit is not None and code not in (case.exit, ESCAPED):
        yield f"exit {code} in place of {case.exit}"
    if ("Traceback (most recent call last)" in err or "panicked at" in err) and not debug and code != ESCAPED:
        yield f"a traceback on standard error: {err.strip().splitlines()[-1][:200]}"
    typed = " ".join(case.words)
    if code == 0 and verb not in WRITES_TEXT and (found := NOT_FINITE.search(out)) and "--help" not in case.words:
        line = next(each for each in out.splitlines() if NOT_FINITE.search(each))
        own = (
            verb == "recipes" and "--json" not in case.words and (found[0] in case.about or not re.search(r"\d", line))
        )
        if not own and (found[0].lower() not in typed.lower() or re.search(r"\d", line)):
            yield f"exit 0 and not finite: {line.strip()[:200]}"
    if not debug and code != ESCAPED:
        if (longest := max(map(len, err.splitlines()), default=0)) > LINE:
            yield f"a line of {longest:,} characters on standard error: {err[:100]!r}"
        if len(err) > TOTAL:
            yield f"{len(err):,} characters on standard error"
    shown = err if verb in WRITES_TEXT else out + err
    if found := CONTROLS.search(shown):
        yield f"a control character, {found[0]!r}: {shown[max(found.start() - 60, 0) : found.end() + 20]!r}"
    if re.search(r"^zoo: error:\s*(?::|$)", err, re.MULTILINE):
        yield f"an error with an empty place: {err.strip()[:200]!r}"
    if code in (1, 2) and not err.strip() and verb not in ("recipes", "family", "report", "bench", "check"):
        yield f"exit {code} and no word why"


def judge_files(place: Place, before: dict[str, str], shown: str, typed: list[str]) -> Iterator[str]:
    """Judge what a case left: outside of its folder nothing may have changed, and no secret may be in it."""
    if place.canary.exists() or (place.folder / "CANARY").exists():
        yield "code of a stranger was run: the canary is there"
    after = {name: text for name, text in list_outside(place).items() if name != "CANARY"}
    if changed := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
        yield f"a file outside of the folder was changed: {', '.join(changed)[:200]}"
    if any((place.root / "home").iterdir()):
        yield "a file was left in the home folder"
    if any(_leads_out(place, word) for word in typed):  # the person named the file
        return
    if SECRET in shown:
        yield "a secret was shown"
    if any(SECRET in read_text(file) for file in list_files(place.folder)):
        yield "a secret was copied into the folder"


def _leads_out(place: Place, word: str) -> bool:
    """Tell whether a word of the command names a file outside of the case's folder, also by a link."""
    try:
        return "outside" in word or (place.folder / word).resolve().is_relative_to(place.outside.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def list_files(folder: Path) -> Iterator[Path]:
    """List the files below a folder, links left out."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if not path.is_symlink() and path.is_file():
                yield path


def read_text(file: Path) -> str:
    """Read the first megabyte of a file as text."""
    with suppress(OSError), file.open("rb") as stream:
        return stream.read(1 << 20).decode("utf-8", "replace")
    return ""


def list_outside(place: Place) -> dict[str, str]:
    """The content of the files beside the case's folder."""
    return {str(file.relative_to(place.outside)): read_text(file) for file in list_files(place.outside)}


def shorten_trace(trace: str) -> str:
    """Give the frames of a traceback that are Zoo's, the last five, and its last line's type."""
    frames = re.findall(r'File "[^"]*?/(zoo/[^"]+\.py)", line (\d+), in (\S+)', trace)
    kinds = re.findall(r"^(\w[\w.]*(?:Error|Exception|Exit|Interrupt|Warning)\w*)", trace, re.MULTILINE)
    last = kinds[-1] if kinds else "no traceback"
    return "\n".join(f"{file}:{line} {name} {last}" for file, line, name in frames[-5:]) or (last if trace else "")


@contextmanager
def surroundings(place: Place, stdin: bytes) -> Iterator[None]:
    """Give a case its own folders, variables and standard streams, and put back what it changed of this process."""
    kept, variables = [os.dup(each) for each in (0, 1, 2)], dict(os.environ)
    (place.root / "stdin").write_bytes(stdin)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        opened = os.open(place.root / name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    folders = {"HOME": "home", "TMPDIR": "tmp", "ZOO_CACHE": "cache"}
    path = f"{place.seeds / 'bin'}:{variables.get('PATH', '')}"
    os.environ.update({name: str(place.root / each) for name, each in folders.items()}, PATH=path, **{VARIABLE: SECRET})
    streams = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, encoding="utf-8", closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
    os.chdir(place.folder)
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, each in enumerate(kept):
            os.dup2(each, number)
            os.close(each)
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(place.root.parent)
        _tidy()


def _tidy() -> None:
    """Put back what a command line changes of its process, which otherwise ends with it."""
    import gc
    import logging
    import random
    import tempfile

    gc.enable()
    random.seed(0)
    tempfile.tempdir = None
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    for handler in list(logging.root.handlers):
        logging.root.removeHandler(handler)
        handler.close()
    if (hydra := sys.modules.get("hydra.core.global_hydra")) is not None:
        hydra.GlobalHydra.instance().clear()
    if (template := sys.modules.get("zoo.data.chat.renderer")) is not None:
        template.RENDERER.close()


def _reset_peak() -> None:
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def read_peak() -> int:
    """Read the most memory that this process held since the last case, in bytes; 0 where /proc is missing."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()):
            return int(found[1]) << 10
    return 0


def remove_place(place: Place) -> None:
    """Remove a case's folders."""
    shutil.rmtree(place.root, ignore_errors=True)


faulthandler.disable()
