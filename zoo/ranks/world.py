"""The processes of a run, as torchrun starts them: who they are, and what they agree on."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = timedelta(minutes=10)
"""After which a rank gives up waiting for the others."""


@dataclass(frozen=True)
class World:
    """The processes of a run: this one is number `rank` of `size`, and `local_rank` on its machine. A process alone
    agrees with itself. Of a part of all processes `group` is torch's process group."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether this process writes and shows."""
        return self.rank == 0

    def sum(self, *values: int) -> list[int]:
        """Sum up whole numbers over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(total, group=self.group)
        return total.tolist()

    def add_up(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum up scalars by name over all processes, on their device."""
        if self.size == 1 or not values:
            return dict(values)
        total = torch.stack([each.detach().double() for each in values.values()])
        torch.distributed.all_reduce(total, group=self.group)
        return dict(zip(values, total.float().unbind(), strict=True))

    def add_up_(self, value: Tensor) -> Tensor:
        """Sum up a tensor over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(value, group=self.group)
        return value

    def tell(self, value: Any) -> Any:
        """Give every process what the main one has."""
        if self.size == 1:
            return value
        told = [value]
        torch.distributed.broadcast_object_list(told, src=0, group=self.group)
        return told[0]

    def share(self, value: Any) -> list[Any]:
        """Give every process what each one has, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value, group=self.group)
        return found

    def gather(self, value: Any) -> list[Any]:
        """Give the main process what each one has, by rank; the others get nothing."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.gather_object(value, found if self.main else None, group=self.group)
        return found if self.main else []

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            torch.distributed.barrier(self.group)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process do something before the others do it too: they find its files."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()


ALONE = World()


def read_world() -> World:
    """Read from torchrun's variables which process of how many this is."""
    found = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if None in found:
        return ALONE
    rank, size, local = (int(each) for each in found if each is not None)
    return World(rank, size, local)


def leave_at_once() -> None:
    """Let this process end without taking leave of the others, one of which is gone: it would wait for it."""
    atexit.unregister(torch.distributed.destroy_process_group)
