# V vocabulary
"""Choose an engine's sizes for the device that it runs on."""

from __future__ import annotations

from typing import NamedTuple

from zoo.lazy import torch
from zoo.run.machine_memory import read_free_memory

RESERVE = 0.1
"""The share of a GPU's free memory that the cache leaves to activations, which all CUDA graphs share, and to the
workspaces of kernels."""

LOGITS = 4
"""Number of float32 copies of the logits [rows, T, V] that are in memory while tokens are sampled: in the memory that
CUDA graphs write to, as taken from there, as probabilities, and sorted."""


class EngineSizes(NamedTuple):
    """The most sequences that run at once (`rows`), the most tokens that a step computes (`budget`), and the bytes that
    the cache may take (`memory`; None: as many as the rows need)."""

    rows: int
    budget: int
    memory: int | None


def size_engine(device: torch.device, vocabulary: int = 0, new: int = 1) -> EngineSizes:
    """Choose an engine's sizes for a device, a vocabulary size and `new` tokens of a row in a decoding step (more than
    one with drafts). On a GPU `budget` can be large: a step of up to some thousand tokens takes about as long as
    reading the weights. A GPU's cache takes the free memory, less RESERVE and the logits of sampling."""
    if device.type != "cuda":
        return EngineSizes(rows=32, budget=512, memory=None)
    rows, free = 256, read_free_memory(device) or 0
    spare = int(free * RESERVE) + 4 * LOGITS * rows * new * vocabulary
    return EngineSizes(rows=rows, budget=8192, memory=max(free - spare, 0))
