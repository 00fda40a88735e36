"""Check paths in a file's content: each must stay inside the folder that the file describes."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import CheckpointError, short
from zoo.untrusted.printable import quote


def find_inside(folder: Path, stated: object, place: str) -> Path:
    """Return the path `folder` / `stated` if it stays inside the folder. `place` names the file and the key in
    messages.

    A symbolic link must lead into the folder, or into the blob store of a Hugging Face cache, where every file of a
    snapshot is a link into that store. Raises CheckpointError for a value that is no path, is absolute, or leads out of
    the folder.
    """
    if not isinstance(stated, str) or not stated or "\0" in stated:
        raise CheckpointError(f"{place}: is {quote(stated)}, no path (a name inside {folder})")
    path = folder / stated
    if Path(stated).is_absolute() or ".." in Path(stated).parts:
        raise CheckpointError(f"{place}: {quote(stated)} leads out of {folder} (a path inside it)")
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise CheckpointError(f"{place}: {quote(stated)} cannot be followed, found {short(error)}") from error
    if not real.is_relative_to(root) and not _in_store(root, real):
        raise CheckpointError(f"{place}: {quote(stated)} is a link that leads out of {folder} (a file inside it)")
    return path


def check_settings(folder: Path) -> Path:
    """Return a model's folder if no JSON file in it is a link out of the folder. Through such a link, a message that
    quotes a faulty file could show a private file. Raises CheckpointError for such a link."""
    for file in sorted(folder.glob("*.json")):
        if file.is_symlink():
            find_inside(folder, file.name, str(folder))
    return folder


def _in_store(root: Path, real: Path) -> bool:
    """Whether a file is in the blob store of a hub's cache: models--X/snapshots/HASH links to models--X/blobs."""
    return root.parent.name == "snapshots" and real.is_relative_to(root.parent.parent / "blobs")
