"""Find an NVIDIA GPU on which torch's CUDA does not start: an old driver, or a torch built without CUDA."""

from __future__ import annotations

import os
import re
from pathlib import Path

from zoo.errors import ConfigError, short
from zoo.lazy import torch

DEVICES, DRIVER = Path("/dev"), Path("/proc/driver/nvidia/version")
"""Where Linux lists devices (nvidia0, …), and where NVIDIA's driver states its version."""

HIDDEN = "CUDA_VISIBLE_DEVICES"


def refuse_unusable_gpu() -> None:
    """Raise ConfigError if this machine has an NVIDIA GPU that torch cannot use; otherwise a run would silently compute
    on the CPU. A GPU hidden by the user (CUDA_VISIBLE_DEVICES is empty or -1) does not count."""
    there = [each.name for each in DEVICES.glob("nvidia[0-9]*")]
    if not there or os.environ.get(HIDDEN, "0").strip() in ("", "-1"):
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    driver = read_driver_version() or "of unknown version"
    found = f"NVIDIA driver {driver}, torch {torch.__version__} {built}{describe_failure()}"
    would = "a driver and a torch of one CUDA version, see `nvidia-smi`; device=cpu takes the processor"
    raise ConfigError(f"device: this machine's GPU does not start, found {found} ({would})")


def read_driver_version() -> str | None:
    """Read the version of NVIDIA's driver; None if the driver states none."""
    text = DRIVER.read_text() if DRIVER.is_file() else ""
    found = re.search(r"Kernel Module\D*(\d+\.[\d.]+)", text)
    return found[1] if found else None


def describe_failure() -> str:
    """Return torch's reason why CUDA does not start, after a colon; "" if it starts, or if torch was built without
    CUDA."""
    if not torch.version.cuda:
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f": {short(error)}"
    return ""
