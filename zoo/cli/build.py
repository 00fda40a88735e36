"""`zoo build`: build a model on a device, compare its parameters with the count, and show its modules."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo import report
from zoo.cli.common import Overrides, Target, say
from zoo.cli.options import option
from zoo.cli.showing import load_specs
from zoo.costs.kernels import asks
from zoo.errors import ConfigError, KernelError
from zoo.lazy import nn
from zoo.report.wrapping import TextRow

if TYPE_CHECKING:
    import torch

    from zoo.costs.rows import Priced
    from zoo.model.block.base import Block

WAIT = 20
"""If building takes at least this many seconds, a line announces the wait."""


def run(
    target: Target,
    overrides: Overrides = None,
    device: str = option("auto (CUDA if available), cuda, cpu, or meta (shapes only).", default="auto"),
    dtype: Literal["fp32", "bf16", "fp16"] = option("The dtype of the weights.", default="bf16"),
    kernel: str = option("The attention kernel; auto takes the first that can run (`zoo doctor`).", default="auto"),
    out: Path | None = option("Save the initialised model to this folder: model.safetensors and zoo.yaml."),
) -> None:
    """Build a model on a device, check its parameters against the computed count, and show its modules, kernels and
    memory.

    A model that does not fit is refused before anything is allocated.
    """
    from zoo.run.builder import build, check_fit, pick_device, resolve_dtype

    (spec,) = load_specs([target], overrides or ())
    place = pick_device(device)
    if out is not None and place.type == "meta":
        raise ConfigError("out: a model on meta has no weights to write (use --device cpu)")
    kernels = describe_kernels(spec, place, dtype, kernel)
    check_fit(spec, place, resolve_dtype(dtype))
    if (wait := describe_wait(spec)) is not None:
        say(wait)
    model = build(spec, device=device, dtype=dtype, kernel=kernel)
    rows = [("module", "kind", "shape", "parameters"), *list_module_rows(target, model)]
    print(report.align_columns(rows, right=(3,)))
    print()
    print("\n".join([*kernels, *describe_memory(model, spec, dtype)]))
    if out is not None:
        from zoo.checkpoint import store

        store.save_model(model, out)
        print(f"written: {out}")


def list_module_rows(name: str, module: Any, depth: int = 0) -> list[TextRow]:
    """List a module tree as rows of name, kind, shapes and parameters. Equal adjacent layers share a row: `0-31`."""
    shapes = [list(p.shape) for _, p in module.named_parameters(recurse=False)]
    held = sum(p.numel() for p in module.parameters())
    kind = module.spec.kind if hasattr(module, "spec") else type(module).__name__.removesuffix("Module")
    shape = " + ".join("×".join(map(str, s)) for s in shapes)
    rows = [
        ("  " * depth + name, "" if kind in ("ModuleList", "ModuleDict") else kind, shape, f"{held:,}" if held else "")
    ]
    children = [(key, list_module_rows("", child, depth + 1)) for key, child in module.named_children()]
    for _, alike in groupby(children, lambda child: child[1] if child[0].isdigit() else child[0]):
        (first, (head, *below)), *others = alike
        label = f"{first}-{others[-1][0]}" if others else first
        count = f"{len(others) + 1} × {head[3]}" if others else head[3]
        rows += [(head[0] + label, head[1], head[2], count), *below]
    return rows


def describe_wait(spec: Priced) -> str | None:
    """Describe the minimum time of making a deep model's modules; None if below WAIT seconds.

    One layer of each kind is made on the meta device and timed. The sum is a lower bound, because layers are made
    faster while the heap is small.
    """
    layers, seconds = 0, 0.0
    for tower in spec.towers().values():
        stored = tower.stack.stored()
        for kind, block in tower.blocks.items():
            layers += stored.count(kind)
            seconds += stored.count(kind) * _time_layer(block, tower.d_model)
    if seconds < WAIT:
        return None
    took = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"building {layers:,} layers, with a module for each weight: takes {took} at least"


def _time_layer(block: Block, d_model: int) -> float:
    """Time the making of a layer's modules, the minimum of four runs."""
    import torch

    from zoo.run.layer import Layer

    found = []
    with torch.device("meta"):
        for _ in range(4):  # the first also imports
            start = time.perf_counter()
            Layer(block, d_model)
            found.append(time.perf_counter() - start)
    return min(found)


def describe_kernels(spec: Priced, device: torch.device, dtype: str, kernel: str) -> list[str]:
    """List, for each kind of layer, the attention kernel that would run on the device (for meta, CUDA or else a CPU),
    its call, and why earlier kernels were refused.

    Raises KernelError if a named kernel does not exist or refuses, or if no layer has attention for it.
    """
    import torch

    from zoo.costs.setup import Setup
    from zoo.kernels import machine_of, pick

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device.type == "meta" else device
    lines = []
    for place, tower, kind in _places(spec):
        use = "prefill" if tower.causal else "encode"
        for part, ask in asks(tower, kind, use, Setup(dtype=dtype), tower.max_seq_len).items():
            if ask is None:
                continue
            choice = pick(ask, machine_of(where), kernel)
            way = str(choice.call)
            layer = f"{place} (cross-attention)" if part == "cross" else place
            lines += [f"kernel{layer}: {choice.kernel.name} on {where.type}, {way}", *_refused(choice.refusals)]
    if not lines and kernel != "auto":
        raise KernelError(f"kernel: {kernel} was asked for, but no layer has attention for it (kernel=auto would do)")
    return lines


def _refused(refusals: Mapping[str, str]) -> list[str]:
    """Write a line for each reason of a refusal, with the kernels refused for that reason."""
    shared: dict[str, list[str]] = {}
    for name, reason in refusals.items():
        shared.setdefault(reason, []).append(name)
    return [f"  not {', '.join(names)}: {reason}" for reason, names in shared.items()]


def _places(spec: Priced) -> Iterator[tuple[str, Any, str]]:
    """Yield each kind of layer: a description (empty if there is only one kind), its tower and its name."""
    towers = spec.towers()
    several = sum(len(tower.blocks) for tower in towers.values()) > 1
    for name, tower in towers.items():
        for kind in tower.blocks:
            layers = f"'{kind}' layers" if len(tower.blocks) > 1 else "layers"
            place = f" of the {name}'s {layers}" if name else f" of {layers}"
            yield place if several else "", tower, kind


def describe_memory(model: nn.Module, spec: Priced, dtype: str) -> list[str]:
    """List the memory of the weights, and the estimated peaks of generating and of training."""
    from zoo import costs
    from zoo.run.machine_memory import read_peak_memory

    held = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    place = next(model.parameters()).device
    memory = costs.price(spec, dtype=dtype)["memory"]
    lines = [
        f"built {held:,} parameters on {place}, as counted",
        f"weights: {report.format_size(weights)}" + (" (none allocated on meta)" if place.type == "meta" else ""),
    ]
    if (peak := read_peak_memory(place)) is not None:
        lines.append(f"peak while building: {report.format_size(peak)}")
    for peak, doing in (("generate_peak", "generating"), ("train_peak", "training")):
        if peak in memory:
            size = report.format_size(memory[peak])
            lines.append(f"peak {doing} {spec.max_seq_len:,} tokens, estimated: {size}")
    return lines
