"""`zoo doctor`: what this machine has and can run."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = (
    *("torch", "hydra-core", "omegaconf", "pydantic", "tokenizers", "safetensors", "numpy", "matplotlib"),
    *("flash-attn", "transformers", "datasets", "hydra-joblib-launcher", "hydra-submitit-launcher"),
)


def run() -> None:
    """Versions, devices, and which kernels this machine can run, with the reasons why not."""
    import zoo
    from zoo import kernels, report

    versions = [("zoo", zoo.__version__), ("python", platform.python_version()), *((n, _version(n)) for n in PACKAGES)]
    print(report.columns([("Versions", ""), *_indented(versions)]))
    print()
    print(report.columns([("Devices", ""), *_indented(_devices())]))
    print()
    table = [(row.kernel, "yes" if row.usable else "no", row.reason) for row in kernels.report()]
    print(report.columns([("Kernels", "", ""), *_indented(table)]))


def _indented(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [(f"  {first}", *rest) for first, *rest in rows]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[tuple[str, ...]]:
    import torch

    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs, {_memory()}"
    rows: list[tuple[str, ...]] = [("cpu", cpu)]
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"no device; torch is built for CUDA {built}" if built else "this torch is built without CUDA"
        return [*rows, ("cuda", why)]
    return rows + [(f"cuda:{index}", _cuda(torch, index)) for index in range(torch.cuda.device_count())]


def _cuda(torch: Any, index: int) -> str:
    from zoo import report

    device = torch.cuda.get_device_properties(index)
    capability = f"compute capability {device.major}.{device.minor}"
    return f"{device.name}, {report.size(device.total_memory)}, {capability}, CUDA {torch.version.cuda}"


def _memory() -> str:
    from zoo import report
    from zoo.builder import free_memory
    from zoo.lazy import torch

    free = free_memory(torch.device("cpu"))
    return "free memory unknown" if free is None else f"{report.size(free)} free"
