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

from zoo.distributed.world import World
from zoo.kernels import machine_of
from zoo.lazy import torch
from zoo.run.fastest_dtype import multiplies_in_bf16
from zoo.training.compiling import FEWEST, has_one_shape

if TYPE_CHECKING:
    from zoo.training.planning import TrainingPlan


def settle_defaults(
    planned: TrainingPlan, device: torch.device, world: World, say: Callable[[str], object] = lambda line: None
) -> TrainingPlan:
    """Replace `auto` by the value chosen for this device and mesh, in the settings and in the config, so that a resumed
    run has the same. `say` gets one line on values that differ from those of one process on a CPU."""
    settings = planned.settings
    chosen: dict[str, Any] = {}
    if settings.precision == "auto":
        chosen["precision"] = choose_precision(device)
    if settings.checkpoint == "auto":
        mesh = settings.parallel.settle(world)
        parts = mesh.weights[1] * mesh.tp * mesh.ep * mesh.pp
        chosen["checkpoint"] = "sharded" if parts > 1 and settings.lora is None else "whole"
    if settings.compile == "auto" and device.type == "cuda":
        chosen["compile"] = can_compile(planned, device, world)
    told = [f"{name}={value}".lower() for name, value in chosen.items() if value not in ("fp32", "whole")]
    if told:
        say(f"defaults on {device}: {', '.join(told)} (each can be set)")
    return replace(planned, settings=replace(settings, **chosen), config={**planned.config, **chosen})


def choose_precision(device: torch.device) -> str:
    """Choose the precision of a run: bf16 on a GPU that computes in it, else fp32."""
    return "bf16" if multiplies_in_bf16(machine_of(device)) else "fp32"


def can_compile(planned: TrainingPlan, device: torch.device, world: World) -> bool:
    """Whether layers can be compiled on CUDA, and the run is long enough for it. This needs rows of one shape, a Triton
    that compiles, and no schedule or ring that conflicts with compiled layers."""
    settings = planned.settings
    mesh = settings.parallel.settle(world)
    if not has_one_shape(settings, planned.data.apart) or "compiler" not in machine_of(device).packages:
        return False
    return settings.steps * settings.accumulate >= FEWEST and not (mesh.rings or mesh.pipeline.splits_backward)
