"""Run a coordinate check of a parametrisation: measure how much activations change in a few updates, by width or depth.

Under muP the change does not depend on the width; under the standard parametrisation it grows (Yang et al., 2022,
section D.1). Under CompleteP it does not depend on the depth either (Dey et al., 2025). So the slope of log change over
log size shows whether a parametrisation suits an architecture, before any long training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

from zoo.analysis.solve.proportions import ComposedModel, ModelSource
from zoo.errors import ConfigError, refuse
from zoo.lazy import Tensor, torch
from zoo.training.optim import AdamW, Optim, set_rates
from zoo.training.parametrisation import Parametrisation

if TYPE_CHECKING:
    from zoo.model.tower import Topology

SCALED = ("d_model", "n_heads", "n_kv_heads", "d_ff", "kv_lora_rank", "q_lora_rank")
"""Dimensions that grow with the width."""

UPDATES, SEEDS = 4, 4
ROWS, TOKENS = 1, 8
"""The size of the batch. It has few tokens: the gradients of many would cancel, and noise would hide a step's change at
small widths."""

RATE = 0.3
"""Adam's learning rate times the smallest width. A step changes a matrix's output by about this much."""

FLAT = 0.4
"""A change counts as independent of the size if its slope is at most this in absolute value. Correct rules give slopes
within ±0.1, and down to −0.3 for the logits of an untied head, whose initial values count less at larger widths. Faulty
rules give 0.6 and more."""


@dataclass(frozen=True)
class Coordinates:
    """The change of each component's output at each size (widths or depths), and the slopes."""

    sizes: tuple[int, ...]
    changes: dict[str, tuple[float, ...]]

    @property
    def slopes(self) -> dict[str, float]:
        """The slope of log change over log size of each component, fitted by least squares."""
        return {name: fit_slope(self.sizes, values) for name, values in self.changes.items()}

    @property
    def flat(self) -> bool:
        return all(abs(slope) <= FLAT for slope in self.slopes.values())


def check_coordinates(
    model: ModelSource,
    overrides: Iterable[str],
    parametrisation: Parametrisation,
    widths: Sequence[int],
) -> Coordinates:
    """Train a model at several widths on one batch of random tokens, and measure the change of the logits and of the
    last layer's outputs: the mean of |after − before|, averaged geometrically over seeds.

    Heads and d_ff grow with the width. Raises ConfigError for a width that does not fit, and for parts of the model
    that the parametrisation has no rule for.
    """
    recipe = ComposedModel(model, [*overrides])
    specs = [scale_model(recipe, width) for width in widths]
    return _compare(specs, widths, parametrisation, widths[0])


def check_depths(
    model: ModelSource,
    overrides: Iterable[str],
    parametrisation: Parametrisation,
    depths: Sequence[int],
) -> Coordinates:
    """Train and measure as `check_coordinates` does, at several depths (n_layers) instead of widths. Raises ConfigError
    for parts of the model that the parametrisation has no rule for."""
    recipe = ComposedModel(model, [*overrides])
    recipe.solved = ["n_layers"]
    specs = [recipe.spec({"n_layers": depth}) for depth in depths]
    return _compare(specs, depths, parametrisation, recipe.dims["d_model"])


def _compare(specs: Sequence[Any], sizes: Sequence[int], parametrisation: Parametrisation, width: int) -> Coordinates:
    optim = AdamW(lr=RATE / width, weight_decay=0.0)
    refuse(f"parametrisation: {fault}" for fault in parametrisation.refuses(specs[0], optim))
    logs: dict[str, list[float]] = {}
    for place, spec in enumerate(specs):
        for seed in range(SEEDS):
            for name, change in _measure(spec, parametrisation, optim, seed).items():
                logs.setdefault(name, [0.0] * len(specs))[place] += math.log(change) / SEEDS
    return Coordinates(tuple(sizes), {name: tuple(map(math.exp, values)) for name, values in logs.items()})


def list_sizes(model: ModelSource, overrides: Iterable[str], name: str) -> list[int]:
    """List the sizes of d_model or n_layers to check: 1, 2 and 4 times the model's own."""
    own = ComposedModel(model, [*overrides]).dims[name]
    return [own, 2 * own, 4 * own]


def scale_model(recipe: ComposedModel, width: int) -> Topology:
    """Make the Spec of a recipe at another width; heads, d_ff and MLA's ranks grow in proportion, as muP requires.
    Raises ConfigError if they would not be whole numbers."""
    factor = Fraction(width, recipe.dims["d_model"])
    recipe.solved = [key for key in recipe.dims if key.split(".")[-1] in SCALED and key not in recipe.unread]
    dims = {key: recipe.dims[key] * factor for key in recipe.solved}
    if cut := [f"{key}={recipe.dims[key]}" for key, value in dims.items() if value.denominator > 1]:
        found = f"{width} is {factor} of d_model={recipe.dims['d_model']}, and there is no {factor} of {', '.join(cut)}"
        raise ConfigError(f"widths: {found} (multiples of d_model would do)")
    return recipe.spec({key: int(value) for key, value in dims.items()})


def _measure(spec: Topology, parametrisation: Parametrisation, optim: Optim, seed: int) -> dict[str, float]:
    from zoo.run.builder import build

    model = build(parametrisation.adapt(spec), device="cpu", seed=seed).train()
    optimizer = optim.build(model, parametrisation.scale(spec))
    set_rates(optimizer, 1.0)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, spec.output_vocab_size, (ROWS, TOKENS + 1), generator=generator)
    before = _outputs(model, ids)
    for _ in range(UPDATES):
        logits = model(ids[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = _outputs(model, ids)
    return {name: float((after[name] - value).abs().mean()) for name, value in before.items()}


def _outputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Compute the outputs of the last layer's attention, feed-forward and block, and the logits."""
    found: dict[str, Tensor] = {}
    last = model.blocks[len(model.blocks) - 1]
    inner = {name: module for name, module in last.named_children() if name in ("attention", "ffn")}
    modules = {**inner, "layer": last, "logits": model.head}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, output.detach().float())

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            model(ids[:, :-1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def fit_slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Fit the slope of log value over log size by least squares."""
    return linear_regression([*map(math.log, sizes)], [math.log(max(value, 1e-30)) for value in values]).slope
