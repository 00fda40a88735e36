"""Counts the bytes that a process sends to others, at torch's process groups."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

AGREED = 64
"""Bytes up to which a sum is one of counts and norms that all agree on."""


class Sent(TorchDispatchMode):
    """Counts bytes by operation while it is entered. A ring of n sends (n − 1)/n of what is gathered or scattered, and
    twice that of what is summed up."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.note(func._opname, args)
        return func(*args, **(kwargs or {}))

    def note(self, name: str, args: tuple[Any, ...]) -> None:
        ranks = next((distributed.ProcessGroup.unbox(each).size() for each in args[:3] if is_group(each)), 1)
        first = (args[0] or [None])[0] if isinstance(args[0], list) else args[0]
        if not torch.is_tensor(first):  # objects of Python's, which some agree on
            return
        size = first.numel() * first.element_size()
        if name == "allreduce_" and size > AGREED:
            self.add("sum", 2 * (ranks - 1) / ranks * size)
        elif name.startswith("_allgather_base_"):
            self.add("gather", (ranks - 1) / ranks * size)
        elif name.startswith("_reduce_scatter_base_"):
            self.add("scatter", (ranks - 1) * size)
        elif name == "alltoall_base_":
            sent, rows = args[1], args[4]
            if not sent.is_floating_point():  # how many rows come, which is told before
                return
            own = rows[distributed.ProcessGroup.unbox(args[2]).rank()]
            self.add("exchange", (len(sent) - own) * sent[:1].numel() * sent.element_size())
        elif name == "send":
            self.add("send", size)

    def add(self, name: str, size: float) -> None:
        self.bytes[name] = self.bytes.get(name, 0.0) + size

    @property
    def total(self) -> float:
        return math.fsum(self.bytes.values())


def is_group(value: Any) -> bool:
    return "ProcessGroup" in str(value._type()) if hasattr(value, "_type") else False
