# B batch, T queries, S keys, H heads
"""Which keys a query may see, as a description; a tensor is drawn from it only for a kernel that wants one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Mask:
    """What `n_queries` queries may see of `n_keys` keys, in columns: a token's index in its row, pads included.

    Without `key_columns` the keys are columns 0 … S-1; without `query_columns` the queries are the last T of them, so
    that a causal mask on a rectangle is aligned at its bottom right. `causal` shows keys at or before the query. A
    `window` W shows a causal query the W newest of those, itself included; one that sees both sides, all |i-j| <= W.
    Two things show more than place does: columns before `prefix` [B] all see one another (Raffel et al., 2020,
    prefix-LM), and `also` [B|1, T, S] names pairs one by one. Two hide: `padding` [B, S] is True where a key is a real
    token, and `documents` (of the queries [B, T], of the keys [B, S]) keeps packed documents apart.

    What is drawn is kept on the object, which serves one forward pass. Draw before the layers (`kernels.prepare`): they
    then only read the mask, so that equal layers compile once and a checkpointed layer recomputes what it did. A
    padding that hides nothing still costs a tensor: say None instead.
    """

    def __init__(
        self,
        n_queries: int,
        n_keys: int,
        *,
        causal: bool = True,
        window: int | None = None,
        padding: Tensor | None = None,
        documents: tuple[Tensor, Tensor] | None = None,
        prefix: Tensor | None = None,
        also: Tensor | None = None,
        query_columns: Tensor | None = None,
        key_columns: Tensor | None = None,
    ) -> None:
        self.n_queries = n_queries
        self.n_keys = n_keys
        self.causal = causal
        self.window = window
        self.padding = padding
        self.documents = documents
        self.prefix = prefix
        self.also = also
        self.query_columns = query_columns
        self.key_columns = key_columns
        self._dense: Tensor | None = None
        self._additive: Tensor | None = None
        self._bias: Tensor | None = None  # the one that _additive holds

    @property
    def sees_all(self) -> bool:
        """No query is refused any key, as far as numbers tell: tensors are not read for it."""
        if not self._in_order:
            return False
        if self.causal:
            return self.n_queries == 1 and not self._window_bites
        return not self._window_bites

    @property
    def plain_causal(self) -> bool:
        """As many queries as keys, and nothing hidden but the future."""
        return self.causal and self._in_order and self.n_queries == self.n_keys and not self._window_bites

    @property
    def _in_order(self) -> bool:
        """Nothing but the place of a token in its row decides."""
        others = (self.padding, self.documents, self.prefix, self.also, self.query_columns, self.key_columns)
        return all(each is None for each in others)

    @property
    def _window_bites(self) -> bool:
        """The window is narrower than the row, columns being in order."""
        if self.window is None:
            return False
        farthest = self.n_keys - 1
        return self.window <= farthest if self.causal else self.window < farthest

    def dense(self, device: torch.device) -> Tensor:
        """True where a query sees a key: [B|1, 1, T, S]."""
        if self._dense is None or self._dense.device != device:
            self._dense = self._draw(device)
        return self._dense

    def additive(self, device: torch.device, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
        """`bias` (or 0) where a query sees a key and -inf elsewhere: [B|1, H|1, T, S].

        Kept for the tensor given: another one, even an equal one, is drawn anew.
        """
        kept = self._additive
        if kept is None or kept.device != device or kept.dtype != dtype or self._bias is not bias:
            shown = torch.zeros((), device=device, dtype=dtype) if bias is None else bias.to(dtype)
            kept = torch.where(self.dense(device), shown, -math.inf)
            self._additive, self._bias = kept, bias
        return kept

    def _draw(self, device: torch.device) -> Tensor:
        seen = self._by_place(device)[None, None]  # 1 1 T S
        if self.prefix is not None:
            limit = self.prefix.to(device)[:, None]
            queries, keys = self._queries(device) < limit, self._keys(device) < limit  # B T, B S
            seen = seen | (queries[:, None, :, None] & keys[:, None, None, :])
        if self.also is not None:
            seen = seen | self.also.to(device)[:, None]
        if self.padding is not None:
            seen = seen & self.padding.to(device)[:, None, None, :]
        if self.documents is not None:
            queries, keys = (part.to(device) for part in self.documents)
            seen = seen & (queries[:, None, :, None] == keys[:, None, None, :])
        return seen

    def _by_place(self, device: torch.device) -> Tensor:
        """Who sees whom by column alone: [T, S]."""
        keys, queries = self._keys(device), self._queries(device)
        distance = queries[:, None] - keys[None, :]
        if self.causal:
            return distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)
        if self.window is None:
            return torch.ones_like(distance, dtype=torch.bool)
        return distance.abs() <= self.window

    def _queries(self, device: torch.device) -> Tensor:
        """The column of each query [T]."""
        if self.query_columns is None:
            return torch.arange(self.n_keys - self.n_queries, self.n_keys, device=device)
        return self.query_columns.to(device)

    def _keys(self, device: torch.device) -> Tensor:
        """The column of each key [S]."""
        if self.key_columns is None:
            return torch.arange(self.n_keys, device=device)
        return self.key_columns.to(device)
