"""Read the values of `recompute`, and make separate kinds of the layers that are priced differently.

With `every_n` only every n-th layer's activations are recomputed, so these layers become a kind of their own. Layers of
one kind are also split if they read different numbers of values from a channel (`zoo.model.channels`).
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

from zoo.costs.rows import Priced, change_copy, change_towers
from zoo.errors import ConfigError, did_you_mean
from zoo.model.channels import count_reads
from zoo.model.tower import Tower

RECOMPUTE = ("none", "selective", "full")
"""Values of `recompute`. `every_n` is valid too, for n of 2 or more."""

AGAIN = " (again)"
"""Suffix of the kind of the layers that `every_n` recomputes."""


def name_part(kind: str, *numbers: int) -> str:
    """Name a part of a kind's layers that is priced apart from the others: `name_part("near", 2)` is "near (part 2)".
    Different `numbers` name different parts."""
    return f"{kind} (part {', '.join(map(str, numbers))})"


def name_stored(kind: str) -> str:
    """Give a kind's name in the model itself, by stripping the suffixes of `name_part` and AGAIN."""
    return re.sub(r"( \(part [\d, ]+\))?( \(again\))?$", "", kind)


def read_every(recompute: str) -> int | None:
    """Read n, 2 or more, from `every_n`; None for any other value of `recompute`."""
    found = re.fullmatch(r"every_(\d{1,9})", recompute)
    return int(found[1]) if found and int(found[1]) > 1 else None


def explain_unknown(recompute: str) -> str | None:
    """Say why a value of `recompute` is invalid; None for a valid one."""
    if recompute in RECOMPUTE or read_every(recompute):
        return None
    if re.fullmatch(r"every_0*1", recompute):
        return f"is {recompute}, which is every layer (full)"
    hint = did_you_mean(recompute, RECOMPUTE) or f" (one of: {', '.join(RECOMPUTE)}, every_2, every_3 …)"
    return f"unknown {recompute!r}{hint}"


def runs_again(index: int, every: int) -> bool:
    """Whether `every_n` recomputes the layer at an index, counted from 0; `every` is n. Example: of 8 layers, `every_3`
    recomputes the layers 2 and 5."""
    return (index + 1) % every == 0


def keeps_input(name: str, recompute: str) -> bool:
    """Whether a section keeps only its input for the backward pass. With `full` and `every_n` this holds for recomputed
    layers and for "shared", the tensors that all layers read. With `none` and `selective` it holds for no section."""
    piece = name.split(".")[-1]
    if read_every(recompute):
        return piece.endswith(AGAIN) or piece == "shared"
    return recompute == "full" and (piece.startswith("layer:") or piece == "shared")


def tell_reads_apart(spec: Priced) -> Priced:
    """Split the kinds whose layers read different numbers of values from a channel, such as the outputs of all earlier
    layers. Return the same object if nothing is split."""
    return change_towers(spec, split_by_reads)


def split_by_reads(tower: Tower) -> Tower:
    """Split the kinds of one tower as `tell_reads_apart` does."""
    each = [*zip(tower.pattern, count_reads(tower), strict=False)]  # no items where all layers of a kind read alike
    several = Counter(kind for kind, _ in dict.fromkeys(each))
    pattern = tuple(name_part(kind, *read) if several[kind] > 1 else kind for kind, read in each)
    if pattern in ((), tower.pattern):
        return tower
    blocks = {label: tower.blocks[kind] for label, kind in zip(pattern, tower.pattern, strict=True)}
    return change_copy(tower, pattern=pattern, blocks=blocks)


def mark_layers(spec: Priced, recompute: str) -> Priced:
    """Split kinds as `tell_reads_apart` does, then add the suffix AGAIN to the kind of each layer that `every_n`
    recomputes. Return the same object if nothing changes. Raises ConfigError if `every_n` recomputes no layer."""
    spec, every = tell_reads_apart(spec), read_every(recompute)
    if every is None:
        return spec
    marked = change_towers(spec, partial(_mark, every=every))
    if marked is spec:
        most = max(len(tower.pattern) for tower in spec.towers().values())
        would = f"every_{most}, or recompute=full" if most > 1 else "recompute=full"
        raise ConfigError(f"recompute: is {recompute}, and of {most} layers none is recomputed ({would})")
    return marked


def _mark(tower: Tower, every: int) -> Tower:
    if len(tower.pattern) < every:
        return tower
    pattern = tuple(f"{kind}{AGAIN}" if runs_again(i, every) else kind for i, kind in enumerate(tower.pattern))
    again = {kind: tower.blocks[kind.removesuffix(AGAIN)] for kind in dict.fromkeys(pattern) if kind.endswith(AGAIN)}
    blocks = {**tower.blocks, **again}  # all kinds, so that one traced pass serves every way to recompute
    return change_copy(tower, pattern=pattern, blocks=blocks)
