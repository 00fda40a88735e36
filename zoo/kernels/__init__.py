"""Attention kernels: `attend`, the choice of a kernel, and one file per kernel. `eager` is the reference for all."""

from zoo.kernels.base import AttentionQuery, Call, Kernel, Machine, Scores
from zoo.kernels.dispatch import KERNELS, KernelChoice, attend, order, pick, prepare, select
from zoo.kernels.found import machine_of

__all__ = [
    "KERNELS",
    "AttentionQuery",
    "Call",
    "Kernel",
    "KernelChoice",
    "Machine",
    "Scores",
    "attend",
    "machine_of",
    "order",
    "pick",
    "prepare",
    "select",
]
