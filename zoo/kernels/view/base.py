# B batch, T queries, S keys, N slots of a pool, H heads, K kv heads, C head width
"""The keys that the queries of a pass see: one interface for all layouts of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zoo.kernels.dispatch import attend

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.base import Kernel
    from zoo.kernels.bias import Bias
    from zoo.kernels.mask import Mask

Run = tuple[int, int]
"""The first of some consecutive slots of a pool, and one past the last."""


def count_slots(runs: Sequence[Run]) -> int:
    """Count the slots of some runs."""
    return sum(stop - start for start, stop in runs)


@dataclass
class Segment:
    """Queries that attend together, under one mask. Where keys lie in a pool, `runs` are the slots of those that they
    may see, in order. `bias` is added to the scores; `index` are the places of queries and keys that it is made of."""

    mask: Mask
    runs: list[Run] = field(default_factory=list)
    bias: Bias | None = None
    index: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        """How many queries there are."""
        return self.mask.n_queries

    def with_bias(self, make: Callable[..., Bias | None], read: Tensor | None) -> Segment:
        """The same queries with a layer's own bias. The mask is copied: it keeps what is drawn of the bias no longer
        than the layer runs."""
        if self.index is None:
            return self
        return replace(self, bias=make(*self.index, read=read), mask=copy(self.mask))


class KeyView:
    """The keys that the queries of a pass see, in layers of a kind: where they lie in what a layer holds, and the mask
    and bias of each segment of queries. Here rows are alike: keys are [B, S, …], and all queries are one segment.

    `slots` say where the pass's own tokens are stored, None without a cache. `kernels` are those that the first of the
    layers chose, for the others; None where each layer chooses for itself.
    """

    pooled = False
    """Whether keys lie in pools [N, …]."""
    travels = False
    """Whether keys and values travel between ranks while they are attended to."""
    joins: tuple[KeyView, KeyView] | None = None
    """The views of an encoder's keys and of the tokens' own, where keys are both (`zoo.kernels.view.joined`)."""

    def __init__(
        self, mask: Mask, index: tuple[Tensor, Tensor] | None = None, bias: Bias | None = None, slots: Any = None
    ) -> None:
        self.segments, self.slots = [Segment(mask, [], bias, index)], slots
        self.kernels: list[Kernel] | None = None

    @property
    def mask(self) -> Mask:
        """The mask of all queries; where segments have their own, as many queries as are computed here."""
        return self.segments[0].mask

    @property
    def bias(self) -> Bias | None:
        """What is added to the scores, of rows that are alike."""
        return self.segments[0].bias

    @property
    def index(self) -> tuple[Tensor, Tensor] | None:
        """The places of queries and keys in their rows, of rows that are alike."""
        return self.segments[0].index

    def split(self, x: Tensor, before: int = 0) -> list[Tensor]:
        """Split x [B, before + T, …] into the queries of each segment, and so many tokens before them."""
        return [x]

    def join(self, outputs: list[Tensor], tokens: int) -> Tensor:
        """Join what each segment's queries gave to [B, T, …]."""
        return outputs[0]

    def read(self, held: Tensor) -> list[Tensor]:
        """Read each segment's keys [B|1, S, …] of what a layer holds."""
        return [held]

    def gather(self, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gather new tokens [B, T, …] of all ranks that have some of a row's, where there is no cache."""
        return new

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        """Attend: q [B, T, H, C] → [B, T, H, Cv]. `how` are arguments of `zoo.kernels.attend`."""
        (segment,) = self.segments
        return attend(q, k, v, segment.mask, bias=segment.bias, chosen=self.kernels, **how)

    def choose(self, pick: Callable[..., Tensor], k: Tensor, *queries: Tensor) -> list[Tensor]:
        """Choose of each segment's keys those of `pick(*queries, k, mask)`, for `narrow`."""
        each = zip(self.segments, self.read(k), *map(self.split, queries), strict=True)
        return [pick(*mine, keys, segment.mask) for segment, keys, *mine in each]

    def narrow(self, chosen: Sequence[Tensor]) -> KeyView:
        """The same for queries that see no more than the keys chosen: of each segment True for these [B, T, S], or
        [B, H, T, S] where heads choose apart."""
        each = zip(self.segments, chosen, strict=True)
        return self.replace([replace(segment, mask=segment.mask.narrow(keys)) for segment, keys in each])

    def with_bias(self, make: Callable[..., Bias | None], n_heads: int, read: Tensor | None = None) -> KeyView:
        """The same in a layer whose `n_heads` heads have a bias of their own: `make` gives it for the places of queries
        and keys, and for the queries' part of `read` [B, T, …] where there is that."""
        reads = [None] * len(self.segments) if read is None else self.split(read)
        each = zip(self.segments, reads, strict=True)
        return self.replace([segment.with_bias(make, mine) for segment, mine in each])

    def replace(self, segments: list[Segment]) -> KeyView:
        """The same with other masks and biases."""
        view = copy(self)
        view.segments = segments
        return view
