"""`zoo check`: a checkpoint's tensors held against its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, a run, or a Hugging Face folder.")],
) -> None:
    """Compare the names and shapes in a checkpoint's headers with those of its architecture. No weight is read."""
    from zoo.checkpoint import hf, store
    from zoo.costs.params import count
    from zoo.errors import CheckpointError
    from zoo.spec import table

    folder = store.find(checkpoint)
    if (folder / store.ARCHITECTURE).is_file():
        spec = store.read_spec(folder)
        store.check_tensors(folder / store.WEIGHTS, table(spec, spec.d_model))
        kind, ours, theirs = "zoo", len(table(spec, spec.d_model)), len(table(spec, spec.d_model))
    else:
        source, laid, faults = hf.check(folder)
        if faults:
            raise CheckpointError(*faults)
        spec = hf.spec_of(source.body)
        kind = f"{source.family.name}, {source.body.architecture}"
        ours, theirs = sum(len(entry.ours) for entry in laid), sum(len(entry.theirs) for entry in laid)
    total = count(spec)["total"]
    print(f"{folder}: whole ({kind}): {theirs} tensors in its files are the {ours} of the model, {total:,} parameters")
