"""Trace a forward pass without torch: the tensors it saves for its backward pass, and its memory at the peak."""

from zoo.costs.shadow.shadow import Shadow
