# V vocabulary
"""Choose an engine's sizes for its device."""

from __future__ import annotations

from typing import NamedTuple

from zoo.lazy import torch
from zoo.run.machine_memory import read_free_memory

RESERVE = 0.1
"""Fraction of a GPU's free memory that the cache leaves to activations (shared by all CUDA graphs) and to kernels'
workspaces."""

LOGITS = 4
"""Number of float32 copies of the logits [rows, T, V] in memory during sampling: in the CUDA graphs' output memory, as
a copy of that, as probabilities, and sorted."""


class EngineSizes(NamedTuple):
    """Maximum number of sequences that run at once (`rows`), maximum tokens per step (`budget`), and maximum bytes of
    the cache (`memory`; None: as many as `rows` sequences need)."""

    rows: int
    budget: int
    memory: int | None


def size_engine(device: torch.device, vocabulary: int = 0, new: int = 1) -> EngineSizes:
    """Choose an engine's sizes for a device, a vocabulary size and `new` tokens per sequence and decoding step (above 1
    with drafts). A GPU's `budget` can be large: a step of up to some thousand tokens takes about as long as reading the
    weights. A GPU's cache takes the free memory, except RESERVE and the logits of sampling."""
    if device.type != "cuda":
        return EngineSizes(rows=32, budget=512, memory=None)
    rows, free = 256, read_free_memory(device) or 0
    spare = int(free * RESERVE) + 4 * LOGITS * rows * new * vocabulary
    return EngineSizes(rows=rows, budget=8192, memory=max(free - spare, 0))
