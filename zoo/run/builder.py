"""A Spec becomes a torch model on a device, checked against its count, or is refused before a byte is allocated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.costs import DTYPES
from zoo.costs.params import count_parameters
from zoo.errors import ConfigError, FitError, did_you_mean
from zoo.lazy import torch
from zoo.spec import Spec, table


def build(
    config: Any,
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    dtype: Any = None,
    kernel: str = "auto",
    seed: int = 0,
) -> Any:
    """The model of a packaged name, a YAML path or a Spec, with fresh weights drawn from `seed`.

    `device` is auto (CUDA where there is one), cuda, cpu or meta (shapes only); `dtype` fp32 unless given, by our
    name or torch's.
    Raises ConfigError for a config at fault and FitError when the weights do not fit the device's free memory.
    """
    from zoo.model.init import initialise
    from zoo.run.layer import Model

    spec = as_spec(config, overrides)
    where, kind = pick_device(device), torch_dtype(dtype)
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
        initialise(model, torch.Generator(where).manual_seed(seed))
    return model


def as_spec(config: Any, overrides: Sequence[str] = ()) -> Any:
    """The Spec itself, or that of a packaged name or YAML path."""
    if isinstance(config, Spec):
        if overrides:
            raise ConfigError("overrides: a Spec takes none (pass a name or a path, or dataclasses.replace)")
        return config
    from zoo.compose import load

    return load(config, overrides)


def torch_dtype(dtype: Any) -> torch.dtype:
    """torch's dtype for fp32, bf16, fp16 (or torch's own name for it, or the dtype itself); None is float32."""
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    if dtype is None:
        return torch.float32
    if isinstance(dtype, str):
        known = [*names, *names.values()]
        if dtype not in known:
            raise ConfigError(
                f"dtype: cannot build in {dtype!r}{did_you_mean(dtype, known)} (one of: {', '.join(names)})"
            )
        return getattr(torch, names.get(dtype, dtype))
    return dtype


def pick_device(device: str) -> torch.device:
    """The torch device for auto, cuda, cuda:N, cpu or meta."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.split(":")[0] not in ("cuda", "cpu", "meta"):
        raise ConfigError(f"device: unknown {device!r} (one of: auto, cuda, cpu, meta)")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device: {device} was asked for, this machine has none that torch can use (cpu and meta work)"
        )
    return torch.device(device)


def check_fit(spec: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Raises FitError when the weights are more than the device has free."""
    free = free_memory(device)
    total = count_parameters(spec)["total"]
    need = total * dtype.itemsize
    if free is None or need <= free:
        return
    ways = [f"dtype {name} needs {total * size / 1e9:,.1f} GB" for name, size in DTYPES.items() if total * size <= free]
    ways = [*[way for way in ways if "fp8" not in way][:1], "device meta needs none"]
    text = f"{total:,} parameters need {need / 1e9:,.1f} GB in {str(dtype).removeprefix('torch.')}"
    raise FitError(
        f"memory: {text}, {device.type} has {free / 1e9:,.1f} GB free ({'; '.join(ways)}; or fewer n_layers)"
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated; None where that is unknown or nothing is allocated."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = [_available(), _cgroup_room()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _available() -> int | None:
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _cgroup_room() -> int | None:
    """What a container's memory limit leaves (cgroup v2)."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return None
    return max(0, int(limit.read_text()) - int(used.read_text()))


def check_built(model: Any) -> None:
    """Holds what was built against what was counted: every tensor's name and shape, and the total."""
    from zoo.run.layer import shapes

    built, counted = shapes(model), table(model.spec, model.d_model)
    if dict(built) != counted:
        odd = sorted(set(built.items()) ^ set(counted.items()))
        raise AssertionError(f"built and counted tensors differ: {odd[:4]}")
    held = sum(parameter.numel() for parameter in model.parameters())
    total = count_parameters(model.spec)["total"]
    if held != total:
        raise AssertionError(f"built {held:,} parameters, counted {total:,}")
