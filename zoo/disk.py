"""Write files and folders atomically: after a crash at any time, a reader finds the whole old content or the whole new.

A draft is written next to its target, flushed to the disk and renamed to the target. A draft is locked while it is
written. The next writer thus removes the drafts of killed processes, but not those of running ones.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.errors import ConfigError, ZooError

OLD = ".zoo-old"
DRAFT = r"\..+\.([0-9a-f]{32}|zoo-old)"
PARTIAL = ".zoo-partial"
A_WEEK = 7 * 86400  # seconds
A_DAY = 86400  # seconds: on a file system without locks, an older draft counts as abandoned
NO_LOCKS = {
    errno.ENOLCK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EBADF,  # NFS, for a file that cannot be opened for writing
}  # a file system without locks says one of these
NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def replace_folder(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty draft folder. It replaces `folder` when the `with` block ends, and is deleted if the block raises.

    With `keep`, a `folder` that another process has made meanwhile is kept, and the draft is deleted. A link's target
    is replaced, not the link. Raises ConfigError if `folder` is or contains the working folder: the shell would stay in
    the deleted one.
    """
    stated, folder = folder, _real(folder)
    if Path.cwd().is_relative_to(folder):
        raise ConfigError(
            f"{stated}: is or holds the folder you are in, and would be replaced (another folder would do)"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    remove_drafts(folder.parent, glob.escape(folder.name))
    draft = _draft_of(folder)
    try:
        with _claimed(draft, lambda: draft.mkdir(exist_ok=True)):
            yield draft
            for file in draft.rglob("*"):
                flush(file)
            flush(draft)
            _put_in_place(draft, folder, keep)
            flush(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft of `folder` that survives a kill: the next call yields the same draft with its files, to complete
    it.

    The draft is renamed to `folder` when the block ends, unless another process made the folder first. A ZooError,
    which means that the written files are useless, deletes the draft; any other error keeps it. If another process
    holds the draft, or drafts cannot be locked here, a separate draft is yielded (`replace_folder`). An abandoned draft
    is deleted after A_WEEK.
    """
    folder = _real(folder)
    draft = folder.with_name(f".{folder.name}{PARTIAL}")
    draft.mkdir(parents=True, exist_ok=True)
    with _lock_on(draft) as free:
        if free and draft.exists():  # gone if its writer has just renamed it to the folder
            _remove_abandoned(folder.parent)
            try:
                yield draft
            except ZooError:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            for file in draft.rglob("*"):
                flush(file)
            flush(draft)
            _put_in_place(draft, folder, keep=True)
            flush(folder.parent)
            shutil.rmtree(draft, ignore_errors=True)  # left if another process made the folder first
            return
    with replace_folder(folder, keep=True) as own:
        yield own


def _remove_abandoned(parent: Path) -> None:
    """Delete the unlocked drafts of `complete_folder` that were last changed more than a week ago."""
    for draft in parent.glob(f".*{PARTIAL}"):
        with suppress(OSError), _lock_on(draft) as free:
            if free and time.time() - draft.stat().st_mtime > A_WEEK:
                shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yield the path of an empty draft file. It replaces `file` when the `with` block ends, and is deleted if the block
    raises. A link's target is replaced, not the link. A device or pipe, such as /dev/null, is written to directly."""
    if file.exists() and not file.is_file():
        yield file
        return
    file = _real(file)
    remove_drafts(file.parent, glob.escape(file.name))
    draft = _draft_of(file)
    try:
        with _claimed(draft, draft.touch):
            yield draft
            flush(draft)
            os.replace(draft, file)
            flush(file.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Replace a text file atomically."""
    with replace_file(file) as draft:
        draft.write_text(text, encoding="utf-8")


def remove_folder(folder: Path) -> None:
    """Delete a folder atomically. It is renamed first, so that its name never shows a partly deleted folder."""
    draft = _draft_of(folder)
    os.rename(folder, draft)
    shutil.rmtree(draft)


def remove_drafts(parent: Path, name: str = "*") -> None:
    """Delete the drafts of killed processes whose targets' names match a glob pattern."""
    for draft in parent.glob(f".{name}.*"):
        if not re.fullmatch(DRAFT, draft.name) or not draft.exists():
            continue
        if draft.suffix == OLD and not draft.with_name(draft.name[1 : -len(OLD)]).exists():
            continue  # the only copy of the folder: `recover` renames it back
        with suppress(PermissionError), _lock_on(draft) as free:  # another user's draft is left
            if free or (free is None and time.time() - draft.stat().st_mtime > A_DAY):
                shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk (fsync). Otherwise a power cut could leave an empty file."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- one folder for another


def recover(folder: Path) -> None:
    """Restore a folder whose replacement was killed between two renames, on systems without an atomic exchange."""
    folder = _real(folder)
    if not folder.name:  # the root of the file system
        return
    old = _old_of(folder)
    if not folder.exists() and old.exists():
        try:
            os.rename(old, folder)
        except OSError:
            if not folder.exists():  # it exists if its writer or another reader restored it first
                raise


def _put_in_place(draft: Path, folder: Path, keep: bool) -> None:
    """Rename the draft to the folder, except with `keep` if the folder exists. An old folder gets the draft's name, or
    is deleted."""
    if not folder.exists():
        try:
            os.rename(draft, folder)
            return
        except OSError:
            if not folder.exists():  # it exists if another process was faster
                raise
    if not keep and not exchange(draft, folder):
        old = _old_of(folder)
        os.rename(folder, old)
        try:
            os.rename(draft, folder)
        except OSError:
            recover(folder)
            raise
        shutil.rmtree(old)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one atomic step. Return False if the operating system has no such call. Raises
    OSError if the call fails."""
    import ctypes

    at, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE on Linux, RENAME_SWAP on macOS
    first, second = os.fsencode(one.absolute()), os.fsencode(other.absolute())
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = libc.renamex_np(first, second, swap)
        elif sys.platform == "linux":
            failed = libc.renameat2(at, first, at, second, swap)
        else:
            return False
    except (AttributeError, OSError, TypeError):  # a C library that lacks the call, or that cannot be opened
        return False
    code = ctypes.get_errno()
    if failed and code not in NO_EXCHANGE:
        raise OSError(code, os.strerror(code), str(one), None, str(other))
    return not failed


def _real(path: Path) -> Path:
    """Return the absolute path without links, which has a name even for `.`."""
    return Path(os.path.realpath(path))


def _old_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{OLD}")


def _draft_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


# ---------------------------------------------------------------- locks


@contextmanager
def _claimed(draft: Path, make: Callable[[], object]) -> Iterator[None]:
    """Make a draft and hold its lock. If another process deletes the draft before it is locked, make it again."""
    while True:
        make()
        with _lock_on(draft) as free:
            if free is not False and draft.exists():
                yield
                return


@contextmanager
def _lock_on(path: Path) -> Iterator[bool | None]:
    """Try to lock a file or folder during the `with` block. Yield the result of `try_lock`, or False if the path is
    gone.

    Windows cannot lock a folder or rename an open file, so drafts are not locked there (None).
    """
    if os.name == "nt":
        yield None
        return
    try:
        handle = os.open(
            path, os.O_RDONLY if path.is_dir() else os.O_RDWR
        )  # NFS locks no file opened for reading alone
    except FileNotFoundError:
        yield False
        return
    try:
        yield try_lock(handle)
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or its process ends. Return True if it is locked now.

    Return False if another process holds the lock, None if the file system has no locks.
    """
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, 1 << 30, os.SEEK_SET)  # far behind the text: locked bytes cannot be read by others
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True
