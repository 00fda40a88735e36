"""Publish a run's checkpoints. One function owns the whole way of each, and no other code touches their folders.

    draft    written under a name that nobody reads, and locked
    listed   its manifest has the bytes and the hash of each file (zoo/checkpoint/manifest.py)
    synced   every file and folder of it is on the disk
    renamed  it has its own name: whole, or not there
    pointed  `latest` names it: a run goes on from here
    retired  what is kept no longer has gone, each by a rename first

A process that dies in any state leaves what the state before promised. What a draft or a retired folder left behind
goes with the next publication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from zoo.checkpoint.manifest import write_manifests
from zoo.disk import flush, remove_drafts, remove_folder, replace_folder, write_text
from zoo.runs import LATEST, steps


def publish(folder: Path, write: Callable[[Path], object], keeps: Callable[[list[Path]], Iterable[Path]]) -> None:
    """Take a checkpoint from a draft, which `write` fills, to the newest of its run; then retire older ones.

    `keeps` chooses among the checkpoints before this one, oldest first, those that stay. Those of later steps, which a
    run has when it was set back to an earlier one, stay until the run comes past them.
    """
    root = folder.parent
    with replace_folder(folder) as draft:
        write(draft)
        write_manifests(draft)
    flush(root.parent)  # which names `root`, and the files that the checkpoint knows the lengths of
    point(root, LATEST, folder)
    retire(folder, keeps)


def point(root: Path, pointer: str, folder: Path) -> None:
    """Let a pointer of a run's checkpoints name one of them."""
    write_text(root / pointer, f"{folder.name}\n")


def retire(folder: Path, keeps: Callable[[list[Path]], Iterable[Path]]) -> None:
    """Delete the checkpoints before `folder` that are not kept, and what killed processes left."""
    there = steps(folder.parent)
    earlier = there[: there.index(folder)]
    stay = set(keeps(earlier))
    remove_drafts(folder.parent, "step-*")
    for old in earlier:
        if old not in stay:
            remove_folder(old)
