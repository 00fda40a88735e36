"""Hold what a kernel reads and writes under Triton's interpreter to the tensors that it was given. On a GPU an address
beyond them passes unseen or ends the process. To be imported once TRITON_INTERPRET is settled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter


class Watched:
    """Triton's interpreter, with an IndexError at the first address outside the arguments' storages."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self.spans: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def load(self, addresses: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self.check(addresses, mask, "reads")
        return self.native.load(addresses, mask, other, dtype)

    def store(self, addresses: Any, value: Any, mask: Any) -> Any:
        self.check(addresses, mask, "writes")
        return self.native.store(addresses, value, mask)

    def check(self, addresses: Any, mask: Any, does: str) -> None:
        found = np.asarray(addresses).ravel().astype(np.int64)[np.asarray(mask).ravel().astype(bool)]
        inside = np.zeros(found.size, bool)
        for first, end in self.spans:
            inside |= (found >= first) & (found < end)
        if not inside.all():
            raise IndexError(f"a kernel {does} {(~inside).sum()} values outside the tensors that it was given")


def watch_addresses() -> None:
    """Watch every kernel from here on. Raises AssertionError if a kernel that reads too far would not be found."""
    watched = Watched(interpreter._interpreter)
    copy_arguments = interpreter.GridExecutor._init_args_hst

    def copy_and_note(self: Any, args: Any, kwargs: Any) -> Any:
        copies = copy_arguments(self, args, kwargs)
        watched.spans = list(find_spans(copies))
        return copies

    interpreter._interpreter, interpreter.GridExecutor._init_args_hst = watched, copy_and_note
    copy_values[(1,)](x := torch.ones(5), torch.zeros(5), 5, 8)
    for read, written in ((x, torch.zeros(8)), (torch.ones(8), torch.zeros(5))):
        try:
            copy_values[(1,)](read, written, 6, 8)
        except interpreter.InterpreterError as error:
            assert isinstance(error.__cause__, IndexError), error
        else:
            raise AssertionError("an address beyond a tensor was not found")


def find_spans(node: Any) -> Iterator[tuple[int, int]]:
    """The first address and the end of each tensor's storage among a kernel's arguments."""
    if isinstance(node, torch.Tensor):
        storage = node.untyped_storage()
        yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    elif isinstance(node, dict | list | tuple):
        for each in node.values() if isinstance(node, dict) else node:
            yield from find_spans(each)


@triton.jit
def copy_values(source, target, count, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, SIZE)
    tl.store(target + place, tl.load(source + place, mask=place < count), mask=place < count)
