# E experts
"""Balance the load of experts without a loss, and say how even it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

RATE = 0.001
"""The step of a selection bias where none is named: DeepSeek-V3's (2024)."""


def list_routers(model: Any) -> list[Any]:
    """List the router of each mixture of experts, in the order of `Output.loads`; one that layers share comes again."""
    found = []
    for path, tower in model.towers():
        blocks, stack = model.get_submodule(path).blocks, tower.stack
        for index in range(tower.n_layers):
            layers = blocks[stack.index(index)].modules()
            found += [each for each in layers if getattr(getattr(each, "spec", None), "axis", None) == "router"]
    return found


def has_selection_bias(spec: Any) -> bool:
    """Whether a router of a model has a bias that evens out the load."""
    blocks = (block for tower in spec.towers().values() for block in tower.blocks.values())
    routers = (getattr(getattr(block, "ffn", None), "router", None) for block in blocks)
    return any(getattr(router, "selection_bias", False) for router in routers)


def balance_routers(model: Any, loads: list[Tensor], rate: float) -> None:
    """Move each router's selection bias by `rate`: up for an expert with less than the mean load, down for one with
    more (Wang et al., 2024, loss-free balancing). `loads` [E] are those of the step, of all of its microbatches."""
    totals: dict[int, tuple[Any, Tensor]] = {}
    for router, load in zip(list_routers(model), loads, strict=True):
        if getattr(router.spec, "selection_bias", False):
            there = totals.get(id(router))
            totals[id(router)] = (router, load if there is None else there[1] + load)
    for router, load in totals.values():
        router.selection_bias.add_(torch.sign(load.float().mean() - load), alpha=rate)


def describe_loads(loads: list[Tensor]) -> dict[str, Tensor]:
    """Give the load of the busiest and of the idlest expert of any layer, in mean loads: 1 and 1 where it is even."""
    if not loads:
        return {}
    shares = [load / load.float().mean().clamp(min=1e-6) for load in loads]
    most, least = (torch.stack([each.aminmax()[place] for each in shares]) for place in (1, 0))
    return {"load_max": most.max(), "load_min": least.min()}
