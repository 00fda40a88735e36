"""The processes of a run as torchrun starts them, and collectives of plain values between them."""

from __future__ import annotations

import atexit
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from zoo.lazy import Tensor, torch

TIMEOUT = timedelta(minutes=10)
"""Timeout of collectives of tensors, and of starting the processes. The other groups of a mesh have torch's default (30
minutes where both gloo and NCCL are there)."""

HOST_TIMEOUT = timedelta(hours=12)
"""Timeout of collectives of plain values: a process may tokenise, write a checkpoint or draw while the others wait."""

LINGER = 0.1


@dataclass(frozen=True)
class World:
    """The processes of a run: this one is `rank` of `size`, and `local_rank` on its machine. With one process no
    collective communicates. `group` is a process group of some processes, None for all. Plain values of all processes
    go through a separate group (`host`), which waits up to HOST_TIMEOUT."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and output."""
        return self.rank == 0

    @property
    def host(self) -> Any:
        """The process group of plain values and of tensors in host memory. The first use opens the group: all processes
        must get there together."""
        if self.size == 1 or self.group is not None:
            return self.group
        return open_host_group(torch.distributed.group.WORLD)

    def sum(self, *values: int) -> list[int]:
        """All-reduce integers (sum)."""
        return self.begin_sum(*values)()

    def begin_sum(self, *values: int) -> Callable[[], list[int]]:
        """Begin to all-reduce integers (sum). Returns the function that waits for the sums. All processes must call
        this in the same order among their collectives, and may call the function whenever they like."""
        if self.size == 1:
            return lambda: list(values)
        total = torch.tensor(values, dtype=torch.int64)
        work = torch.distributed.all_reduce(total, group=self.host, async_op=True)
        assert work is not None  # this process is in the group

        def wait() -> list[int]:
            work.wait()
            return total.tolist()

        return wait

    def sum_scalars(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All-reduce scalars by name (sum), on their device. They are summed in float64 and returned in float32."""
        if self.size == 1 or not values:
            return dict(values)
        total = torch.stack([each.detach().double() for each in values.values()])
        torch.distributed.all_reduce(total, group=self.group)
        return dict(zip(values, total.float().unbind(), strict=True))

    def all_reduce_(self, value: Tensor) -> Tensor:
        """All-reduce a tensor in place (sum)."""
        if self.size > 1:
            torch.distributed.all_reduce(value, group=self.group)
        return value

    def broadcast(self, value: object) -> Any:
        """Broadcast a picklable value from the main process, and return it."""
        if self.size == 1:
            return value
        told = [value]
        torch.distributed.broadcast_object_list(told, src=0, group=self.host)
        return told[0]

    def all_gather(self, value: object) -> list[Any]:
        """All-gather picklable values: a list by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value, group=self.host)
        return found

    def barrier(self) -> None:
        """Wait at a barrier for all processes."""
        if self.size > 1:
            torch.distributed.barrier(self.host)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process run the body of a `with` statement before the others, which then find its files."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()


ALONE = World()


@functools.cache
def open_host_group(within: Any) -> Any:
    """Open a group of all processes of the default group `within` for plain values: over gloo, with HOST_TIMEOUT. All
    processes must call this together."""
    return torch.distributed.new_group(backend="gloo", timeout=HOST_TIMEOUT)


def read_world() -> World:
    """Read this process' rank and the number of processes from torchrun's environment variables; without these
    variables there is one process."""
    found = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if None in found:
        return ALONE
    rank, size, local = (int(each) for each in found if each is not None)
    return World(rank, size, local)


def leave_group() -> None:
    """Leave torch.distributed at the end of a process that has done its work. A thread of gloo may still hold the
    tensors of the last collective; letting go of them while Python ends aborts the process (pytorch/pytorch#179291), as
    one did on a crowded machine. So it gets LINGER seconds."""
    torch.distributed.destroy_process_group()
    time.sleep(LINGER)


@contextmanager
def leaves_at_once_after_errors() -> Iterator[None]:
    """After an error, let this process end without waiting for the others. Otherwise the end of torch.distributed would
    wait for collectives that the others have begun and that this process never joins."""
    try:
        yield
    except Exception:
        atexit.unregister(leave_group)
        raise
