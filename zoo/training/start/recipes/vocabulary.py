"""Add rows for new tokens."""

from __future__ import annotations

from typing import Any

from zoo.lazy import torch
from zoo.training.start.recipes import Tensors


def add_tokens(source: Any, target: Any, held: Tensors, shapes: dict[str, tuple[int, ...]], path: str) -> str | None:
    """Give each new token the mean of the old ones' rows (Hewitt, 2021), in the table and in the head."""
    before, after = source.vocab_size, target.vocab_size
    if after <= before:
        return None
    for name, tensor in held.items():
        inside = name.startswith((f"{path}embedding.", f"{path}head."))
        if inside and name in shapes and tensor.shape[0] == before and shapes[name][0] == after:
            mean = tensor.mean(0, keepdim=True)
            held[name] = torch.cat([tensor, mean.expand(after - before, *tensor.shape[1:])])
    return f"{path}vocab_size: {before} tokens became {after}, the new ones' rows are the mean (Hewitt, 2021)"
