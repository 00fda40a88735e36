# B batch, E windows, m tokens of one, C channels
"""A softmax over tokens for each channel that takes more tokens later: what is kept of those that came so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zoo.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = -1e30
"""The exponent of no token: finite, so that no difference of two is not a number."""


def count_windows(rate: int, new: int, past: int | None) -> int:
    """Count the windows of `rate` tokens that `new` tokens after `past` are in; without `past`, the most there can be.

    With windows of 4, three tokens after six are in two: the last two of the second, and one of the third.
    """
    if past is None:
        return (new + rate - 2) // rate + 1
    return -(-(past + new) // rate) - past // rate


class RunningSums(NamedTuple):
    """The sums of a softmax over some tokens [B, E, C], in float32: the largest exponent `top`, the sum of
    e^(exponent − top), and that of the values so weighted (Milakov and Gimelshein, 2018, online softmax). No gradient
    goes by way of `top`, which cancels out."""

    top: Tensor
    size: Tensor
    total: Tensor

    @property
    def state(self) -> Tensor:
        """The statistics of one window [B, 1, C] as a state [B, 3, C]."""
        return torch.cat(tuple(self), 1)

    @property
    def mean(self) -> Tensor:
        """The values' mean by the softmax."""
        return self.total / self.size

    def channels(self, start: int, stop: int) -> RunningSums:
        """The statistics of some channels."""
        return RunningSums(*(each[..., start:stop] for each in self))

    def windows(self, start: int, stop: int) -> RunningSums:
        """The statistics of some windows."""
        return RunningSums(*(each[:, start:stop] for each in self))

    def pick(self, window: Tensor) -> RunningSums:
        """The statistics of one window of each row, by number [B]."""
        index = window[:, None, None].expand(-1, 1, self.top.shape[-1])
        return RunningSums(*(each.gather(1, index) for each in self))

    def pad(self, front: int, back: int) -> RunningSums:
        """Put so many windows without tokens before and behind."""
        if not front and not back:
            return self
        wide = (0, 0, front, back)
        return RunningSums(F.pad(self.top, wide, value=NOTHING), F.pad(self.size, wide), F.pad(self.total, wide))

    def keep(self, kept: Tensor) -> RunningSums:
        """The statistics of windows that are `kept` [B|1, E|1, 1]; elsewhere those of no token."""
        return RunningSums(torch.where(kept, self.top, NOTHING), self.size * kept, self.total * kept)

    def choose(self, chosen: Tensor, other: RunningSums) -> RunningSums:
        """The statistics of rows that are `chosen` [B|1, 1, 1]; elsewhere the others'."""
        return RunningSums(*(torch.where(chosen, a, b) for a, b in zip(self, other, strict=True)))

    def merge(self, other: RunningSums) -> RunningSums:
        """The statistics over the tokens of both."""
        with torch.no_grad():
            top = torch.maximum(self.top, other.top)
            mine, theirs = (self.top - top).exp(), (other.top - top).exp()
        return RunningSums(top, self.size * mine + other.size * theirs, self.total * mine + other.total * theirs)


def sum_windows(gates: Tensor, values: Tensor) -> RunningSums:
    """Sum over the tokens of each window: gates, the exponents, and values [B, E, m, C] in float32."""
    with torch.no_grad():
        top = gates.max(2)[0]
    weights = (gates - top[:, :, None]).exp()
    return RunningSums(top, weights.sum(2), (weights * values).sum(2))


def read_sums(state: Tensor) -> RunningSums:
    """Read the sums of one window that a state [B, 3, C] holds. Zeros are those of no token."""
    top, size, total = (each[:, None] for each in state.unbind(1))
    return RunningSums(torch.where(size > 0, top, NOTHING), size, total)
