"""Describe how tensor parallelism cuts each tensor, from the Specs of the whole model and of a rank's part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zoo.lazy import F, Tensor, torch
from zoo.spec import Experts, placed_tensors


class CutSegment(NamedTuple):
    """A segment of a tensor along the cut dimension: its length in the whole tensor, and in one rank's part."""

    whole: int
    part: int

    def copies(self, ranks: int) -> int:
        """Number of ranks that hold the same values of the segment."""
        if self.part == self.whole:
            return ranks
        apart = self.whole >= ranks and self.part == -(-self.whole // ranks)
        return 1 if apart else self.part * ranks // self.whole

    def start(self, rank: int, ranks: int) -> int:
        """Offset of a rank's part within the segment."""
        return rank // self.copies(ranks) * self.part


class SegmentRun(NamedTuple):
    """A rank's values of one segment: their offsets in the rank's part and in the whole tensor, and their number along
    the cut dimension."""

    part: int
    whole: int
    length: int


@dataclass(frozen=True)
class Cut:
    """How one tensor is cut: each of `ranks` ranks holds its share of every segment along `dim`, the last shares padded
    with zeros. Every rank holds all of a replicated tensor. `learns` says whether the loss gives the tensor a
    gradient."""

    dim: int
    segments: tuple[CutSegment, ...]
    ranks: int
    learns: bool = True

    @property
    def copies(self) -> int:
        """Number of ranks that hold the same values of a segment, for the segments with most copies."""
        return max(each.copies(self.ranks) for each in self.segments)

    @property
    def is_mixed(self) -> bool:
        """Whether segments differ in their number of copies."""
        return len({each.copies(self.ranks) for each in self.segments}) > 1

    def mark_common(self, part: Tensor) -> Tensor:
        """Make a mask of a rank's part of the tensor: 1 in the segments with most copies, 0 in the others."""
        held = [each.copies(self.ranks) == self.copies for each in self.segments]
        lengths = torch.tensor([each.part for each in self.segments])
        marks = torch.tensor(held).repeat_interleave(lengths).to(part)
        return marks.view(*(-1 if dim == self.dim else 1 for dim in range(part.ndim))).expand(part.shape).contiguous()

    @property
    def is_whole(self) -> bool:
        return all(each.part == each.whole for each in self.segments)

    def list_runs(self, rank: int) -> Iterator[SegmentRun]:
        """List the values of each segment that a rank's part holds, without padding."""
        part = whole = 0
        for each in self.segments:
            start = min(each.start(rank, self.ranks), each.whole)
            yield SegmentRun(part, whole + start, min(each.part, each.whole - start))
            part, whole = part + each.part, whole + each.whole

    def take(self, whole: Tensor, rank: int) -> Tensor:
        """Take a rank's part of the whole tensor."""
        if self.is_whole:
            return whole
        inner = (0, 0) * (whole.ndim - 1 - self.dim)  # nothing is added to the dimensions after it
        pieces = []
        for each, run in zip(self.segments, self.list_runs(rank), strict=True):
            piece, missing = whole.narrow(self.dim, run.whole, run.length), each.part - run.length
            pieces.append(F.pad(piece, (*inner, 0, missing)) if missing else piece)
        return torch.cat(pieces, self.dim)


def find_cuts(whole: Any, part: Any, ranks: int) -> dict[str, Cut]:
    """Find how each tensor of a model, by name, is cut into the parts of `ranks` ranks. `whole` is the model's Spec,
    `part` the Spec of one rank's part."""
    cuts: dict[str, Cut] = {}
    parts = part.towers()
    for where, tower in whole.towers().items():
        theirs = {name: (row.part, leaf) for name, row, leaf in placed_tensors(parts[where], tower.d_model, where)}
        for name, row, leaf in placed_tensors(tower, tower.d_model, where):
            cuts[name] = replace(compare_parts(row.part, theirs[name][0], leaf, ranks), learns=row.learns)
    return cuts


def find_cut_faults(cuts: dict[str, Cut]) -> Iterator[str]:
    """Yield a line for each tensor whose segments have two or more different numbers of copies above 1. The gradients
    of such a tensor cannot be summed."""
    for name, cut in cuts.items():
        if len({each.copies(cut.ranks) for each in cut.segments} - {1}) > 1:
            found = ", ".join(str(each.whole) for each in cut.segments)
            yield f"tp: {cut.ranks} does not divide the parts of {name} in two ways, found {found} (fewer would do)"


def compare_parts(whole: Any, part: Any, leaf: str, ranks: int) -> Cut:
    """Find how the tensor named `leaf` is cut over `ranks` ranks, by comparing its shapes in two parts: a part of the
    whole model (`whole`), and the same part on one rank (`part`)."""
    shapes = [each.shapes()[leaf] for each in (whole, part)]
    dims = [dim for dim, (one, other) in enumerate(zip(*shapes, strict=True)) if one != other]
    dim = dims[0] if dims else 0
    assert len(dims) < 2, f"{leaf} is cut along {dims}"
    stacked = isinstance(whole, Experts)
    sizes = [getattr(each.of if stacked else each, "segments", ()) for each in (whole, part)]
    along = dim == int(stacked)  # segments are of the outputs
    if dims and along and sizes[0]:
        return Cut(dim, tuple(map(CutSegment, *sizes)), ranks)
    size = [shape[dim] if shape else 1 for shape in shapes]
    return Cut(dim, (CutSegment(*size),), ranks)
