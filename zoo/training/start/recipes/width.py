# F hidden width, D model width
"""Widen feed-forwards and the residual stream (Net2Net; Chen et al., 2015)."""

from __future__ import annotations

from typing import Any

from zoo.lazy import torch
from zoo.spec import Conv, Embedding, Experts, Linear, tensors
from zoo.training.start.recipes import Tensors, change
from zoo.training.start.recipes.heads import draw_shares


def widen_ffn(source: Any, target: Any, held: Tensors, path: str, generator: Any) -> str | None:
    """Add hidden units that are copies of drawn ones, and divide what each gives among its copies: the function stays.

    The shares are drawn, so that copies learn different things.
    """
    if source.kind != target.kind:
        return None
    if source.kind == "moe":
        lines = [widen_ffn(source.expert, target.expert, held, f"{path}experts.", generator)]
        if source.shared and target.shared:
            lines.append(widen_ffn(source.shared.expert, target.shared.expert, held, f"{path}shared.", generator))
        return next(filter(None, lines), None)
    before, after = getattr(source, "d_ff", None), getattr(target, "d_ff", None)
    if before is None or after is None or after <= before:
        return None
    drawn = torch.randint(before, (after - before,), generator=generator)
    origins = torch.cat([torch.arange(before), drawn])
    shares = draw_shares(origins, generator)
    for name in ("up", "gate"):
        change(held, f"{path}{name}.weight", lambda each: each.index_select(-2, origins.to(each.device)))
        change(held, f"{path}{name}.bias", lambda each: each.index_select(-1, origins.to(each.device)))
    change(
        held, f"{path}down.weight", lambda each: each.index_select(-1, origins.to(each.device)) * shares.to(each.device)
    )
    return f"d_ff: {before} hidden units became {after} (Net2Net; Chen et al., 2015)"


def widen_stream(source: Any, target: Any, held: Tensors, path: str, generator: Any) -> str | None:
    """Repeat every channel of the residual stream, and divide among the copies what a product reads: the function
    stays, as norms see the same mean square."""
    before, after = source.d_model, target.d_model
    if after <= before or after % before or getattr(target.head, "tied", False):
        return None
    copies = after // before
    origins = torch.arange(after) % before
    for name, part, leaf in tensors(target, target.d_model):
        whole = f"{path}{name}"
        if whole not in held or isinstance(part, Conv):
            continue
        tensor, wanted = held[whole], part.shapes()[leaf]
        linear = part.of if isinstance(part, Experts) else part
        for axis, (own, size) in enumerate(zip(tensor.shape, wanted, strict=True)):
            if own * copies != size or own != before:
                continue
            tensor = tensor.index_select(axis, origins.to(tensor.device))
            reads = isinstance(linear, Linear) and leaf == "weight" and axis == tensor.ndim - 1
            if reads and not isinstance(part, Embedding):
                tensor = tensor * draw_shares(origins, generator).to(tensor.device)
        held[whole] = tensor
    return f"{path}d_model: {before} channels became {after} (Net2Net; Chen et al., 2015)"
