"""Download models of the Hugging Face hub by their names, `ORG/NAME[@REVISION]`, into the hub's own cache.

Only files that will be read are downloaded, and none of their code is run. With HF_HUB_OFFLINE=1, or without a network,
only the cache is used.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, short

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]*\w)(?:@([\w.-]+(?:/[\w.-]+)*))?")
FILES = (".yaml", ".yml", ".json", ".jsonl", ".gguf", ".safetensors", ".bin", ".pt")
"""File suffixes. A name with one of them is not looked up as a repository."""

_commits: dict[str, str] = {}
"""The commit of each looked-up name: a process reads one state of a model, and queries the hub for it once."""

SETTINGS = ("config.json", "adapter_config.json")
GGUF = ".gguf"


def is_hub_name(path: str | Path) -> bool:
    """Whether a path means a model of the hub: it looks like `ORG/NAME[@REVISION]`, and neither the path nor a folder
    ORG exists here."""
    text = os.fspath(path)
    found = NAME.fullmatch(text)
    return found is not None and not text.endswith(FILES) and not os.path.lexists(text.partition("/")[0])


def locate(path: str | Path) -> Path:
    """Return the path of a model's description: the given path or, for a model of the hub, the folder with its
    config.json (or adapter_config.json), or its GGUF file. No other weights are downloaded.

    Raises CheckpointError for a model that is missing or gated, and without the network if the cache lacks it.
    """
    if not is_hub_name(path):
        return Path(path).expanduser()
    name = os.fspath(path)
    folder = download(name, *SETTINGS)
    if any((folder / each).is_file() for each in SETTINGS):
        return folder
    files = [each.name for each in folder.glob(f"*{GGUF}")]
    files = files or [each for each in list_files(name) if each.endswith(GGUF) and "/" not in each]
    if len(files) != 1:
        found = (
            f"has several GGUF files: {', '.join(sorted(files))}" if files else "has no config.json and no GGUF file"
        )
        raise CheckpointError(f"{name}: {found} (`hf download {NAME.fullmatch(name)[1]} FILE` prints a path)")  # type: ignore[index]
    return download(name, *files) / files[0]


def name_snapshot(folder: Path) -> tuple[str, str] | None:
    """Return the name and commit of the model in this folder of the hub's cache. None for any other folder."""
    found = re.search(r"/models--([^/]+)/snapshots/([0-9a-f]{40})$", folder.as_posix())
    return None if found is None else (found[1].replace("--", "/", 1), found[2])


def find_snapshot(name: str, revision: str | None) -> Path | None:
    """Find the folder of a model in the hub's cache, without a network. None if it is missing, or if the revision could
    be a path to another place."""
    if revision is not None and not re.fullmatch(r"\w[\w.-]*", revision):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    file = try_to_load_from_cache(name, SETTINGS[0], revision=revision)
    return Path(file).parent if isinstance(file, str) else None


@functools.cache
def download(name: str, *patterns: str) -> Path:
    """Download the files of a model that match glob patterns, unless they are in the cache. Return the folder of the
    snapshot. Raises CheckpointError as `locate` does."""
    with _opened(name) as (hub, repo, revision):
        at = _commits.get(name, revision)
        folder = Path(hub.snapshot_download(repo, revision=at, allow_patterns=[*patterns]))
    _commits[name] = folder.name
    return folder


def list_files(name: str) -> list[str]:
    """List the files of a model. Raises CheckpointError as `locate` does, and without the network."""
    with _opened(name) as (hub, repo, revision):
        return hub.HfApi().list_repo_files(repo, revision=_commits.get(name, revision))


@contextmanager
def _opened(name: str) -> Iterator[tuple[Any, str, str | None]]:
    """Yield the package huggingface_hub, and a name's repository and revision. Turn its errors into CheckpointError."""
    found = NAME.fullmatch(name)
    assert found is not None, name
    repo, revision = found.groups()
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors, utils
    except ImportError:
        cure = "pip install 'transformer-zoo[hf]' reads models of the hub by their names"
        raise CheckpointError(f"{name}: no such file or folder ({cure})") from None
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    for library in ("httpx", "httpx2"):  # a run's log has INFO, at which they tell of each request
        logging.getLogger(library).setLevel(logging.WARNING)
    http: Any = vars(errors)["HTTPError"]  # httpx's or httpx2's, the base of what either raises
    try:
        yield hub, repo, revision
    except errors.GatedRepoError:
        cure = f"accept its terms at {hub.constants.ENDPOINT}/{repo}, then `hf auth login`"
        raise CheckpointError(f"{name}: is gated, and this account may not read it ({cure})") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name}: has no revision {revision} (a branch, a tag or a commit)") from None
    except errors.RepositoryNotFoundError:
        found = "is no file or folder here, and no model of the hub that this account may read"
        raise CheckpointError(f"{name}: {found} (another name; `hf auth login` for a private one)") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        found = "is no file or folder here; the hub cannot be reached, and its cache lacks files of the model"
        cure = f"`hf download {repo}` where there is a network, or the path of a folder or config.json"
        if Path(repo).parent.is_dir():
            cure = f"`zoo runs {Path(repo).parent}` lists the runs there; {cure}"
        raise CheckpointError(f"{name}: {found} ({cure})") from None
    except (errors.HFValidationError, http, OSError) as error:
        raise CheckpointError(f"{name}: cannot be read from the hub, found {short(error)} (try again)") from error
