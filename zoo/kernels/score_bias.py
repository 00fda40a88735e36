# B batch, T queries, S keys, H heads, R distances
"""Position biases on attention scores, as functions. A tensor is made only for a kernel that needs one."""

from __future__ import annotations

import functools
from typing import Any

from zoo.lazy import Tensor, torch


class Bias:
    """A number added to the score of each head, query and key.

    `at` computes the bias element by element, and flex compiles `at` into its kernel. `dense` computes the bias of all
    pairs at once. Both call one function of the position scheme, so that they cannot disagree.
    """

    slopes: Tensor | None = None  # [H] float32, set if the bias is exactly −slope·|i − j| (ALiBi)

    def __init__(self, learned: bool = False) -> None:
        self.learned = learned
        self._dense: Tensor | None = None

    @property
    def source(self) -> object:
        """The object that identifies the bias: the Bias itself or, for a Given, the tensor it was made from."""
        return self

    @property
    def kind(self) -> str:
        """The value of `AttentionQuery.bias` for this bias."""
        if self.slopes is not None:
            return "alibi"
        return "learned" if self.learned else "fixed"

    def at(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Compute the bias at these indices, which are tensors that broadcast with one another."""
        raise NotImplementedError

    def draw(self) -> Tensor:
        """Compute the whole bias [B|1, H|1, T|1, S]."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """Return `draw()`, computed once and kept."""
        if self._dense is None:
            self._dense = self.draw()
        return self._dense

    def draw_once(self) -> Tensor:
        """Return the whole bias, for a caller that keeps it (`Mask.additive`). Only a learned Bias keeps it too: a
        second copy, 8.6 GB for ALiBi with 32 heads and 8,192 tokens, would never be read."""
        return self.dense() if self.learned or self._dense is not None else self.draw()


class Given(Bias):
    """A bias given as a tensor [B|1, H|1, T|1, S], or without the leading axes."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.requires_grad)
        self.given = tensor
        self.tensor = tensor if tensor.ndim == 4 else tensor[(None,) * (4 - tensor.ndim)]

    @property
    def source(self) -> object:
        return self.given

    def at(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        places = zip(self.tensor.shape, (row, head, query, key), strict=True)
        return self.tensor[tuple(torch.zeros_like(place) if size == 1 else place for size, place in places)]

    def draw(self) -> Tensor:
        return self.tensor


class Placed(Bias):
    """A bias that is a function of the head and of the token indices of query and key: `queries` [T] and `keys` [S], or
    [B, T] and [B, S] if they differ by row."""

    def __init__(self, queries: Tensor, keys: Tensor, n_heads: int, learned: bool = False) -> None:
        super().__init__(learned)
        self.queries, self.keys, self.n_heads = queries, keys, n_heads

    def of(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Compute the bias of heads for token indices of queries and keys. All are tensors that broadcast together."""
        raise NotImplementedError

    def at(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if self.keys.ndim == 2:
            return self.of(head, self.queries[row, query], self.keys[row, key])
        return self.of(head, self.queries[query], self.keys[key])

    def draw(self) -> Tensor:
        heads = torch.arange(self.n_heads, device=self.keys.device)
        if self.keys.ndim == 2:
            return self.of(heads[:, None, None], self.queries[:, None, :, None], self.keys[:, None, None, :])
        return self.of(heads[:, None, None], self.queries[:, None], self.keys[None, :])[None]


class ByDistance(Placed):
    """A bias from each query's own logits [B, T, H, R]. For query i and key j the bias is logit number i − j of the
    query if 0 <= i − j < R, else 0."""

    def __init__(self, logits: Tensor, queries: Tensor, keys: Tensor) -> None:
        super().__init__(queries, keys, logits.shape[2], learned=logits.requires_grad)
        self.logits = logits

    def at(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        each = (row,) if self.keys.ndim == 2 else ()
        distance = self.queries[(*each, query)] - self.keys[(*each, key)]
        near = distance.clamp(0, self.logits.shape[3] - 1)
        return torch.where(distance == near, self.logits[row, query, head, near], 0.0)

    def draw(self) -> Tensor:
        distance = self.queries[..., :, None] - self.keys[..., None, :]  # B|- T S
        near = distance.clamp(0, self.logits.shape[3] - 1)
        # Heads stay behind queries until here: else the backward pass would copy a gradient as large as the logits.
        drawn = pick_last(self.logits, near[..., :, None, :].expand(*self.logits.shape[:3], -1))  # B T H S
        return drawn.transpose(1, 2).masked_fill((distance != near)[..., None, :, :], 0.0)  # B H T S


def pick_last(x: Tensor, places: Tensor) -> Tensor:
    """Gather along the last axis. Only `places` are saved for the backward pass, not x, which may be far wider."""
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        return _picking().apply(x, places)
    return x.gather(-1, places)


@functools.cache
def _picking() -> Any:
    """Make the autograd function on first use, because pricing a model must not import torch."""

    class Picking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
            ctx.shape = x.shape
            ctx.save_for_backward(places)
            return x.gather(-1, places)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            (places,) = ctx.saved_tensors
            return g.new_zeros(ctx.shape).scatter_add_(-1, places, g), None

    return Picking


class OwnHeads(Bias):
    """The part of a bias for one rank's heads: `count` heads from head `first` on."""

    def __init__(self, whole: Bias, first: int, count: int) -> None:
        super().__init__(whole.learned)
        self.whole, self.first, self.count = whole, first, count
        self.slopes = None if whole.slopes is None else whole.slopes[first : first + count]

    def at(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return self.whole.at(row, head + self.first, query, key)

    def draw(self) -> Tensor:
        drawn = self.whole.draw()
        return drawn if drawn.shape[1] == 1 else drawn[:, self.first : self.first + self.count]


def describe_bias(bias: Bias | Tensor | None) -> Bias | None:
    """Wrap a tensor as a Bias; return a Bias or None as it is."""
    return Given(bias) if hasattr(bias, "shape") else bias  # type: ignore[return-value, arg-type]
