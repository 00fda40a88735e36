"""Shapes that cost a given budget: width, depth, feed-forward and heads, each priced exactly.

How deep a model of some width should be is settled loosely: at a given size its loss hardly depends on the shape
(Kaplan et al., 2020, section 3.1), though depth pays less as width runs short (Levine et al., 2020). Nine in ten of the
packaged models lie between 16 and 128 units of width a layer: that is what is searched unless told otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from zoo.analysis.solve.fit import price_memory
from zoo.analysis.solve.recipe import SOLVED, Dims, Recipe, choose_ffn_step, choose_width_step, truncate_layers
from zoo.analysis.solve.search import find_crossing
from zoo.costs import flops, params
from zoo.costs.cache import kv_cache
from zoo.costs.setup import Setup
from zoo.errors import ConfigError
from zoo.grammar.pattern import MOST_LAYERS

KEYS = "kv_bytes_per_token"
"""The budget that key heads are solved for, and the others are not."""

ASPECT = (16.0, 128.0)
"""d_model / n_layers, least and most."""

FFN_RANGE = (0.75, 4 / 3)
"""How far d_ff may be from the recipe's multiple of d_model, to meet the budget more nearly."""

WIDTHS_TRIED = 8
"""Widths looked at, spread evenly over those that the aspect leaves."""

FIGURES: dict[str, Callable[[Any, Setup, bool], float]] = {
    "params": lambda spec, setup, train: params.count_parameters(spec)["total"],
    "active_params": lambda spec, setup, train: params.count_parameters(spec)["active"],
    "flops_per_token": lambda spec, setup, train: flops.count_flops(spec, setup.tokens(spec))["forward"],
    "kv_bytes_per_token": lambda spec, setup, train: kv_cache(spec, setup)["bytes_per_token"],
    "memory": lambda spec, setup, train: price_memory(spec, setup, train=train)["total"],
}
"""What can be budgeted; FLOPs are of a forward pass at the set-up's context, memory is at the peak."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The most a shape may cost; what is None is free."""

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
        if faults:
            raise ConfigError(*faults)

    def given(self) -> dict[str, float]:
        """The budgets that are not None, by name."""
        return {name: value for name in FIGURES if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What shapes are held against: budgets, what is run, and whether the budget may be passed for being nearer."""

    budget: Budget
    setup: Setup
    train: bool = False
    nearest: bool = False
    aspect: tuple[float, float] = ASPECT

    def figures(self, spec: Any) -> dict[str, float]:
        """The budgeted figures of a Spec."""
        return {name: FIGURES[name](spec, self.setup, self.train) for name in self.budget.given()}

    def share(self, spec: Any, *, without: str = "") -> float:
        """Of the budget that a Spec comes nearest to (or furthest above): 1 is all of it."""
        given = self.budget.given()
        return max(FIGURES[name](spec, self.setup, self.train) / given[name] for name in given if name != without)

    def within(self, spec: Any) -> bool:
        """Whether it keeps to the budget of keys and values, which no other makes up for."""
        most = self.budget.kv_bytes_per_token
        return most is None or FIGURES[KEYS](spec, self.setup, self.train) <= most


def solve_shapes(
    model: Any,
    overrides: Iterable[str],
    budget: Budget,
    setup: Setup | None = None,
    *,
    nearest: bool = False,
    train: bool = False,
    aspect: tuple[float, float] = ASPECT,
    count: int = 6,
) -> list[dict[str, Any]]:
    """Up to `count` shapes of a model that cost no more than the budget, the nearest to it first.

    Each has its dimensions, its exact `figures`, the `share` of the budget that it comes nearest to, and the
    `overrides` that make it of the model. Dimensions that `overrides` set stay; the others keep the recipe's
    proportions: heads of its width, as many of them a unit of width, as many query heads a key head, and d_ff near its
    multiple of d_model. Where keys and values are budgeted there are no more key heads than that leaves. With `nearest`
    a shape may cost more than the budget. Raises ConfigError when no shape does.
    """
    if not 0 < aspect[0] <= aspect[1]:
        raise ConfigError(f"aspect: must be least:most, found {aspect[0]:g}:{aspect[1]:g} (16:128, say)")
    search = Search(budget=budget, setup=setup or Setup(), train=train, nearest=nearest, aspect=aspect)
    recipe = Recipe(model, overrides)
    found = [shape for width in _widths(recipe, search) if (shape := _at_width(recipe, search, width))]
    found.sort(key=lambda shape: abs(1 - shape[1]))
    if not found:
        asked = ", ".join(f"{name} {value:g}" for name, value in budget.given().items())
        raise ConfigError(
            f"shape: none of this recipe costs about {asked} with d_model / n_layers from {aspect[0]:g} to "
            f"{aspect[1]:g} (a wider aspect, a smaller vocab_size or head.tied=true may do)"
        )
    return [_priced(recipe, search, dims) for dims, _ in found[:count]]


def _priced(recipe: Recipe, search: Search, dims: Dims) -> dict[str, Any]:
    """A shape as plain data."""
    spec = recipe.spec(dims)
    stated = {**recipe.dims, **dims}
    return {
        **{name: stated[name] for name in (*SOLVED, "head_dim") if name in stated and name not in recipe.unread},
        "aspect": spec.d_model / spec.n_layers,
        "figures": search.figures(spec),
        "share": search.share(spec, without=KEYS),
        "overrides": recipe.overrides_of(dims),
    }


def _widths(recipe: Recipe, search: Search) -> list[int]:
    """Widths of which some depth within the aspect costs about the budget, at most WIDTHS_TRIED of them."""
    if "d_model" in recipe.fixed:
        return [recipe.dims["d_model"]]
    grid = [width for width in _grid() if _depths(recipe, search, width)[1] and any(recipe.at_width(width))]

    if not grid:
        return []
    first = find_crossing(lambda index: _extreme(recipe, search, grid[index], 1), 0, len(grid) - 1) + 1
    last = find_crossing(lambda index: _extreme(recipe, search, grid[index], 0), 0, len(grid) - 1)
    found = grid[min(first, last) : last + 1]
    if len(found) <= WIDTHS_TRIED:
        return found
    return [found[round(i * (len(found) - 1) / (WIDTHS_TRIED - 1))] for i in range(WIDTHS_TRIED)]


def _grid() -> list[int]:
    widths = [64]
    while widths[-1] < 1 << 15:
        widths.append(widths[-1] + choose_width_step(widths[-1]))
    return widths


def _depths(recipe: Recipe, search: Search, width: int) -> tuple[int, int]:
    """Fewest and most layers at a width; (0, 0) where there are none."""
    if "n_layers" not in recipe.solved:
        return recipe.dims["n_layers"], recipe.dims["n_layers"]
    low = max(recipe.least_layers, math.ceil(width / search.aspect[1]))
    high = min(math.floor(width / search.aspect[0]), MOST_LAYERS)
    return (low, high) if low <= high else (0, 0)


def _extreme(recipe: Recipe, search: Search, width: int, end: int) -> float:
    """The share of the budget of the cheapest (0) or the dearest (1) shape of a width."""
    depths = _depths(recipe, search, width)
    dims = next(recipe.at_width(width))
    if "d_ff" in dims:
        dims["d_ff"] = recipe.ffn(width, ratio=FFN_RANGE[end])
    return search.share(_cut(recipe, dims, depths, depths[end]), without=KEYS)


def _cut(recipe: Recipe, dims: Dims, depths: tuple[int, int], layers: int) -> Any:
    """The Spec with so many layers. It is cut from the deepest one, as one is made a thousand times as fast so."""
    if "n_layers" not in dims:
        return recipe.spec(dims)
    return truncate_layers(recipe.spec({**dims, "n_layers": depths[1]}), layers)


def _at_width(recipe: Recipe, search: Search, width: int) -> tuple[Dims, float] | None:
    """The shape of a width that comes nearest to the budget, and its share of it."""
    low, high = depths = _depths(recipe, search, width)
    for dims in recipe.at_width(width):

        def share(layers: int, dims: Dims = dims) -> float:
            return search.share(_cut(recipe, dims, depths, layers), without=KEYS)

        layers = max(low, find_crossing(share, low, high))
        found = _with_ffn(recipe, search, dims, width, depths, layers)
        if found and search.within(_cut(recipe, found[0], depths, layers)):
            return {**found[0], "n_layers": layers}, found[1]
    return None


def _with_ffn(
    recipe: Recipe, search: Search, dims: Dims, width: int, depths: tuple[int, int], layers: int
) -> tuple[Dims, float] | None:
    """A shape with the d_ff, near the recipe's, that brings it nearest to the budget, and its share of it; None where
    the narrowest costs more."""

    def share(dims: Dims) -> float:
        return search.share(_cut(recipe, dims, depths, layers), without=KEYS)

    if "d_ff" not in dims:
        return (dims, share(dims)) if search.nearest or share(dims) <= 1 else None
    step = choose_ffn_step(width)
    least, most = (recipe.ffn(width, ratio=ratio) // step for ratio in FFN_RANGE)
    usual = dims["d_ff"] // step
    ends = (usual, most) if share(dims) <= 1 else (least, usual)
    found = find_crossing(lambda steps: share({**dims, "d_ff": steps * step}), *ends)
    tried = [{**dims, "d_ff": n * step} for n in (found, found + search.nearest) if least <= n <= most]
    return min(((each, share(each)) for each in tried), key=lambda shape: abs(1 - shape[1]), default=None)
