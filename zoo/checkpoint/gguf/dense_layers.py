"""Name a sentence model's dense layers in a GGUF file: two matrices after the pooling, as in EmbeddingGemma."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.families.gguf import GGUFFile, read_catalogue
from zoo.lazy import Tensor

DENSE = ("dense_2", "dense_3")
"""llama.cpp's names of the dense layers that sentence-transformers stores in the folders 2_Dense and 3_Dense."""


def has_dense(architecture: str) -> bool:
    """Whether llama.cpp applies dense layers in models of an architecture."""
    return bool((read_catalogue()["architectures"].get(architecture) or {}).get("dense"))


def list_dense(found: GGUFFile) -> list[str]:
    """List the names of the dense layers' tensors in a file."""
    names = [f"{name}.weight" for name in DENSE] if has_dense(found.architecture) else []
    return [name for name in names if name in found.tensors]


def name_dense(architecture: str, width: int, matrices: Sequence[Tensor] | None) -> Mapping[str, Tensor]:
    """Map llama.cpp's names to the matrices of dense layers; empty if llama.cpp does not support the matrices. It
    supports two, the second of which outputs vectors of the model's `width`."""
    if matrices is None or len(matrices) != len(DENSE) or not has_dense(architecture):
        return {}
    ends = matrices[0].shape[1], matrices[-1].shape[0]
    return (
        {f"{name}.weight": each for name, each in zip(DENSE, matrices, strict=True)} if ends == (width, width) else {}
    )


def describe_dense(architecture: str, named: Mapping[str, Tensor]) -> dict[str, Any]:
    """Make the metadata of dense layers: the input and output width of each."""
    made = {}
    for name, matrix in named.items():
        start = f"{architecture}.{name.removesuffix('.weight')}_feat"
        made |= {f"{start}_out": matrix.shape[0], f"{start}_in": matrix.shape[1]}
    return made
