# B rows, T tokens of the longest, N tokens of all rows
"""Pad the concatenated rows of a varlen pass to rectangles of rows [B, T], for recurrences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, NamedTuple

from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.model.step import Step


class PaddedRows(NamedTuple):
    """Some rows of a pass: the `places` [B, T] of their tokens among all N, which of these are `real` (the others are
    padding; None if all are), and the rows' state `slots` [B]."""

    places: Tensor
    real: Tensor | None
    slots: Tensor


class RowGroups:
    """The rows of a varlen pass, in groups of similar length that are padded to [B, T]. `order` [N] is each token's
    place among the places of all groups, padding included."""

    def __init__(self, counts: Sequence[int], slots: Sequence[int], device: torch.device) -> None:
        starts = [sum(counts[:number]) for number in range(len(counts))]
        self.groups: list[PaddedRows] = []
        order, laid = [0] * sum(counts), 0
        for rows in group_alike(counts):
            longest = counts[rows[-1]]
            places = [[starts[row] + min(column, counts[row] - 1) for column in range(longest)] for row in rows]
            for line, row in enumerate(rows):
                for token in range(counts[row]):
                    order[starts[row] + token] = laid + line * longest + token
            laid += len(rows) * longest
            real = None
            if counts[rows[0]] < longest:
                own = torch.tensor([[counts[row]] for row in rows], device=device)
                real = torch.arange(longest, device=device) < own
            numbers = torch.tensor([slots[row] for row in rows], device=device)
            self.groups.append(PaddedRows(torch.tensor(places, device=device), real, numbers))
        self.order = torch.tensor(order, device=device)

    def run(self, work: Callable[..., Tensor], step: Step, flat: Sequence[Tensor]) -> Tensor:
        """Compute `work(step, *tensors)` for each group, with the rows' own states and with tensors [B, T, …] made of
        `flat` [1, N, …]; return [1, N, …]."""
        found = []
        for group in self.groups:
            mine = copy(step)
            assert mine.cache is not None
            mine.rows, mine.real, mine.cache = None, group.real, mine.cache.narrow(group.slots)
            found.append(work(mine, *(each[0, group.places] for each in flat)).flatten(0, 1))
        return torch.cat(found)[None, self.order]


def group_alike(counts: Sequence[int]) -> list[list[int]]:
    """Group rows by their numbers of tokens, shortest first, so that at most a fifth of a group [B, T] is padding."""
    groups: list[list[int]] = []
    total = 0
    for row in sorted(range(len(counts)), key=counts.__getitem__):
        if not groups or 4 * (len(groups[-1]) + 1) * counts[row] > 5 * (total + counts[row]):
            groups.append([])
            total = 0
        groups[-1].append(row)
        total += counts[row]
    return groups
