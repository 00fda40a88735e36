# E experts
"""Hold frozen weights as they are stored (bfloat16, or quantised as in QLoRA; Dettmers et al., 2023), and dequantise
them at each product.

A module with a held weight has no parameter `weight`. Reading `weight` dequantises it. A product does not save the
dequantised weight for its backward pass, which dequantises again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.kernels.grouped_products import grouped_linear
from zoo.run.adapters import AdaptedExperts, AdaptedLinear, DoraLinear
from zoo.run.layer import LinearModule, StackedLinear


@dataclass(frozen=True, eq=False)
class HeldWeight:
    """A weight as it is stored: its tensors by role (`parts`), and `decode`, which computes the weight from them in a
    dtype. `computed` is the dtype of the model around it."""

    parts: Mapping[str, Tensor]
    decode: Callable[[Mapping[str, Tensor], torch.dtype], Tensor]
    computed: torch.dtype

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """Dequantise the weight to a dtype, by default the dtype of products here (`choose_dtype`)."""
        device = next(iter(self.parts.values())).device
        with torch.no_grad(), device:
            return self.decode(self.parts, dtype or choose_dtype(device, self.computed))

    @property
    def nbytes(self) -> int:
        """The bytes held in memory."""
        return sum(each.nbytes for each in self.parts.values())

    def __deepcopy__(self, memo: object) -> HeldWeight:
        return self  # it never changes


def choose_dtype(device: torch.device, computed: torch.dtype) -> torch.dtype:
    """Return autocast's dtype where autocast is on, else `computed`."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else computed


class HeldProduct(torch.autograd.Function):
    """Multiply x by a held weight. `multiply(x, weight)` computes x·weightᵀ, for experts with a stack of weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: HeldWeight, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.held, ctx.multiply = held, multiply
        return multiply(x, held.read(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        weight = ctx.held.read(gradient.dtype)
        return ctx.multiply(gradient, weight.transpose(-1, -2)), None, None


class HoldsWeight:
    """A module whose weight is held as it is stored."""

    held: HeldWeight

    @property
    def weight(self) -> Tensor:
        return self.held.read()

    def _multiply(self, x: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return HeldProduct.apply(x.to(choose_dtype(x.device, x.dtype)), self.held, multiply)  # type: ignore[no-any-return]


class HeldLinear(HoldsWeight, LinearModule):  # type: ignore[misc]
    """A Linear with a held weight."""

    def forward(self, input: Tensor) -> Tensor:
        y = self._multiply(input, F.linear)
        return y if self.bias is None or not self.adds_bias else y + self.bias.to(y.dtype)


class HeldExperts(HoldsWeight, StackedLinear):  # type: ignore[misc]
    """Stacked experts' Linears with held weights [E, d_out, d_in]."""

    def forward(self, x: Tensor, offsets: Tensor, expert_of_row: Tensor) -> Tensor:
        how = {"offsets": offsets, "expert_of_row": expert_of_row, "computing": self.computing}
        y = self._multiply(x, lambda x, weight: grouped_linear(x, weight, **how))
        return y if self.bias is None or not self.adds_bias else y + self.bias.to(y.dtype)[expert_of_row]


class HeldEmbedding(HoldsWeight, nn.Embedding):  # type: ignore[misc]
    """A token table that is held; its rows are converted after the look-up."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.held.parts["weight"]).to(self.held.computed)


class HeldAdaptedLinear(AdaptedLinear, HeldLinear):  # type: ignore[misc]
    """A Linear with a held weight and an adapter."""


class HeldDoraLinear(DoraLinear, HeldLinear):  # type: ignore[misc]
    """A Linear with a held weight and an adapter of DoRA."""


class HeldAdaptedExperts(AdaptedExperts, HeldExperts):  # type: ignore[misc]
    """Stacked experts with held weights and adapters."""


HELD: dict[type[nn.Module], type[nn.Module]] = {
    LinearModule: HeldLinear,
    StackedLinear: HeldExperts,
    nn.Embedding: HeldEmbedding,
    AdaptedLinear: HeldAdaptedLinear,
    DoraLinear: HeldDoraLinear,
    AdaptedExperts: HeldAdaptedExperts,
}
"""The class that a module gets when its weight is held as it is stored."""


def hold_weight(module: Any, held: HeldWeight) -> None:
    """Replace a module's parameter `weight` by a held weight, in place."""
    del module._parameters["weight"]
    module.__class__ = HELD[type(module)]
    module.held = held


def list_held_weights(model: nn.Module) -> Iterator[HeldWeight]:
    """List the weights that a model holds as they are stored."""
    yield from (module.held for module in model.modules() if isinstance(module, HoldsWeight))
