"""Inspect trained models: attention maps, heads, activations, routing, gradient noise (`zoo inspect`)."""

from zoo.inspection.look import Inspected, inspect_model

__all__ = ["Inspected", "inspect_model"]
