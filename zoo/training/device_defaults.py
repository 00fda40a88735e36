"""Choose the values of a run's `auto` settings for the device and the mesh that it runs on.

| setting | on a CPU | on CUDA |
| --- | --- | --- |
| precision | fp32 | bf16, if the GPU computes in it (compute capability 8.0 and above); else fp32 |
| compile | after a trial (`zoo.training.compiling`) | true, if all rows have one shape and the run is long enough |

`checkpoint` is sharded where a mesh divides weights, on any device: all processes then write at once, each its part.
Adapters are small, and saved whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zoo.costs.kernels import mask_whole
from zoo.distributed.world import World
from zoo.kernels import machine_of, select
from zoo.lazy import torch
from zoo.run.fastest_dtype import multiplies_in_bf16
from zoo.training.compiling import FEWEST, has_one_shape

if TYPE_CHECKING:
    from zoo.training.planning import TrainingPlan
    from zoo.training.settings import Training


def settle_defaults(
    planned: TrainingPlan, device: torch.device, world: World, say: Callable[[str], object] = lambda line: None
) -> TrainingPlan:
    """Replace `auto` by the value chosen for this device and mesh, in the settings and in the config, so that a resumed
    run has the same. `say` gets a line with the values that differ from those of one process on a CPU and, on a GPU,
    with attention's kernels and TF32."""
    settings = planned.settings
    chosen: dict[str, Any] = {}
    if settings.precision == "auto":
        chosen["precision"] = "bf16" if multiplies_in_bf16(machine_of(device)) else "fp32"
    if settings.checkpoint == "auto":
        mesh = settings.parallel.settle(world)
        parts = mesh.weights[1] * mesh.tp * mesh.ep * mesh.pp
        chosen["checkpoint"] = "sharded" if parts > 1 and settings.lora is None else "whole"
    if settings.compile == "auto" and device.type == "cuda":
        chosen["compile"] = can_compile(planned, device, world)
    told = [f"{name}={value}".lower() for name, value in chosen.items() if value not in ("fp32", "whole")]
    planned = replace(planned, settings=replace(settings, **chosen), config={**planned.config, **chosen})
    if device.type == "cuda" and settings.kernel == "auto":
        told += [f"kernel={each}" for each in sorted(choose_kernels(planned, device))]
    if told:
        exact = "; float32 products in TF32" if multiplies_in_tf32(planned.settings, device) else ""
        say(f"defaults on {device}: {', '.join(told)} (each can be set){exact}")
    return planned


def multiplies_in_tf32(settings: Training, device: torch.device) -> bool:
    """Whether float32 products are computed in TF32: on a GPU, in a run whose precision is not fp32."""
    return device.type == "cuda" and settings.arithmetic != "fp32"


def choose_kernels(planned: TrainingPlan, device: torch.device) -> set[str]:
    """Return the names of the attention kernels that train the layers. Raises KernelError if the kernel that the user
    named cannot train or evaluate a kind of layer."""
    trains: set[str] = set()
    machine, dtype = machine_of(device), {"fp32": "float32", "bf16": "bfloat16"}[planned.settings.arithmetic]
    for tower in planned.spec.towers().values():
        for block in tower.blocks.values():
            tokens = planned.settings.seq_len
            mask = mask_whole(tower, block, tokens, planned.data.apart, tokens)
            drops = bool(planned.settings.dropout and planned.settings.dropout.attention)
            asks = ({"needs_grad": True, "dropout": drops}, {"needs_grad": False})
            for ask in (block.attention.ask(dtype, **{**mask.features, **each}) for each in asks):
                if ask is not None and (kernel := select(ask, machine, planned.settings.kernel)) and ask.needs_grad:
                    trains.add(kernel.name)
    return trains


def can_compile(planned: TrainingPlan, device: torch.device, world: World) -> bool:
    """Whether layers can be compiled on CUDA, and the run is long enough for it. This needs rows of one shape, a Triton
    that compiles, and no schedule or ring that conflicts with compiled layers."""
    settings = planned.settings
    mesh = settings.parallel.settle(world)
    if not has_one_shape(settings, planned.data.apart) or "compiler" not in machine_of(device).packages:
        return False
    return settings.steps * settings.accumulate >= FEWEST and not (mesh.rings or mesh.pipeline.splits_backward)
