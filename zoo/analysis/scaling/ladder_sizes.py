"""Choose a ladder's sizes (one architecture scaled by one rule), and each size's learning rate, batch and lengths.

Sizes keep the model's d_model / n_layers, head_dim, query heads per key head and d_ff / d_model. Each size has one run,
which decays its learning rate at several lengths (`schedule=wsd_s`). Each length gives a point of the scaling law. The
learning rate and the warm-up follow from the size as in OLMo-core's ladders. The batch is the same for all sizes: if it
grew with the model, larger models would have fewer updates for the same tokens, which hides α. N counts all parameters,
as in `zoo fit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from zoo.analysis.solve.proportions import ComposedModel, Dims
from zoo.costs.params import count_parameters
from zoo.errors import ConfigError

MULTIPLES = (1.0, 2.0, 4.0)
"""Ends of the decays, in multiples of the tokens of a compute-optimal run."""

LEAST_UPDATES = 300
"""Fewest updates up to the first point. A ladder whose first points came after 33 to 71 updates had errors of 8 %
(November 2026), because the law does not describe the warm-up of a run."""

LEAST_LAYERS = 2
"""Fewest layers of a size, because one layer does what no deeper model does: it mixes tokens once."""

WARMUP = 0.1
"""Warm-up as a share of the tokens up to the first point. At 20 tokens per parameter it is N tokens, as in
OLMo-core."""

HIGHEST_RATE = 0.006
"""Upper bound of the learning rate: the rule was made for 60M parameters and more. Llamas of 20k and 100k parameters,
at 20 tokens a parameter, are best at 0.005 and 0.006, and end 0.4 nats higher at the rule's 0.041 and 0.024 (November
2026)."""

EVAL_ROWS = 720
"""Fewest rows (sequences) of an evaluation. All sizes are evaluated on the same rows, as they have the same batch."""

FINE = 8
"""Step of widths in a model whose heads do not fill d_model, and of d_ff in models narrower than 512."""


@dataclass(frozen=True)
class LadderSize:
    """A size of the architecture: its dimensions by override key, and its number of parameters."""

    dims: Dims
    params: int


@dataclass(frozen=True)
class RunLengths:
    """The lengths of one run in updates. For the end of each decay, `ends` counts the updates made so far, and
    `trained` the updates that the weights at that point went through. `warmup` is the updates of the warm-up."""

    ends: tuple[int, ...]
    trained: tuple[int, ...]
    warmup: int

    @property
    def updates(self) -> int:
        """Count all updates made, including those of earlier decays, which are undone when the run goes back."""
        return self.ends[-1]


def space_sizes(smallest: float, largest: float, count: int) -> list[float]:
    """Space `count` numbers of parameters evenly on a logarithmic scale."""
    return [smallest * (largest / smallest) ** (at / (count - 1)) for at in range(count)]


def count_batch_tokens(params: float) -> float:
    """Count the tokens of an update by OLMo-core's rule: 2048 · 160 · (N / 108M)^⅔."""
    return 2048 * 160 * (params / 108e6) ** (2 / 3)


def compute_rate(params: float) -> float:
    """Compute AdamW's learning rate by OLMo-core's rule, 0.0047 · (N / 108M)^−⅓ / 2, and HIGHEST_RATE at most."""
    return min(0.0047 * (params / 108e6) ** (-1 / 3) / 2, HIGHEST_RATE)


def choose_rows(smallest: int, seq_len: int, tokens_per_param: float, least_updates: int = LEAST_UPDATES) -> int:
    """Choose the rows (sequences) of an update, the same for all sizes: those of `count_batch_tokens` for the smallest
    size, reduced until its first point comes after at least `least_updates` updates."""
    most = MULTIPLES[0] * tokens_per_param * smallest / least_updates
    return max(math.floor(min(count_batch_tokens(smallest), most) / seq_len), 1)


def choose_lengths(
    params: int, batch_tokens: int, tokens_per_param: float, decay: float, goes_back: bool = True
) -> RunLengths:
    """Choose the updates of a run whose weights, at the end of each decay, have seen a multiple (MULTIPLES) of
    `tokens_per_param` tokens per parameter. With `goes_back` the run returns to the weights before each decay, so the
    updates of earlier decays are made in addition. A `decay` below 1 is a share of the updates so far, any other a
    number of updates."""
    trained = tuple(max(round(each * tokens_per_param * params / batch_tokens), 1) for each in MULTIPLES)
    ends, left_behind = [], 0
    for updates in trained:
        ends.append(updates + left_behind)
        if goes_back:
            left_behind += max(round(decay * ends[-1]), 1) if decay < 1 else int(decay)
    return RunLengths(tuple(ends), trained, max(round(WARMUP * trained[0]), 1))


def choose_sizes(recipe: ComposedModel, targets: Sequence[float]) -> list[LadderSize]:
    """Choose sizes of the architecture that are together nearest to the `targets`, numbers of parameters in rising
    order.

    Raises ConfigError if there are too few sizes, or if d_model and n_layers are both fixed.
    """
    if "d_model" not in recipe.solved and "n_layers" not in recipe.solved:
        raise ConfigError("model: its d_model and n_layers are both given, and no size follows (leave one open)")
    shapes = {size.params: size for size in _list_sizes(recipe, 1.5 * targets[-1])}
    near = sorted(size for size in shapes if targets[0] / 2 <= size <= 2 * targets[-1])
    if len(near) < len(targets):
        raise ConfigError(
            f"sizes: {len(near)} shapes have about {targets[0]:,.0f} to {targets[-1]:,.0f} parameters, found "
            f"{', '.join(f'{size:,}' for size in sorted(shapes)[:8])} … (fewer --sizes, a wider range, or a smaller "
            f"head_dim or vocabulary: model.head_dim=16)"
        )
    return [shapes[size] for size in _match(near, targets)]


def _match(sizes: Sequence[int], targets: Sequence[float]) -> list[int]:
    """Match each target with a different size, both in rising order, minimising the squared distance of logarithms."""
    best: dict[int, tuple[float, list[int]]] = {-1: (0.0, [])}  # last size taken → cost, sizes so far
    for target in targets:
        best = {
            at: min(
                (cost + math.log(size / target) ** 2, [*taken, size])
                for last, (cost, taken) in best.items()
                if last < at
            )
            for at, size in enumerate(sizes)
            if any(last < at for last in best)
        }
    return min(best.values())[1]


def _list_sizes(recipe: ComposedModel, most: float) -> Iterator[LadderSize]:
    """List the model's own size, then sizes up to `most` parameters: at each width the depths nearest to the model's
    d_model / n_layers."""
    yield _measure(recipe, {key: recipe.own[key] for key in recipe.solved})
    aspect = recipe.own["d_model"] / recipe.own["n_layers"]
    for width in _list_widths(recipe):
        dims = next(recipe.at_width(width), None)
        if dims is None:
            continue
        if width < 512:
            feeds = {key: width * recipe.own[key] / recipe.own["d_model"] for key in dims if key.endswith("d_ff")}
            dims |= {key: max(round(size / FINE), 1) * FINE for key, size in feeds.items()}
        least = most
        for layers in _list_depths(recipe, width / aspect):
            size = _measure(recipe, dims | ({"n_layers": layers} if "n_layers" in dims else {}))
            least = min(least, size.params)
            if size.params <= most:
                yield size
        if least >= most:
            return


def _measure(recipe: ComposedModel, dims: Dims) -> LadderSize:
    return LadderSize(dims, count_parameters(recipe.spec(dims))["total"])


def _list_widths(recipe: ComposedModel) -> Iterable[int]:
    """List widths about a sixteenth apart: multiples of head_dim if heads fill d_model, else of FINE. If d_model is
    fixed, its width is the only one."""
    if "d_model" not in recipe.solved:
        return [recipe.dims["d_model"]]
    heads = recipe.dims.get("head_dim", 0) if "n_heads" in recipe.solved else 0
    fills = heads and recipe.own["n_heads"] * recipe.own["head_dim"] == recipe.own["d_model"]
    step = heads if fills else FINE
    widths = [step]
    while widths[-1] < 1 << 17:
        widths.append(widths[-1] + max(widths[-1] // 16 // step, 1) * step)
    return widths


def _list_depths(recipe: ComposedModel, depth: float) -> Iterable[int]:
    if "n_layers" not in recipe.solved:
        return [recipe.dims["n_layers"]]
    least = max(recipe.least_layers, LEAST_LAYERS)
    if "d_model" not in recipe.solved:
        return range(least, 1000)
    return sorted({max(math.floor(depth), least), max(math.ceil(depth), least)})
