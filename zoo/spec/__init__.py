"""A Spec lists its parts (parts, spec); everything that is counted, allocated, initialised or saved is read from that
list (walk)."""

from zoo.spec.parts import Buffer, Conv, Embedding, Experts, Group, Linear, Part, Sized, Stack, Tied, Weight
from zoo.spec.spec import Spec
from zoo.spec.walk import components, table, tensors, walk

__all__ = [
    "Buffer",
    "Conv",
    "Embedding",
    "Experts",
    "Group",
    "Linear",
    "Part",
    "Sized",
    "Spec",
    "Stack",
    "Tied",
    "Weight",
    "components",
    "table",
    "tensors",
    "walk",
]
