"""Attention with one meaning and several kernels: `attend` and what picks among them, a file for each kernel."""

from zoo.kernels.attend import KERNELS, Choice, attend, order, pick, prepare, select
from zoo.kernels.base import Ask, Call, Kernel, Machine
from zoo.kernels.found import machine_of

__all__ = [
    "KERNELS",
    "Ask",
    "Call",
    "Choice",
    "Kernel",
    "Machine",
    "attend",
    "machine_of",
    "order",
    "pick",
    "prepare",
    "select",
]
