"""Describe unexpected failures of a command: the system refused a file, memory ran out, or Zoo has a bug."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import ConfigError, ZooError, short

WRONG_NAMES = frozenset(
    getattr(errno, name) for name in ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "EINVAL", "ENXIO")
)
"""Error numbers that blame a file's name, which is user input. A full disk (ENOSPC, EDQUOT, EFBIG), a broken or
read-only disk (EIO, EROFS) and lost connections are errors of the machine."""

FORBIDDEN = (errno.EACCES, errno.EPERM)

LOOP, NO_HOME = "Symlink loop from ", "Could not determine home directory."
"""The beginnings of two RuntimeErrors: of `Path.resolve` for a loop of links (before Python 3.13), and of `expanduser`
for a `~name` of no user."""

SHORT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""Words in torch's errors when memory runs out; Python raises MemoryError."""


MODEL = Path(__file__).parents[1] / "model"
"""The folder of the components, in which users add their own."""


def choose_exit_code(error: OSError) -> int:
    """Choose the exit code for an error of the file system: 2 if the user named a file that cannot be opened by that
    name (WRONG_NAMES) or may not be read, 1 for any other failure, such as a refused write or a full disk."""
    if error.filename is None:
        return ZooError.exit_code
    named = error.errno in WRONG_NAMES or (error.errno in FORBIDDEN and not _may_be_read(Path(error.filename)))
    return ConfigError.exit_code if named else ZooError.exit_code


def _may_be_read(file: Path) -> bool:
    """Tell whether a refused file, or the folder of a missing one, may be read; if so, writing was refused."""
    there = os.path.lexists(file)
    return os.access(file, os.R_OK) if there else os.access(file.absolute().parent, os.R_OK | os.X_OK)


def describe_os_error(error: OSError) -> str:
    """Describe which file could not be read or written, and why. An OSError that Zoo raised keeps its own text."""
    if error.strerror is None:
        return short(error)
    return f"{error.filename or 'file'}: cannot be read or written, found {error.strerror}"


def describe_bug(error: BaseException, args: Sequence[str]) -> tuple[str, int]:
    """Describe an unexpected error in one line, and choose the exit code. Writes a bug's trace to a file; never
    raises."""
    if isinstance(error, RuntimeError) and str(error).startswith(LOOP):
        return f"{str(error).removeprefix(LOOP)}: is a symbolic link that leads to itself", ConfigError.exit_code
    if isinstance(error, RuntimeError) and str(error).startswith(NO_HOME):
        return "path: begins with ~ and the name of no user (a path in full)", ConfigError.exit_code
    if _is_short_of_memory(error):
        return f"memory: the command needs more than there is, found {short(error)}", ZooError.exit_code
    where = write_trace(error, args)
    how = f"please report it with its trace, which is in {where}" if where else "--debug shows its trace: report it"
    found = f"{type(error).__name__}{_place(error)} {short(error)}"
    return f"bug: this is a mistake of Zoo's, not yours, found {found} ({how})", ZooError.exit_code


def _place(error: BaseException) -> str:
    """Name the last line of a component in an error's trace, as the component may be the user's own: ` in
    zoo/model/norm.py, line 44:`. Empty if there is none."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    found = [(Path(file), line) for file, line in frames if Path(file).is_relative_to(MODEL)]
    return f" in {found[-1][0].relative_to(MODEL.parent.parent)}, line {found[-1][1]}:" if found else ""


def _is_short_of_memory(error: BaseException) -> bool:
    said = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(words in said for words in SHORT_OF_MEMORY)


def write_trace(error: BaseException, args: Sequence[str]) -> Path | None:
    """Write the trace of an error, with the command and the versions, into the cache folder, or else into the folder
    for temporary files. Returns the file; None if neither can be written."""
    import tempfile

    from zoo.paths import find_cache_folder

    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for find in (lambda: find_cache_folder() / "traces", lambda: Path(tempfile.gettempdir()) / "zoo-traces"):
        try:
            folder = find()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(_describe_trace(error, args), encoding="utf-8", errors="backslashreplace")
        except (OSError, ValueError, RuntimeError):  # no such disk, a NUL in the name, no home
            continue
        return folder / name
    return None


def _describe_trace(error: BaseException, args: Sequence[str]) -> str:
    import platform

    import zoo

    head = [f"zoo {shlex.join(args)}", f"zoo {zoo.__version__}, Python {platform.python_version()}, {sys.platform}"]
    return "\n".join([*head, "", "".join(traceback.format_exception(error))])
