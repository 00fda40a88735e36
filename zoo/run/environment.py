"""Describe the environment of a run: versions, machine, device, commit."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

from zoo import __version__
from zoo.lazy import torch
from zoo.run.linear.base import describe_processor
from zoo.run.machine_memory import read_free_memory
from zoo.run.repository import read_commit

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "hydra-core", "pydantic", "triton", "torchao", "flash-attn")


def measure_crowding() -> float:
    """Measure the machine's load per CPU now: above 1, other programs slow this one. 0 if unknown."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def describe_environment(device: torch.device) -> dict[str, object]:
    """Describe this process: start time, command, versions, machine, device, and the git commit of its folder."""
    processor = describe_processor()
    found: dict[str, object] = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "zoo": __version__,
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := find_version(name)) is not None},
        "system": platform.platform(),
        "host": platform.node(),
        "processor": f"{processor.name or processor.architecture}, {processor.isa}",
        "threads": f"{processor.threads} of {os.cpu_count()} CPUs",
        **({"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}),
        "free_memory": read_free_memory(torch.device("cpu")),
        "device": str(device),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    if (commit := read_commit(Path())) is not None:
        found["commit"] = commit
    return found


def find_version(package: str) -> str | None:
    """Find the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
