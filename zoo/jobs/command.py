"""The command line with which another process starts or resumes a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.checkpoint.manifest import is_verified


@dataclass(frozen=True)
class Command:
    """A command line of `zoo train`: its options (`-c FILE` or `--resume RUN`) and its overrides."""

    options: Sequence[str]
    overrides: Sequence[str]

    def place(self, folder: Path) -> Command:
        """Return the command of the same run in this folder. A resumed run keeps its own folder."""
        if "--resume" in self.options:
            return self
        rest = [each for each in self.overrides if not each.startswith("hydra.run.dir=")]
        return Command(self.options, [*rest, f"hydra.run.dir='{folder}'"])

    def list_words(self) -> list[str]:
        hasty = [] if is_verified() else ["--no-verify"]  # a job of a scheduler may start in another environment
        return ["train", *hasty, *self.options, *self.overrides]
