"""Trace a forward pass without torch: the tensors it saves for its backward pass, and its memory at the peak."""

from zoo.costs.shadow.cache import ShadowCache
from zoo.costs.shadow.layer import ShadowLayer
from zoo.costs.shadow.names import DTYPES
from zoo.costs.shadow.operations import cross_entropy
from zoo.costs.shadow.replay import shaded
from zoo.costs.shadow.shadow import Shadow
from zoo.costs.shadow.tensor import INT64, Node, Storage, Tape, UnknownOperation, collect_saved, fresh, reached, taping

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
    "collect_saved",
    "cross_entropy",
    "fresh",
    "reached",
    "shaded",
    "taping",
]
