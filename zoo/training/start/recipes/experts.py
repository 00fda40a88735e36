"""Make a mixture of experts of one feed-forward."""

from __future__ import annotations

from typing import Any

from zoo.lazy import torch
from zoo.spec import Linear, table
from zoo.training.start.recipes import Tensors


def upcycle(source: Any, target: Any, held: Tensors, fresh: set[str], path: str, d_model: int) -> str | None:
    """Copy a feed-forward to every expert, with a router drawn anew (Komatsuzaki et al., 2022).

    Where a token's expert weights add up to 1, the model's function stays.
    """
    if target.kind != "moe" or source.kind == "moe" or source.kind != target.expert.kind:
        return None
    count = target.n_computing
    for name, part in source.parts(d_model).items():
        if isinstance(part, Linear):
            for leaf in part.shapes():
                own = held.pop(f"{path}{name}.{leaf}")
                held[f"{path}experts.{name}.{leaf}"] = torch.stack([own] * count)
    fresh |= {f"{path}router.{name}" for name in table(target.router, d_model)}
    return f"ffn: became {count} experts, copies of it, with routers drawn anew (Komatsuzaki et al., 2022)"
