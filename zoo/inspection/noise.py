# R rows
"""Estimate the gradient noise scale (McCandlish et al., 2018): the batch size beyond which larger batches gain little.

B = tr Σ / |G|², with the true gradient G and the covariance Σ of single sequences' gradients

B is estimated from the squared gradient norms of a small and a large batch (appendix A.1 of the paper): here of single
sequences, and of all sequences together. The standard error is the jackknife's: each sequence is left out once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.data.tokens import move_batch
from zoo.errors import ConfigError
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.data import Batch
    from zoo.run.layer import Model
    from zoo.training.objective import Objective

LEAST_ROWS = 2


@dataclass(frozen=True)
class Noise:
    """Unbiased estimates of |G|² (`signal`) and of tr Σ (`noise`), from `rows` sequences with `targets` targets each on
    average; and the standard error of the noise scale `noise` ÷ `signal`, in sequences."""

    signal: float
    noise: float
    rows: int
    targets: float
    error: float | None

    @property
    def scale(self) -> float | None:
        """The noise scale in sequences; None if there are too few to distinguish the gradient from its noise."""
        return self.noise / self.signal if self.signal > 0 else None

    def describe(self) -> dict[str, Any]:
        """Return the estimate as plain data."""
        scale = self.scale
        return {
            "rows": scale,
            "error": None if scale is None else self.error,
            "tokens": None if scale is None else scale * self.targets,
            "gradient_squared": self.signal,
            "noise_trace": self.noise,
            "measured_on": self.rows,
        }


def estimate_noise(small: float, large: float, small_norm: float, large_norm: float) -> tuple[float, float]:
    """Estimate |G|² and tr Σ from the mean squared gradient norms of batches of two sizes, in sequences (McCandlish et
    al., 2018, equations A.2 and A.3)."""
    signal = (large * large_norm - small * small_norm) / (large - small)
    noise = (small_norm - large_norm) / (1 / small - 1 / large)
    return signal, noise


def measure_noise(model: Model, objective: Objective, rows: Sequence[Batch]) -> Noise:
    """Measure the gradient noise scale of an objective on batches of one sequence. Weights are not changed.

    Raises ConfigError for fewer than two sequences that have targets.
    """
    rows = [row for row in rows if objective.targets(row)]
    if len(rows) < LEAST_ROWS:
        raise ConfigError(f"noise-rows: {len(rows)} rows have a target ({LEAST_ROWS} at least; 0 leaves the noise out)")
    total: list[Tensor] = []
    norms = []
    for gradient in _compute_gradients(model, objective, rows):
        norms.append(_multiply(gradient, gradient))
        total = [a + b for a, b in zip(total, gradient, strict=True)] if total else [each.clone() for each in gradient]
    products = [_multiply(total, gradient) for gradient in _compute_gradients(model, objective, rows)]
    model.zero_grad(set_to_none=True)
    targets = sum(map(objective.targets, rows)) / len(rows)
    return summarise_norms(norms, products, _multiply(total, total), targets)


def summarise_norms(norms: Sequence[float], products: Sequence[float], total: float, targets: float = 1.0) -> Noise:
    """Estimate the noise from each gradient's squared norm, each gradient's inner product with the sum of all
    gradients, and the squared norm of that sum (`total`)."""
    count = len(norms)
    signal, noise = estimate_noise(1, count, sum(norms) / count, total / count**2)
    left_out = []
    for own, product in zip(norms, products, strict=True) if count > LEAST_ROWS else ():
        rest, less = total - 2 * product + own, count - 1
        a, b = estimate_noise(1, less, (sum(norms) - own) / less, rest / less**2)
        left_out.append(b / a if a > 0 else math.inf)
    error = None
    if left_out and all(map(math.isfinite, left_out)):
        mean = sum(left_out) / count
        error = math.sqrt((count - 1) / count * sum((each - mean) ** 2 for each in left_out))
    return Noise(signal, noise, count, targets, error)


def _compute_gradients(model: Model, objective: Objective, rows: Sequence[Batch]) -> Iterator[list[Tensor]]:
    """Yield the gradient of each sequence's mean loss, a tensor per trainable parameter."""
    weights = [each for each in model.parameters() if each.requires_grad]
    device = weights[0].device
    for row in rows:
        model.zero_grad(set_to_none=True)
        count = objective.targets(row)
        with torch.enable_grad():
            objective.loss(model, move_batch(row, device), weight=1 / count).total.backward()
        yield [torch.zeros_like(each) if each.grad is None else each.grad for each in weights]


def _multiply(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Compute the inner product of two gradients."""
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
