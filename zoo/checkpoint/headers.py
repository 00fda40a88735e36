"""Compare the header of a tensor file with the names and shapes that a model expects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from zoo.checkpoint.tensor_files import read_header
from zoo.errors import CheckpointError, did_you_mean
from zoo.untrusted.printable import list_first, shorten


def check_tensors(file: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a file's names and shapes with those expected, as `compare_shapes` does."""
    compare_shapes(file, {name: header.shape for name, header in read_header(file).items()}, expected)


def compare_shapes(file: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of tensors with those expected. Raises CheckpointError, one line for each difference
    (the first few of each sort). A scalar may be stored with shape [1]."""
    unexpected = [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    misshaped = [
        name
        for name, shape in expected.items()
        if name in found and found[name] != shape and (found[name], shape) != ((1,), ())
    ]

    def describe_missing(name: str) -> str:
        shape = list(expected[name])
        return f"{file}: {name} is missing, of shape {shape}{did_you_mean(name, unexpected)}"

    def describe_unexpected(name: str) -> str:
        return f"{file}: {shorten(name)} belongs to no part of the model (leave it out)"

    def describe_misshaped(name: str) -> str:
        return f"{file}: {name} has shape {list(found[name])}, the model's is {list(expected[name])}"

    faults = list_first(missing, describe_missing, file) + list_first(unexpected, describe_unexpected, file)
    faults += list_first(misshaped, describe_misshaped, file)
    if faults:
        raise CheckpointError(*faults)
