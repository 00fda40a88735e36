# H heads, K kv heads, G = H / K, C head width, D model width
"""Change the numbers of an attention's heads."""

from __future__ import annotations

from typing import Any

from zoo.lazy import torch
from zoo.training.start.recipes import Tensors, change

ALIKE = ("rope", "none", "learned", "sinusoidal")
"""Position schemes that are the same for every head."""


def regroup_heads(source: Any, target: Any, held: Tensors, path: str) -> str | None:
    """Merge key-value heads by their mean (Ainslie et al., 2023), or repeat them, which keeps the function."""
    before, after = getattr(source, "n_kv_heads", None), getattr(target, "n_kv_heads", None)
    same = all(
        getattr(source, name, None) == getattr(target, name, None) for name in ("kind", "n_heads", "head_widths")
    )
    if not before or not after or before == after or not same or (before % after and after % before):
        return None

    def merge(tensor: Any) -> Any:  # [K·C, …]
        heads = tensor.unflatten(0, (before, -1))
        if before % after:
            return heads.repeat_interleave(after // before, 0).flatten(0, 1)
        return heads.unflatten(0, (after, -1)).mean(1).flatten(0, 1)

    for name in ("k.weight", "k.bias", "v.weight", "v.bias"):
        change(held, f"{path}{name}", merge)
    how = (
        "each the mean of its group's (Ainslie et al., 2023)" if after < before else "repeated, with the same function"
    )
    return f"attention: {before} key-value heads became {after}, {how}"


def add_heads(source: Any, target: Any, held: Tensors, path: str, generator: Any) -> str | None:
    """Copy heads, and divide what comes out of each among its copies (Net2Net; Chen et al., 2015): the function stays.

    The copies' shares are drawn, so that they learn different things.
    """
    if source.kind != target.kind or not hasattr(source, "n_kv_heads") or source.n_heads >= target.n_heads:
        return None
    kv, group = source.n_kv_heads, source.n_heads // source.n_kv_heads
    copies, more = target.n_kv_heads / kv, target.n_heads / target.n_kv_heads / group
    if copies % 1 or more % 1 or source.head_widths != target.head_widths or target.position.kind not in ALIKE:
        return None
    a, b = int(copies), int(more)
    shares = draw_shares(torch.arange(source.n_heads).view(kv, group).repeat(a, b).flatten(), generator)  # H

    def spread(tensor: Any) -> Any:  # [H·C, …]
        heads = tensor.unflatten(0, (kv, group, -1))
        return heads.repeat(a, b, *[1] * (heads.ndim - 2)).flatten(0, 2)

    def spread_kv(tensor: Any) -> Any:
        heads = tensor.unflatten(0, (kv, -1))
        return heads.repeat(a, *[1] * (heads.ndim - 1)).flatten(0, 1)

    def divide(tensor: Any) -> Any:  # [D, H·C]
        whole = spread(tensor.t()).unflatten(0, (target.n_heads, -1))
        return (whole * shares.to(whole.device)[:, None, None]).flatten(0, 1).t().contiguous()

    for name in ("q", "gate"):
        change(held, f"{path}{name}.weight", spread)
        change(held, f"{path}{name}.bias", spread)
    for name in ("k", "v"):
        change(held, f"{path}{name}.weight", spread_kv)
        change(held, f"{path}{name}.bias", spread_kv)
    change(held, f"{path}o.weight", divide)
    change(held, f"{path}sinks", lambda each: spread(each[:, None])[:, 0])
    return f"attention: {source.n_heads} heads became {target.n_heads} (Net2Net; Chen et al., 2015)"


def draw_shares(origins: Any, generator: Any) -> Any:
    """Draw for each copy its share of the original: those of one original add up to 1. `origins` names the original of
    each copy [N] → [N]."""
    weights = 0.5 + torch.rand(len(origins), generator=generator)
    sums = torch.zeros(int(origins.max()) + 1).index_add_(0, origins, weights)
    return weights / sums[origins]
