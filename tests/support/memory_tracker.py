"""Track the most memory that tensors take at once while torch code runs: every storage, from its making to its end."""

import weakref
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class StorageTracker(TorchDispatchMode):
    """Count the bytes of storages that operations make inside the mode; `most` is the sum at its fullest.

    An operation's own scratch memory, inside a fused kernel, is none of them, but for `logsumexp`, which takes as much
    as it reads (ReduceOps.cpp). Of fake tensors the sizes count as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._sizes: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()

    def know(self, tensors: Any) -> None:
        """Leave these tensors' storages uncounted, such as a model's weights."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        scratch = args[0].nbytes if func is torch.ops.aten.logsumexp.default else 0
        self.most = max(self.most, self.live + scratch)
        return result

    def __enter__(self) -> "StorageTracker":
        resize = torch.UntypedStorage.resize_

        def tracked(storage: Any, size: int) -> Any:
            before = storage.nbytes()
            result = resize(storage, size)
            if storage in self._sizes:
                self._sizes[storage][0] += size - before
                self.live += size - before
            else:
                self._count(storage)
            self.most = max(self.most, self.live)
            return result

        self._resize, torch.UntypedStorage.resize_ = resize, tracked  # as FSDP frees and takes weights again
        return super().__enter__()

    def __exit__(self, *details: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*details)

    def _count(self, storage: Any) -> None:
        if storage in self._known or storage in self._sizes:
            return
        size = self._sizes[storage] = [storage.nbytes()]
        self.live += size[0]
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: list[int]) -> None:
        self.live -= size[0]
