"""Compare the header of a tensor file with the names and shapes that a model expects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from zoo.checkpoint.files import read_header
from zoo.errors import CheckpointError, did_you_mean


def check_tensors(file: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes in a file's header with those expected. Raises CheckpointError, one line for each
    difference."""
    compare_shapes(file, {name: header.shape for name, header in read_header(file).items()}, expected)


def compare_shapes(file: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of tensors with those expected. Raises CheckpointError, one line for each difference.
    A number may be stored as a tensor of one place."""
    unexpected = [name for name in found if name not in expected]
    faults = [
        f"{file}: {name} is missing, of shape {list(shape)}{did_you_mean(name, unexpected)}"
        for name, shape in expected.items()
        if name not in found
    ]
    faults += [f"{file}: {name} belongs to no part of the model (leave it out)" for name in unexpected]
    faults += [
        f"{file}: {name} has shape {list(found[name])}, the model's is {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape and (found[name], shape) != ((1,), ())
    ]
    if faults:
        raise CheckpointError(*faults)
