# N rows of a weight (d_out), K its columns (d_in), R rows of x
"""One prepared product: the modules that it computes, its way, and the packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.errors import ZooError
from zoo.lazy import Tensor, torch
from zoo.run.linear.ways import WAYS


class ReadyProduct:
    """The product of one Linear, or of several with the same input, computed by one way.

    It holds the plain weights (those of several Linears end to end in one tensor), and a packed copy if the way makes
    one. Without `keep` the plain weights are dropped once they are packed.
    """

    def __init__(self, modules: Sequence[Any], way: str, *, keep: bool) -> None:
        self.modules, self.way = list(modules), WAYS[way]
        self.dropped = not keep and self.way.packs
        weights: list[Tensor] = [module.weight for module in modules]
        self.dtype, self.widths = weights[0].dtype, [weight.shape[0] for weight in weights]
        self.device = weights[0].device
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
        """Copy the weights into one tensor, and make each a view of it, so that none is in memory twice."""
        whole = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, whole.split(self.widths), strict=True):
            weight.data = part
        return whole

    def _join_biases(self) -> Tensor | None:
        biases = [module.bias for module in self.modules]
        if all(bias is None for bias in biases):
            return None
        made = [
            torch.zeros(width, dtype=self.dtype, device=self.device) if bias is None else bias.detach().to(self.dtype)
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
        """Return the output of one Linear. The first Linear called with an x computes the product for all Linears."""
        if len(self.widths) == 1:
            return self.compute(x)
        self._held, self._slices = x, list(torch.split_with_sizes(self.compute(x), self.widths, -1))
        mine = self.take_held(place, x)
        assert mine is not None
        return mine

    def take_held(self, place: int, x: Tensor) -> Tensor | None:
        """Return a Linear's output if a call of another Linear with the same x has computed it, else None. Returns it
        only once."""
        if self._held is not x:
            return None
        mine, self._slices[place] = self._slices[place], None
        if all(each is None for each in self._slices):
            self._held = None  # do not keep the input alive
        return mine

    def serves(self, x: Tensor) -> bool:
        """Whether the product may compute x: in inference, in the prepared dtype, with unchanged weights."""
        if x.dtype is not self.dtype or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return x.device == self.device and (self.dropped or _fingerprint(self.modules) == self._seen)

    def undo(self) -> None:
        """Restore the modules. Raises ZooError if the plain weights were dropped."""
        if self.dropped:
            raise ZooError("prepare: the plain weights were dropped when packed (keep=True keeps them)")
        with torch.inference_mode(False), torch.no_grad():
            for module in self.modules:
                module.__dict__.pop("forward", None)
                if len(self.modules) > 1:
                    module.weight.data = module.weight.detach().clone()  # no longer a view of one tensor


class ReadyForward:
    """The `forward` of a prepared Linear. Inputs that the product `serves` are computed by it, others by the module's
    own forward. If the plain weights were dropped, other inputs also go through the product, without gradients
    (`_serve_anyway`)."""

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
        """Multiply in the prepared dtype and without gradients, because there is no plain weight any more. Raises
        ZooError if x is on another device than a CPU, or needs a gradient."""
        if x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            raise ZooError(
                "prepare: the plain weights were dropped when packed, so the model only runs on a CPU (load it again)"
            )
        with torch.no_grad():
            return self.product.take(self.place, x.to(self.product.dtype)).to(x.dtype)


def _fingerprint(modules: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the version and address of each weight, which differ if the weight changed after packing."""
    return [(_versioned(module.weight), module.weight.data_ptr()) for module in modules]


def _versioned(weight: Tensor) -> int:
    try:
        return weight._version
    except RuntimeError:  # an inference tensor, whose writes torch does not count
        return 0


def _drop_weight(module: Any) -> None:
    """Replace a weight by a tensor of the same shape and dtype without memory (meta device). Reading its values
    raises."""
    weight = module.weight
    empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    module.weight = torch.nn.Parameter(empty, requires_grad=False)
