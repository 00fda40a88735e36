"""What one rank of tensor and expert parallelism holds of a component, which is a smaller component of the same kind.

Tensor parallelism (Shoeybi et al., 2019, Megatron-LM) gives each rank whole heads and a part of a feed-forward's inner
width: q, k, v, gate and up by their outputs, o and down by their inputs, tables and heads by the vocabulary. A rank's
attention is one of n_heads / tp heads, so its weights, cache and FLOPs follow as any attention's do. What all heads
share (norms, routers, MLA's latents, the bias of what writes to the stream) is on every rank.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from zoo.model.attention.mamba import Mamba
from zoo.model.moe import MoE
from zoo.spec import Spec, components

SPLIT = ("n_heads", "n_v_heads", "d_ff", "d_inner")
"""Fields that each rank has an equal part of."""

REPEATED = ("n_kv_heads", "n_k_heads", "n_groups", "norm_groups")
"""Fields of which a rank has a part, or one that others have too, where there are fewer than ranks."""


class MambaShard(Mamba):
    """A Mamba of whose `expand`·d_model channels only one in `ways` is here; B, C and Δ's projection are of all."""

    ways: int = 1

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model // self.ways


def sliced(component: Any, tp: int) -> Any:
    """What one of `tp` ranks holds of an attention or a feed-forward. `faults` says what does not divide."""
    if tp == 1 or component is None:
        return component
    if isinstance(component, MoE):
        return replace(component, expert=sliced(component.expert, tp), shared=sliced(component.shared, tp))
    own = {field.name: getattr(component, field.name) for field in component.fields()}
    if isinstance(component, Mamba):
        return MambaShard(**own, ways=tp)
    parts = {name: own[name] // tp for name in SPLIT if name in own}
    groups = {name: max(1, own[name] // tp) for name in REPEATED if own.get(name)}
    return replace(component, **parts, **groups)


def sliced_block(block: Any, tp: int) -> Any:
    """The same of a layer; its norms are whole."""
    slots = {name: getattr(block, name) for name in ("attention", "cross", "ffn") if getattr(block, name, None)}
    return replace(block, **{name: sliced(component, tp) for name, component in slots.items()}) if tp > 1 else block


def sliced_tower(tower: Any, tp: int) -> Any:
    """The same of a stack of layers; a rank's words are padded to as many as any other's."""
    if tp == 1:
        return tower
    ends = {
        name: replace(getattr(tower, name), vocab_size=-(-getattr(tower, name).vocab_size // tp))
        for name in ("embedding", "head")
        if hasattr(getattr(tower, name), "vocab_size")
    }
    return replace(tower, blocks={name: sliced_block(block, tp) for name, block in tower.blocks.items()}, **ends)


def faults(spec: Any, tp: int, ep: int) -> Iterator[str]:
    """One line for each field that the ranks do not divide."""
    experts = False
    for tower in spec.towers().values():
        for component in _parallel(tower):
            yield from _uneven(component, tp)
            count = getattr(component, "n_experts", None)
            experts |= count is not None
            if count is not None and count % ep:
                yield f"ep: {ep} does not divide n_experts={count} ({_divisors(count)} would do)"
    if ep > 1 and not experts:
        yield f"ep: {ep} ranks for experts, of which this model has none (ep=1)"


def _parallel(tower: Any) -> Iterator[Spec]:
    for block in tower.blocks.values():
        for _, component, _ in components(block, tower.d_model):
            if component.axis in ("attention", "ffn", "router"):
                yield component
            if isinstance(component, MoE):
                yield component.expert


def _uneven(component: Any, tp: int) -> Iterator[str]:
    split = {name: getattr(component, name, None) for name in SPLIT}
    if not isinstance(component, Mamba):
        split["d_inner"] = None  # of other mixers it follows from n_heads
    for name, size in split.items():
        if size is not None and size % tp:
            yield f"tp: {tp} does not divide {name}={size} ({_divisors(size)} would do)"
    for name in REPEATED:
        size = getattr(component, name, None)
        if size and size % tp and tp % size and size != split["n_heads"]:
            would = f"{_divisors(size)} and multiples of {size} would do"
            yield f"tp: {tp} neither divides {name}={size} nor is a multiple of it ({would})"


def _divisors(size: int) -> str:
    """The ways to divide, of which nobody has more than 64."""
    return ", ".join(str(ways) for ways in range(1, min(size, 64) + 1) if size % ways == 0)


def ceil_share(elements: int, ways: int) -> int:
    """Elements of the fullest of so many ranks."""
    return -(-elements // ways)


def numel(shape: tuple[int, ...]) -> int:
    """Elements of a tensor."""
    return math.prod(shape)


def dim0_share(shape: tuple[int, ...], ways: int, *, expert: bool) -> tuple[int, ...]:
    """The shard that rank 0 of `ways` holds of a tensor: FSDP2 cuts its first dimension, and that of a stack of fewer
    experts than ranks its second, as torchtitan does."""
    if ways == 1 or not shape:
        return shape
    dim = 1 if expert and shape[0] < ways and len(shape) > 1 else 0
    return (*shape[:dim], ceil_share(shape[dim], ways), *shape[dim + 1 :])
