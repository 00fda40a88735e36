"""A forward pass on shadows: what a training step keeps for its backward pass, without torch."""

from zoo.costs.shadow.cache import ShadowCache
from zoo.costs.shadow.layer import ShadowLayer
from zoo.costs.shadow.names import DTYPES
from zoo.costs.shadow.operations import cross_entropy
from zoo.costs.shadow.replay import shaded
from zoo.costs.shadow.shadow import Shadow
from zoo.costs.shadow.tensor import INT64, Node, Storage, Tape, UnknownOperation, fresh, kept, reached, taping

__all__ = [
    "DTYPES",
    "INT64",
    "Node",
    "Shadow",
    "ShadowCache",
    "ShadowLayer",
    "Storage",
    "Tape",
    "UnknownOperation",
    "cross_entropy",
    "fresh",
    "kept",
    "reached",
    "shaded",
    "taping",
]
