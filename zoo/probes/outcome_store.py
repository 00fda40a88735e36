"""Store each training of a probe in a folder, so that a killed battery resumes.

FOLDER/runs.json     the scores of each training, with the hash of architecture and probe
FOLDER/probe.json    the outcome, once all trainings are done
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.disk import write_text
from zoo.paths import recipes_dir
from zoo.probes.outcome import ProbeOutcome
from zoo.untrusted.json_file import JsonShape, read_json

if TYPE_CHECKING:
    from zoo.probes.battery import ProbeTraining

RUNS, OUTCOME = "runs.json", "probe.json"
LONGEST = 100


class RunsFile(JsonShape):
    """The content of runs.json."""

    key: str
    runs: dict[str, dict[str, Any]]


@dataclass
class ScoreStore:
    """Scores of the trainings of one architecture on one probe. Without a folder they are only in memory."""

    folder: Path | None
    key: str
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, key: str) -> ScoreStore:
        """Open the store in a folder. Stored scores with another `key` (architecture or settings) are ignored. Raises
        ConfigError for an unreadable file."""
        if folder is None or not (folder / RUNS).is_file():
            return cls(folder, key)
        stored = read_json(folder / RUNS, RunsFile)
        return cls(folder, key, dict(stored["runs"]) if stored["key"] == key else {})

    def __contains__(self, task: ProbeTraining) -> bool:
        return name_task(task) in self.found

    def read(self, task: ProbeTraining) -> dict[str, Any]:
        return self.found[name_task(task)]

    def write(self, task: ProbeTraining, found: dict[str, Any]) -> None:
        """Store the scores of a training."""
        self.found[name_task(task)] = found
        self._write(RUNS, {"key": self.key, "runs": self.found})

    def finish(self, outcome: ProbeOutcome) -> None:
        """Write the outcome to probe.json."""
        self._write(OUTCOME, outcome.to_dict())

    def _write(self, name: str, data: object) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / name, json.dumps(data, indent=2) + "\n")


def name_task(task: ProbeTraining) -> str:
    """Return the name of a training in the store: its purpose, learning rate and seed, which `key` does not cover."""
    return f"{'report' if task.report else 'choose'} lr {task.lr:.6g} seed {task.seed}"


def name_folder(model: str, overrides: Sequence[str]) -> str:
    """Return the folder name of a model with overrides: `llama-tiny,attention=sliding,window=16`. A name of more than
    LONGEST characters is cut, and ends with a hash of the whole."""
    text = re.sub(r"[^\w.,=+-]+", "_", ",".join([Path(model).name or model, *overrides]))
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 9]}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def read_cards() -> dict[str, list[ProbeOutcome]]:
    """Read the published probe outcomes of each architecture, by its name (recipes/cards)."""
    files = sorted((recipes_dir() / "cards").glob("*.json"))
    names = (re.sub(r"^\d+-", "", file.stem).replace("-", " ") for file in files)
    return {
        name: [ProbeOutcome.from_dict(each) for each in read_json(file, list)]
        for name, file in zip(names, files, strict=True)
    }
