"""Trace a forward pass without torch: the tensors it saves for its backward pass, and its memory at the peak."""

from zoo.costs.shadow.cache import ShadowCache
from zoo.costs.shadow.dtypes import INT64
from zoo.costs.shadow.layer import ShadowDrops, ShadowLayer
from zoo.costs.shadow.names import DTYPES
from zoo.costs.shadow.recording import Storage, Tape, TapeNode, UnknownOperation, named_failures, taping
from zoo.costs.shadow.reductions import cross_entropy
from zoo.costs.shadow.replay import replace_torch
from zoo.costs.shadow.shadow import Shadow
from zoo.costs.shadow.tensor import collect_saved, find_reached, make_shadow

__all__ = [
    "DTYPES",
    "INT64",
    "Shadow",
    "ShadowCache",
    "ShadowDrops",
    "ShadowLayer",
    "Storage",
    "Tape",
    "TapeNode",
    "UnknownOperation",
    "collect_saved",
    "cross_entropy",
    "find_reached",
    "make_shadow",
    "named_failures",
    "replace_torch",
    "taping",
]
