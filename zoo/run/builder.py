"""Build a torch model from a Spec on a device. Weights that do not fit are refused before a byte is allocated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.costs import DTYPES
from zoo.costs.params import count_parameters
from zoo.errors import ConfigError, FitError, did_you_mean
from zoo.lazy import torch
from zoo.run.cuda_start import refuse_unusable_gpu
from zoo.run.machine_memory import read_free_memory
from zoo.spec import Spec, table

if TYPE_CHECKING:
    from zoo.costs.rows import Priced
    from zoo.run.layer import Model


def build(
    config: str | Path | Spec,
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    kernel: str = "auto",
    seed: int = 0,
) -> Model:
    """Build the model of a packaged name, a YAML path or a Spec. Each weight is drawn from `seed` and its name.

    `device` is auto (CUDA if there is a device), cuda, cuda:N, cpu or meta (shapes only); `dtype` is a name (fp32,
    bf16, fp16, or torch's) or a torch dtype, fp32 by default; `kernel` names the attention kernel. Raises ConfigError
    for a faulty config, device or dtype, and FitError if the weights do not fit the device's free memory.
    """
    from zoo.model.init import initialise
    from zoo.run.layer import Model

    spec = load_spec(config, overrides)
    where, kind = pick_device(device), resolve_dtype(dtype)
    check_fit(spec, where, kind)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        with torch.device(where):
            model = Model(spec)
    finally:
        torch.set_default_dtype(previous)
    model.kernel = kernel
    check_built(model)
    if where.type != "meta":
        initialise(model, seed)
    return model


def load_spec(config: str | Path | Mapping[str, Any] | Spec, overrides: Sequence[str] = ()) -> Any:
    """Return a Spec as it is, or load one from a packaged name, a file, a folder or a mapping (`zoo.compose.load`).
    Raises ConfigError for a Spec with overrides, and for a faulty config."""
    if isinstance(config, Spec):
        if overrides:
            raise ConfigError("overrides: a Spec takes none (pass a name or a path, or dataclasses.replace)")
        return config
    from zoo.compose import load

    return load(config, overrides)


ADDRESSED = 2**62
"""Limit in bytes of the weights that torch can address, also on the meta device."""


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Return the torch dtype for fp32, bf16, fp16, torch's names of these, or a torch dtype. None means float32. Raises
    ConfigError for another name."""
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    if dtype is None:
        return torch.float32
    if isinstance(dtype, str):
        known = [*names, *names.values()]
        if dtype not in known:
            hint = did_you_mean(dtype, known) or f" (one of: {', '.join(names)})"
            raise ConfigError(f"dtype: cannot build in {dtype!r}{hint}")
        return getattr(torch, names.get(dtype, dtype))
    return dtype


def pick_device(device: str) -> torch.device:
    """Return the torch device for auto, cuda, cuda:N, cpu or meta. Raises ConfigError if it is unknown or missing, and
    for auto on a machine whose NVIDIA GPU torch cannot use.

    cuda:N becomes torch's current device as well: kernels, Triton and CUDA's random generators use the current device,
    wherever the tensors are.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        refuse_unusable_gpu()
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:\d+)?|cpu(:0)?|meta", device):
        raise ConfigError(f"device: unknown {device!r} (one of: auto, cuda, cuda:N, cpu, meta)")
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return torch.device(kind)
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device: {device} was asked for, this machine has none that torch can use (cpu and meta work)"
        )
    if not number:
        return torch.device(kind)
    if int(number) >= (there := torch.cuda.device_count()):
        raise ConfigError(f"device: {device} was asked for, found {there} GPUs (cuda:0 to cuda:{there - 1})")
    torch.cuda.set_device(int(number))
    return torch.device(kind, int(number))


def check_fit(spec: Priced, device: torch.device, dtype: torch.dtype) -> None:
    """Check that the weights fit the device's free memory and torch's limit (ADDRESSED). Raises FitError if not."""
    free = read_free_memory(device)
    total = count_parameters(spec)["total"]
    need = total * dtype.itemsize
    if need >= ADDRESSED:
        raise FitError(
            f"model: its weights take {need / 1e18:,.0f} EB, more than torch can address (smaller dimensions)"
        )
    if free is None or need <= free:
        return
    ways = [f"dtype {name} needs {total * size / 1e9:,.1f} GB" for name, size in DTYPES.items() if total * size <= free]
    ways = [*[way for way in ways if "fp8" not in way][:1], "device meta needs none"]
    text = f"{total:,} parameters need {need / 1e9:,.1f} GB in {str(dtype).removeprefix('torch.')}"
    raise FitError(
        f"memory: {text}, {device.type} has {free / 1e9:,.1f} GB free ({'; '.join(ways)}; or fewer n_layers)"
    )


def check_built(model: Model) -> None:
    """Check a built model's tensors and number of parameters against its Spec. Raises AssertionError if they differ."""
    from zoo.run.layer import list_shapes

    built, counted = list_shapes(model), table(model.spec, model.d_model)
    if dict(built) != counted:
        odd = sorted(set(built.items()) ^ set(counted.items()))
        raise AssertionError(f"built and counted tensors differ: {odd[:4]}")
    held = sum(parameter.numel() for parameter in model.parameters())
    total = count_parameters(model.spec)["total"]  # type: ignore[arg-type]
    if held != total:
        raise AssertionError(f"built {held:,} parameters, counted {total:,}")
