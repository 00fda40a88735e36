"""Define parts, the weights that a component lists. No torch here.

A part or a slot may state its **role**, the fact that counting asks for: whatever its name, an embedding's table of
tokens is TOKENS, a head's product with the vocabulary LOGITS. A component that states none has its axis for a role.
`zoo.spec.walk` yields the roles from the layer or tower down.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.spec.spec import Spec


TOKENS = "tokens"
"""The table that token ids are looked up in, its own or another model's."""

LOGITS = "logits"
"""The product that gives a logit for each token of the vocabulary."""

CROSS = "cross"
"""Attention to an encoder's output."""

ROW = "row"
"""A product that a head applies to one vector of a row, and not to each token."""

READ = "read"
"""A product of the tokens that attention reads (keys, values): in cross-attention the encoder's, computed once."""

SHARED = "shared"
"""What several layers have in common."""

EXPERTS, SHARED_EXPERT, SHARED_GATE = "experts", "shared_expert", "shared_expert_gate"
"""The routed experts of a mixture, the one that every token passes, and its gate."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One weight, or the few that belong together, of a component. `learns` says whether the loss gives it a
    gradient."""

    role: str = dataclasses.field(default="", kw_only=True)
    learns: bool = dataclasses.field(default=True, kw_only=True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """List each tensor's name below this part, and its shape."""
        raise NotImplementedError

    def decays(self, leaf: str) -> bool:
        """Tell whether weight decay applies to this tensor: to matrices and tables, never to scales and biases."""
        return leaf == "weight"

    @property
    def params(self) -> int:
        """Count the parameters held."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def active(self) -> int:
        """Count the parameters that one token uses."""
        return self.params

    @property
    def flops(self) -> int:
        """Count the FLOPs of one token's forward pass through it: two for each multiply-add of a matrix product."""
        return 0


@dataclasses.dataclass(frozen=True)
class Weight(Part):
    """A bare tensor, such as a norm's scale. `init` is its initial value, or a function that fills it in place."""

    shape: tuple[int, ...]
    init: float | Callable[[Any], Any] = 0.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"": self.shape}


@dataclasses.dataclass(frozen=True)
class Buffer(Part):
    """A tensor that is saved but not trained, so it is not a parameter. `init` is as a Weight's. `dtype` is its own,
    whatever the model's is."""

    shape: tuple[int, ...]
    init: float | Callable[[Any], Any] = 0.0
    dtype: str = "float32"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"": self.shape}

    @property
    def params(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Linear(Part):
    """A matrix product.

    `residual` marks one that writes to the residual stream: its initial values are scaled by depth. `precise` marks one
    that is kept out of float8, because its rounding error would be amplified downstream (routers, gates). `bare` marks
    one whose weight the forward also reads directly, which a quantised weight does not allow. `segments` are the widths
    of several results in one product, which tensor parallelism divides each by itself. `uses` is how often a pass
    applies it to a token.
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
    """A convolution along the tokens, `width` of them: weight [d_out, d_in / groups, width]. `groups` = d_in = d_out
    is a depthwise one; of a dilated one the tokens are `dilation` apart. `segments` are as a Linear's."""

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
    """A table of vectors. A look-up costs no FLOPs: one token reads one row, or `reads` of them."""

    count: int
    width: int
    reads: int = 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.count, self.width)}


@dataclasses.dataclass(frozen=True)
class Experts(Part):
    """`count` copies of a Linear, stacked; a token passes through `active_count` of them.

    `computing` says that some of those that a token chooses among compute nothing and have no copy here: (512, 768) of
    512 experts and 256 more. `active` and `flops` are expected values then, for tokens that choose all equally often.
    `spread` says that ranks of expert parallelism have some each; else each has them all.
    """

    of: Linear
    count: int
    active_count: int
    computing: tuple[int, int] = (1, 1)
    spread: bool = True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.count, *shape) for name, shape in self.of.shapes().items()}

    def shard(self, ranks: int) -> Experts:
        """Give the experts that one of `ranks` ranks of expert parallelism holds. `zoo.costs.shards` refuses a
        remainder."""
        return dataclasses.replace(self, count=self.count // ranks) if self.spread else self

    @property
    def active(self) -> int:
        return self._expect(self.of.params * self.active_count)

    @property
    def flops(self) -> int:
        return self._expect(self.of.flops * self.active_count)

    @property
    def expected_count(self) -> float:
        """How many of them a token passes through, on average."""
        computing, chosen = self.computing
        return self.active_count if computing == chosen else self.active_count * computing / chosen

    def _expect(self, most: int) -> int:
        computing, chosen = self.computing
        return most if computing == chosen else most * computing // chosen


@dataclasses.dataclass(frozen=True)
class Tied(Part):
    """A matrix product or a look-up with another part's weight: no parameters of its own, but all of the FLOPs.

    `to` is that part's path from the nearest enclosing model that has it: a decoder inside an encoder-decoder finds its
    own `embedding.tokens` first. `zoo.spec.walk.owner_of` follows it.
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
    """A product that the module of another part makes of other vectors: no module here, but all of the FLOPs."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {}


@dataclasses.dataclass(frozen=True)
class Sized:
    """A sub-component built at another width than its owner's, or in another role than its axis. One that is `common`
    has one set of weights for all layers of a kind: they are the first such layer's, by name too. `learns` is as a
    Part's."""

    spec: Spec
    d_model: int
    role: str = ""
    common: bool = False
    learns: bool = True


_counted: deque[tuple[tuple[str, ...], Counter[str]]] = deque(maxlen=8)


def count_kinds(pattern: tuple[str, ...]) -> Mapping[str, int]:
    """Count the layers of each kind. The last patterns are remembered: a price asks often, of as many as 100,000
    layers."""
    for held, counts in _counted:
        if held is pattern:
            return counts
    counts = Counter(pattern)
    _counted.append((pattern, counts))
    return counts


@dataclasses.dataclass(frozen=True)
class Group:
    """Parts under one name."""

    parts: Mapping[str, Part]
    role: str = ""


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers in order, by name of their kind. Layers of a kind share one Spec object: counting visits it once and
    multiplies.

    `weights` numbers the weights that each layer has, where some have the same (ALBERT); they are those of the kind of
    the last such layer. `numbers` are those of the layers in the whole model, where these are some of it.
    """

    kinds: Mapping[str, Spec]
    pattern: tuple[str, ...]
    weights: tuple[int, ...] | None = None
    numbers: Sequence[int] | None = None

    def stored(self) -> tuple[str, ...]:
        """List the kind of each layer that has weights of its own."""
        if self.weights is None:
            return self.pattern
        kinds = dict(zip(self.weights, self.pattern, strict=True))
        return tuple(kinds[number] for number in range(len(kinds)))

    def numbered(self) -> Iterable[tuple[int, str]]:
        """List the layers that have weights of their own: the number of each in the whole model, and its kind."""
        stored = self.stored()
        return zip(range(len(stored)) if self.numbers is None else self.numbers, stored, strict=True)

    def index(self, layer: int) -> int:
        """Find where the weights of a layer are among those stored."""
        return layer if self.weights is None else self.weights[layer]
