"""Serve a model with tensor parallelism: each process computes its part, and all draw the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.costs.rank_model import shard_model
from zoo.distributed.meeting import join_processes
from zoo.distributed.sharded_tensors import Division, Shares
from zoo.distributed.world import World, read_world
from zoo.errors import ConfigError
from zoo.lazy import torch
from zoo.spec.cuts import find_cuts

if TYPE_CHECKING:
    from zoo.run.layer import Model


def find_ranks(asked: int) -> World:
    """Return the processes started by torchrun or `zoo generate --tp`. Raises ConfigError if their number is not
    `asked`."""
    world = read_world()
    if world.size != asked:
        found = f"{asked} ranks were asked for, torchrun has started {world.size} processes"
        raise ConfigError(f"tp: {found} (--tp {world.size}, or without torchrun)")
    return world


def pick_rank_device(device: str, world: World) -> torch.device:
    """Choose the device of this process. Of several processes on CUDA, each takes the GPU numbered by its local
    rank."""
    from zoo.run.builder import pick_device

    where = pick_device(device)
    return pick_device(f"cuda:{world.local_rank}") if where.type == "cuda" and world.size > 1 else where


def build_part(spec: Any, world: World, device_type: str) -> Model:
    """Build this rank's part of a model on the meta device, and join the other ranks. All processes must call it."""
    from zoo.run.builder import build
    from zoo.run.tensor_parallel import TensorSeam, divide_layers

    join_processes(world, device_type)
    seam = TensorSeam(torch.distributed.group.WORLD)  # type: ignore[arg-type]
    part = build(shard_model(spec, world.size), device="meta")
    part.whole = spec
    part.shares = Shares(tensor=Division(find_cuts(spec, part.spec, world.size), seam.group))
    divide_layers(part, seam)
    return part
