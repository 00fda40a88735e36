# B batch, T queries, S keys, N slots of a pool, H heads, K kv heads, C head width
"""The keys that the queries of a pass see: one interface, KeyView, for all layouts of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zoo.kernels.dispatch import attend
from zoo.lazy import Tensor

if TYPE_CHECKING:
    from zoo.kernels.base import Kernel
    from zoo.kernels.mask import Mask
    from zoo.kernels.score_bias import Bias

Run = tuple[int, int]
"""Consecutive slots of a pool: (first, last + 1)."""


def count_slots(runs: Sequence[Run]) -> int:
    """Count the slots of runs."""
    return sum(stop - start for start, stop in runs)


@dataclass
class KeySegment:
    """Queries that attend together, under one mask. If keys lie in a pool, `runs` are the slots of their keys in order.
    `bias` is added to the scores; it is a function of `index`, the token indices of queries and keys."""

    mask: Mask
    runs: list[Run] = field(default_factory=list)
    bias: Bias | None = None
    index: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        """Number of queries."""
        return self.mask.n_queries

    def with_bias(self, make: Callable[..., Bias | None], read: Tensor | None) -> KeySegment:
        """Return the segment with a layer's own bias. The mask is copied, because tensors made of this bias are kept on
        the mask while the layer runs."""
        if self.index is None:
            return self
        return replace(self, bias=make(*self.index, read=read), mask=copy(self.mask))


class KeyView:
    """The keys that the queries of a pass see, in layers of one kind. A view finds the keys in a layer's tensors, and
    has the mask and bias of each segment of queries. In this base class all rows have the same length: keys are [B, S,
    …], and all queries are one segment.

    `slots` says where the pass's own tokens are stored (None without a cache). `kernels` caches the first layer's
    choice of kernels for the other layers (None: each layer chooses).
    """

    pooled = False
    """Whether keys lie in pools [N, …]."""
    travels = False
    """Whether keys and values travel between ranks while they are attended to."""
    joined: tuple[KeyView, KeyView] | None = None
    """The views of an encoder's keys and of the tokens' own keys, if both are attended (`zoo.kernels.view.joined`)."""

    def __init__(
        self, mask: Mask, index: tuple[Tensor, Tensor] | None = None, bias: Bias | None = None, slots: Any = None
    ) -> None:
        self.segments, self.slots = [KeySegment(mask, [], bias, index)], slots
        self.kernels: list[Kernel] | None = None

    @property
    def mask(self) -> Mask:
        """The mask of all queries. If each segment has its own mask, only the sizes of this mask are valid."""
        return self.segments[0].mask

    @property
    def bias(self) -> Bias | None:
        """The bias on the scores, of the first segment."""
        return self.segments[0].bias

    @property
    def index(self) -> tuple[Tensor, Tensor] | None:
        """The token indices of queries and keys, of the first segment."""
        return self.segments[0].index

    def split(self, x: Tensor, before: int = 0) -> list[Tensor]:
        """Split x [B, before + T, …] by segment: each part has the segment's queries and `before` tokens before
        them."""
        return [x]

    def join(self, outputs: list[Tensor], tokens: int) -> Tensor:
        """Join the segments' outputs to one tensor [B, T, …] of T = `tokens`."""
        return outputs[0]

    def read(self, held: Tensor) -> list[Tensor]:
        """Read each segment's keys [B|1, S, …] from a tensor that a layer holds."""
        return [held]

    def gather(self, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gather new tokens [B, T, …] of all ranks of context parallelism (training only, no cache)."""
        return new

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        """Compute attention: q [B, T, H, C] → [B, T, H, Cv]. `how` are arguments of `zoo.kernels.attend`."""
        (segment,) = self.segments
        return attend(q, k, v, segment.mask, bias=segment.bias, chosen=self.kernels, **how)

    def choose(self, pick: Callable[..., Tensor], k: Tensor, *queries: Tensor) -> list[Tensor]:
        """Choose keys for each segment by `pick(*queries, k, mask)`. Returns the argument of `narrow`."""
        each = zip(self.segments, self.read(k), *map(self.split, queries), strict=True)
        return [pick(*mine, keys, segment.mask) for segment, keys, *mine in each]

    def narrow(self, chosen: Sequence[Tensor]) -> KeyView:
        """Return the view restricted to chosen keys: a mask for each segment, [B, T, S], or [B, H, T, S] by head."""
        each = zip(self.segments, chosen, strict=True)
        return self.replace([replace(segment, mask=segment.mask.narrow(keys)) for segment, keys in each])

    def with_bias(self, make: Callable[..., Bias | None], n_heads: int, read: Tensor | None = None) -> KeyView:
        """Return the view with a layer's own bias for its `n_heads` heads. `make` computes the bias from the token
        indices of queries and keys and, if `read` [B, T, …] is given, from the segment's queries of `read`."""
        reads = [None] * len(self.segments) if read is None else self.split(read)
        each = zip(self.segments, reads, strict=True)
        return self.replace([segment.with_bias(make, mine) for segment, mine in each])

    def replace(self, segments: list[KeySegment]) -> KeyView:
        """Return the view with other segments, that is with other masks and biases."""
        view = copy(self)
        view.segments = segments
        return view
