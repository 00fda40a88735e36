"""Specs (module `spec`), the parts that they list (`parts`), and the functions that walk these lists (`walk`).
Everything that is counted, allocated, initialised or saved is read from the lists."""

from zoo.spec.node import Node
from zoo.spec.parts import (
    CROSS,
    EXPERTS,
    LOGITS,
    READ,
    ROW,
    SHARED,
    SHARED_EXPERT,
    SHARED_GATE,
    TOKENS,
    Buffer,
    Conv,
    DrawnValues,
    Embedding,
    Experts,
    Group,
    Linear,
    Part,
    Reused,
    Sized,
    Stack,
    Tied,
    Weight,
)
from zoo.spec.sharding import split
from zoo.spec.spec import Spec
from zoo.spec.walk import (
    SpecRow,
    components,
    is_hidden_matrix,
    owner_of,
    placed_tensors,
    rows,
    shares_part,
    table,
    tensors,
    walk,
)
