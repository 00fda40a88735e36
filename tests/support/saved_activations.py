"""Measure what autograd saves in a built model's forward pass, for the tests of zoo.costs.activations."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from zoo.costs.activations import PassShape, Section, list_sections
from zoo.costs.again import tell_reads_apart
from zoo.run.builder import build


class _Saved:
    def __init__(self, tensor: torch.Tensor, number: int) -> None:
        self.tensor, self.number = tensor, number


def saved(run: Callable[[], Any], held: Iterable[torch.Tensor] = ()) -> Counter[int]:
    """Count the storages that `run` leaves saved for a backward pass, by their size in bytes; those of the tensors
    `held` are left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    found: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> _Saved:
        made = _Saved(tensor.detach(), len(found))  # a result itself would keep what made it, and so itself
        found.add(made)
        return made

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda made: made.tensor):
        kept = run()
    storages = {each.tensor.untyped_storage() for each in found}
    sizes = {each.data_ptr(): each.nbytes() for each in storages if each.data_ptr() not in known}
    del kept
    return Counter(sizes.values())


def saved_by(model: Any, run: Callable[[], Any]) -> Counter[int]:
    """Count the storages that a model's pass saves: all but its weights and buffers."""
    return saved(run, [*model.parameters(), *model.buffers()])


def told(spec: Any, sections: Mapping[str, Section]) -> Counter[int]:
    """Count what a whole model saves by its sections: a layer's as often as there is one of its kind."""
    sizes: Counter[int] = Counter()
    for name, tower in spec.towers().items():
        prefix = f"{name}." if name else ""
        times = {f"{prefix}{piece}": 1 for piece in ("embedding", "shared", "head")}
        times |= {f"{prefix}layer:{kind}": tower.pattern.count(kind) for kind in tower.blocks}
        for piece, count in times.items():
            for each in sections[piece].kept:
                sizes[each.bytes] += count
    return sizes


def passes(model: Any, spec: Any, batch: int, context: int) -> Callable[[], Any]:
    """Make a forward pass of so many random tokens."""
    ids = torch.randint(0, spec.vocab_size, (batch, context))
    if spec.kind == "encoder_decoder":
        return lambda: model(ids, decoder_input_ids=ids.clone())
    return lambda: model(ids)


def check(spec, *, batch=2, context=9, dtype="fp32", kernel="auto"):
    model = build(spec, device="cpu", dtype=dtype, kernel=kernel).train()
    apart = tell_reads_apart(spec)
    found = list_sections(apart, PassShape(batch=batch, context=context, dtype=dtype, kernel=kernel, fused=False))
    assert told(apart, found) == saved_by(model, passes(model, spec, batch, context))
