"""Define parts: the weights that a component lists. No torch here.

A part, or a slot (the place of a sub-component), may state its **role**, which counting reads instead of its name. An
embedding's table of tokens has the role TOKENS, a head's product with the vocabulary has LOGITS. The default role of a
slot is its component's axis; that of a part is empty. `zoo.spec.walk` yields roles from the layer or tower down.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zoo.lazy import Tensor

if TYPE_CHECKING:
    from zoo.spec.spec import Spec


TOKENS = "tokens"
"""The table in which token ids are looked up: the tower's own, or the table that it is tied to."""

LOGITS = "logits"
"""The matrix product that gives a logit for each token of the vocabulary."""

CROSS = "cross"
"""Attention to an encoder's output."""

ROW = "row"
"""A matrix product that a head applies once per row (sequence), to one vector."""

READ = "read"
"""A projection of the tokens that attention reads (keys, values). In cross-attention these tokens are the encoder's
output, projected once."""

SHARED = "shared"
"""Weights that several layers share."""

EXPERTS, SHARED_EXPERT, SHARED_GATE = "experts", "shared_expert", "shared_expert_gate"
"""The routed experts of a mixture, its shared expert (for every token), and the gate of the shared expert."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One weight of a component, or a few that belong together. `learns` says whether the loss gives it a gradient."""

    role: str = dataclasses.field(default="", kw_only=True)
    learns: bool = dataclasses.field(default=True, kw_only=True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """List each tensor's name within this part, and its shape."""
        raise NotImplementedError

    def decays(self, leaf: str) -> bool:
        """Tell whether weight decay applies to this tensor: to matrices and tables, never to scales and biases."""
        return leaf == "weight"

    @property
    def params(self) -> int:
        """Count the parameters."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def active(self) -> int:
        """Count the parameters that one token uses."""
        return self.params

    @property
    def flops(self) -> int:
        """Count the FLOPs of one token's forward pass: two for each multiply-add of a matrix product."""
        return 0


class DrawnValues(NamedTuple):
    """Initial values drawn from the model's seed: normal, with mean 0 and standard deviation `std`."""

    std: float


@dataclasses.dataclass(frozen=True)
class Weight(Part):
    """A bare tensor, such as a norm's scale. `init` is its initial value, `DrawnValues`, or a function that fills it in
    place."""

    shape: tuple[int, ...]
    init: float | DrawnValues | Callable[[Tensor], object] = 0.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"": self.shape}


@dataclasses.dataclass(frozen=True)
class Buffer(Part):
    """A tensor that is saved but not trained, and so not counted as a parameter. `init` is its value, or a function
    that fills it in place. Its `dtype` does not follow the model's."""

    shape: tuple[int, ...]
    init: float | Callable[[Tensor], object] = 0.0
    dtype: str = "float32"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"": self.shape}

    @property
    def params(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Linear(Part):
    """A matrix product.

    `residual`: the product writes to the residual stream, so its initial values are scaled by depth. `precise`: it is
    kept out of float8, because its rounding error would be amplified downstream (routers, gates). `bare`: the forward
    also reads the weight directly, so it cannot be quantised. `segments`: widths of several outputs in one product,
    each of which tensor parallelism divides separately. `uses`: how often a pass applies the product to a token.
    """

    d_in: int
    d_out: int
    bias: bool = False
    residual: bool = False
    precise: bool = False
    bare: bool = False
    segments: tuple[int, ...] = ()
    uses: int = 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        bias = {"bias": (self.d_out,)} if self.bias else {}
        return {"weight": (self.d_out, self.d_in), **bias}

    @property
    def flops(self) -> int:
        return 2 * self.d_in * self.d_out * self.uses


@dataclasses.dataclass(frozen=True)
class Conv(Part):
    """A convolution along `width` tokens, `dilation` apart: weight [d_out, d_in / groups, width]. It is depthwise if
    `groups` = d_in = d_out. `segments` are as in Linear."""

    d_in: int
    d_out: int
    width: int
    groups: int = 1
    bias: bool = False
    segments: tuple[int, ...] = ()
    dilation: int = 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        bias = {"bias": (self.d_out,)} if self.bias else {}
        return {"weight": (self.d_out, self.d_in // self.groups, self.width), **bias}

    @property
    def flops(self) -> int:
        return 2 * self.d_out * (self.d_in // self.groups) * self.width


@dataclasses.dataclass(frozen=True)
class Embedding(Part):
    """A table of vectors. A token reads `reads` rows, at no FLOPs."""

    count: int
    width: int
    reads: int = 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.count, self.width)}


@dataclasses.dataclass(frozen=True)
class Experts(Part):
    """`count` copies of a Linear, stacked; a token passes through `active_count` of them.

    `computing` = (c, n), such as (512, 768): routers choose among n experts, of which only c compute something and have
    a copy here. `active` and `flops` are then expected values, if tokens choose all experts equally often. `spread`:
    whether expert parallelism divides the copies among ranks; if false, each rank has all.
    """

    of: Linear
    count: int
    active_count: int
    computing: tuple[int, int] = (1, 1)
    spread: bool = True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.count, *shape) for name, shape in self.of.shapes().items()}

    def shard(self, ranks: int) -> Experts:
        """Return the experts of one of `ranks` ranks of expert parallelism. `ranks` must divide `count`
        (`zoo.costs.rank_model` checks)."""
        return dataclasses.replace(self, count=self.count // ranks) if self.spread else self

    @property
    def active(self) -> int:
        return self._expect(self.of.params * self.active_count)

    @property
    def flops(self) -> int:
        return self._expect(self.of.flops * self.active_count)

    @property
    def expected_count(self) -> float:
        """Average number of experts that a token passes through."""
        computing, chosen = self.computing
        return self.active_count if computing == chosen else self.active_count * computing / chosen

    def _expect(self, most: int) -> int:
        computing, chosen = self.computing
        return most if computing == chosen else most * computing // chosen


@dataclasses.dataclass(frozen=True)
class Tied(Part):
    """A matrix product or a look-up with the weight of another part: no parameters, all of the FLOPs.

    `to` is the other part's path within the nearest enclosing model that has the path: a decoder inside an
    encoder-decoder finds its own `embedding.tokens` first (`zoo.spec.walk.owner_of`).
    """

    to: str
    of: Linear | Embedding

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"bias": (self.of.d_out,)} if isinstance(self.of, Linear) and self.of.bias else {}

    @property
    def flops(self) -> int:
        return self.of.flops


@dataclasses.dataclass(frozen=True)
class Reused(Tied):
    """The module of another part, applied to other vectors: no module of its own, all of the FLOPs."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {}


def is_product(part: Part) -> bool:
    """Whether a part is a matrix product. A part that reuses another (`Reused`) does not count."""
    if isinstance(part, Reused):
        return False
    return isinstance(part, Linear | Experts) or (isinstance(part, Tied) and isinstance(part.of, Linear))


@dataclasses.dataclass(frozen=True)
class Sized:
    """A sub-component of another width than its owner, or with another role than its axis. If `common`, the layers of a
    kind share one set of weights, stored in the kind's first layer and named after it. `learns` is as in Part."""

    spec: Spec
    d_model: int
    role: str = ""
    common: bool = False
    learns: bool = True


_counted: deque[tuple[tuple[str, ...], Counter[str]]] = deque(maxlen=8)


def count_kinds(pattern: tuple[str, ...]) -> Mapping[str, int]:
    """Count the layers of each kind. The last few patterns are cached, because pricing a model counts them often and a
    pattern may have 100,000 layers."""
    for held, counts in _counted:
        if held is pattern:
            return counts
    counts = Counter(pattern)
    _counted.append((pattern, counts))
    return counts


@dataclasses.dataclass(frozen=True)
class Group:
    """Parts that are listed under one name."""

    parts: Mapping[str, Part]
    role: str = ""


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers in order, by the names of their kinds. Layers of a kind share one Spec object: counting visits it once and
    multiplies.

    If layers share weights (ALBERT), `weights` has for each layer the index of the weights that it uses. The kind of
    shared weights is that of the last layer that uses them. In a part of a model, `numbers` are the layers' numbers in
    the whole model.
    """

    kinds: Mapping[str, Spec]
    pattern: tuple[str, ...]
    weights: tuple[int, ...] | None = None
    numbers: Sequence[int] | None = None

    def stored(self) -> tuple[str, ...]:
        """List the kind of each stored set of weights: one for each layer or, if layers share weights, one for each
        shared set."""
        if self.weights is None:
            return self.pattern
        kinds = dict(zip(self.weights, self.pattern, strict=True))
        return tuple(kinds[number] for number in range(len(kinds)))

    def numbered(self) -> Iterable[tuple[int, str]]:
        """List the number in the whole model and the kind of each stored set of weights."""
        stored = self.stored()
        return zip(range(len(stored)) if self.numbers is None else self.numbers, stored, strict=True)

    def index(self, layer: int) -> int:
        """Find the index, among the stored sets of weights, of the one that a layer uses."""
        return layer if self.weights is None else self.weights[layer]
