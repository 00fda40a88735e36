"""Optimizers by kind, one or two a file. `base` groups a model's parameters; `rules` has the updates that torch lacks.

No torch at import: a training config is checked without it.
"""

from zoo.training.optim.adafactor import Adafactor
from zoo.training.optim.adamw import AdamW, AdamW8bit
from zoo.training.optim.base import Factors, GroupOptions, Optim, set_rates, unscaled
from zoo.training.optim.muon import Muon
from zoo.training.optim.schedule_free import ScheduleFree
from zoo.training.optim.signs import SGD, Lion

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "AdamW8bit",
    "Factors",
    "GroupOptions",
    "Lion",
    "Muon",
    "Optim",
    "ScheduleFree",
    "set_rates",
    "unscaled",
]
