# B batch, E windows, m tokens of each, C channels
"""Online softmax over tokens, per channel: running sums to which later tokens can be added."""

from __future__ import annotations

from typing import NamedTuple

from zoo.lazy import F, Tensor, torch

NOTHING = -1e30
"""The exponent of an empty sum: finite, so that the difference of two is not NaN."""


def count_windows(rate: int, new: int, past: int | None) -> int:
    """Count the windows of `rate` tokens into which `new` tokens fall after `past` earlier ones. If `past` is None,
    return the largest count for any `past`.

    With windows of 4, three tokens after six fall into two: the last two of the second, and one of the third.
    """
    if past is None:
        return (new + rate - 2) // rate + 1
    return -(-(past + new) // rate) - past // rate


class RunningSums(NamedTuple):
    """The running sums of a softmax over tokens [B, E, C], in float32 (Milakov and Gimelshein, 2018, online softmax).
    `top` is the largest exponent; it gets no gradient, because it cancels out. `size` is the sum of e^(exponent − top),
    `total` the sum of the values times e^(exponent − top)."""

    top: Tensor
    size: Tensor
    total: Tensor

    @property
    def state(self) -> Tensor:
        """The sums of one window [B, 1, C] as a state [B, 3, C]."""
        return torch.cat(tuple(self), 1)

    @property
    def mean(self) -> Tensor:
        """The softmax-weighted mean of the values."""
        return self.total / self.size

    def channels(self, start: int, stop: int) -> RunningSums:
        """Return the sums of channels `start` to `stop`."""
        return RunningSums(*(each[..., start:stop] for each in self))

    def windows(self, start: int, stop: int) -> RunningSums:
        """Return the sums of windows `start` to `stop`."""
        return RunningSums(*(each[:, start:stop] for each in self))

    def pick(self, window: Tensor) -> RunningSums:
        """Return the sums of one window of each row, given by the window's number [B]."""
        index = window[:, None, None].expand(-1, 1, self.top.shape[-1])
        return RunningSums(*(each.gather(1, index) for each in self))

    def pad(self, front: int, back: int) -> RunningSums:
        """Add `front` empty windows before and `back` empty windows after."""
        if not front and not back:
            return self
        wide = (0, 0, front, back)
        return RunningSums(F.pad(self.top, wide, value=NOTHING), F.pad(self.size, wide), F.pad(self.total, wide))

    def keep(self, kept: Tensor) -> RunningSums:
        """Return the sums of windows where `kept` [B|1, E|1, 1] is True, empty sums elsewhere."""
        return RunningSums(torch.where(kept, self.top, NOTHING), self.size * kept, self.total * kept)

    def choose(self, chosen: Tensor, other: RunningSums) -> RunningSums:
        """Return these sums where `chosen` [B|1, 1, 1] is True, those of `other` elsewhere."""
        return RunningSums(*(torch.where(chosen, a, b) for a, b in zip(self, other, strict=True)))

    def merge(self, other: RunningSums) -> RunningSums:
        """Return the sums over the tokens of both."""
        with torch.no_grad():
            top = torch.maximum(self.top, other.top)
            mine, theirs = (self.top - top).exp(), (other.top - top).exp()
        return RunningSums(top, self.size * mine + other.size * theirs, self.total * mine + other.total * theirs)


def sum_windows(gates: Tensor, values: Tensor) -> RunningSums:
    """Sum over the tokens of each window: exponents `gates` and `values` [B, E, m, C], both float32."""
    with torch.no_grad():
        top = gates.max(2)[0]
    weights = (gates - top[:, :, None]).exp()
    return RunningSums(top, weights.sum(2), (weights * values).sum(2))


def read_sums(state: Tensor) -> RunningSums:
    """Read the sums of one window from a state [B, 3, C]. A state of zeros is an empty sum."""
    top, size, total = (each[:, None] for each in state.unbind(1))
    return RunningSums(torch.where(size > 0, top, NOTHING), size, total)
