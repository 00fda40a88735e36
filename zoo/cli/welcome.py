"""List the next steps in the working folder, which `zoo` without a verb prints on a terminal. Imports nothing slow."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from zoo.untrusted.printable import shorten

MOST = 8
"""Maximum number of lines between the first line and the last."""

READ = 1 << 16
"""Characters of a YAML file that are read to tell what it is."""

KINDS = {
    r"^arms:": "zoo experiment {}",
    r"^model:": "zoo train -c {}",
    r"^(vocab_size|d_model|n_layers|d_ff|attention|ffn):": "zoo stats {0}, zoo draw {0}, zoo train {0} steps=100",
}
"""Maps a pattern of a YAML file's top-level key to the commands for this file. The first match counts."""


def list_next_steps(folder: Path = Path()) -> list[str]:
    """List at most ten lines on the runs, model files and model folders in a folder; empty if there are none."""
    try:
        found = [*_list_runs(folder), *_list_models(folder)]
    except OSError:  # a folder that cannot be listed
        return []
    if not found:
        return []
    more = [f"  and {len(found) - MOST + 1} more like these"] if len(found) > MOST else []
    shown = [f"  {line}" for line in (found[: MOST - 1] if more else found)]
    return ["What is here, and what can be done with it:", *shown, *more, "zoo --help lists all commands."]


def _list_runs(folder: Path) -> Iterator[str]:
    """Yield lines on the last run and how to continue it, on the number of runs, and on sweeps."""
    runs = [each.parent for depth in ("*", "*/*") for each in folder.glob(f"runs/{depth}/checkpoints")]
    last = folder / "runs" / "last"  # zoo.runs, which names these, takes longer to import than all of this
    named = Path(last.read_text(encoding="utf-8", errors="replace").strip()) if last.is_file() else None
    if named is not None and (folder / named / "checkpoints").is_dir():
        yield f"{_name(named)}, the last run: zoo generate --prompt TEXT"
        if not (folder / named / "result.json").is_file():
            yield f"{_name(named)} has no result yet: zoo train --resume {_name(named)}"
    if len(runs) > 1:
        yield f"{len(runs)} runs: zoo runs, zoo plot runs"
    if any(folder.glob("sweeps/*/sweep.json")) or any(folder.glob("sweeps/*/*/sweep.json")):
        yield "sweeps: zoo report SWEEP, zoo runs sweeps"


def _list_models(folder: Path) -> Iterator[str]:
    """Yield a line for each model file and Hugging Face folder, the newest first."""
    for path in sorted(folder.iterdir(), key=lambda each: -each.lstat().st_mtime):
        if (use := _find_use(path)) is not None:
            name = _name(Path(path.name))
            yield f"{name}: {use.format(name)}"


def _find_use(path: Path) -> str | None:
    """Return the commands for a model's file or folder, or for a training config; None for anything else."""
    if path.suffix in (".yaml", ".yml") and path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(READ)
        return next((use for key, use in KINDS.items() if re.search(key, text, re.MULTILINE)), None)
    described = any((path / name).is_file() for name in ("zoo.yaml", "config.json"))
    if path.suffix == ".gguf" or (described and any(path.glob("*.safetensors"))):
        return "zoo stats {0}, zoo generate --checkpoint {0} --prompt TEXT"
    return "zoo stats {}" if described else None


def _name(path: Path) -> str:
    return shlex.quote(shorten(path.as_posix()))
