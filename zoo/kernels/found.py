"""What is installed of the packages that kernels need. Looked for when asked, and never imported for it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from importlib.util import find_spec

from zoo.kernels.base import Machine
from zoo.lazy import torch

PACKAGES: dict[str, str] = {
    "flash-attn": "pip install 'transformer-zoo[cuda]'",
    "flash-attn-3": "built from the hopper folder of flash-attention's repository",
    "flash-attn-4": "pip install --pre flash-attn-4",
    "kernels": "pip install kernels",
    "compiler": "a C++ compiler for torch.compile on a CPU, triton on CUDA",
    "avx2": "an x86-64 CPU with AVX2, which torch's attention for CPUs is compiled for; not macOS",
}
"""What a kernel may need besides torch, and where it comes from."""

OLDEST = (2, 6)
"""flash-attn's first version with softcap and windows in every function (2.6, July 2024)."""


def packages(device: str) -> frozenset[str]:
    """Those of PACKAGES that are here for this type of device."""
    found = {
        "flash-attn": _version("flash-attn") >= OLDEST,
        "flash-attn-3": find_spec("flash_attn_interface") is not None,
        "flash-attn-4": bool(_version("flash-attn-4")),
        "kernels": bool(_version("kernels")),
        "compiler": _compiler() if device == "cpu" else find_spec("triton") is not None,
        "avx2": platform.system() != "Darwin" and torch.cpu._is_avx2_supported(),
    }
    return frozenset(name for name, here in found.items() if here)


def _version(distribution: str) -> tuple[int, ...]:
    """Major and minor, or nothing where it is not installed."""
    try:
        numbers = metadata.version(distribution).split(".")[:2]
    except metadata.PackageNotFoundError:
        return ()
    return tuple(int(number) for number in numbers if number.isdigit())


def _compiler() -> bool:
    """Whether there is one that torch.compile would take on a CPU."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return any(name and shutil.which(name) for name in names)


EVERYTHING = frozenset(PACKAGES)
"""For a machine that is not at hand, and may have all of them."""


def machine(device: str) -> Machine:
    """This machine as kernels see it, for one of torch's device types. Asks torch for a CUDA device's capability."""
    known = device == "cuda" and torch.cuda.is_available()
    return Machine(device, torch.cuda.get_device_capability() if known else None, packages(device))


MACHINES: dict[str, Machine] = {}
"""This machine as kernels see it, by type of device: looked at once, as a model comes to be there."""


def machine_of(device: torch.device) -> Machine:
    """This machine, for tensors on this device."""
    if device.type not in MACHINES:
        MACHINES[device.type] = machine(device.type)
    return MACHINES[device.type]
