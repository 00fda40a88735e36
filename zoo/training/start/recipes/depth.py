"""Grow a stack by layers."""

from __future__ import annotations

import re
from typing import Any

from zoo.spec import Experts, Linear, tensors
from zoo.training.start.recipes import Tensors

KEEPS_STREAM = ("pre", "parallel")
"""Kinds of block in which a branch that gives 0 leaves the residual stream as it was."""


def add_layers(source: Any, target: Any, held: Tensors, path: str, how: str) -> tuple[str | None, list[int]]:
    """Make the layers of a deeper tower of a shallower one's. Returns the line, and for each layer the one it is from.

    `stack` repeats the whole stack (Gong et al., 2019; Du et al., 2024): with three layers 0 1 2 0 1 2. `identity`
    repeats each layer behind itself and sets to 0 what the repetition adds to the residual stream (Wu et al., 2024,
    LLaMA Pro): 0 0' 1 1' 2 2', and the model's function stays.
    """
    before, after = len(source.stack.stored()), len(target.stack.stored())
    if after <= before:
        return None, list(range(after))
    if how == "identity":
        origins = [layer * before // after for layer in range(after)]
    else:
        origins = [layer % before for layer in range(after)]
    layers = _take_layers(held, f"{path}blocks.", before)
    for layer, origin in enumerate(origins):
        silent = how == "identity" and layer > 0 and origins[layer - 1] == origin
        zeroed = _writers(target, layer) if silent else set()
        for name, tensor in layers[origin].items():
            held[f"{path}blocks.{layer}.{name}"] = tensor.clone().zero_() if name in zeroed else tensor.clone()
    paper = "Wu et al., 2024; the added ones change nothing" if how == "identity" else "Gong et al., 2019"
    return f"{path}n_layers: {before} layers became {after} ({how}: {paper})", origins


def find_unsilenced(target: Any) -> str | None:
    """Name the kind of block in which added layers cannot be silenced, or None."""
    return next((block.kind for block in target.blocks.values() if block.kind not in KEEPS_STREAM), None)


def _take_layers(held: Tensors, prefix: str, count: int) -> list[Tensors]:
    """Take the tensors of each layer out, by their names within it."""
    layers: list[Tensors] = [{} for _ in range(count)]
    for name in [name for name in held if name.startswith(prefix)]:
        match = re.match(r"(\d+)\.(.*)", name.removeprefix(prefix))
        assert match is not None
        layers[int(match[1])][match[2]] = held.pop(name)
    return layers


def _writers(target: Any, layer: int) -> set[str]:
    """The names, within a layer, of the tensors that write to the residual stream."""
    block = target.blocks[target.stack.stored()[layer]]
    parts = [(name, part.of if isinstance(part, Experts) else part) for name, part, _ in tensors(block, target.d_model)]
    return {name for name, part in parts if isinstance(part, Linear) and part.residual}
