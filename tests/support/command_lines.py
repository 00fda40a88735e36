"""What the tests of the command line share: a process of its own, and the overrides of a tiny run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = (
    *("data=text", "data.path=text.txt", "data.tokenizer.kind=byte", "model.n_layers=1", "model.vocab_size=300"),
    *("steps=2", "batch_size=2", "seq_len=16", "eval_batches=1", "eval_every=null", "save_every=null", "sample=null"),
)


def zoo_process(*args: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", "zoo", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)


def list_job_folders(sweep: Path) -> list[Path]:
    """The folders of a sweep's jobs, in its order."""
    return [sweep / name for name in json.loads((sweep / "sweep.json").read_text())["jobs"]]
