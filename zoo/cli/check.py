"""`zoo check`: compare a checkpoint's tensors with its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, a run, or a Hugging Face folder.")],
) -> None:
    """Compare the names and shapes in a checkpoint's headers with those of its architecture. No weight is read."""
    from zoo.checkpoint.tensors import compare_tensors
    from zoo.errors import CheckpointError

    found = compare_tensors(checkpoint)
    if found.faults:
        raise CheckpointError(*found.faults)
    print(found)
