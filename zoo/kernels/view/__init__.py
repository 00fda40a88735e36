"""Layouts of the keys and values that a layer attends to: a KeyView for each (dense, pooled, paged, spread, ring)."""

from zoo.kernels.view.base import KeySegment, KeyView, Run, count_slots
from zoo.kernels.view.paged import PagedView
from zoo.kernels.view.pooled import PooledView
from zoo.kernels.view.spread import RingView, SpreadView

__all__ = [
    "KeySegment",
    "KeyView",
    "PagedView",
    "PooledView",
    "RingView",
    "Run",
    "SpreadView",
    "count_slots",
]
