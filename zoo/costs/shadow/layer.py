# B batch, T tokens, S keys, D model width
"""Stand in for `zoo.run.layer.Layer` in a traced forward pass: a component's parts by name, each callable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from zoo import spec as S
from zoo.costs.shadow.dtypes import BFLOAT16, FLOAT32, ShadowDtype
from zoo.costs.shadow.products import conv1d, embedding, grouped_linear, linear
from zoo.costs.shadow.recording import (
    UnknownOperation,
    current_tape,
    named_failures,
)
from zoo.costs.shadow.replay import replace_torch
from zoo.costs.shadow.tensor import make_shadow


class Weighted:
    """A callable part with a weight and perhaps a bias."""

    def __init__(self, name: str, part: Any, dtype: ShadowDtype) -> None:
        shapes = part.shapes()
        self.name, self.part = name, part
        self.weight = make_shadow(shapes["weight"], dtype, grad=True, held=True)
        self.bias = make_shadow(shapes["bias"], dtype, grad=True, held=True) if "bias" in shapes else None

    def __call__(self, *given: Any, **options: Any) -> Any:
        with current_tape().inside(self.name):
            return _named(self.run(*given, **options))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnknownOperation(f"{type(self.part).__name__}.{name}")

    def run(self, *given: Any, **options: Any) -> Any:
        """Compute the part's result."""
        raise NotImplementedError


FEW_ROWS = 32
"""Rows up to which zoo.run.layer multiplies bfloat16 on a CPU with the weight on the left; a test holds it."""


class ShadowLinear(Weighted):
    """A matrix product."""

    def run(self, x: Any) -> Any:
        y = linear(x, self.weight, self.bias)
        few = 1 < math.prod(x.shape[:-1]) <= FEW_ROWS
        generating = not (current_tape().recording or x.is_cuda)
        if few and generating and self.bias is None and x.dtype is BFLOAT16:
            return make_shadow(y.shape, y.dtype, y.storage.name)  # zoo.run.layer makes a contiguous copy, then frees y
        return y


class ShadowTable(Weighted):
    """An embedding table."""

    def run(self, ids: Any) -> Any:
        return embedding(ids, self.weight)


class ShadowExperts(Weighted):
    """A grouped matrix product, one weight per expert."""

    def run(self, x: Any, offsets: Any, expert_of_row: Any) -> Any:
        y = grouped_linear(x, self.weight, offsets)
        return y if self.bias is None else y + self.bias.to(y.dtype)[expert_of_row]


class ShadowConvolution(Weighted):
    """A convolution along the tokens."""

    def run(self, x: Any) -> Any:
        return conv1d(x.transpose(1, 2), self.weight, self.bias, groups=self.part.groups).transpose(1, 2)


class ShadowLayer:
    """A component with shadows of its weights. Parts are made at their first use."""

    blocks: list[ShadowLayer]  # of a tower whose own pass is run
    recompute = None  # a pass that is priced is priced as it is; what is computed again is deducted by the price
    attention_dropout = embedding_dropout = 0.0

    def __init__(self, spec: Any, d_model: int, dtype: ShadowDtype, name: str = "", kernel: str = "auto") -> None:
        self.spec, self.d_model, self.dtype, self.name, self.kernel = spec, d_model, dtype, name, kernel
        self._parts = dict(spec.parts(d_model))
        self._shaded = replace_torch(spec)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._parts:
            raise AttributeError(name)
        made = part_of(name, self._parts[name], self.d_model, self.dtype)
        setattr(self, name, made)
        return made

    def __call__(self, *args: Any, **options: Any) -> Any:
        with current_tape().inside(self.name), named_failures(f"{self.spec.axis}={self.spec.kind}"):
            return _named(self._shaded.forward(self, *args, **options))

    @property
    def training(self) -> bool:
        return current_tape().training

    def named_children(self) -> Iterator[tuple[str, Any]]:
        """List the parts that are modules."""
        return ((name, getattr(self, name)) for name, part in self._parts.items() if not _is_tensor(part))


def part_of(name: str, part: Any, d_model: int, dtype: ShadowDtype) -> Any:
    """Make the stand-in for a component's part."""
    match part:
        case S.Weight():
            return make_shadow(part.shape, dtype, grad=True, held=True)
        case S.Buffer():
            return make_shadow(part.shape, FLOAT32, held=True)
        case S.Tied():
            return part_of(name, part.of, d_model, dtype)  # whose weight it is does not matter
        case S.Linear():
            return ShadowLinear(name, part, dtype)
        case S.Embedding():
            return ShadowTable(name, part, dtype)
        case S.Experts():
            return ShadowExperts(name, part, dtype)
        case S.Conv():
            return ShadowConvolution(name, part, dtype)
        case S.Group():
            return {inner: part_of(inner, each, d_model, dtype) for inner, each in part.parts.items()}
        case S.Sized():
            return ShadowLayer(part.spec, part.d_model, dtype, name)
    return ShadowLayer(part, d_model, dtype, name)


def _is_tensor(part: Any) -> bool:
    return isinstance(part, (S.Weight, S.Buffer))


def _named(made: Any) -> Any:
    """Name a part's result after the part, if the part allocated its memory."""
    storage = getattr(made, "storage", None)
    here = ".".join(current_tape().path)
    if storage is not None and not storage.held and storage.name.startswith(f"{here}/"):
        storage.name = here
    return made
