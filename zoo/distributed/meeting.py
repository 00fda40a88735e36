"""Join the processes of a run, also after torchrun has restarted them.

torchrun's agents keep one key-value store over all restarts. The store still has the keys of dead processes, to whose
addresses gloo would connect (pytorch/pytorch#135712). So after each start the processes agree on a new prefix of keys.
The restart count cannot be this prefix, because each machine's agent counts for itself.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from zoo.distributed.world import TIMEOUT, World, leave_group
from zoo.errors import ConfigError, LostProcess
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[reportPrivateImportUsage]

PAUSE = 0.02  # seconds between two polls of the main process

LAZY = "TORCH_GLOO_LAZY_INIT"
"""The environment variable that makes gloo connect two processes of a group when they first communicate. By default
each new group connects all its processes: two groups of 512 processes would reach the usual limit of 1,024 open
files."""

CARD = "GLOO_SOCKET_IFNAME"
"""The environment variable that names the network card of gloo. Without it gloo listens at the address that the
machine's name resolves to."""


def join_processes(world: World, device: str) -> None:
    """Initialise torch.distributed over gloo, and for CUDA tensors over NCCL. Does nothing for one process, or if
    torch.distributed is initialised already: torchrun's rendezvous works only once in a process' life. Raises
    LostProcess if a process does not come, and ConfigError if a machine's name is a loopback address."""
    if world.size == 1 or torch.distributed.is_initialized():
        return
    os.environ.setdefault(LAZY, "1")
    own: dict[str, Any] = {}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed.rendezvous import rendezvous

        store, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        prefix = agree_on_prefix(store, rank, size, TIMEOUT)
        refuse_loopback(torch.distributed.PrefixStore(prefix, store), rank, size)  # type: ignore[reportPrivateImportUsage]
        own = {"rank": rank, "world_size": size}
        own["store"] = torch.distributed.PrefixStore(prefix, store)  # type: ignore[reportPrivateImportUsage]
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=TIMEOUT, **own)
    atexit.register(leave_group)


def agree_on_prefix(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """Agree on a prefix that no earlier start has used, in a store that may hold keys of earlier starts.

    Example: rank 2 writes zoo/asks/2 = "a1" and waits for zoo/told/a1. Rank 0 writes the prefix for each id that it
    finds in zoo/asks/2 (the first may be a stale "f9"), until all ranks have counted themselves in zoo/joined. Rank 0
    raises LostProcess if a rank is still missing after `timeout`.
    """
    if rank == 0:
        name = uuid.uuid4().hex
        _tell_others(store, name, size, time.monotonic() + timeout.total_seconds())
        return f"zoo/{name}"
    ask = uuid.uuid4().hex
    store.set(f"zoo/asks/{rank}", ask)
    name = store.get(f"zoo/told/{ask}").decode()
    store.add(f"zoo/joined/{name}", 1)
    return f"zoo/{name}"


def refuse_loopback(store: Store, rank: int, size: int) -> None:
    """Raise ConfigError if the run has several machines, but this machine's name resolves to an address that the others
    cannot reach: Debian's /etc/hosts gives a machine 127.0.1.1. Gloo would listen there, and the others would wait for
    it."""
    here, name = int(os.environ.get("LOCAL_WORLD_SIZE", size)), socket.gethostname()
    if here == size or os.environ.get(CARD):
        return
    store.set(f"machine/{rank}", name)
    if store.get(f"machine/{(rank + here) % size}").decode() == name:  # two agents on one machine
        return
    try:
        address = socket.gethostbyname(name)
    except OSError:  # gloo says so itself
        return
    if address.startswith("127."):
        would = f"{CARD}=eth0, or the card's name in `ip addr`"
        raise ConfigError(
            f"{CARD}: is not set, and {name} is {address}, where other machines do not reach it ({would})"
        )


def _tell_others(store: Store, name: str, size: int, until: float) -> None:
    answered: set[str] = set()
    while store.add(f"zoo/joined/{name}", 0) < size - 1:
        if time.monotonic() > until:
            raise LostProcess("the other processes of the run have not come (what started them says why)")
        for key in (f"zoo/asks/{rank}" for rank in range(1, size)):
            ask = store.get(key).decode() if store.check([key]) else None
            if ask is not None and ask not in answered:
                store.set(f"zoo/told/{ask}", name)
                answered.add(ask)
        time.sleep(PAUSE)
