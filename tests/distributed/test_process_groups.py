"""The process groups of a mesh: how many there are, and what they open; machines that cannot reach one another."""

import os
import socket
from contextlib import suppress

import pytest
import torch
from torch import distributed
from torch.distributed import HashStore, PrefixStore
from torch.testing._internal.distributed.fake_pg import FakeStore

from support.forked_processes import run_ranks
from zoo.distributed import meeting
from zoo.distributed.mesh import Mesh
from zoo.distributed.world import World, read_world
from zoo.errors import ConfigError
from zoo.training import layout

MESHES = {
    # a group for all along the shards is the default one; along the one replica each process has a group of its own
    "fsdp": (Mesh(shard=16), 16),
    "hsdp": (Mesh(dp=2, shard=8), 8 + 2),
    "tp": (Mesh(shard=2, tp=8), 16 + 8 + 2 + 8 + 2 + 4 + 8),  # dp, shard, tp; rows; of 8, 4 and 2 ranks
    "pp": (Mesh(shard=4, pp=4), 4 + 16 + 4 + 4 + 4 + 4),  # pp, dp, shard; rows; stages and their ends
    "cp": (Mesh(shard=4, cp=4), 16 + 4 + 4),  # dp; rows; context
}


@pytest.fixture
def processes():
    """Rank 0 of 16 processes that do not exist."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=16)
    yield World(0, 16)
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_opens_few_groups(name, processes, monkeypatch):
    mesh, most = MESHES[name]
    made, before = [], distributed.new_group

    def counted(ranks=None, *args, **options):
        made.append(ranks)
        return before(ranks, *args, **options)

    for module in (distributed, torch.distributed.device_mesh):
        monkeypatch.setattr(module, "new_group", counted)
    layout.ProcessGroups.open(mesh, processes, torch.device("cpu"), 64)
    print(name, len(made))
    assert len(made) == most


def count_sockets():
    found = 0
    for each in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found += os.readlink(f"/proc/self/fd/{each}").startswith("socket:")
    return found


def main():
    """Hold the sockets of a rank against those of a group that it has used."""
    world = read_world()
    meeting.join_processes(world, "cpu")
    groups = [distributed.new_group() for _ in range(8)]
    idle = count_sockets()
    for group in groups:
        distributed.all_reduce(torch.ones(1), group=group)
    # Two neighbours for each group, less the few sockets of the meeting that have been closed meanwhile.
    assert count_sockets() >= idle + len(groups)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
def test_a_group_connects_no_processes_before_it_is_used():
    run_ranks(4, "distributed.test_process_groups")


@pytest.fixture
def named(monkeypatch):
    """Two machines of two processes each: this one's name is node-2, at 127.0.1.1, the other's node-1."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv(meeting.CARD, raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "node-2")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    store = PrefixStore("start", HashStore())
    store.set("machine/0", "node-1")
    return store


def test_a_machine_that_the_others_cannot_reach_is_refused_in_one_line(named):
    said = "GLOO_SOCKET_IFNAME: is not set, and node-2 is 127.0.1.1, where other machines do not reach it"
    with pytest.raises(ConfigError, match=said):
        meeting.refuse_loopback(named, 2, 4)


@pytest.mark.parametrize("what", ["card", "one machine", "one agent", "address"])
def test_a_machine_that_the_others_reach_is_not(what, named, monkeypatch):
    if what == "card":
        monkeypatch.setenv(meeting.CARD, "eth0")
    elif what == "one machine":
        named.set("machine/0", "node-2")
    elif what == "one agent":
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    else:
        monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.2")
    meeting.refuse_loopback(named, 2, 4)
