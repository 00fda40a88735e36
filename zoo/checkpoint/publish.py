"""Publish a run's checkpoints. `publish` takes each through all states, and no other code touches their folders.

    draft    written under a name that nobody reads, and locked
    listed   its manifest has the size and hash of each file (zoo/checkpoint/manifest.py)
    synced   all its files and folders are flushed to disk
    renamed  it has its final name: it is complete, or not there
    pointed  `latest` names it: a run resumes from it
    retired  checkpoints that are no longer kept are deleted, each after a rename

If the process is killed in any state, the guarantees of the state before still hold. The next publication removes what
a draft or a retired folder left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from zoo.checkpoint.manifest import write_manifests
from zoo.disk import flush, remove_drafts, remove_folder, replace_folder, write_text
from zoo.runs import LATEST, steps


def publish(folder: Path, write: Callable[[Path], object], keeps: Callable[[list[Path]], Iterable[Path]]) -> None:
    """Write a checkpoint by `write` into a draft, publish it as the newest of its run, then retire older ones.

    `keeps` gets the checkpoints before this one, oldest first, and returns those to keep. Checkpoints of later steps,
    which exist if the run was set back to an earlier step, stay until the run has passed them.
    """
    root = folder.parent
    with replace_folder(folder) as draft:
        write(draft)
        write_manifests(draft)
    flush(root.parent)  # this folder lists `root` and the files whose lengths the checkpoint records
    point(root, LATEST, folder)
    retire(folder, keeps)


def point(root: Path, pointer: str, folder: Path) -> None:
    """Make a pointer file, such as `latest`, name one of a run's checkpoints."""
    write_text(root / pointer, f"{folder.name}\n")


def retire(folder: Path, keeps: Callable[[list[Path]], Iterable[Path]]) -> None:
    """Delete the checkpoints before `folder` that are not kept, and drafts that killed processes left."""
    there = steps(folder.parent)
    earlier = there[: there.index(folder)]
    stay = set(keeps(earlier))
    remove_drafts(folder.parent, "step-*")
    for old in earlier:
        if old not in stay:
            remove_folder(old)
