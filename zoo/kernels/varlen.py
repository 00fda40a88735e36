# B batch, T queries, S keys, H heads, C head width, N tokens of all rows together, D sequences
"""Varlen batches: packed documents or padded rows as concatenated sequences, delimited by cu_seqlens.

torch.compile specialises on shapes and Python ints. Both depend here only on the batch's shape, not on its contents:
`max_seqlen` is the row's length, an upper bound, and padding stays in the batch. The only number read from the contents
is the number of documents, rounded up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.kernels.blocks import round_to_power
from zoo.kernels.packed import find_run_starts
from zoo.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.mask import Mask

LEAST = 8
"""Minimum number of documents per row that cu_seqlens has room for. Room for one document per token would take longer
than attention itself, because every empty sequence costs thread blocks."""


class Side(NamedTuple):
    """Queries or keys of a varlen batch. `order` [N] is the permutation of the flattened rows' tokens, None if the
    order stays. `hidden` [B, T] is True for padding, None without padding."""

    order: Tensor | None = None
    hidden: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """Concatenate the rows' tokens in `order`: [B, T, H, C] → [N, H, C]."""
        flat = x.flatten(0, 1)
        return flat if self.order is None else flat.index_select(0, self.order)

    def put(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Undo `take`: [N, H, C] → [B, T, H, C], 0 for padding."""
        if self.order is not None:
            y = torch.empty_like(y).index_copy(0, self.order, y)
        y = y.unflatten(0, shape)
        return y if self.hidden is None else y.masked_fill(self.hidden[..., None, None], 0)


class VarlenBatch(NamedTuple):
    """A varlen batch. `arguments` are the kernels' cu_seqlens_q, cu_seqlens_k (int32 [D + 1]), max_seqlen_q and
    max_seqlen_k; `rows` is the number of rows that they describe."""

    queries: Side
    keys: Side
    arguments: dict[str, Any]
    rows: int

    def for_rows(self, rows: int) -> VarlenBatch:
        """Repeat the description of a single row for `rows` equal rows (the chunks of Llama 4)."""
        if rows == self.rows:
            return self
        first = torch.arange(rows, device=self.arguments["cu_seqlens_q"].device, dtype=torch.int32)[:, None]
        ends = {name: self.arguments[name] for name in ("cu_seqlens_q", "cu_seqlens_k")}
        ends = {name: F.pad((each[1:] + first * each[-1]).flatten(), (1, 0)) for name, each in ends.items()}
        return self._replace(arguments={**self.arguments, **ends}, rows=rows)


def lay_varlen(mask: Mask, device: torch.device) -> VarlenBatch:
    """Make a varlen batch of a mask's documents or padding. The batch is made once and kept on the mask."""
    if "varlen" not in mask.kept:
        mask.kept["varlen"] = _lay_documents(mask, device) if mask.documents is not None else _lay_padded(mask, device)
    return mask.kept["varlen"]


def _lay_documents(mask: Mask, device: torch.device) -> VarlenBatch:
    """Make each document a sequence: two rows [0, 0, 1, 1] and [2, 2, 2, 2] give cu_seqlens [0, 2, 4, 8, 8, …, 8].

    The end is repeated (empty sequences) up to a power of two or to the number of tokens, so that batches with similar
    numbers of documents have cu_seqlens of one shape.
    """
    queries, keys = mask.documents  # type: ignore[misc]
    if queries.shape != keys.shape or queries.data_ptr() != keys.data_ptr():
        return _lay_two_sides(mask, device)
    numbers = queries.to(device)
    rows, total = numbers.shape[0], numbers.numel()
    starts = find_run_starts(numbers).flatten()  # N
    which = starts.cumsum(0)  # the number of a token's document, from 1
    count = int(which[-1])  # waits for the device: once a pass, before the layers
    room = min(round_to_power(max(count, LEAST * rows)), total)
    token = torch.arange(total, device=device, dtype=torch.int32)
    ends = token.new_full((room + 2,), total)  # tokens that start no document write to the last entry
    ends = ends.scatter_(0, torch.where(starts, which - 1, room + 1), torch.where(starts, token, total))[:-1]
    return VarlenBatch(Side(), Side(), _arguments(mask, ends, ends), rows)


def _lay_two_sides(mask: Mask, device: torch.device) -> VarlenBatch:
    """Make each document a sequence where queries and keys are different rows (cross-attention). Documents are numbered
    from 0 in the order of the row. A document that only one side has is a sequence without queries, or without keys.

    Queries [0, 0, 1] and keys [0, 1, 1, 2] give cu_seqlens_q [0, 2, 3, 3, 3] and cu_seqlens_k [0, 1, 3, 4, 4].
    """
    sides = [each.to(device) for each in mask.documents or ()]
    count = int(torch.stack([each.max() for each in sides]).max()) + 1  # waits for the device: once a pass
    room = round_to_power(count)
    counts = [each.new_zeros(len(each), room).scatter_add_(1, each, torch.ones_like(each)) for each in sides]
    query_ends, key_ends = (_ends(each.flatten().cumsum(0)) for each in counts)
    return VarlenBatch(Side(), Side(), _arguments(mask, query_ends, key_ends), len(sides[0]))


def _lay_padded(mask: Mask, device: torch.device) -> VarlenBatch:
    """Make each row two sequences, its tokens and then its padding, which do not see each other.

    A row [pad, a, b] has the order [a, b, pad] and adds 2 and 3 to cu_seqlens. Without the padding, shapes would depend
    on the mask's contents. In cross-attention the padding of the keys is a sequence without queries.
    """
    hidden = ~mask.padding.to(device)  # type: ignore[union-attr]
    rows, n_keys = hidden.shape
    row = torch.arange(rows, device=device)[:, None]
    order = (hidden.byte().argsort(dim=1, stable=True) + row * n_keys).flatten()
    counted = n_keys - hidden.sum(1, keepdim=True)  # B 1
    key_ends = _ends(torch.cat((row * n_keys + counted, (row + 1) * n_keys), 1))
    if mask.n_queries == n_keys:
        side = Side(order, hidden)
        return VarlenBatch(side, side, _arguments(mask, key_ends, key_ends), rows)
    query_ends = _ends(((row + 1) * mask.n_queries).expand(-1, 2))
    return VarlenBatch(Side(), Side(order), _arguments(mask, query_ends, key_ends), rows)


def _ends(ends: Tensor) -> Tensor:
    """Return cu_seqlens: 0 followed by the ends of sequences, as int32."""
    return F.pad(ends.flatten(), (1, 0)).int()


def _arguments(mask: Mask, query_ends: Tensor, key_ends: Tensor) -> dict[str, Any]:
    """Return the kernels' arguments, in the order of torch's own operator."""
    return {
        "cu_seqlens_q": query_ends,
        "cu_seqlens_k": key_ends,
        "max_seqlen_q": mask.n_queries,
        "max_seqlen_k": mask.n_keys,
    }
