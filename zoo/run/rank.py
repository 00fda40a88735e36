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


def check_parts(spec: Any, ranks: int) -> None:
    """Check that `ranks` ranks can divide a model. Raises ConfigError with a line for each component they cannot."""
    shard_model(spec, ranks)


def find_ranks(asked: int) -> World:
    """Return the processes started by torchrun or `zoo generate --tp`. Raises ConfigError if their number is not
    `asked`."""
    world = read_world()
    if world.size != asked:
        found = f"{asked} ranks were asked for, torchrun has started {world.size} processes"
        raise ConfigError(f"tp: {found} (--tp {world.size}, or without torchrun)")
    return world


def take_part(model: Any, world: World, device: str) -> Model:
    """Take this rank's part of a loaded model, on the rank's device. All processes must call it."""
    from zoo.run.builder import build, pick_device
    from zoo.run.tensor_parallel import TensorSeam, divide_layers

    where = pick_device(device)
    if where.type == "cuda":
        where = pick_device(f"cuda:{world.local_rank}")
    join_processes(world, where.type)
    seam = TensorSeam(torch.distributed.group.WORLD)  # type: ignore[arg-type]
    part = build(shard_model(model.spec, world.size), device="meta")
    part.set_whole(model.spec)
    division = Division(find_cuts(model.spec, part.spec, world.size), seam.group)
    part.shares = Shares(tensor=division)
    divide_layers(part, seam)
    tensors = {name: division.take(name, each).to(where) for name, each in model.state_dict().items()}
    part.load_state_dict(tensors, assign=True)
    return part.eval()
