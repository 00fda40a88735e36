"""Optimizers by kind. `base` groups a model's parameters; `update_rules` has the update rules that torch lacks.

Importing this does not import torch: a training config is checked without it.
"""

from zoo.training.optim.base import GroupOptions, Optim, RateFactors, set_rates, unscaled
from zoo.training.optim.optimizers import SGD, SOAP, Adafactor, AdamW, AdamW8bit, Lion, Muon, NorMuon, ScheduleFree

__all__ = [
    "SGD",
    "SOAP",
    "Adafactor",
    "AdamW",
    "AdamW8bit",
    "GroupOptions",
    "Lion",
    "Muon",
    "NorMuon",
    "Optim",
    "RateFactors",
    "ScheduleFree",
    "set_rates",
    "unscaled",
]
