# R rank, E experts, N tokens
"""Low-rank adapters (LoRA; Hu et al., 2021) on a built model's Linears: attach, split off and merge them.

An adapted Linear computes W·x + (alpha / R)·B·A·dropout(x). A is drawn at random and B starts at 0, so a new adapter
changes nothing. The Linear keeps its names in `state_dict`; its adapter is `lora.a` and `lora.b` below it. DoRA (Liu et
al., 2024) scales each row of W + (alpha / R)·B·A to a learned norm, `lora.m`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.distributed.sharded_tensors import take_part
from zoo.kernels.grouped_products import grouped_linear
from zoo.run.layer import LinearModule, Model, StackedLinear

T = TypeVar("T")

INSIDE = ".lora."
"""Part of the name of every adapter tensor, and of no other tensor's name."""


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model.

    Their rank, alpha, dropout rate of their inputs in training, and the `paths` of the adapted Linears. `trained` names
    the model's own weights that differ from the base's: they train too, or were drawn or converted at the start. `base`
    is the path of the base model, or None; `hash` identifies its weights (`identify_base`). With a base, checkpoints
    store only the adapters and the `trained` weights; without one, all weights. `quantise` is the form to which the
    base's matrices are quantised when they are read. With `dora` an adapter has magnitudes too.
    """

    rank: int
    alpha: float
    dropout: float
    paths: tuple[str, ...]
    trained: tuple[str, ...] = ()
    base: str | None = None
    hash: str | None = None
    quantise: str | None = None
    dora: bool = False

    @property
    def scale(self) -> float:
        """The factor of B·A."""
        return self.alpha / self.rank


class Adapter(nn.Module):
    """The matrices of one adapter: a [R, d_in] and b [d_out, R]; for stacked experts [E, R, d_in] and [E, d_out, R].
    DoRA adds m [d_out], the norms of the weight's rows."""

    def __init__(self, weight: Tensor, plan: Adapters) -> None:
        super().__init__()
        *experts, d_out, d_in = weight.shape
        self.scale, self.dropout = plan.scale, plan.dropout
        self.a = nn.Parameter(weight.new_empty(*experts, plan.rank, d_in))
        self.b = nn.Parameter(weight.new_zeros(*experts, d_out, plan.rank))
        if plan.dora:
            self.m = nn.Parameter(weight.new_ones(d_out))

    def draw(self, generator: torch.Generator) -> None:
        """Draw A uniformly within ±1/√d_in, as peft does."""
        bound = self.a.shape[-1] ** -0.5
        drawn = torch.empty(self.a.shape, device=generator.device).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.a.copy_(take_part(drawn, self.a))

    def drop(self, x: Tensor) -> Tensor:
        """Apply dropout to the inputs while training."""
        return F.dropout(x, self.dropout, self.training)

    def change(self) -> Tensor:
        """Compute the matrix that the adapter adds to the weight: scale · B·A, in float32."""
        return self.scale * (self.b.float() @ self.a.float())


class AdaptedLinear(LinearModule):
    """A Linear with an adapter."""

    lora: Adapter

    def forward(self, input: Tensor) -> Tensor:
        adapter = self.lora
        return super().forward(input) + adapter.scale * F.linear(F.linear(adapter.drop(input), adapter.a), adapter.b)


class DoraLinear(AdaptedLinear):
    """A Linear with an adapter of DoRA: each row of the whole weight is scaled to its magnitude in `lora.m`.

    A row's present norm is treated as a constant in the backward pass (section 4.3 of the paper). The bias is added
    last.
    """

    adds_bias = False

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        y = y * (self.lora.m / self.measure_rows()).to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @torch.no_grad()
    def measure_rows(self) -> Tensor:
        """Compute the L2 norm of each row of the adapted weight: [d_out], in float32."""
        with torch.autocast(self.lora.a.device.type, enabled=False):
            return (self.weight.float() + self.lora.change()).norm(dim=1)


class AdaptedExperts(StackedLinear):
    """Stacked experts' Linears, each with its own adapter."""

    lora: Adapter

    def forward(self, x: Tensor, offsets: Tensor, expert_of_row: Tensor) -> Tensor:
        adapter, where = self.lora, {"bias": None, "expert_of_row": expert_of_row, "computing": self.computing}
        inner = grouped_linear(adapter.drop(x), adapter.a, offsets, **where)
        return super().forward(x, offsets, expert_of_row) + adapter.scale * grouped_linear(
            inner, adapter.b, offsets, **where
        )


ADAPTED: dict[type[nn.Module], type[nn.Module]] = {LinearModule: AdaptedLinear, StackedLinear: AdaptedExperts}
"""The class that a Linear module gets when an adapter is attached."""


def attach_adapters(model: Model, plan: Adapters, seed: int = 0) -> None:
    """Attach an adapter to each Linear at the plan's paths, in place, initialised from `seed`."""
    for path in plan.paths:
        module: Any = model.get_submodule(path)
        module.__class__ = DoraLinear if plan.dora else ADAPTED[type(module)]
        module.add_module("lora", Adapter(module.weight, plan))
        module.lora.train(module.training)
    model.adapters = plan  # type: ignore[assignment]
    draw_adapters(model, next(model.parameters()).device, seed)


def draw_adapters(model: Any, device: torch.device, seed: int) -> None:
    """Initialise the adapters of a model from `seed`: A at random, B with 0. Adapters on the meta device are created on
    `device`; if that is meta too, nothing is done."""
    if device.type == "meta":
        return
    generator = torch.Generator(device).manual_seed(seed)
    for path in model.adapters.paths:
        module: Any = model.get_submodule(path)
        adapter = module.lora
        if adapter.a.is_meta:
            adapter.to_empty(device=device)
        nn.init.zeros_(adapter.b)
        adapter.draw(generator)
        if isinstance(module, DoraLinear):
            with torch.no_grad():
                adapter.m.copy_(module.measure_rows())


def split_adapters(state: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """Split a state_dict into the model's own tensors and its adapters'."""
    own = {name: each for name, each in state.items() if INSIDE not in name}
    return own, {name: each for name, each in state.items() if INSIDE in name}


def merge_adapter(weight: Tensor, plan: Adapters, a: Tensor, b: Tensor, m: Tensor | None = None) -> Tensor:
    """Merge a saved adapter into its weight: W + scale · B·A, with rows scaled to the norms `m` if given. Computed in
    float32 and returned in the weight's dtype."""
    whole = weight.float() + plan.scale * (b.float() @ a.float())
    if m is not None:
        whole *= (m.float() / whole.norm(dim=1)).unsqueeze(1)
    return whole.to(weight.dtype)


def list_adapter_shapes(plan: Adapters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every adapter tensor by name; `shapes` are those of the model's own tensors."""
    found: dict[str, tuple[int, ...]] = {}
    for path in plan.paths:
        *experts, d_out, d_in = shapes[f"{path}.weight"]
        found[f"{path}{INSIDE}a"] = (*experts, plan.rank, d_in)
        found[f"{path}{INSIDE}b"] = (*experts, d_out, plan.rank)
        if plan.dora:
            found[f"{path}{INSIDE}m"] = (d_out,)
    return found
