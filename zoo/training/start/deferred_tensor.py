"""Record operations on stored tensors, and compute a result when it is read. A conversion of weights then holds only
one tensor in memory, not the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.stored import StoredTensors
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.checkpoint.stored import ReadSlices


class DeferredTensor:
    """A tensor that `make` computes on the CPU, with its `form` on the meta device. A torch operation on it returns
    another DeferredTensor. `slices` reads a part of a stored tensor, if that is possible."""

    def __init__(self, form: Tensor, make: Callable[[], Tensor], slices: ReadSlices | None = None) -> None:
        self.form, self.make, self.slices = form, make, slices

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> DeferredTensor:
        from torch.utils import _pytree as pytree

        given = (args, kwargs or {})

        def call(read: Callable[[DeferredTensor], Tensor], device: str) -> Tensor:
            def take(each: Any) -> Any:
                each = read(each) if isinstance(each, cls) else each
                return each.to(device) if isinstance(each, torch.Tensor) else each

            positional, named = pytree.tree_map(take, given)
            return func(*positional, **named)

        return cls(call(lambda each: each.form, "meta"), lambda: call(lambda each: each.make(), "cpu"))

    @property
    def device(self) -> torch.device:
        """The device that the tensor is computed on."""
        return torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.form, name)
        if not callable(found):
            return found
        return lambda *args, **kwargs: self.__torch_function__(getattr(torch.Tensor, name), (), (self, *args), kwargs)

    def __getitem__(self, at: Any) -> DeferredTensor:
        return self.__torch_function__(torch.Tensor.__getitem__, (), (self, at))

    def __mul__(self, factor: Any) -> DeferredTensor:
        return self.__torch_function__(torch.mul, (), (self, factor))


def defer_tensors(stored: StoredTensors) -> dict[str, Any]:
    """Make a DeferredTensor of each stored tensor."""
    return {
        name: DeferredTensor(form, lambda name=name: stored[name], stored.find_slices(name))
        for name, form in stored.forms.items()
    }


def store_deferred(held: Mapping[str, DeferredTensor]) -> StoredTensors:
    """Return DeferredTensors as stored tensors, each computed when it is read."""
    forms = {name: each.form for name, each in held.items()}
    return StoredTensors(forms, lambda name: held[name].make(), find_slices=lambda name: held[name].slices)
