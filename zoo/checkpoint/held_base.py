"""Hold a run's frozen weights as the files of the adapters' base store them, or quantise them while reading (QLoRA)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import store
from zoo.checkpoint.adapter_files import read_plan
from zoo.checkpoint.finding import find
from zoo.checkpoint.quantised.bitsandbytes import EightBit, FourBit
from zoo.checkpoint.stored import place_tensor
from zoo.errors import ConfigError
from zoo.lazy import torch
from zoo.model_hub import locate
from zoo.spec import Embedding, Experts, Linear, Part, tensors

if TYPE_CHECKING:
    from zoo.checkpoint.stored import StoredTensors
    from zoo.model.tower import Topology
    from zoo.run.layer import Model

LAYOUTS: Mapping[str, type[FourBit] | type[EightBit]] = {"nf4": FourBit, "int8": EightBit}
"""The layout of each method of quantisation (`lora.quantise`)."""


def open_base(weights: str | Path) -> StoredTensors:
    """Open the tensors of a base in their stored dtypes. A base that itself has adapters is merged as it is read, in
    float32."""
    path = locate(weights)
    merged = not path.is_file() and read_plan(find(path)) is not None
    dtype = torch.float32 if merged else None
    return store.open_model(weights, dtype, mapped=False, checked=False).tensors


def list_held(spec: Topology, trained: Collection[str], quantise: str | None) -> Iterator[tuple[str, Part, bool]]:
    """List the weights that may be held as they are stored: the frozen matrices of Linears, experts and embeddings.
    Yields the name, the part, and whether `quantise` applies: to Linears and experts inside layers, except routers."""
    for name, part, leaf in tensors(spec, spec.d_model):
        if leaf == "weight" and name not in trained and isinstance(part, Linear | Experts | Embedding):
            inside = ".blocks." in f".{name}" and not isinstance(part, Embedding)
            precise = part.precise if isinstance(part, Linear) else False
            yield name, part, quantise is not None and inside and not precise


def measure_held(
    spec: Topology, trained: Collection[str], quantise: str | None, stored: StoredTensors | int
) -> dict[str, int]:
    """Count the bytes of each weight that is not held in float32. `stored` are the base's tensors, or the bytes per
    value."""
    found = {}
    for name, part, quantised in list_held(spec, trained, quantise):
        shape = part.shapes()["weight"]
        if quantised:
            size = measure_quantised(shape, str(quantise))
        elif isinstance(stored, int):
            size = prod(shape) * stored
        elif name not in stored or stored.forms[name].shape != shape:  # drawn or converted, and so not the base's
            continue
        else:
            packed = None if isinstance(part, Embedding) else stored.find_packed(name)
            size = stored.forms[name].nbytes if packed is None else packed.bytes
        if size != 4 * prod(shape):
            found[name] = size
    return found


def measure_quantised(shape: tuple[int, ...], quantise: str) -> int:
    """Count the bytes of a quantised weight: codes, scales, and for NF4 its two code tables."""
    if quantise == "int8":
        return prod(shape) + 4 * prod(shape[:-1])
    blocks = -(-prod(shape) // 64)
    return 33 * blocks + 4 * -(-blocks // 256) + 4 * (16 + 255)


def refuse_quantised(stored: StoredTensors, spec: Topology) -> None:
    """Raise ConfigError if a weight that would be quantised is quantised already."""
    names = [name for name, _, quantised in list_held(spec, (), "nf4") if quantised]
    if any(stored.find_packed(name) for name in names if name in stored):
        raise ConfigError("lora.quantise: the weights are quantised already, and are held as they are (leave it out)")


def hold_base(model: Model, device: torch.device, seed: int) -> None:
    """Replace a model's frozen float32 parameters by the weights of its adapters' base as they are stored, for example
    in bfloat16 or packed 4-bit. Weights that the adapters' plan quantises are quantised here. If the hash of the base
    is unknown, nothing changes."""
    from zoo.run.adapters import draw_adapters
    from zoo.run.held_weights import HeldWeight, hold_weight

    plan: Any = getattr(model, "adapters", None)
    if plan is None or plan.base is None or plan.hash is None:
        return
    stored, parameters = open_base(plan.base), dict(model.named_parameters())
    fresh, computed = any(each.is_meta for each in parameters.values()), next(iter(parameters.values())).dtype
    for name, part, quantised in list_held(model.spec, plan.trained, plan.quantise):
        if name in parameters:  # otherwise it is held already
            found = _read_held(stored, name, part, plan.quantise if quantised else None)
            if found is not None:
                held = {role: each.to(device) for role, each in found[0].items()}
                hold_weight(model.get_submodule(name.removesuffix(".weight")), HeldWeight(held, found[1], computed))
    if fresh:
        for name, each in model.state_dict().items():
            if name in stored:
                place_tensor(model, name, stored[name].to(device, each.dtype))
        draw_adapters(model, device, seed)
        model._find_kernels()


StoredParts = tuple[Mapping[str, Any], Callable[[Mapping[str, Any], Any], Any]]


def _read_held(stored: StoredTensors, name: str, part: Part, quantise: str | None) -> StoredParts | None:
    """Read a weight's stored tensors by role, and the function that computes the weight from them; None for a weight
    that is stored in float32."""
    if quantise is not None:
        layout, parts = LAYOUTS[quantise].encode(stored[name].float())
        return parts, layout.decode
    packed = None if isinstance(part, Embedding) else stored.find_packed(name)
    if packed is not None:
        return packed.read(), packed.decode
    if stored.forms[name].dtype is torch.float32:
        return None
    return {"weight": stored[name]}, lambda parts, dtype: parts["weight"].to(dtype)
