"""Compare the tensors of a file with the names and shapes that a model expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.errors import CheckpointError, did_you_mean
from zoo.untrusted.printable import list_first, shorten

Shapes = Mapping[str, tuple[int, ...]]


def compare_shapes(file: Path, found: Shapes, expected: Shapes) -> None:
    """Compare names and shapes of tensors with those expected. Raises CheckpointError, one line for each difference
    (the first few of each sort). A scalar may be stored with shape [1]."""
    found = {name: () if (shape, expected.get(name)) == ((1,), ()) else shape for name, shape in found.items()}
    missing, strange = [n for n in expected if n not in found], [n for n in found if n not in expected]
    said = "belongs to no part of the model (leave it out)"
    if faults := describe_differences(file, found, expected, missing, strange, said):
        raise CheckpointError(*faults)


def describe_differences(
    file: Path, found: Shapes, expected: Shapes, missing: Sequence[str], strange: Sequence[str], said: str
) -> list[str]:
    """Describe the tensors that a file lacks, those that are strange (in the words `said`), and those with another
    shape than expected: a line for each of the first few of each sort."""
    misshaped = [name for name, shape in expected.items() if name in found and found[name] != shape]

    def describe_missing(name: str) -> str:
        return f"{file}: {name} is missing, of shape {list(expected[name])}{did_you_mean(name, strange)}"

    def describe_misshaped(name: str) -> str:
        return f"{file}: {name} has shape {list(found[name])}, the model's is {list(expected[name])}"

    faults = list_first(missing, describe_missing, file)
    faults += list_first(strange, lambda name: f"{file}: {shorten(name)} {said}", file)
    return faults + list_first(misshaped, describe_misshaped, file)
