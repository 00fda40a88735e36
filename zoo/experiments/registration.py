"""Register an experiment before its first run, and list what changes afterwards.

FOLDER/registration.json    {"when": "…", "hash": "…", "parts": {"arms": "…", …}, "stated": {…},
                             "changes": [{"when": "…", "of": {"margin": "…"}, "stated": {…}}]}

A verdict is worth more if its arms, budget and expectations were written down before anything ran. Each part has its
own hash, so that a later change is listed by name with the verdict. `stated` has the parts as plain data. `models` are
the resolved configs of all arms, and `code` the sources of this package. The file is local. To prove to others that it
came first, publish its hash, or commit the file, before the first run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zoo
from zoo.disk import write_text
from zoo.experiments.experiment import Experiment, make_experiment
from zoo.jobs.sweep import SweepPoint
from zoo.untrusted.json_file import read_json

FILE = "registration.json"

PARTS: Mapping[str, tuple[str, ...]] = {
    "arms": ("shared", "arms", "baseline", "config"),
    "budget": ("match", "match_by", "matched"),
    "tuning": ("tune",),
    "seeds": ("seeds",),
    "metric": ("metric", "higher", "measure"),
    "margin": ("margin",),
    "expectations": ("expect",),
}
"""The fields of an experiment in each part of its registration."""


def register(experiment: Experiment, folder: Path, points: list[SweepPoint]) -> dict[str, Any]:
    """Register an experiment in its folder, or list what differs from its registration there. Returns the registration.
    Raises CheckpointError for a faulty file."""
    parts = hash_parts(experiment, points)
    file = folder / FILE
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    if not file.is_file():
        stated = {name: state_part(experiment, name) for name in PARTS}
        made: dict[str, Any] = {"when": now, "hash": _hash(parts), "parts": parts, "stated": stated, "changes": []}
    else:
        made = read_json(file, dict[str, Any])
        latest = dict(made["parts"]) | {name: value for each in made["changes"] for name, value in each["of"].items()}
        changed = {name: value for name, value in parts.items() if latest.get(name) != value}
        if not changed:
            return made
        stated = {name: state_part(experiment, name) for name in changed if name in PARTS}
        made["changes"].append({"when": now, "of": changed, "stated": stated})
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(made, indent=1) + "\n")
    return made


def read_registered(folder: Path) -> Experiment | None:
    """Read the experiment that a folder's registration states, with its later changes; None without a registration.
    Raises CheckpointError or ConfigError for a faulty file."""
    if not (file := folder / FILE).is_file():
        return None
    made = read_json(file, dict[str, Any])
    stated: dict[str, Any] = {}
    for each in (made, *made["changes"]):
        for part in each["stated"].values():
            stated |= part
    return make_experiment(stated | {"config": None}, file)  # the runs have their config


def hash_parts(experiment: Experiment, points: list[SweepPoint]) -> dict[str, str]:
    """Hash each part of an experiment."""
    parts = {name: _hash(state_part(experiment, name)) for name in PARTS}
    return {
        **parts,
        "models": _hash(sorted({each.arm: each.name for each in reversed(points)}.items())),
        "code": hash_code(),
    }


def state_part(experiment: Experiment, name: str) -> dict[str, Any]:
    """State a part of an experiment as plain data."""
    return experiment.model_dump(mode="json", include=set(PARTS[name]))


def describe_registration(registered: Mapping[str, Any]) -> str:
    """Say when an experiment was registered, and what changed afterwards."""
    said = f"registered {registered['when'].replace('T', ' ')} as {registered['hash']}, before its first run"
    if not registered["changes"]:
        return f"{said}; nothing changed since"
    changed = {name: each["when"] for each in registered["changes"] for name in each["of"]}
    latest = max(changed.values()).replace("T", " ")
    return f"{said}; changed since, at last {latest}: {', '.join(changed)} ({FILE} has both)"


@functools.cache
def hash_code() -> str:
    """Hash the sources of this package."""
    root = Path(zoo.__file__).parent
    made = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        made.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return made.hexdigest()[:12]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
