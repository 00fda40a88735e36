"""Trains in float8 on a mesh, in the ranks that forked_processes.py starts, with arguments PARALLEL FOLDER OVERRIDE…,
on a CPU, which is said to be able."""

from __future__ import annotations

import zoo
from zoo.run import fp8


def main(parallel: str, folder: str, *overrides: str) -> None:
    fp8.refuses = lambda recipe, machine: None  # type: ignore[assignment]
    zoo.train("llama-tiny", [*overrides, f"parallel={parallel}", f"hydra.run.dir={folder}"])
