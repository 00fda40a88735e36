"""Define Specs, which list their parts (parts, spec), and the walkers of that list (walk): whatever is counted,
allocated, initialised or saved is read by them."""

from zoo.spec.parts import (
    CROSS,
    EXPERTS,
    LOGITS,
    READ,
    SHARED_EXPERT,
    TOKENS,
    Buffer,
    Conv,
    Embedding,
    Experts,
    Group,
    Linear,
    Part,
    Sized,
    Stack,
    Tied,
    Weight,
)
from zoo.spec.sharding import split
from zoo.spec.spec import Spec
from zoo.spec.walk import SpecRow, components, owner_of, rows, table, tensors, walk

__all__ = [
    "CROSS",
    "EXPERTS",
    "LOGITS",
    "READ",
    "SHARED_EXPERT",
    "TOKENS",
    "Buffer",
    "Conv",
    "Embedding",
    "Experts",
    "Group",
    "Linear",
    "Part",
    "Sized",
    "Spec",
    "SpecRow",
    "Stack",
    "Tied",
    "Weight",
    "components",
    "owner_of",
    "rows",
    "split",
    "table",
    "tensors",
    "walk",
]
