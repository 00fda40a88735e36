"""Find the optional packages that kernels need, by their metadata, without importing them."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from importlib.util import find_spec

from zoo.kernels.base import Machine
from zoo.lazy import torch

PACKAGES: dict[str, str] = {
    "flash-attn": "pip install --no-build-isolation 'flash-attn>=2.8'",
    "flash-attn-3": "built from the hopper folder of flash-attention's repository",
    "flash-attn-4": "pip install --pre flash-attn-4",
    "kernels": "pip install kernels",
    "compiler": "a C++ compiler for torch.compile on a CPU, triton on CUDA",
    "avx2": "an x86-64 CPU with AVX2, which torch's attention for CPUs is compiled for; not macOS",
}
"""What a kernel may need in addition to torch, and how to get it."""

EVERYTHING = frozenset(PACKAGES)
"""All packages, for describing a machine that is not present."""

OLDEST: dict[str, tuple[str, str, str]] = {
    "flash-attn": ("2.6", "lack a softcap", "pip install -U flash-attn"),
    "flash-attn-3": ("3.0.0b1", "have other signatures", "build it anew from flash-attention's hopper folder"),
    "flash-attn-4": ("4.0.0b26", "drop the gradient of sinks", "pip install -U --pre flash-attn-4"),
}
"""The oldest version that Zoo uses, the fault of earlier ones, and how to get a newer one.

flash-attn 2.6 is of July 2024. flash-attn-4 4.0.0b26, of 12 August 2026, is the first beta with the backward pass of
learned sinks (pull request 2706); b25 silently returns no gradient for them.
"""

EARLIER_NAME = {"flash-attn-3": "flashattn-hopper"}
"""Names that packages had before their oldest version in OLDEST; the module's name is the same."""

MODULES = {"flash-attn-3": "flash_attn_interface"}
"""The module of each package that may be present without metadata, because it was built in place."""


def find_machine(device: str) -> Machine:
    """Describe this machine for one of torch's device types, with the compute capability of a CUDA device."""
    known = device == "cuda" and torch.cuda.is_available()
    installed = {package: found for package in (*OLDEST, "kernels") if (found := _find_version(package)) is not None}
    outdated = tuple((package, found) for package, found in installed.items() if is_outdated(package, found))
    here = {
        **{package: (package, found) not in outdated for package, found in installed.items()},
        "compiler": _has_compiler() if device == "cpu" else find_spec("triton") is not None,
        "avx2": platform.system() != "Darwin" and torch.cpu._is_avx2_supported(),
    }
    packages = frozenset(name for name, usable in here.items() if usable)
    return Machine(device, torch.cuda.get_device_capability() if known else None, packages, outdated)


def is_outdated(package: str, version: str) -> bool:
    """Whether a version, as returned by `_find_version`, is older than OLDEST."""
    from packaging.version import InvalidVersion, Version

    if package not in OLDEST or not version:
        return False
    try:
        return Version(version) < Version(OLDEST[package][0])
    except InvalidVersion:  # "named flashattn-hopper"
        return True


def explain_missing(package: str, machine: Machine) -> str | None:
    """Return a sentence that the package is missing or too old, with the way to install it; None if it is usable."""
    if package in machine.packages:
        return None
    found = dict(machine.outdated).get(package)
    if found is None:
        return f"{package} is not installed ({PACKAGES[package]})"
    oldest, what, source = OLDEST[package]
    return f"{package} {found} is older than {oldest}: versions before that {what} ({source})"


def _find_version(package: str) -> str | None:
    """Return the installed version; "named X" if only the package's earlier name X is installed (EARLIER_NAME); "" for
    a module without metadata; None if nothing is installed."""
    for name in (package, EARLIER_NAME.get(package)):
        try:
            if name is not None:
                found = metadata.version(name)
                return found if name == package else f"named {name}"
        except metadata.PackageNotFoundError:
            continue
    return "" if package in MODULES and find_spec(MODULES[package]) is not None else None


def _has_compiler() -> bool:
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return any(name and shutil.which(name) for name in names)


MACHINES: dict[str, Machine] = {}
"""Description of this machine, by torch's device type. Filled by `machine_of`, at the latest when a model is moved to a
device."""


def machine_of(device: torch.device) -> Machine:
    """Return the Machine for tensors on this device."""
    if device.type not in MACHINES:
        MACHINES[device.type] = find_machine(device.type)
    return MACHINES[device.type]
