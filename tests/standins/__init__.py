"""Stand-ins of flash-attn 2, 3 and 4 and of torch's own flash operator, which run where no GPU is.

Each has the public signatures of the version it stands for, refuses what that version refuses, and computes by plain
arithmetic of its own. What zoo never asks for (dropout, rotary positions in the kernel, fp8, masks
written in CuTe) a stand-in refuses too, with NotImplementedError. Where the real one would read or write out of bounds
or use what it was told without looking (a `max_seqlen` that is too small), a stand-in looks, and raises.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

VERSIONS = {
    "flash2": "flash-attn 2.8.3.post2",
    "flash3": "flash-attention's hopper folder at commit 01afd16d (package flash_attn_3)",
    "flash4": "flash-attn-4 4.0.0b36",
    "flash_torch": "torch 2.13.0",
}
"""What each was written after."""


class Made(NamedTuple):
    """A call that a stand-in got: the function's name, and the arguments given, a tensor as its type and shape."""

    function: str
    arguments: dict[str, Any]


calls: list[Made] = []
"""Calls in order since the last `install`."""


def recorded(function: Callable) -> Callable:
    """The function, which writes down every call before it looks at it."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        calls.append(Made(function.__name__, {name: _summary(value) for name, value in given.items()}))
        return function(*args, **kwargs)

    return wrapped


def _summary(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype).removeprefix("torch."), tuple(value.shape)
    return value


def install(monkeypatch: Any, name: str, arch: int = 90) -> list[Made]:
    """Puts a stand-in where `import` and zoo look for the real one, for one test: flash2, flash3, flash4, flash_torch.

    `arch` is the compute capability that flash-attn 4's is asked on, times ten. Returns the list of calls, empty.
    """
    from standins import flash_attn_2, flash_attn_3, flash_attn_4, torch_flash
    from zoo.kernels import KERNELS

    calls.clear()
    for kernel in KERNELS.values():  # a module that an earlier test loaded
        for field, value in {"loaded": None, "broken": False, "proven": set(), "tried": set()}.items():
            if hasattr(kernel, field):
                monkeypatch.setattr(kernel, field, value)
    if name == "flash2":
        monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_2)
    elif name == "flash3":
        monkeypatch.setitem(sys.modules, "flash_attn_interface", flash_attn_3)
    elif name == "flash4":
        monkeypatch.setattr(flash_attn_4, "ARCH", arch)
        if "flash_attn" not in sys.modules:  # version 4 brings the folder without a module of its own
            monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
        monkeypatch.setattr(sys.modules["flash_attn"], "cute", flash_attn_4, raising=False)
        monkeypatch.setitem(sys.modules, "flash_attn.cute", flash_attn_4)
    elif name == "flash_torch":
        monkeypatch.setattr(torch.ops.aten, torch_flash.NAME, torch_flash._flash_attention_forward)
    else:
        raise ValueError(f"there is no stand-in of {name!r} (there are {', '.join(VERSIONS)})")
    return calls
