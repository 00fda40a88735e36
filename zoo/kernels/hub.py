"""Kernels built for this torch and this CUDA, fetched from the Hugging Face hub by its `kernels` package."""

from __future__ import annotations

from typing import Any


def fetch(repository: str, version: int) -> Any:
    """Load the module of a kernel repository, the newest build of a major version. Downloads it the first time."""
    from kernels import get_kernel  # type: ignore[import-not-found]

    return get_kernel(repository, version=version)
