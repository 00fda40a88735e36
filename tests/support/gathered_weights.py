"""Counts the weights that a process holds whole of those that it shares, at torch's FSDP2."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup


class Gathered:
    """The most bytes of gathered weights at once while it is entered, in passes with gradients: of units that are
    whole, and of those that are on their way (prefetched)."""

    def __init__(self) -> None:
        self.most = 0
        self._held: dict[int, int] = {}
        self._own: dict[str, Any] = {}

    def __enter__(self) -> Gathered:
        for name in ("unshard", "reshard"):
            self._own[name] = getattr(FSDPParamGroup, name)
            setattr(FSDPParamGroup, name, self._around(self._own[name]))
        return self

    def __exit__(self, *details: object) -> None:
        for name, method in self._own.items():
            setattr(FSDPParamGroup, name, method)

    def _around(self, method: Any) -> Any:
        def around(group: Any, *args: Any, **options: Any) -> Any:
            found = method(group, *args, **options)
            self._note(group)
            return found

        return around

    def _note(self, group: Any) -> None:
        whole = group.is_unsharded or group._all_gather_result is not None
        size = 0
        for each in group.fsdp_params:
            dtype = getattr(each, "param_dtype", None) or each.sharded_param.dtype
            size += each._orig_size.numel() * dtype.itemsize
        self._held[id(group)] = size if whole else 0
        if torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:  # the backward pass has gradients off
            self.most = max(self.most, sum(self._held.values()))
