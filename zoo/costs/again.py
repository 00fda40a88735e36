"""Tell apart the layers whose activations are computed a second time: every n-th layer, as kinds of their own."""

from __future__ import annotations

import re
from copy import copy
from typing import Any

from zoo.costs.rows import PricedPart
from zoo.errors import ConfigError, did_you_mean
from zoo.model.depth_read import GroupSums, count_groups

RECOMPUTE = ("none", "selective", "full")
"""What is computed again, by name; and `every_N`."""

AGAIN = " (again)"
"""What is added to the kind of a layer that is computed again where others of its kind are not."""


def name_part(kind: str, number: int) -> str:
    """Name some of the layers of a kind, which train otherwise than the others."""
    return f"{kind} (part {number})"


def name_stored(kind: str) -> str:
    """Give back the name that a kind of layer has in the model itself."""
    return re.sub(r"( \(part \d+\))?( \(again\))?$", "", kind)


def read_every(recompute: str) -> int | None:
    """Read n from `every_n`; None for another name."""
    found = re.fullmatch(r"every_(\d{1,9})", recompute)
    return int(found[1]) if found and int(found[1]) > 1 else None


def explain_unknown(recompute: str) -> str | None:
    """Say why a name is none of recomputation; None for one that is."""
    if recompute in RECOMPUTE or read_every(recompute):
        return None
    if re.fullmatch(r"every_0*1", recompute):
        return f"is {recompute}, which is every layer (full)"
    hint = did_you_mean(recompute, RECOMPUTE)
    return f"unknown {recompute!r}{hint} (one of: {', '.join(RECOMPUTE)}, every_2, every_3 …)"


def runs_again(index: int, every: int) -> bool:
    """Whether a layer, counted from 0, is one of every n: of eight layers with n = 3 the third and the sixth are."""
    return (index + 1) % every == 0


def keeps_input(name: str, recompute: str) -> bool:
    """Whether a section keeps only what it reads: a layer that is to be run again does, and needs all that layers
    share."""
    piece = name.split(".")[-1]
    if read_every(recompute):
        return piece.endswith(AGAIN) or piece == "shared"
    return recompute == "full" and (piece.startswith("layer:") or piece == "shared")


def tell_depths_apart(spec: Any) -> Any:
    """Give layers of a kind that read other numbers of earlier groups kinds of their own; the same model where none
    does."""
    towers = {name: split_by_depth(tower) for name, tower in spec.towers().items()}
    if all(tower is own for tower, own in zip(towers.values(), spec.towers().values(), strict=True)):
        return spec
    return PricedPart(towers, spec)


def split_by_depth(tower: Any) -> Any:
    """The same for one tower."""
    if not any(GroupSums.name in block.reads for block in tower.blocks.values()):
        return tower
    counts: dict[str, set[int]] = {}
    each = count_groups(tower)
    for kind, count in zip(tower.pattern, each, strict=True):
        counts.setdefault(kind, set()).add(count)
    pattern = tuple(name_part(k, n) if len(counts[k]) > 1 else k for k, n in zip(tower.pattern, each, strict=True))
    if pattern == tower.pattern:
        return tower
    made = copy(tower)  # not `replace`: see `_mark`
    blocks = {label: tower.blocks[kind] for label, kind in zip(pattern, tower.pattern, strict=True)}
    vars(made).update(pattern=pattern, blocks=blocks)
    return made


def mark_layers(spec: Any, recompute: str) -> Any:
    """Give the layers that `every_n` computes again a kind of their own, by the suffix AGAIN, and those that read other
    numbers of earlier groups; the same model where there are none. Raises ConfigError where `every_n` is no layer."""
    spec, every = tell_depths_apart(spec), read_every(recompute)
    if every is None:
        return spec
    towers = {name: _mark(tower, every) for name, tower in spec.towers().items()}
    if all(tower is own for tower, own in zip(towers.values(), spec.towers().values(), strict=True)):
        most = max(len(tower.pattern) for tower in towers.values())
        would = f"every_{most}, or recompute=full" if most > 1 else "recompute=full"
        raise ConfigError(f"recompute: is {recompute}, and of {most} layers none is computed again ({would})")
    return PricedPart(towers, spec)


def _mark(tower: Any, every: int) -> Any:
    if len(tower.pattern) < every:
        return tower
    made = copy(tower)  # not `replace`, which would make plain numbers of those that an explanation traces
    pattern = tuple(f"{kind}{AGAIN}" if runs_again(i, every) else kind for i, kind in enumerate(tower.pattern))
    again = {kind: tower.blocks[kind.removesuffix(AGAIN)] for kind in dict.fromkeys(pattern) if kind.endswith(AGAIN)}
    blocks = {**tower.blocks, **again}  # all, so that a traced pass serves another recomputation too
    vars(made).update(pattern=pattern, blocks=blocks)
    return made
