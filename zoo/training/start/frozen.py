"""Choose which weights train, by patterns of their names, from the Spec alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from zoo.errors import refuse
from zoo.spec import Buffer, tensors

if TYPE_CHECKING:
    from zoo.model.tower import Topology
    from zoo.run.layer import Model


def choose_trained(spec: Topology, freeze: Sequence[str], train: Sequence[str], adapted: bool = False) -> set[str]:
    """Return the names of the model's own weights that train: those that match `train` (all if it is empty), without
    those that match `freeze`. If the model is `adapted` (LoRA), an empty `train` matches none.

    A task head always trains, unless a pattern of `freeze` begins with its name: `freeze=['*']` trains only the head.
    In a pattern `*` is any text, including dots. Raises ConfigError for a pattern that matches nothing, and if nothing
    is left to train.
    """
    names = [name for name, part, _ in tensors(spec, spec.d_model) if not isinstance(part, Buffer)]
    faults = [*_idle("freeze", freeze, names), *_idle("train", train, names)]
    if adapted and freeze and not train:
        faults.append("freeze: lora freezes all of the model's own weights (leave it out, or name some in train)")
    kept = {name for name in names if _matches(name, train)} if train or adapted else set(names)
    heads = find_task_heads(spec)
    kept |= {name for name in names if name.startswith(heads)}
    named = [pattern for pattern in freeze if pattern.startswith(tuple(each.rstrip(".") for each in heads))]
    kept -= {name for name in names if _matches(name, named if name.startswith(heads) else freeze)}
    if not kept and not adapted and not faults:
        faults.append(f"freeze: leaves nothing to train of {len(names)} weights (fewer patterns)")
    refuse(faults)
    return kept


def find_task_heads(spec: Topology) -> tuple[str, ...]:
    """Find the prefixes of the names of task heads' weights."""
    heads = ((f"{path}.head." if path else "head.", tower.head) for path, tower in spec.towers().items())
    return tuple(prefix for prefix, head in heads if head.n_logits and not head.predicts_tokens)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _idle(key: str, patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return a fault for each pattern that matches no name. The fault lists the existing names."""
    there = ", ".join(dict.fromkeys(re.sub(r"^((?:\w+\.)?\w+\.\d+|\w+)\..*", r"\1.*", name) for name in names))
    there = re.sub(r"((\w+\.)+)0\.\*, (?:.*\1(\d+)\.\*)", r"\g<1>0.* to \g<1>\3.*", there)
    return [
        f"{key}: {pattern!r} matches no weight (there are {there})"
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


def freeze_others(model: Model, trained: set[str]) -> tuple[int, int]:
    """Freeze all weights of a built model except the `trained` ones and adapters. Optimizer states and saved states
    leave frozen weights out. Returns the numbers of trained parameters and of all."""
    from zoo.run.adapters import INSIDE

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained or INSIDE in name)
    sizes = [(each.requires_grad, each.numel()) for each in model.parameters()]
    return sum(size for trains, size in sizes if trains), sum(size for _, size in sizes)
