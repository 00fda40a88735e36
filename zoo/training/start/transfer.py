"""Convert the weights of one architecture to another. Equal tensors are copied, different ones converted by published
recipes (`conversions.py`), and any other difference is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError
from zoo.grammar import to_dict
from zoo.lazy import torch
from zoo.spec import table
from zoo.training.start.conversions import (
    Tensors,
    add_heads,
    add_layers,
    add_tokens,
    find_unsilenced,
    regroup_heads,
    upcycle,
    widen_ffn,
    widen_stream,
)

if TYPE_CHECKING:
    from zoo.model.tower import Tower

BY_RECIPE = re.compile(
    r"(.*\.)?(n_heads|n_kv_heads|d_ff|d_model|vocab_size|pattern|tied|n_experts)|(.*\.)?(init|ffn|position)\..*"
)
"""Pattern of the fields whose change is not reported here: a recipe reports it, or it does not concern existing
weights."""


SHOWN = 10
"""Maximum number of kinds of unfitting tensors that an error names."""


@dataclass
class Transfer:
    """A transfer in progress: tensors `held` by name, the names of `fresh` ones that keep their random initial values,
    and a line for each conversion."""

    held: Tensors
    fresh: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)

    def say(self, line: str | None) -> None:
        """Add a line, unless it was added before."""
        if line is not None and line not in self.lines:
            self.lines.append(line)


def transfer(source: Any, target: Any, tensors: Mapping[str, Any], added: str = "stack", seed: int = 0) -> Transfer:
    """Convert the tensors of a model of Spec `source` to those of Spec `target`. Tensors that keep their random initial
    values are named in the result's `fresh`.

    `added` is how added layers are made (`stack`, `identity`); `seed` is for new random values. With tensors on the
    meta device this only checks. Raises ConfigError if the towers differ, if a kind of block cannot get added layers by
    `identity`, and with a line for each kind of tensor that does not fit (at most SHOWN).
    """
    made = Transfer(dict(tensors))
    if source == target:
        return made
    generator = torch.Generator().manual_seed(seed)
    shapes = table(target, target.d_model)
    towers, others = target.towers(), source.towers()
    if set(towers) != set(others):
        raise ConfigError(f"weights: are of a model of kind '{source.kind}', found kind '{target.kind}' (the same)")
    for path, tower in towers.items():
        prefix = f"{path}." if path else ""
        now, before = len(tower.pattern), len(others[path].pattern)
        if now < before:
            raise ConfigError(f"{prefix}n_layers: {before} layers to {now} is not possible (at least {before})")
        if added == "identity" and now > before and (kind := find_unsilenced(tower)):
            raise ConfigError(f"deepen: identity needs blocks that add to the stream, found {kind} (stack)")
        _transfer_tower(made, others[path], tower, prefix, added, shapes, generator)
    if faults := [*dict.fromkeys(_find_misfits(made, shapes))]:
        more = len(faults) - SHOWN
        raise ConfigError(*faults[:SHOWN], *([f"weights: and {more} more kinds of tensors"] if more > 0 else []))
    return made


def _transfer_tower(
    made: Transfer, source: Any, target: Any, prefix: str, added: str, shapes: dict[str, Any], generator: Any
) -> None:
    held = made.held
    line, origins = add_layers(source, target, held, prefix, added)
    made.say(line)
    kinds = target.stack.stored()
    before = source.stack.stored()
    for layer, kind in enumerate(kinds):
        own, block = source.blocks[before[origins[layer]]], target.blocks[kind]
        path = f"{prefix}blocks.{layer}."
        made.say(regroup_heads(own.attention, block.attention, held, f"{path}attention."))
        made.say(add_heads(own.attention, block.attention, held, f"{path}attention.", generator))
        if own.ffn is not None and block.ffn is not None:
            made.say(upcycle(own.ffn, block.ffn, held, made.fresh, f"{path}ffn.", source.d_model))
            made.say(widen_ffn(own.ffn, block.ffn, held, f"{path}ffn.", generator))
    swapped = _swap_head(source, target, made, prefix, shapes)
    made.say(swapped)
    made.say(_untie(source, target, held, prefix))
    made.say(_swap_positions(source, target, made, prefix, shapes))
    made.say(_draw_mtp(made, prefix, shapes))
    made.say(widen_stream(source, target, held, prefix, generator))
    made.say(add_tokens(source, target, held, shapes, prefix))
    pairs = {(before[origins[layer]], kind) for layer, kind in enumerate(kinds)}
    made.say(_describe_other_settings(source, target, pairs, ("head", "pooler") if swapped else ()))


def _swap_head(source: Any, target: Any, made: Transfer, prefix: str, shapes: dict[str, Any]) -> str | None:
    """Draw a task head anew, if the source has another head or other classes, and drop the source's head, and its
    pooler unless the target has one. If the target has no head, the source's is only dropped. A head whose first
    product has the form of BERT's pooler starts with the pooler's weights."""
    head, own = target.head, source.head
    names = [getattr(each, "labels", each.n_logits) for each in (head, own)]
    if head.predicts_tokens or (own.kind == head.kind and names[0] == names[1]):
        return None
    held = made.held
    pooled = {name.rpartition(".")[2]: held[name] for name in held if name.startswith(f"{prefix}pooler.dense.")}
    ends = tuple(f"{prefix}{part}." for part in ("head", *(() if target.pooler else ("pooler",))))
    for name in [name for name in held if name.startswith(ends)]:
        del held[name]
    if not head.n_logits:
        return f"head: the weights' head of kind '{own.kind}' is left out"
    first = f"{prefix}head.transform"
    taken = {f"{first}.{leaf}": tensor for leaf, tensor in pooled.items()}
    begins = {name: tuple(each.shape) for name, each in taken.items()}
    kept = bool(taken) and begins == {name: shape for name, shape in shapes.items() if name.startswith(f"{first}.")}
    held |= taken if kept else {}
    made.fresh |= {name for name in shapes if name.startswith(f"{prefix}head.")} - held.keys()
    what = f"classes {_list(head.labels)}" if hasattr(head, "labels") else f"{head.n_logits} numbers"
    before = ", its first product begins as the pooler's" if kept else ""
    left = f"; the weights' head of kind '{own.kind}' is left out" if own.kind != "none" else ""
    return f"head: drawn anew, for {what}{before}{left}"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (f" … ({len(names)})" if len(names) > SHOWN else "")


def _untie(source: Tower, target: Tower, held: Tensors, prefix: str) -> str | None:
    """If the source's head is tied and the target's is not, give the target's head a copy of the token table. Returns a
    line about the copy; None if nothing was done."""
    if not getattr(source.head, "tied", False) or getattr(target.head, "tied", True):
        return None
    tokens = held.get(f"{prefix}embedding.tokens.weight")
    if tokens is None:
        return None
    held[f"{prefix}head.out.weight"] = tokens.clone()
    return "head: was tied, its own weight begins as a copy of the token table"


def _swap_positions(source: Tower, target: Tower, made: Transfer, prefix: str, shapes: dict[str, Any]) -> str | None:
    """If the position scheme differs, drop the source's position weights, and draw the target's."""
    if source.position.kind == target.position.kind:
        return None
    lost = [name for name in made.held if name.startswith(prefix) and _is_position(name) and name not in shapes]
    for name in lost:
        del made.held[name]
    new = {name for name in shapes if name.startswith(prefix) and _is_position(name) and name not in made.held}
    made.fresh |= new
    notes = (["its weights are left out"] if lost else []) + (["the new one's are drawn"] if new else [])
    swap = f"position: {source.position.kind} became {target.position.kind}, the other weights are taken as they are"
    return ", ".join([swap, *notes])


def _draw_mtp(made: Transfer, prefix: str, shapes: dict[str, Any]) -> str | None:
    """Draw the modules for multi-token prediction (`mtp`): reading a stored model leaves them out."""
    new = {name for name in shapes if name.startswith(f"{prefix}mtp.")} - made.held.keys()
    made.fresh |= new
    return "mtp: its modules are drawn anew" if new else None


def _is_position(name: str) -> bool:
    return "position" in name.split(".")


# ---------------------------------------------------------------- reports and faults


def _describe_other_settings(
    source: Tower, target: Tower, pairs: set[tuple[str, str]], told: tuple[str, ...] = ()
) -> str | None:
    """Report settings that differ without changing a weight's shape, except in the parts `told`, already reported."""
    changes: dict[str, str] = {}
    for old, new in sorted(pairs):
        changes |= dict(_compare(to_dict(source.blocks[old]), to_dict(target.blocks[new]), ""))
    parts = ("blocks", *told)
    one, other = ({key: each for key, each in to_dict(tower).items() if key not in parts} for tower in (source, target))
    changes |= dict(_compare(one, other, ""))
    others = [f"{key} {change}" for key, change in changes.items() if not BY_RECIPE.fullmatch(key)]
    return f"taken as they are under other settings: {', '.join(others)}" if others else None


def _compare(one: object, other: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from _compare(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        yield path, f"{_shorten(one)} → {_shorten(other)}"


def _shorten(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("kind", "…"))
    return "null" if value is None else str(value)


def _find_misfits(made: Transfer, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield a fault for each tensor that is missing, has another shape, or belongs to no part of the model."""
    would = "no recipe makes it"
    for name, shape in shapes.items():
        if name not in made.held and name not in made.fresh:
            yield f"weights: have no {_kind(name)}, of shape {list(shape)} ({would}; the architecture of the weights)"
        elif name in made.held and tuple(made.held[name].shape) != shape:
            found = f"{list(made.held[name].shape)}, the model's is {list(shape)}"
            yield f"weights: {_kind(name)} has shape {found} ({would})"
    for name in made.held:
        if name not in shapes:
            yield f"weights: {_kind(name)} belongs to no part of the model (the architecture of the weights)"


def _kind(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name)
