"""Make the next batch in a thread while a device computes with the present one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.data.tokens import Batch


class ReadAhead:
    """Reads batches by `read(first, count)`; after each batch, a thread reads the next. With `pins`, batches lie in
    page-locked memory, from which a GPU copies asynchronously."""

    def __init__(self, read: Callable[[int, int], Batch], *, pins: bool) -> None:
        self._read, self._pins = read, pins
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="zoo-batches")
        self._next: tuple[tuple[int, int], Future[Batch]] | None = None

    def take(self, first: int, count: int, step: int) -> Batch:
        """Return the batch of `count` rows from row `first`, and begin to read the batch that starts `step` rows later.
        Errors of the reading thread are raised here. A batch read ahead for other rows is dropped."""
        ready, self._next = self._next, None
        batch = ready[1].result() if ready is not None and ready[0] == (first, count) else self._make(first, count)
        key = first + step, count
        self._next = key, self._thread.submit(self._make, *key)
        return batch

    def peek(self) -> Batch | None:
        """Return the batch read ahead without taking it; None if there is none. Waits until it is read."""
        return None if self._next is None else self._next[1].result()

    def _make(self, first: int, count: int) -> Batch:
        batch = self._read(first, count)
        if not self._pins:
            return batch
        pinned = {name: each.pin_memory() for name, each in batch._asdict().items() if each is not None}
        return batch._replace(**pinned)
