"""Import torch on first use, so that pricing an architecture never imports it.

A component file has `from zoo.lazy import torch` and uses it inside `forward`. The first attribute access imports the
module and copies its names here, so that later accesses are as fast as an ordinary module's and torch.compile sees
plain attributes. Python 3.15's `lazy import` (PEP 810) will replace this file.
"""

import importlib
from typing import TYPE_CHECKING, Any


class _Lazy:
    def __init__(self, module: str) -> None:
        self.__dict__["_module"] = module

    def _fill(self) -> Any:
        module = importlib.import_module(self._module)
        self.__dict__.update(vars(module))
        return module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fill(), name)


if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
else:
    torch = _Lazy("torch")
    F = _Lazy("torch.nn.functional")
    Tensor = nn = Any  # in annotations alone


def load() -> None:
    """Import torch and torch.nn.functional now, because code that torch.compile traces must not import."""
    for module in (torch, F):
        _Lazy._fill(module)  # type: ignore[arg-type]
