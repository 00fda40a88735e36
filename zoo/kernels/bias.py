# B batch, T queries, S keys, H heads
"""What positions add to the scores, as a description; a tensor is drawn from it only for a kernel that wants one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Bias:
    """A number for every head and pair of a query and a key, told by their columns.

    `at` is the definition, element by element, and what a compiled kernel makes its own code of; `dense` is the same
    for all pairs at once. Neither is stated twice: both call the one function of columns that a position scheme gives.
    """

    slopes: Tensor | None = None  # [H], float32: where the bias is −slope·|i − j| and nothing else

    def __init__(self, learned: bool = False) -> None:
        self.learned = learned
        self._dense: Tensor | None = None

    @property
    def source(self) -> object:
        """What it is of: equal for two descriptions of one tensor."""
        return self

    @property
    def kind(self) -> str:
        """As `Ask.bias` names it."""
        if self.slopes is not None:
            return "alibi"
        return "learned" if self.learned else "fixed"

    def at(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """The number at these indices, tensors of any shapes that broadcast."""
        raise NotImplementedError

    def draw(self) -> Tensor:
        """All of it: [B|1, H|1, T|1, S]."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """What `draw` gives, kept."""
        if self._dense is None:
            self._dense = self.draw()
        return self._dense


class Given(Bias):
    """A tensor [B|1, H|1, T|1, S], or without the leading axes."""

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
    """A function of a head and of the columns of a query [T] and a key [S]."""

    def __init__(self, queries: Tensor, keys: Tensor, n_heads: int, learned: bool = False) -> None:
        super().__init__(learned)
        self.queries, self.keys, self.n_heads = queries, keys, n_heads

    def of(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """The number of a head for a query and a key in these columns."""
        raise NotImplementedError

    def at(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return self.of(head, self.queries[query], self.keys[key])

    def draw(self) -> Tensor:
        heads = torch.arange(self.n_heads, device=self.keys.device)
        return self.of(heads[:, None, None], self.queries[:, None], self.keys[None, :])[None]


def biased(bias: Bias | Tensor | None) -> Bias | None:
    """A description, of a tensor too."""
    return Given(bias) if hasattr(bias, "shape") else bias  # type: ignore[return-value, arg-type]
