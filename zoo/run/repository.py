"""Read the commit of a folder's git repository without running programs that its config may name.

fsmonitor, filters, hooks, diff drivers, pagers and submodules in `.git/config` all name programs, and a folder copied
from a stranger has the stranger's config. So HEAD is read without git. To find changed files, git runs with a temporary
folder in place of `.git`, with the repository's index and objects but only harmless settings.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from zoo.errors import CheckpointError
from zoo.untrusted.json_file import read_bytes

TIMEOUT = 5  # seconds for each call of git
MOST_REFS = 16 << 20  # bytes of packed-refs
HARMLESS = (
    *("core.filemode", "core.symlinks", "core.ignorecase", "core.autocrlf", "core.eol", "core.precomposeunicode"),
    *("core.sparsecheckout", "core.sparsecheckoutcone", "extensions.objectformat"),
)
"""Settings taken from the repository's config: how files are stored on disk. None of these settings names a program."""


def read_commit(folder: Path) -> str | None:
    """Read the commit of the repository that a folder is in, with `+changes` if tracked files differ from the commit;
    None outside a repository, without a commit, or without git. Programs in the repository's config are not run."""
    found = find_repository(folder)
    if found is None or (commit := read_head(*found[1:])) is None:
        return None
    changes = list_changes(*found, commit)
    return changes if changes is None else f"{commit}+changes" if changes else commit


def find_repository(folder: Path) -> tuple[Path, Path, Path] | None:
    """Find the working tree that a folder is in, its git folder, and the git folder shared by all working trees. None
    outside a repository."""
    for tree in (folder.resolve(), *folder.resolve().parents):
        git = tree / ".git"
        if (stated := _read_line(git)) is not None:  # a linked working tree, or a submodule
            if not stated.startswith("gitdir: "):
                return None
            git = tree / stated.removeprefix("gitdir: ")
        if (git / "HEAD").is_file():
            shared = _read_line(git / "commondir")
            return tree, git, git if shared is None else git / shared
        if git.exists():
            return None
    return None


def read_head(git: Path, shared: Path) -> str | None:
    """Read the commit that HEAD names; None without a commit."""
    said = _read_line(git / "HEAD") or ""
    for _ in range(5):  # symbolic references, as deep as git follows them
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", said):
            return said
        name = said.removeprefix("ref: ")
        if name == said or not re.fullmatch(r"refs/[^\0]+", name) or ".." in name.split("/"):
            return None
        said = _read_line(git / name) or _read_line(shared / name) or _find_packed(shared, name)
    return None


def list_changes(tree: Path, git: Path, shared: Path, commit: str) -> str | None:
    """List the tracked files that differ from a commit, one line each, as `git status` prints them. None if git
    fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
    }
    with tempfile.TemporaryDirectory(prefix="zoo-git-") as own:
        wanted = f"^({'|'.join(map(re.escape, HARMLESS))})$"
        settings = ("config", "--file", str(shared / "config"), "--no-includes", "--get-regexp", wanted)
        said = _ask_git(settings, Path(own), {**environment, "GIT_DIR": own})
        _lay_out(Path(own), git, commit, said or "")
        environment |= {"GIT_DIR": own, "GIT_WORK_TREE": str(tree), "GIT_INDEX_FILE": str(git / "index")}
        environment["GIT_OBJECT_DIRECTORY"] = str(shared / "objects")
        off = ("core.fsmonitor=false", f"core.hooksPath={os.devnull}", "core.untrackedCache=false")
        options = [word for setting in off for word in ("-c", setting)]
        words = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all", "--no-renames")
        return _ask_git((*options, *words), tree, environment)


def _lay_out(own: Path, git: Path, commit: str, said: str) -> None:
    """Write a git folder whose HEAD is a commit, with the HARMLESS settings among `said`, git's list of settings."""
    (own / "HEAD").write_text(f"{commit}\n", encoding="utf-8")
    for name in ("refs", "objects"):
        (own / name).mkdir()
    lines = ["[core]", "\tbare = false", "\trepositoryformatversion = 1"]
    for line in said.splitlines():
        key, _, value = line.partition(" ")
        if key in HARMLESS and re.fullmatch(r"[A-Za-z0-9]+", value):
            section, _, name = key.partition(".")
            lines += [f"[{section}]", f"\t{name} = {value}"]
    (own / "config").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with suppress(OSError):  # the parts of a split index
        for part in git.glob("sharedindex.*"):
            (own / part.name).symlink_to(part.absolute())


def _read_line(file: Path) -> str | None:
    """Read a small text file; None if it cannot be read."""
    try:
        return read_bytes(file, 1 << 16).decode("utf-8").strip() if file.is_file() else None
    except (OSError, ValueError, CheckpointError):
        return None


def _find_packed(shared: Path, name: str) -> str:
    """Find a reference's commit in packed-refs; empty if it is not there."""
    lines: Iterator[str] = iter(())
    with suppress(OSError, CheckpointError):
        if (shared / "packed-refs").is_file():
            lines = iter(read_bytes(shared / "packed-refs", MOST_REFS).decode("utf-8", "replace").splitlines())
    return next((line.partition(" ")[0] for line in lines if line.partition(" ")[2] == name), "")


def _ask_git(words: tuple[str, ...], folder: Path, environment: dict[str, str]) -> str | None:
    how = {"cwd": folder, "env": environment, "capture_output": True, "timeout": TIMEOUT, "check": False}
    try:
        asked = subprocess.run(["git", *words], text=True, errors="replace", **how)  # type: ignore[call-overload]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None
