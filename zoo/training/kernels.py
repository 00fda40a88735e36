"""Choose the kernels that a run trains with, and say whether they drop what one process would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.costs.kernels import mask_whole
from zoo.kernels import machine_of, select

if TYPE_CHECKING:
    from zoo.ranks.world import World
    from zoo.training.planning import TrainingPlan


def choose_kernels(planned: TrainingPlan, device: Any) -> set[str]:
    """Name the kernels that train the kinds of layers. Raises KernelError when the one that the user named cannot train
    or evaluate one of them."""
    trains: set[str] = set()
    machine, dtype = machine_of(device), {"fp32": "float32", "bf16": "bfloat16"}[planned.settings.arithmetic]
    for tower in planned.spec.towers().values():
        for block in tower.blocks.values():
            tokens = planned.settings.seq_len
            mask = mask_whole(tower, block, tokens, planned.data.documents, tokens)
            drops = bool(planned.settings.dropout and planned.settings.dropout.attention)
            asks = ({"needs_grad": True, "dropout": drops}, {"needs_grad": False})
            for ask in (block.attention.ask(dtype, **{**mask.features, **each}) for each in asks):
                if ask is not None and (kernel := select(ask, machine, planned.settings.kernel)) and ask.needs_grad:
                    trains.add(kernel.name)
    return trains


def describe_own_draws(planned: TrainingPlan, kernels: set[str], world: World) -> str | None:
    """Say where several processes drop other probabilities of attention than one would: those that a fused kernel draws
    by itself."""
    drops = planned.settings.dropout is not None and planned.settings.dropout.attention > 0
    if not drops or world.size == 1 or "sdpa" not in kernels:
        return None
    found = "sdpa draws by itself what it drops, otherwise than in one process"
    return f"dropout.attention: {found} (kernel=eager drops the same)"
