"""Find the learning rate that is usual for a run's weights, and describe a rate far above it.

| weights | AdamW's usual rate | source |
| --- | --- | --- |
| new ones | 0.0047 · (N / 108M)^−⅓ / 2 | OLMo-core's ladders (`zoo.analysis.scaling.ladder_sizes`) |
| `weights=`, all train | 1e-6, 2e-5 or 1e-4, by objective | TRL's defaults (`Objective.usual_lr`) |
| `weights=`, adapters train | ten times that | LoRA Without Regret (Schulman et al., 2025) |

The config's rate stays as it is: arms of an experiment have slightly different N, and are compared at one rate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from zoo.training.packaged import read_packaged

if TYPE_CHECKING:
    from zoo.training.settings import Training

AS_ADAMW = ("adamw", "adamw8bit", "muon", "normuon")
"""Optimizers that take AdamW's learning rate."""

OF_ADAPTERS = 10
"""The usual rate of adapters over that of all weights."""

DEFAULT_ABOVE, CHOSEN_ABOVE = 1.5, 10
"""How many times the usual rate is too far above it: for the packaged default, and for a rate that the user chose."""


class UsualRate(NamedTuple):
    """A usual learning rate, the weights that it is for (`from trained weights for chat`), and its source."""

    lr: float
    weights: str
    source: str


def find_usual_rate(settings: Training, params: int) -> UsualRate | None:
    """Find the usual learning rate of a run of `params` parameters. None where no rule holds: for an optimizer with
    rates of its own, a parametrisation other than the standard one, or a run that freezes weights."""
    if settings.optim.kind not in AS_ADAMW or settings.parametrisation.kind != "standard":
        return None
    usual, kind = settings.objective.usual_lr, settings.objective.kind
    if settings.lora is not None:
        return UsualRate(OF_ADAPTERS * usual, f"for adapters and {kind}", "ten times TRL's default for all weights")
    if settings.freeze or settings.train:
        return None
    if settings.weights is not None:
        return UsualRate(usual, f"from trained weights for {kind}", "TRL's default")
    from zoo.analysis.scaling.ladder_sizes import compute_rate  # here, because its package imports numpy

    return UsualRate(float(f"{compute_rate(params):.3g}"), f"for {params:,} new parameters", "OLMo-core's rule")


def describe_high_rate(settings: Training, params: int) -> str | None:
    """Describe a learning rate far above the usual one; None for any other. A rate that the user chose for new weights
    is not judged, because sweeps and searches try high ones."""
    if (usual := find_usual_rate(settings, params)) is None:
        return None
    lr = settings.optim.lr
    chosen = lr != read_packaged("optim", settings.optim.kind)["lr"]
    above = math.inf if chosen and settings.weights is None else CHOSEN_ABOVE if chosen else DEFAULT_ABOVE
    if round(lr / usual.lr, 6) <= above:
        return None
    told = f"AdamW's usual rate {usual.weights} is {usual.lr:g}"
    return f"optim.lr: is {lr:g}; {told} ({usual.source}; optim.lr={usual.lr:g})"
