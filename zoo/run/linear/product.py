# N rows of a weight (d_out), K its columns (d_in), R rows of x
"""One product made ready to serve: the modules that it stands for, its way, and what is packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError
from zoo.lazy import torch
from zoo.run.linear.ways import WAYS

if TYPE_CHECKING:
    from torch import Tensor


class ReadyProduct:
    """The product of one Linear, or of several that read the same input, computed by one way.

    What is in memory: the plain weights, which of several Linears lie end to end in one tensor, and the packed copy of
    a way that makes one. Without `keep` the plain weights go once they are packed.
    """

    def __init__(self, modules: Sequence[Any], way: str, *, keep: bool) -> None:
        self.modules, self.way = list(modules), WAYS[way]
        self.dropped = not keep and self.way.packs
        weights: list[Tensor] = [module.weight for module in modules]
        self.dtype, self.widths = weights[0].dtype, [weight.shape[0] for weight in weights]
        self.columns = weights[0].shape[1]
        self.bytes = self.way.count_bytes((sum(self.widths), self.columns), self.dtype.itemsize)
        with torch.inference_mode(False), torch.no_grad():
            whole = weights[0].detach() if len(weights) == 1 else self._lay_end_to_end(weights)
            self.packed = self.way.prepare(whole, self._join_biases())
            if self.dropped:
                for module in modules:
                    _drop_weight(module)
        self._seen = None if self.dropped else _fingerprint(self.modules)
        self._held: Tensor | None = None
        self._slices: list[Tensor | None] = []

    def _lay_end_to_end(self, weights: list[Tensor]) -> Tensor:
        """Copy the weights into one tensor, and make each a view of it: no memory is taken twice."""
        whole = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, whole.split(self.widths), strict=True):
            weight.data = part
        return whole

    def _join_biases(self) -> Tensor | None:
        biases = [module.bias for module in self.modules]
        if all(bias is None for bias in biases):
            return None
        made = [
            torch.zeros(width, dtype=self.dtype) if bias is None else bias.detach().to(self.dtype)
            for bias, width in zip(biases, self.widths, strict=True)
        ]
        return torch.cat(made).clone()

    def compute(self, x: Tensor) -> Tensor:
        """Multiply x [..., K] to [..., N]."""
        if x.dim() == 2 or self.way.any_shape:
            return self.way.run(x, self.packed)
        y = self.way.run(x.reshape(-1, self.columns), self.packed)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def take(self, place: int, x: Tensor) -> Tensor:
        """Compute the product of one of the Linears: for all of them, when the first is called with a tensor."""
        if len(self.widths) == 1:
            return self.compute(x)
        self._held, self._slices = x, list(torch.split_with_sizes(self.compute(x), self.widths, -1))
        mine = self.take_held(place, x)
        assert mine is not None
        return mine

    def take_held(self, place: int, x: Tensor) -> Tensor | None:
        """Hand out what was computed for a Linear when another was called with this very tensor, once; else None."""
        if self._held is not x:
            return None
        mine, self._slices[place] = self._slices[place], None
        if all(each is None for each in self._slices):
            self._held = None  # the input need not live longer
        return mine

    def serves(self, x: Tensor) -> bool:
        """Tell whether x takes the way: in inference, in the dtype that was prepared, with the weights
        unchanged since. Anything else is the plain module's."""
        if x.dtype is not self.dtype or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return x.device.type == "cpu" and (self.dropped or _fingerprint(self.modules) == self._seen)

    def undo(self) -> None:
        """Make the modules what they were. Raises ZooError where the plain weights went."""
        if self.dropped:
            raise ZooError("prepare: the plain weights went when they were packed (keep=True keeps them)")
        with torch.inference_mode(False), torch.no_grad():
            for module in self.modules:
                module.__dict__.pop("forward", None)
                if len(self.modules) > 1:
                    module.weight.data = module.weight.detach().clone()  # no longer a view of one tensor


class ReadyForward:
    """The `forward` of a Linear made ready: the product's where it serves, else the module's own."""

    def __init__(self, product: ReadyProduct, place: int) -> None:
        self.product, self.place = product, place
        self.module = product.modules[place]
        self.plain = type(self.module).forward

    def __call__(self, x: Tensor) -> Tensor:
        if (held := self.product.take_held(self.place, x)) is not None:
            return held
        if self.product.serves(x):
            return self.product.take(self.place, x)
        if self.product.dropped:
            return self._serve_anyway(x)
        return self.plain(self.module, x)

    def _serve_anyway(self, x: Tensor) -> Tensor:
        """Multiply without gradients, as there is no plain weight to fall back on."""
        if x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            raise ZooError(
                "prepare: the plain weights went when they were packed: it generates on the CPU alone (load it anew)"
            )
        with torch.no_grad():
            return self.product.take(self.place, x.to(self.product.dtype)).to(x.dtype)


def _fingerprint(modules: Sequence[Any]) -> list[tuple[int, int]]:
    """Where the weights lie and how often they were written, to tell that they changed after they were packed."""
    return [(_versioned(module.weight), module.weight.data_ptr()) for module in modules]


def _versioned(weight: Any) -> int:
    try:
        return weight._version
    except RuntimeError:  # of a model built in inference mode, where torch counts no writes
        return 0


def _drop_weight(module: Any) -> None:
    """Leave a weight its shape and dtype, and no memory: whoever reads it directly is told so by torch."""
    weight = module.weight
    empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    module.weight = torch.nn.Parameter(empty, requires_grad=False)
