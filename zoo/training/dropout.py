# B rows, T tokens, D model width
"""Dropout (Srivastava et al., 2014) and stochastic depth (Huang et al., 2016) of a run: off in eval mode."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from zoo.lazy import Tensor
from zoo.model.drops import Dropping
from zoo.model.init import mix_seed
from zoo.spec import Experts, Linear, Spec, components, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.nn import Module

    from zoo.model.tower import Topology


Rate = Annotated[float, Field(ge=0, lt=1)]

BRANCHES = ("attention", "ffn")
"""Axes of the components whose outputs are added to the residual stream."""
RATES = ("attention", "residual", "embedding", "ffn", "layers")


class Dropout(Spec, axis="dropout", kind="dropout", default="dropout"):
    """Dropout rates of a run. Kept values are scaled by 1 / (1 − rate), so that expected values do not change."""

    attention: Rate = 0.0
    """Rate at which probabilities are dropped after the softmax."""
    residual: Rate = 0.0
    """Rate at which channels of the outputs of attention and feed-forward are dropped."""
    embedding: Rate = 0.0
    """Rate at which channels of the first layer's input are dropped."""
    ffn: Rate = 0.0
    """Rate at which hidden units are dropped."""
    layers: Rate = 0.0
    """Rate of stochastic depth: for each row, the output of attention or feed-forward in layer l of L is dropped whole
    with probability layers·l/L."""

    def find_faults(self, spec: Topology, fp8: bool) -> list[str]:
        """List the rates without effect in this model, and the settings that conflict with dropout."""
        if not any(getattr(self, name) for name in RATES):
            return ["dropout: drops nothing, all its rates are 0 (null)"]
        faults: list[str] = []
        towers = spec.towers().values()
        blocks = [block for tower in towers for block in tower.blocks.values()]
        if self.attention and all(block.attention.ask("float32") is None for block in blocks):
            faults.append(f"dropout.attention: is {self.attention}, and no layer has probabilities to drop (0)")
        if self.ffn and not any(_list_downs(spec)):
            faults.append(f"dropout.ffn: is {self.ffn}, and no layer has a feed-forward (0)")
        if self.layers and any(tower.layer_weights for tower in towers):
            faults.append("dropout.layers: its rate grows with depth, and the layers share their weights (0)")
        if fp8:
            faults.append("dropout: is not taken in float8 (precision=bf16)")
        return faults

    def apply(self, model: Any, seed: int = 0) -> None:
        """Make a built model drop values in training mode. A hash of the seed, the row's number and a value's place
        decides whether that value is dropped (`zoo.model.drops`). So recomputation, resuming and any mesh drop the same
        values. Only the kernel sdpa draws its own random numbers for attention probabilities."""
        rates, whole = {name: getattr(self, name) for name in RATES}, model.whole
        units = [part.of.d_in if isinstance(part, Experts) else part.d_in for part in _list_downs(whole)]
        width = max(whole.d_model, count_draws(whole), *units)
        for path, _ in model.towers():
            tower = model.get_submodule(path)
            tower.dropping = Dropping(mix_seed(seed, f"dropout {path}"), width, **rates)
            for block in tower.blocks if self.residual or self.layers else ():
                for name, child in block.named_children():
                    if child.spec.axis in BRANCHES:
                        child.register_forward_hook(partial(_drop_branch, name))


def count_draws(spec: Topology) -> int:
    """Count the random numbers that a layer's router draws for a token in training: the maximum over layers."""
    return max((getattr(each, "draws", 0) for _, each, _ in components(spec, spec.d_model)), default=0)


def _list_downs(spec: Topology) -> Iterator[Any]:
    """List the down projections of feed-forwards: their inputs are the hidden units."""
    parts = (part for row, part in walk(spec, spec.d_model) if row.path.split(".")[-1] == "down")
    return (part for part in parts if isinstance(part, Linear | Experts))


def _drop_branch(name: str, module: Module, args: Any, output: Tensor) -> Tensor:
    """Apply residual dropout and stochastic depth to a branch's output [B, T, D]."""
    drops = args[1].drops
    return output if drops is None else drops.drop_branch(output, name, whole=not module.divided)
