"""Give a loaded model adapters by name, from checkpoints or peft's folders, for requests to choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import parallel_checkpoint
from zoo.checkpoint.adapter_files import check_weights, read_plan, read_tensors
from zoo.checkpoint.base_identity import is_base
from zoo.checkpoint.finding import find
from zoo.checkpoint.likeness import list_spec_differences
from zoo.checkpoint.manifest import is_verified, verify
from zoo.errors import ConfigError, refuse
from zoo.grammar.saved import read_spec
from zoo.lazy import nn, torch
from zoo.spec import Experts, Linear, tensors

if TYPE_CHECKING:
    from zoo.checkpoint.stored import StoredModel
    from zoo.run.adapters import Adapters


def parse_adapters(pairs: list[str]) -> dict[str, str]:
    """Parse `NAME=FOLDER` pairs of the command line. Raises ConfigError for a malformed pair or a name given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not name or not folder:
            raise ConfigError(f"adapter: is {pair!r}, not a name and a folder (polite=runs/one)")
        if name in found:
            raise ConfigError(f"adapter: {name!r} is given twice (one folder each)")
        found[name] = folder
    return found


def build_packed(stored: StoredModel, device: torch.device) -> nn.Module:
    """Build the base of adapters on a device, in eval mode. Quantised matrices (GPTQ, AWQ, …) are held as they are
    stored, unless they were opened in another dtype. Each product dequantises its weight, to the values that the model
    has without adapters."""
    from zoo.run.held_weights import HeldWeight, hold_weight

    own, parts = stored.tensors, tensors(stored.spec, stored.spec.d_model)
    products = [name for name, part, leaf in parts if leaf == "weight" and isinstance(part, Linear | Experts)]
    packed = {name: each for name in products if (each := own.find_packed(name)) is not None}
    rest = replace(own, forms={name: form for name, form in own.forms.items() if name not in packed})
    model = replace(stored, tensors=rest).build(device)
    for name, each in packed.items():
        held = {role: part.to(device) for role, part in each.read().items()}
        layer = model.get_submodule(name.removesuffix(".weight"))
        hold_weight(layer, HeldWeight(held, each.decode, own.forms[name].dtype))
    return model


def add_adapters(model: Any, base: str | Path, folders: Mapping[str, str | Path]) -> None:
    """Load adapters by name for the requests of a model that was loaded from `base`; the model's weights do not change.
    `Request.adapter` then chooses one by name.

    Raises ConfigError, one line for each fault, for a folder without adapters, for adapters of another base, and for
    weights that cannot differ between the rows of a pass: weights trained whole, adapters of stacked experts, and
    adapters of weights that are also read as plain tensors. Raises CheckpointError for a broken folder.
    """
    from zoo.run.served_adapters import ServedAdapters

    plans = {name: (find(folder), read_plan(find(folder))) for name, folder in folders.items()}
    faults = [
        f"adapters: {name}: {folders[name]} {fault}"
        for name, (folder, plan) in plans.items()
        for fault in _find_faults(model, base, folder, plan)
    ]
    refuse(faults)
    served = ServedAdapters(model)
    for name, (folder, plan) in plans.items():
        assert plan is not None
        served.add(name, plan, read_tensors(plan, model.spec, folder, "cpu"))
    model.__dict__["served"] = served


def _find_faults(model: Any, base: str | Path, folder: Path, plan: Adapters | None) -> Iterator[str]:
    """Yield the reasons why requests cannot choose an adapter, for messages that begin with its folder."""
    if plan is None:
        yield "has no adapters (a checkpoint of a run with lora=…, or peft's)"
        return
    if plan.hash is None:
        yield "has a whole model beside its adapters (a checkpoint that names its base)"
        return
    check_weights(folder, model.spec)
    verify(folder)
    if is_verified() and not is_base(base, plan.hash):
        yield f"is for {plan.base}, and {base} has other weights (the model that it began with)"
    if differences := list_spec_differences(read_spec(folder), model.spec):
        yield f"is for another architecture than {base}, {differences[0]} (the model that it began with)"
    parts = {name.removesuffix(".weight"): part for name, part, _ in tensors(model.spec, model.spec.d_model)}
    for path in plan.paths:
        part = parts.get(path)
        if part is not None and (not isinstance(part, Linear) or part.bare):
            kind = "is also read as a plain weight" if isinstance(part, Linear) else "is of stacked experts"
            yield f"adapts {path}, which {kind} (zoo convert merges it)"
            break
    own = parallel_checkpoint.open_weights(folder, mapped=False)
    held = {name: attrgetter(name)(model) for name in plan.trained}
    changed = [name for name, each in held.items() if not torch.equal(own[name].to(each), each)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        yield f"has weights trained whole, {changed[0]}{more} (zoo convert merges them)"
