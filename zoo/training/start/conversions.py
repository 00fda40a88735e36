# H heads, K kv heads, G = H / K, C head width, D model width
"""Convert weights of one architecture to another by published recipes. Each recipe changes a dict of tensors in place,
and returns a line that describes the change, or None if there was nothing to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zoo.lazy import Tensor, torch
from zoo.spec import Conv, Embedding, Experts, Linear, table, tensors

if TYPE_CHECKING:
    from torch import Generator

    from zoo.model.attention.base import Attention
    from zoo.model.tower import Tower

Tensors = dict[str, Any]
"""Tensors by name; on the meta device while a start is only checked."""

KEEPS_STREAM = ("pre", "parallel")
"""Kinds of block in which a branch with output 0 leaves the residual stream unchanged."""

ALIKE = ("rope", "none", "learned", "sinusoidal")
"""Position schemes that treat all heads alike."""


def change(tensors: Tensors, name: str, how: Callable[[Tensor], Tensor]) -> None:
    """Replace tensor `name` by `how(tensor)`, if it exists."""
    if name in tensors:
        tensors[name] = how(tensors[name])


# ---------------------------------------------------------------- layers


def add_layers(source: Tower, target: Tower, held: Tensors, path: str, how: str) -> tuple[str | None, list[int]]:
    """Make the layers of a deeper tower from a shallower one's. Returns the line, and the number of each layer's
    original.

    `stack` repeats the whole stack (Gong et al., 2019; Du et al., 2024): 0 1 2 becomes 0 1 2 0 1 2. `identity` repeats
    each layer after itself, with zeroed outputs to the residual stream, so that the model's function is unchanged
    (LLaMA Pro; Wu et al., 2024): 0 0' 1 1' 2 2'.
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


def find_unsilenced(target: Tower) -> str | None:
    """Name a kind of block whose added layers would change the stream even with zeroed outputs, or None."""
    return next((block.kind for block in target.blocks.values() if block.kind not in KEEPS_STREAM), None)


def _take_layers(held: Tensors, prefix: str, count: int) -> list[Tensors]:
    """Remove the tensors of each layer and return them, by their names within the layer."""
    layers: list[Tensors] = [{} for _ in range(count)]
    for name in [name for name in held if name.startswith(prefix)]:
        match = re.match(r"(\d+)\.(.*)", name.removeprefix(prefix))
        assert match is not None
        layers[int(match[1])][match[2]] = held.pop(name)
    return layers


def _writers(target: Tower, layer: int) -> set[str]:
    """Find the names, within a layer, of the tensors whose outputs are added to the residual stream."""
    block = target.blocks[target.stack.stored()[layer]]
    parts = [(name, part.of if isinstance(part, Experts) else part) for name, part, _ in tensors(block, target.d_model)]
    return {name for name, part in parts if isinstance(part, Linear) and part.residual}


# ---------------------------------------------------------------- experts


def upcycle(source: Any, target: Any, held: Tensors, fresh: set[str], path: str, d_model: int) -> str | None:
    """Copy a feed-forward to every expert, with a new random router (sparse upcycling; Komatsuzaki et al., 2022).

    If a token's expert weights sum to 1, the model's function is unchanged.
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


# ---------------------------------------------------------------- heads


def regroup_heads(source: Attention, target: Attention, held: Tensors, path: str) -> str | None:
    """Merge key-value heads by their mean (Ainslie et al., 2023), or repeat them, which keeps the function."""
    before, after = getattr(source, "n_kv_heads", None), getattr(target, "n_kv_heads", None)
    same = all(
        getattr(source, name, None) == getattr(target, name, None) for name in ("kind", "n_heads", "head_widths")
    )
    if not before or not after or before == after or not same or (before % after and after % before):
        return None

    def merge(tensor: Tensor) -> Tensor:  # [K·C, …]
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
    """Copy heads, and divide each head's output weights among its copies (Net2Net; Chen et al., 2015): the function is
    kept.

    The copies' shares are random, because equal copies would always have equal gradients.
    """
    if source.kind != target.kind or not hasattr(source, "n_kv_heads") or source.n_heads >= target.n_heads:
        return None
    kv, group = source.n_kv_heads, source.n_heads // source.n_kv_heads
    copies, more = target.n_kv_heads / kv, target.n_heads / target.n_kv_heads / group
    if copies % 1 or more % 1 or source.head_widths != target.head_widths or target.position.kind not in ALIKE:
        return None
    a, b = int(copies), int(more)
    shares = draw_shares(torch.arange(source.n_heads).view(kv, group).repeat(a, b).flatten(), generator)  # H

    def spread(tensor: Tensor) -> Tensor:  # [H·C, …]
        heads = tensor.unflatten(0, (kv, group, -1))
        return heads.repeat(a, b, *[1] * (heads.ndim - 2)).flatten(0, 2)

    def spread_kv(tensor: Tensor) -> Tensor:
        heads = tensor.unflatten(0, (kv, -1))
        return heads.repeat(a, *[1] * (heads.ndim - 1)).flatten(0, 1)

    def divide(tensor: Any) -> Tensor:  # [D, H·C]
        whole = spread(tensor.t()).unflatten(0, (target.n_heads, -1))
        return (whole * shares.to(whole.device)[:, None, None]).flatten(0, 1).t().contiguous()

    for leaf in ("weight", "bias"):
        for name, how in {"q": spread, "gate": spread, "k": spread_kv, "v": spread_kv}.items():
            change(held, f"{path}{name}.{leaf}", how)
    change(held, f"{path}o.weight", divide)
    change(held, f"{path}sinks", lambda each: spread(each[:, None])[:, 0])
    return f"attention: {source.n_heads} heads became {target.n_heads} (Net2Net; Chen et al., 2015)"


def draw_shares(origins: Tensor, generator: Generator) -> Tensor:
    """Draw each copy's share [N] of its original, given in `origins` [N]. The shares of an original sum to 1."""
    weights = 0.5 + torch.rand(len(origins), generator=generator)
    sums = torch.zeros(int(origins.max()) + 1).index_add_(0, origins, weights)
    return weights / sums[origins]


# ---------------------------------------------------------------- widths


def widen_ffn(source: Any, target: Any, held: Tensors, path: str, generator: Any) -> str | None:
    """Add copies of randomly chosen hidden units, and divide a unit's output weights among its copies: the function is
    kept.

    The shares are random, because equal copies would always have equal gradients.
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


def widen_stream(source: Tower, target: Tower, held: Tensors, path: str, generator: Generator) -> str | None:
    """Repeat every channel of the residual stream, and divide a product's input weights among the copies. The function
    is kept, because norms see the same mean square. Does nothing for a tied head, whose logits would be multiplied."""
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


# ---------------------------------------------------------------- vocabulary


def add_tokens(
    source: Tower, target: Tower, held: Tensors, shapes: dict[str, tuple[int, ...]], path: str
) -> str | None:
    """Give each new token the mean of the old tokens' rows, in the embedding and in the head (Hewitt, 2021)."""
    before, after = source.vocab_size, target.vocab_size
    if after <= before:
        return None
    for name, tensor in held.items():
        inside = name.startswith((f"{path}embedding.", f"{path}head."))
        if inside and name in shapes and tensor.shape[0] == before and shapes[name][0] == after:
            mean = tensor.mean(0, keepdim=True)
            held[name] = torch.cat([tensor, mean.expand(after - before, *tensor.shape[1:])])
    return f"{path}vocab_size: {before} tokens became {after}, the new ones' rows are the mean (Hewitt, 2021)"
