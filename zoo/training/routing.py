# E experts
"""Balance the load of experts without an auxiliary loss, and measure the balance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.model.tower import Topology
    from zoo.run.layer import Model

RATE = 0.001
"""Default step of a selection bias: DeepSeek-V3's (2024)."""


def list_routers(model: Any) -> list[Any]:
    """List the router of each mixture of experts, in the order of `Output.loads`. A shared router appears once for each
    use."""
    found = []
    for path, tower in model.towers():
        blocks, stack = model.get_submodule(path).blocks, tower.stack
        ahead = model.get_submodule(path)._modules.get("mtp", ())
        for layer in (*(blocks[stack.index(index)] for index in range(tower.n_layers)), *ahead):
            found += [
                each for each in layer.modules() if getattr(getattr(each, "spec", None), "axis", None) == "router"
            ]
    return found


def has_selection_bias(spec: Topology) -> bool:
    """Whether a router of the model has a selection bias, which balances the load."""
    blocks = (block for tower in spec.towers().values() for block in tower.blocks.values())
    routers = (getattr(getattr(block, "ffn", None), "router", None) for block in blocks)
    return any(getattr(router, "selection_bias", False) for router in routers)


def balance_routers(model: Model, loads: list[Tensor], rate: float, skipped: Tensor | None = None) -> None:
    """Move each router's selection bias by `rate`: up for experts below the mean load, down for experts above it
    (loss-free balancing; Wang et al., 2024). `loads` are the routers' token counts [E] in the step, summed over
    microbatches. If `skipped` is 1, biases do not change."""
    totals: dict[int, tuple[Any, Tensor]] = {}
    for router, load in zip(list_routers(model), loads, strict=True):
        if getattr(router.spec, "selection_bias", False):
            there = totals.get(id(router))
            totals[id(router)] = (router, load if there is None else there[1] + load)
    for router, load in totals.values():
        direction = torch.sign(load.float().mean() - load)
        router.selection_bias.add_(direction if skipped is None else direction * (1 - skipped), alpha=rate)


def describe_loads(loads: list[Tensor]) -> dict[str, Tensor]:
    """Return the load of the busiest and of the idlest expert of any layer, relative to the mean load."""
    if not loads:
        return {}
    shares = [load / load.float().mean().clamp(min=1e-6) for load in loads]
    most, least = (torch.stack([each.aminmax()[place] for each in shares]) for place in (1, 0))
    return {"load_max": most.max(), "load_min": least.min()}
