"""Solve for shapes that meet a budget: width, depth, feed-forward and heads, each shape priced exactly.

The ratio of width to depth matters little: at a given size, the loss hardly depends on the shape (Kaplan et al., 2020,
section 3.1), although depth helps less in a narrow model (Levine et al., 2020). By default the search covers d_model /
n_layers from 16 to 128, as in nine of ten packaged models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from zoo.analysis.solve.bisection import find_crossing
from zoo.analysis.solve.largest_fit import price_memory
from zoo.analysis.solve.proportions import (
    SOLVED,
    ComposedModel,
    Dims,
    ModelSource,
    choose_ffn_step,
    choose_width_step,
    truncate_layers,
)
from zoo.costs import flops, params
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.rows import Priced
from zoo.costs.setup import Setup
from zoo.errors import ConfigError, refuse
from zoo.grammar.pattern import MOST_LAYERS

KEYS = "kv_bytes_per_token"
"""The budget that is met only by reducing the key-value heads; no other dimension is solved for it."""

ASPECT = (16.0, 128.0)
"""Default range of d_model / n_layers."""

FFN_RANGE = (0.75, 4 / 3)
"""The range in which d_ff / d_model may lie, as multiples of the model's own d_ff / d_model."""

NARROWEST = 64
"""The smallest width that is tried."""

WIDTHS_TRIED = 8
"""Largest number of widths that are tried, spread evenly over the possible widths."""

FIGURES: dict[str, Callable[[Any, Setup, bool], float]] = {
    "params": lambda spec, setup, train: params.count_parameters(spec)["total"],
    "active_params": lambda spec, setup, train: params.count_parameters(spec)["active"],
    "flops_per_token": lambda spec, setup, train: flops.count_flops(spec, setup.tokens(spec))["forward"],
    "kv_bytes_per_token": lambda spec, setup, train: kv_cache(spec, setup)["bytes_per_token"],
    "memory": lambda spec, setup, train: price_memory(spec, setup, train=train)["total"],
}
"""The figures that can have a budget. FLOPs are those of a forward pass at the set-up's context; memory is the peak."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeBudget:
    """The upper limits of a shape's costs; None sets no limit. Raises ConfigError for limits of 0 or less, and if all
    but `kv_bytes_per_token` are None."""

    params: float | None = None
    active_params: float | None = None
    flops_per_token: float | None = None
    kv_bytes_per_token: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        given = self.given()
        faults = [f"{name}: must be above 0, found {value:g}" for name, value in given.items() if value <= 0]
        if not set(given) - {KEYS}:
            faults.append("params: no budget is given that says how large (--params 1e9, say)")
        refuse(faults)

    def given(self) -> dict[str, float]:
        """Give the budgets that are not None, by name."""
        return {name: value for name in FIGURES if (value := getattr(self, name)) is not None}


def solve_shapes(
    model: ModelSource,
    overrides: Iterable[str],
    budget: ShapeBudget,
    setup: Setup | None = None,
    *,
    nearest: bool = False,
    train: bool = False,
    aspect: tuple[float, float] = ASPECT,
    count: int = 6,
) -> list[dict[str, Any]]:
    """Find up to `count` shapes of a model within the budget, the nearest to it first.

    Each shape has its dimensions, its exact `figures`, its `share` (the largest of figure ÷ budget,
    `kv_bytes_per_token` left out), and the `overrides` that make it. Dimensions set by `overrides` are fixed. The
    others keep the model's own proportions: the width of heads, heads per unit of width, query heads per key-value
    head, and approximately d_ff / d_model. A budget of `kv_bytes_per_token` may reduce the key-value heads. With
    `nearest`, a shape may exceed the other budgets. Raises ConfigError if there is no shape.
    """
    if not 0 < aspect[0] <= aspect[1]:
        raise ConfigError(f"aspect: must be least:most, found {aspect[0]:g}:{aspect[1]:g} (16:128, say)")
    recipe, setup = ComposedModel(model, overrides), setup or Setup()
    search = ShapeSearch(recipe=recipe, budget=budget, setup=setup, train=train, nearest=nearest, aspect=aspect)
    found = [shape for width in search.list_widths() if (shape := search.find_at_width(width))]
    found.sort(key=lambda shape: abs(1 - shape[1]))
    if not found:
        raise ConfigError(_describe_lack(recipe, search))
    return [search.describe(dims) for dims, _ in found[:count]]


def _describe_lack(recipe: ComposedModel, search: ShapeSearch) -> str:
    """Describe why there is no shape, first of all a vocabulary whose table alone exceeds the budget."""
    budget, rows = search.budget, recipe.dims.get("vocab_size", 0)
    if budget.params is not None and rows * NARROWEST > budget.params:
        fits = 1 << int(budget.params / NARROWEST / 2).bit_length() - 1
        return (
            f"shape: {budget.params:,.0f} parameters are too few for the table of {rows:,} tokens, which has "
            f"{rows * NARROWEST:,} at d_model {NARROWEST}, the narrowest (vocab_size={fits} would do)"
        )
    asked = ", ".join(f"{name} {value:,.0f}" for name, value in budget.given().items())
    aspect = f"d_model / n_layers from {search.aspect[0]:g} to {search.aspect[1]:g}"
    return (
        f"shape: none of this recipe costs about {asked} with {aspect} "
        "(a wider aspect, a smaller vocab_size or head.tied=true may do)"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeSearch:
    """A search for shapes of a model (`recipe`) within a budget. `aspect` is the range of d_model / n_layers. With
    `nearest` a shape may exceed the budget if no smaller one is nearer to it. With `train` memory is that of training.
    """

    recipe: ComposedModel
    budget: ShapeBudget
    setup: Setup
    train: bool = False
    nearest: bool = False
    aspect: tuple[float, float] = ASPECT

    def price(self, spec: Priced, names: Iterable[str]) -> dict[str, float]:
        """Price the named figures of a Spec."""
        return {name: FIGURES[name](spec, self.setup, self.train) for name in names}

    def share(self, spec: Priced) -> float:
        """Give the largest of figure ÷ budget, `kv_bytes_per_token` left out; at 1 a budget is used up."""
        given = {name: most for name, most in self.budget.given().items() if name != KEYS}
        return max(figure / given[name] for name, figure in self.price(spec, given).items())

    def within(self, spec: Priced) -> bool:
        """Whether a Spec keeps to the budget of `kv_bytes_per_token`, which `nearest` does not relax."""
        most = self.budget.kv_bytes_per_token
        return most is None or self.price(spec, [KEYS])[KEYS] <= most

    def describe(self, dims: Dims) -> dict[str, Any]:
        """Give a shape and its price as plain data."""
        spec, stated = self.recipe.spec(dims), {**self.recipe.dims, **dims}
        shown = (name for name in (*SOLVED, "head_dim") if name in stated and name not in self.recipe.unread)
        return {
            **{name: stated[name] for name in shown},
            "aspect": spec.d_model / spec.n_layers,
            "figures": self.price(spec, self.budget.given()),
            "share": self.share(spec),
            "overrides": self.recipe.overrides_of(dims),
        }

    def list_widths(self) -> list[int]:
        """Choose at most WIDTHS_TRIED widths at which some depth within the aspect costs about the budget."""
        if "d_model" in self.recipe.fixed:
            return [self.recipe.dims["d_model"]]
        grid = [width for width in _grid() if self._depths(width)[1] and any(self.recipe.at_width(width))]
        if not grid:
            return []
        first = find_crossing(lambda index: self._extreme(grid[index], 1), 0, len(grid) - 1) + 1
        last = find_crossing(lambda index: self._extreme(grid[index], 0), 0, len(grid) - 1)
        found = grid[min(first, last) : last + 1]
        if len(found) <= WIDTHS_TRIED:
            return found
        return [found[round(i * (len(found) - 1) / (WIDTHS_TRIED - 1))] for i in range(WIDTHS_TRIED)]

    def _depths(self, width: int) -> tuple[int, int]:
        """Give the fewest and the most layers at a width; (0, 0) if the aspect allows none."""
        if "n_layers" not in self.recipe.solved:
            return self.recipe.dims["n_layers"], self.recipe.dims["n_layers"]
        low = max(self.recipe.least_layers, math.ceil(width / self.aspect[1]))
        high = min(math.floor(width / self.aspect[0]), MOST_LAYERS)
        return (low, high) if low <= high else (0, 0)

    def _extreme(self, width: int, end: int) -> float:
        """Give the share of the budget that the cheapest (0) or most expensive (1) shape of a width takes."""
        dims = next(self.recipe.at_width(width))
        if "d_ff" in dims:
            dims["d_ff"] = self.recipe.ffn(width, ratio=FFN_RANGE[end])
        return self.share(self._cut(dims, width, self._depths(width)[end]))

    def _cut(self, dims: Dims, width: int, layers: int) -> Any:
        """Make the Spec with `layers` layers by cutting the deepest Spec of the width, a thousand times faster than
        composing one."""
        if "n_layers" not in dims:
            return self.recipe.spec(dims)
        return truncate_layers(self.recipe.spec({**dims, "n_layers": self._depths(width)[1]}), layers)

    def find_at_width(self, width: int) -> tuple[Dims, float] | None:
        """Find the shape of a width that is nearest to the budget, and its share."""
        low, high = self._depths(width)
        for dims in self.recipe.at_width(width):

            def share(layers: int, dims: Dims = dims) -> float:
                return self.share(self._cut(dims, width, layers))

            layers = max(low, find_crossing(share, low, high))
            found = self._with_ffn(dims, width, layers)
            if found and self.within(self._cut(found[0], width, layers)):
                return {**found[0], "n_layers": layers}, found[1]
        return None

    def _with_ffn(self, dims: Dims, width: int, layers: int) -> tuple[Dims, float] | None:
        """Choose the d_ff within FFN_RANGE that brings a shape nearest to the budget; return the shape and its share.
        Without `nearest`, None if even the smallest d_ff exceeds the budget."""

        def share(dims: Dims) -> float:
            return self.share(self._cut(dims, width, layers))

        if "d_ff" not in dims:
            return (dims, share(dims)) if self.nearest or share(dims) <= 1 else None
        step = choose_ffn_step(width)
        least, most = (self.recipe.ffn(width, ratio=ratio) // step for ratio in FFN_RANGE)
        usual = dims["d_ff"] // step
        ends = (usual, most) if share(dims) <= 1 else (least, usual)
        found = find_crossing(lambda steps: share({**dims, "d_ff": steps * step}), *ends)
        tried = [{**dims, "d_ff": n * step} for n in (found, found + self.nearest) if least <= n <= most]
        return min(((each, share(each)) for each in tried), key=lambda shape: abs(1 - shape[1]), default=None)


def _grid() -> list[int]:
    widths = [NARROWEST]
    while widths[-1] < 1 << 15:
        widths.append(widths[-1] + choose_width_step(widths[-1]))
    return widths
