# B batch, T queries, S keys, H heads
"""Attention masks, as functions of indices. A mask tensor is made only for a kernel that needs one."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zoo.kernels.packed import find_run_firsts
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.score_bias import Bias


@dataclass(eq=False, repr=False)
class Mask:
    """An attention mask: which of `n_keys` keys each of `n_queries` queries sees, by token index (a token's place in
    its row, padding included).

    Keys are consecutive tokens, and the queries are the last T of them: a causal mask on a rectangle is aligned at its
    bottom right. `causal` shows keys at or before the query. With a `window` W a causal query sees only the W newest of
    these keys, its own included. A bidirectional query sees keys with |i − j| <= W; if `ahead` is A, it sees W keys
    before itself and A after. Two fields show more pairs: tokens before `prefix` [B] all see one another (Raffel et
    al., 2020, prefix-LM), and `also` [B|1, T, S] is True for further pairs. Three fields hide pairs. `padding` [B, S]
    is True for keys that are real tokens. `documents` (of queries [B|1, T], of keys [B|1, S]) numbers packed documents,
    each contiguous in its row, which do not see one another. `only` [B|1, T, S] is True for the keys that a layer chose
    for each query, [B|1, H, T, S] if by head: then only `dense` is used, not `sees`. With `lengths` [B] row b has
    lengths[b] keys, and its queries are the last T of them. With `cu_seqlens_q` [B + 1] (int32) too, the queries of all
    rows are concatenated to [1, N]: row b's queries begin at cu_seqlens_q[b], and are at most T.

    `sees` is the definition; `dense` evaluates it for all pairs, and flex compiles it. Tensors are kept on the object,
    which serves one forward pass. They are made before the layers run (`kernels.prepare`): layers then only read the
    mask, so that equal layers compile once and a checkpointed layer recomputes the same. A padding that hides nothing
    still costs a tensor: pass None instead.
    """

    n_queries: int
    n_keys: int
    _: KW_ONLY
    causal: bool = True
    window: int | None = None
    ahead: int | None = None
    padding: Tensor | None = None
    documents: tuple[Tensor, Tensor] | None = None
    prefix: Tensor | None = None
    also: Tensor | None = None
    lengths: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    only: Tensor | None = None
    kept: dict[Any, Any] = field(default_factory=dict, init=False)  # tensors that kernels made of the mask
    _dense: Tensor | None = field(default=None, init=False)
    _additive: Tensor | None = field(default=None, init=False)
    _source: object = field(default=None, init=False)  # `Bias.source` of the bias in _additive

    @classmethod
    def of_pairs(cls, seen: Tensor) -> Mask:
        """Make a mask that shows the pairs for which `seen` [B|1, T, S] is True, and no others. The keys need not be
        tokens, so causality must be part of `seen`."""
        mask = cls(seen.shape[1], seen.shape[2], only=seen)
        mask._dense = seen[:, None]
        return mask

    @property
    def sees_all(self) -> bool:
        """Whether every query sees every key. False if this depends on values of a tensor, which are not read."""
        return self._by_numbers and not self._window_bites and (self.n_queries == 1 or not self.causal)

    @property
    def plain_causal(self) -> bool:
        """Whether there are as many queries as keys and only later keys are hidden."""
        return self.causal and self._by_numbers and self.n_queries == self.n_keys and not self._window_bites

    @property
    def _by_numbers(self) -> bool:
        """Whether visibility depends on token indices alone, and on no tensor."""
        return self.documents is None and not self.row_tensors

    @property
    def row_tensors(self) -> list[Tensor]:
        """The mask's tensors that may differ from row to row."""
        parts = (self.padding, *(self.documents or ()), self.prefix, self.also, self.lengths, self.only)
        return [each for each in parts if each is not None]

    @property
    def features(self) -> dict[str, Any]:
        """The mask's features as fields of an AttentionQuery, without ineffective ones (a window longer than the
        row)."""
        return {
            "causal": self.causal and not self.sees_all,
            "window": self.window if self._window_bites or not self._by_numbers else None,
            "ahead": self.ahead if self._window_bites or not self._by_numbers else None,
            "padding": self.padding is not None,
            "documents": self.documents is not None,
            "pairs": self.prefix is not None or self.also is not None,
            "lengths": self.lengths is not None,
            "varlen": self.cu_seqlens_q is not None,
            "chosen": self.only is not None,
            "short_q": self.n_queries < self.n_keys,
        }

    @property
    def _window_bites(self) -> bool:
        """Whether the window hides any key in a full row."""
        if self.window is None:
            return False
        farthest = self.n_keys - 1
        if self.causal:
            return self.window <= farthest
        return (self.window if self.ahead is None else min(self.window, self.ahead)) < farthest

    def narrow(self, only: Tensor) -> Mask:
        """Return the mask restricted to the keys for which `only` [B|1, T, S], or [B|1, H, T, S] by head, is True."""
        mask = replace(self, causal=self.causal and not self.sees_all, only=only)
        mask._dense = self.dense(only.device) & (only if only.ndim == 4 else only[:, None])
        return mask

    def of_rows(self) -> Mask:
        """Return the mask for the same queries as padded rows [B, T], not concatenated. The result is kept."""
        if "rows" not in self.kept:
            self.kept["rows"] = replace(self, cu_seqlens_q=None)
        return self.kept["rows"]

    def by_row(self, rows: int) -> list[Mask]:
        """Return a mask for each of `rows` rows. The rows may differ only in padding."""
        padding = [None] * rows if self.padding is None else self.padding.split(1)
        return [replace(self, padding=each) for each in padding]

    def join(self, memory: Mask, device: torch.device) -> Mask:
        """Return the mask over an encoder's keys, visible as `memory` says, followed by this mask's own keys. For a
        causal query the encoder's tokens come before its own; a window counts only this mask's tokens."""
        apart = (self.documents is None) is not (memory.documents is None)
        if apart or any(each is not None for each in (self.prefix, self.also, self.only, self.lengths, memory.lengths)):
            shown = _join_columns(memory.dense(device)[:, 0], self.dense(device)[:, 0])
            return Mask.of_pairs(shown)
        hides: dict[str, Any] = {}
        if self.padding is not None or memory.padding is not None:
            hides["padding"] = _join_columns(memory._real(device), self._real(device))
        if self.documents is not None and memory.documents is not None:
            hides["documents"] = self.documents[0], _join_columns(memory.documents[1], self.documents[1])
        n_keys = memory.n_keys + self.n_keys
        if self._window_bites:
            seen = torch.arange(n_keys, device=device) < memory.n_keys
            hides |= {"window": self.window, "also": seen[None, None].expand(1, self.n_queries, n_keys)}
        return Mask(self.n_queries, n_keys, **hides)

    def _real(self, device: torch.device) -> Tensor:
        """Return True for each key that is not padding [B|1, S]."""
        if self.padding is not None:
            return self.padding.to(device)
        return torch.ones(1, self.n_keys, dtype=torch.bool, device=device)

    def place_keys(self, device: torch.device) -> Tensor:
        """Return each key's place in its own document [B|1, S], not counting padding before it."""
        if self.padding is None:
            places = torch.arange(self.n_keys, device=device)[None]
        else:
            places = (self.padding.to(device).long().cumsum(-1) - 1).clamp(min=0)
        if self.documents is None:
            return places
        first = find_run_firsts(self.documents[1].to(device))
        places = places.expand(first.shape)
        return places - places.gather(-1, first)

    def sees(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return whether `query` sees `key` in `row`. All three are tensors of indices that broadcast together."""
        device = key.device
        n_keys = self.n_keys if self.lengths is None else _of(self.lengths, row, device)
        i, j = query + (n_keys - self.n_queries), key
        seen = self._by_distance(i - j)
        if self.prefix is not None:
            limit = _of(self.prefix, row, device)
            seen = seen | ((i < limit) & (j < limit))
        if self.also is not None:
            seen = seen | _of(self.also, row, device, query, key)
        if self.padding is not None:
            seen = seen & _of(self.padding, row, device, key)
        if self.documents is not None:
            queries, keys = self.documents
            seen = seen & (_of(queries, row, device, query) == _of(keys, row, device, key))
        if self.lengths is not None:
            seen = seen & (key < _of(self.lengths, row, device))
        if self.only is not None:
            seen = seen & _of(self.only, row, device, query, key)
        return seen

    def dense(self, device: torch.device) -> Tensor:
        """Return the mask as a tensor [B|1, 1, T, S], True where a query sees a key. The tensor is kept."""
        if self._dense is None or self._dense.device != device:
            rows = max([1, *(each.shape[0] for each in self.row_tensors)])
            row = torch.arange(rows, device=device)[:, None, None]
            query = torch.arange(self.n_queries, device=device)[:, None]
            key = torch.arange(self.n_keys, device=device)
            self._dense = self.sees(row, query, key).expand(rows, -1, -1)[:, None]
        return self._dense

    def additive(self, device: torch.device, dtype: torch.dtype, bias: Bias | None = None) -> Tensor:
        """Return `bias` (or 0) where a query sees a key and −inf elsewhere: [B|1, H|1, T, S].

        The result is kept for one bias. For a bias of another `source`, even an equal one, it is computed anew.
        """
        kept, source = self._additive, None if bias is None else bias.source
        if kept is None or kept.device != device or kept.dtype != dtype or self._source is not source:
            shown = torch.zeros((), device=device, dtype=dtype) if bias is None else bias.draw_once().to(dtype)
            kept = torch.where(self.dense(device), shown, -math.inf)
            self._additive, self._source = kept, source
        return kept

    def _by_distance(self, distance: Tensor) -> Tensor:
        """Return whether a query sees a key by causality and window. `distance` is i − j, the query's token index less
        the key's."""
        if self.causal:
            return distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)
        if self.window is None:
            return torch.ones_like(distance, dtype=torch.bool)
        if self.ahead is None:
            return distance.abs() <= self.window
        return (distance <= self.window) & (distance >= -self.ahead)


def _join_columns(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate [B|1, …, M] and [B|1, …, S] along the last axis; a single row is expanded to all rows."""
    rows = max(len(first), len(second))
    return torch.cat([each.expand(rows, *each.shape[1:]) for each in (first, second)], -1)


def _of(tensor: Tensor, row: Tensor, device: torch.device, *indices: Tensor) -> Tensor:
    """Index a tensor [B|1, …] by row and `indices`; a single row serves all rows."""
    return tensor.to(device)[(torch.zeros_like(row) if tensor.shape[0] == 1 else row, *indices)]
