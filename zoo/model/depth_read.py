# B batch, T tokens, S earlier groups of layers, Q reads, D model width
"""Attention over depth: a sub-layer attends to the sums of earlier groups of layers instead of reading their total."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.channels import Channel, Fault, Shadows
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import Spec, Weight, hold_whole

if TYPE_CHECKING:
    from zoo.model.step import Weights
    from zoo.model.tower import Tower


class GroupSums(Channel, name="groups"):
    """Sums of the groups of layers that have ended, [B, T, S, D] as `DepthRead.push` makes them; None at first."""

    staying: ClassVar[str] = "layers read the sums of earlier ones, which another stage may have"

    @classmethod
    def trace(cls, at: Shadows) -> Any:
        counts = dict(zip((*at.tower.pattern, ""), cls.count_read(at.tower), strict=True))
        return cls.trace_sums(at, counts.get(at.kind, 0))

    @classmethod
    def trace_sums(cls, at: Shadows, count: int) -> Any:
        """Make the shadow of the sums of `count` groups; None for 0."""
        shape = (*at.x.shape[:2], count, at.x.shape[2])
        return at.make(shape, "float32", "earlier", at.x.wants_grad) if count else None

    @classmethod
    def count_read(cls, tower: Tower) -> list[int]:
        """Count the earlier sums that each layer reads; the last item is for the last read. Each pass of a restarting
        loop begins again with the count before the loop.

        Example: of six layers, of which 0, 2 and 4 open a group, the counts are 0, 1, 1, 2, 2, 3 and 3. A layer that
        opens a group reads its input, the sum of the group that ends there, as the present sum, not as an earlier one.
        """
        opens = {name: int(cls.name in block.gives) for name, block in tower.blocks.items()}

        def count(names: Sequence[str], before: int) -> list[int]:
            return list(accumulate(map(opens.__getitem__, names), initial=before))

        loop, pattern = tower.loop, tower.pattern
        if loop is None or not loop.restarts:
            return count(pattern, 0)
        once = count(pattern[: loop.end], 0)
        return once[:-1] + once[loop.start : loop.end] * (loop.passes - 1) + count(pattern[loop.stop :], once[-1])

    @classmethod
    def find_last_reader(cls, tower: Tower) -> Spec | None:
        return getattr(tower.blocks[tower.pattern[-1]], "depth_read", None)

    @classmethod
    def find_faults(cls, tower: Tower) -> Iterator[Fault]:
        """Yield a fault for each kind of layer that adds to one stream while others read groups of layers."""
        kinds = {name: cls.name in tower.blocks[name].takes for name in tower.pattern}
        reader = next((name for name, reads in kinds.items() if reads), None)
        for name in () if reader is None else [name for name, reads in kinds.items() if not reads]:
            found = f"adds to the sum of all layers, and '{reader}' layers read groups of them"
            yield ("blocks", name), f"{found} (block: attention_residual in all layers, or in none)"


class DepthRead(Spec, axis="depth_read", default="softmax"):
    """Read one or several vectors for each token from the sums of earlier groups of layers and of the present group."""

    n_reads: PositiveInt = 1
    """Number of vectors to read, each by weights of its own. The block sets it; a config leaves it out."""

    shard = hold_whole  # every rank reads for its own tokens

    def repeat(self, n_reads: int) -> DepthRead:
        """Return a copy with `n_reads` reads, each by weights of its own."""
        return replace(self, n_reads=n_reads)

    def push(self, m: Weights, earlier: Tensor | None, x: Tensor) -> Tensor:
        """Append the sum x [B, T, D] of a group that ends to the earlier sums [B, T, S, D]: [B, T, S + 1, D]."""
        raise NotImplementedError

    def forward(self, m: Weights, x: Tensor, earlier: Tensor | None) -> Tensor:
        """Read the sums of `earlier` groups [B, T, S, D] (None if there are none) and of the present group, x [B, T,
        D]. Returns [B, T, D], or [B, T, Q, D] for Q > 1 reads."""
        raise NotImplementedError


class SoftmaxDepthRead(DepthRead, kind="softmax"):
    """Read Σₛ softmaxₛ(q·nₛ/√D)·nₛ with one learned query q for all tokens, where nₛ are the normalised sums of the
    groups (Kimi Team, 2026, Attention Residuals; Thinking Machines, 2026, Inkling 2). q starts at 0, which gives the
    mean of all nₛ.

    Sums are passed on normalised, in float32: each is normalised once, and autograd saves one tensor for all readers.
    """

    norm: WholeNorm = RMSNorm(weight=False)
    """Norm of the groups' sums."""

    def parts(self, d_model: int) -> dict[str, Any]:
        shape = (d_model,) if self.n_reads == 1 else (self.n_reads, d_model)
        return {"query": Weight(shape), "norm": self.norm}

    def push(self, m: Weights, earlier: Tensor | None, x: Tensor) -> Tensor:
        own = m.norm(x.float()).unsqueeze(2)
        return own if earlier is None else torch.cat((earlier, own), 2)

    def forward(self, m: Weights, x: Tensor, earlier: Tensor | None) -> Tensor:
        own, queries = m.norm(x.float()), m.query.float() * x.shape[-1] ** -0.5  # B T D
        each = [_attend(own, earlier, query) for query in (queries.unbind(0) if self.n_reads > 1 else (queries,))]
        return (torch.stack(each, 2) if self.n_reads > 1 else each[0]).to(x.dtype)


def _attend(own: Tensor, earlier: Tensor | None, query: Tensor) -> Tensor:
    """Attend with one query [D] to vectors [B, T, D] and [B, T, S, D]: [B, T, D]. Uses elementwise products and sums,
    because matrix products with so few rows for each token are slower."""
    if earlier is None:
        return own
    logits = torch.cat(((earlier * query).sum(-1), (own * query).sum(-1, keepdim=True)), 2)  # B T S+1
    probs = logits.softmax(-1)
    return (probs[..., :-1, None] * earlier).sum(2) + probs[..., -1:] * own


def count_passed(tower: Tower) -> int:
    """Count the groups of layers that end within each pass of a tower's loop."""
    inside = () if tower.loop is None else tower.pattern[tower.loop.start + 1 : tower.loop.end]
    return sum(GroupSums.name in tower.blocks[name].gives for name in inside)
