# n processes
"""How a run is spread over processes: its mesh, read from the config, and the model laid out on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from zoo.errors import ConfigError, did_you_mean
from zoo.lazy import torch
from zoo.paths import conf_dir
from zoo.ranks.world import World, read_world
from zoo.spec import Spec

if TYPE_CHECKING:
    from zoo.training.settings import Training


def _check_ways(value: Any) -> Any:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"must be a whole number from 1 up, or auto, found {value!r}")
    return value


Ways = Annotated[int | Literal["auto"], BeforeValidator(_check_ways)]

DP, SHARD = "dp", "shard"
"""The dimensions of a mesh, by torch's names for them here."""


@dataclass(frozen=True)
class Mesh:
    """How many ways a run is spread: `dp` replicas, each of whose weights lie in `shard` parts. Every process trains on
    rows of its own."""

    dp: int = 1
    shard: int = 1

    @property
    def size(self) -> int:
        return self.dp * self.shard


class Parallel(Spec, axis="parallel", kind="mesh", default="mesh"):
    """The processes of a run by what they share.

    `dp` replicas of the model train on rows of their own and sum up their gradients (Li et al., 2020, DDP). The
    `shard` processes of a replica train on rows of their own too, and each holds a part of every weight, gradient and
    optimizer state (Rajbhandari et al., 2020, ZeRO-3; torch's FSDP2): a layer's weights are gathered where they
    compute. One of the two may be `auto`: as many as torchrun started.
    """

    dp: Ways = 1
    shard: Ways = 1

    def __post_init__(self) -> None:
        if self.dp == self.shard == "auto":
            raise ValueError("dp and shard are both auto (a number for one of them)")

    def settle(self, world: World) -> Mesh:
        """Give the mesh of so many processes. Raises ConfigError where they do not come out even."""
        stated = (1 if self.dp == "auto" else self.dp) * (1 if self.shard == "auto" else self.shard)
        left, rest = divmod(world.size, stated)
        open_ = "auto" in (self.dp, self.shard)
        if rest or (left > 1 and not open_):
            said = f"dp={self.dp} shard={self.shard}"
            if world.size > 1 and stated == 1:
                raise ConfigError(f"parallel: {said} uses one process, found {world.size} (parallel=ddp or fsdp)")
            needs = f"{'a multiple of ' if open_ else ''}{stated} processes"
            would = f"torchrun --nproc-per-node {stated} -m zoo train …"
            raise ConfigError(f"parallel: {said} needs {needs}, found {world.size} ({would})")
        dp = left if self.dp == "auto" else self.dp
        return Mesh(dp, left if self.shard == "auto" else self.shard)


def read_parallel(value: Any) -> Any:
    """Read the fields of a packaged way by its name (ddp, fsdp); give back any other value."""
    if not isinstance(value, str):
        return value
    from yaml import safe_load

    names = sorted(file.stem for file in (conf_dir() / "parallel").glob("*.yaml"))
    if value not in names:
        raise ValueError(f"there is no {value!r}{did_you_mean(value, names)} (one of: {', '.join(names)})")
    return safe_load((conf_dir() / "parallel" / f"{value}.yaml").read_text(encoding="utf-8"))


def find_world(settings: Training) -> World:
    """The processes that there are, or that a launcher is to start."""
    world = read_world()
    return World(size=settings.nproc) if settings.nproc and world.size == 1 else world


def find_parallel_faults(settings: Training, world: World) -> list[str]:
    """List what does not go with a run that is spread over the processes that there are."""
    try:
        mesh = settings.parallel.settle(world)
    except ConfigError as error:
        return list(error.faults)
    if mesh.size == 1:
        return []
    faults = []
    if settings.batch_size % (parts := mesh.size * settings.accumulate):
        by = f"{mesh.size} processes × accumulate={settings.accumulate}"
        found = f"is {settings.batch_size}, which {by} do not divide"
        faults.append(f"batch_size: {found} (a multiple of {parts})")
    for name, value, would in (
        ("precision", settings.precision, ("fp32", "bf16", "bf16_master")),
        ("offload", settings.offload, ("none",)),
        ("lawa", settings.lawa, (None,)),
        ("lora", settings.lora, (None,)),
    ):
        if value not in would:
            instead = ", ".join("null" if each is None else each for each in would)
            faults.append(f"{name}: is {value}, which one process alone does (one of: {instead}; or parallel=none)")
    if not settings.optim.by_part:
        found = f"{settings.optim.kind} needs whole tensors, of which each process has a part"
        faults.append(f"optim: {found} (optim=adamw, or parallel=none)")
    return faults


def lay_out(model: Any, mesh: Mesh, device: Any, precision: str) -> None:
    """Spread a built model over the processes of a mesh, in place: each layer's weights by themselves, and the others
    together. Gradients are summed up over all processes, not averaged."""
    if mesh.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    ranks = init_device_mesh(device.type, (mesh.dp, mesh.shard), mesh_dim_names=(DP, SHARD))
    policy = MixedPrecisionPolicy()
    if precision == "bf16_master":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    how: dict[str, Any] = {"mesh": ranks, "mp_policy": policy, "shard_placement_fn": place_experts(model, mesh.shard)}
    for path, tower in model.towers():
        stack = model.get_submodule(path) if path else model
        if len(stack.blocks) == len(tower.pattern):  # one that is used several times stays with the others
            for layer in stack.blocks:
                fully_shard(layer, **how)
    fully_shard(model, **how)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def place_experts(model: Any, ways: int) -> Any:
    """Make the choice of the dimension that a parameter is cut along: the first, and of a stack of fewer experts than
    ways its second, as `zoo stats` prices it."""
    from torch.distributed.tensor import Shard

    from zoo.run.layer import StackedLinear

    stacks = [module for module in model.modules() if isinstance(module, StackedLinear)]
    stacked = {id(each) for module in stacks for each in module.parameters()}

    def choose(parameter: Any) -> Shard | None:
        few = id(parameter) in stacked and parameter.shape[0] < ways
        return Shard(1) if few and parameter.ndim > 1 else None

    return choose
