"""`zoo build`: the model on a device, held against its count."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.common import Overrides, Target, composed


class Dtype(StrEnum):
    """Of the weights."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def run(
    target: Target,
    overrides: Overrides = None,
    device: Annotated[
        str, typer.Option(help="auto (CUDA where there is one), cuda, cpu, or meta (shapes only).")
    ] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.bf16,
    kernel: Annotated[
        str, typer.Option(help="The attention kernel; auto takes the first that can (`zoo doctor`).")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Write the fresh weights there: model.safetensors and zoo.yaml.")
    ] = None,
) -> None:
    """Build a model on a device, hold it against its count, and show its tree, its kernels and its memory.

    A model that does not fit is refused before anything is allocated.
    """
    from zoo import report
    from zoo.builder import build, pick_device, torch_dtype
    from zoo.config.model import to_spec
    from zoo.errors import ConfigError

    spec = to_spec(composed(target, overrides))
    place = pick_device(device)
    if out is not None and place.type == "meta":
        raise ConfigError("out: a model on meta has no weights to write (use --device cpu)")
    kernels = kernel_lines(spec, place, torch_dtype(dtype.value), kernel)
    model = build(spec, device=device, dtype=dtype.value, kernel=kernel)
    print(report.columns([("module", "kind", "shape", "parameters"), *report.module_rows(target, model)], right=(3,)))
    print()
    print("\n".join([*kernels, *memory_lines(model, spec, dtype.value)]))
    if out is not None:
        from zoo.checkpoint import store

        store.save_model(model, out)
        print(f"written: {out}")


def kernel_lines(spec: Any, device: Any, dtype: Any, kernel: str) -> list[str]:
    """The kernel that each kind of layer gets, and why others were refused. Raises KernelError for one that cannot."""
    import torch

    from zoo.kernels import explain, report

    where = device.type if device.type != "meta" else "cuda" if torch.cuda.is_available() else "cpu"
    lines = []
    towers = spec.towers()
    layers = [(tower, name, block) for tower, each in towers.items() for name, block in each.blocks.items()]
    for tower, name, block in layers:
        ask = block.attention.ask(where, str(dtype).removeprefix("torch."))
        if ask is None:
            continue
        chosen, refused = explain(ask, kernel)
        named = f"'{name}' layers" if len(towers[tower].blocks) > 1 else "layers"
        layer = " of " + " ".join(filter(None, (tower and f"the {tower}'s", named))) if len(layers) > 1 else ""
        lines.append(f"kernel{layer}: {chosen} on {where}")
        lines += [f"  not {other}: {reason}" for other, reason in refused.items()]
    absent = [(name, reason) for name, usable, reason in report() if not usable]
    return [*lines, *(f"  not {name}: {reason}" for name, reason in absent)]


def memory_lines(model: Any, spec: Any, dtype: str) -> list[str]:
    """What the weights take, what generating and training are estimated to take, and that built equals counted."""
    from zoo import costs, report

    held = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    place = next(model.parameters()).device
    memory = costs.price(spec, dtype=dtype)["memory"]
    lines = [
        f"built {held:,} parameters on {place}, as counted",
        f"weights: {report.size(weights)}" + (" (none allocated on meta)" if place.type == "meta" else ""),
        f"peak while building: {report.size(peak_memory(place))}",
    ]
    if "generate_peak" in memory:
        lines.append(f"peak generating {spec.max_seq_len:,} tokens, estimated: {report.size(memory['generate_peak'])}")
    if "train_peak" in memory:
        lines.append(f"peak training {spec.max_seq_len:,} tokens, estimated: {report.size(memory['train_peak'])}")
    return lines


def peak_memory(device: Any) -> int:
    """Bytes at the peak so far: of the CUDA device, or of this process."""
    import resource
    import sys

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
