# B batch, T tokens, S keys, D model width
"""Stand in for `zoo.run.layer.Layer` in a traced forward pass: a component's parts by name, each callable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from zoo import spec as S
from zoo.costs.shadow.dtypes import BFLOAT16, FLOAT32, ShadowDtype
from zoo.costs.shadow.elementwise import add, divide, multiply
from zoo.costs.shadow.names import DTYPES
from zoo.costs.shadow.norms import drop_values, dropout
from zoo.costs.shadow.products import convolve_tokens, embedding, grouped_linear, linear
from zoo.costs.shadow.replay import replace_torch
from zoo.costs.shadow.tape import UnknownOperation, current_tape, named_failures
from zoo.costs.shadow.tensor import Core, is_shadow, make_result, make_shadow, wants_gradient
from zoo.costs.tuning import PartTuning
from zoo.distributed.seam import WHOLE, WHOLE_ROWS

BRANCHES = ("attention", "ffn")
"""Axes whose outputs are added to the residual stream; `zoo.training.dropout` hooks the same axes."""


class ShadowDrops:
    """Stand in for `zoo.model.drops.Drops`. `names` are the kinds of dropout whose rate is above 0."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.attention = "attention" in names

    def for_rows(self, *_: Any) -> ShadowDrops:
        return self

    def drop_embedding(self, x: Core) -> Any:
        return drop_values(x) if "embedding" in self.names else x

    def drop_units(self, h: Core) -> Any:
        return drop_values(h) if "ffn" in self.names else h

    def draw_experts(self, scores: Core, count: int) -> Any:
        return make_result("drawn", [], (*scores.shape[:-1], count), FLOAT32)

    def drop_attention(self, *_: Any) -> Any:
        return SimpleNamespace(rate=0.5, apply=drop_values) if self.attention else None


class WeightedLayer:
    """A callable part with a weight and perhaps a bias; the function `run` computes its result. Training may add a
    low-rank adapter."""

    adapter: tuple[Any, Any] | None = None  # the matrices a and b
    magnitudes: Any = None  # of an adapter of DoRA
    drops_adapted = False

    def __init__(self, name: str, part: Any, dtype: ShadowDtype, run: Callable[..., Any]) -> None:
        shapes = part.shapes()
        self.name, self.part, self.run = name, part, run
        self.weight = make_shadow(shapes["weight"], dtype, grad=True, held=True)
        self.bias = make_shadow(shapes["bias"], dtype, grad=True, held=True) if "bias" in shapes else None

    def __call__(self, *given: Any, **options: Any) -> Any:
        with current_tape().inside(self.name):
            x, *others = given
            tape = current_tape()
            key, wants = (*tape.section, ".".join(tape.path)), (wants_gradient(x), wants_gradient(self.weight))
            tape.needs.products[key] = wants if wants[0] else tape.needs.products.get(key, wants)
            return _named(self._adapt(self.run(self, x, *others, **options), x, options.get("offsets")))

    def _adapt(self, y: Core, x: Core, offsets: Core | None) -> Any:
        """Add the low-rank adapter's product to y, as `zoo.run.adapters` does."""
        if self.adapter is None:
            return y
        a, b = self.adapter
        x = dropout(x) if self.drops_adapted else x
        inner = linear(x, a) if offsets is None else grouped_linear(x, a, offsets)
        y = add(y, multiply(linear(inner, b) if offsets is None else grouped_linear(inner, b, offsets), 1.0))
        if self.magnitudes is None:
            return y
        norms = make_result("norms", [], self.magnitudes.shape, FLOAT32)
        return multiply(y, divide(self.magnitudes, norms).to(y.dtype))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnknownOperation(f"{type(self.part).__name__}.{name}")


FEW_ROWS = 32
"""Rows up to which zoo.run.layer multiplies bfloat16 on a CPU with the weight on the left; a test compares both
constants."""


def run_linear(part: WeightedLayer, x: Any) -> Any:
    """Compute a matrix product."""
    y = linear(x, part.weight, part.bias)
    few = 1 < math.prod(x.shape[:-1]) <= FEW_ROWS
    generating = not (current_tape().recording or x.is_cuda)
    if few and generating and part.bias is None and x.dtype is BFLOAT16:
        return make_shadow(y.shape, y.dtype, y.storage.name)  # zoo.run.layer makes a contiguous copy, then frees y
    return y


def run_experts(part: WeightedLayer, x: Any, offsets: Any, expert_of_row: Any) -> Any:
    """Compute a grouped matrix product, one weight per expert."""
    y = grouped_linear(x, part.weight, offsets)
    return y if part.bias is None else y + part.bias.to(y.dtype)[expert_of_row]


class ShadowLayer:
    """A component with shadows of its weights. Parts are made at their first use."""

    branch = False  # whether it is a sub-layer whose result is added to the residual stream
    blocks: list[ShadowLayer]  # the layers of a tower whose own pass is run
    recompute = None  # a traced pass saves everything; the price then deducts recomputed activations
    dropping = None  # dropout is given to the pass's ForwardContext (`ShadowDrops`)
    seam, context = WHOLE, WHOLE_ROWS

    def __init__(
        self,
        spec: Any,
        d_model: int,
        dtype: ShadowDtype,
        name: str = "",
        kernel: str = "auto",
        tuning: PartTuning | None = None,
    ) -> None:
        self.spec, self.d_model, self.dtype, self.name, self.kernel = spec, d_model, dtype, name, kernel
        self._tuning = tuning
        self._parts = dict(spec.parts(d_model))
        self._shaded = replace_torch(spec)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._parts:
            raise AttributeError(name)
        made = part_of(name, self._parts[name], self.d_model, self.dtype)
        if self._tuning is not None:
            set_tuning(name, made, self._tuning)
            if isinstance(made, ShadowLayer):
                made.branch = self.spec.axis == "block" and made.spec.axis in BRANCHES
        setattr(self, name, made)
        return made

    def __call__(self, *args: Any, **options: Any) -> Any:
        with current_tape().inside(self.name), named_failures(f"{self.spec.axis}={self.spec.kind}"):
            return _named(self._drop(self._shaded.forward(self, *args, **options)))

    def _drop(self, result: Core) -> Any:
        """Apply dropout to a sub-layer's result, or drop the result of whole rows, as the hooks of
        `zoo.training.dropout` do."""
        drops = self._tuning.whole.drops if self._tuning is not None and self.branch else ()
        if "residual" in drops:
            result = drop_values(result)
        if "layers" in drops:
            kept = make_result("kept", [], (result.shape[0], 1, 1), result.dtype)
            result = multiply(result, kept)
        return result

    @property
    def training(self) -> bool:
        return current_tape().training

    def named_children(self) -> Iterator[tuple[str, Any]]:
        """List the parts that are modules."""
        tensors = (S.Weight, S.Buffer)
        return ((name, getattr(self, name)) for name, part in self._parts.items() if not isinstance(part, tensors))


def part_of(name: str, part: Any, d_model: int, dtype: ShadowDtype) -> Any:
    """Make the stand-in for a component's part."""
    match part:
        case S.Weight():
            return make_shadow(part.shape, dtype, grad=True, held=True)
        case S.Buffer():
            return make_shadow(part.shape, DTYPES[part.dtype], held=True)
        case S.Tied():
            return part_of(name, part.of, d_model, dtype)  # saved tensors are the same whoever owns the weight
        case S.Linear():
            return WeightedLayer(name, part, dtype, run_linear)
        case S.Embedding():
            return WeightedLayer(name, part, dtype, lambda table, ids: embedding(ids, table.weight))
        case S.Experts():
            return WeightedLayer(name, part, dtype, run_experts)
        case S.Conv():
            run = lambda conv, x: convolve_tokens(x, conv.weight, conv.bias, part.groups, part.dilation)  # noqa: E731
            return WeightedLayer(name, part, dtype, run)
        case S.Group():
            return {inner: part_of(f"{name}.{inner}", each, d_model, dtype) for inner, each in part.parts.items()}
        case S.Sized():
            return ShadowLayer(part.spec, part.d_model, dtype, name)
    return ShadowLayer(part, d_model, dtype, name)


def set_tuning(name: str, made: object, tuning: PartTuning) -> None:
    """Apply a run's tuning to a part: freeze weights, add adapters."""
    if is_shadow(made):
        made.wants_grad = made.wants_grad and name not in tuning.frozen
    elif isinstance(made, dict):
        for inner, each in made.items():
            set_tuning(f"{name}.{inner}", each, tuning)
    elif isinstance(made, ShadowLayer):
        made._tuning = tuning.below(name)
    elif isinstance(made, WeightedLayer):
        for leaf in ("weight", "bias"):
            if f"{name}.{leaf}" in tuning.frozen and (held := getattr(made, leaf)) is not None:
                held.wants_grad = False
        if name in tuning.adapted:
            *experts, d_out, d_in = made.weight.shape
            rank, dtype = tuning.whole.rank, made.weight.dtype
            shapes = (*experts, rank, d_in), (*experts, d_out, rank)
            a, b = (make_shadow(shape, dtype, grad=True, held=True) for shape in shapes)
            made.adapter, made.drops_adapted = (a, b), tuning.whole.drops_adapted
            if tuning.whole.dora:
                made.magnitudes = make_shadow((d_out,), dtype, grad=True, held=True)


def _named(made: Any) -> Any:
    """Name a part's result after the part, if the part allocated its memory."""
    storage = getattr(made, "storage", None)
    here = ".".join(current_tape().path)
    if storage is not None and not storage.held and storage.name.startswith(f"{here}/"):
        storage.name = here
    return made
