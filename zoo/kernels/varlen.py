# B batch, T queries, S keys, H heads, C head width, N tokens of all rows together, D sequences
"""Varlen batches: packed documents or padded rows as sequences laid end to end, told apart by cu_seqlens.

torch.compile traces the layers with the shapes and the Python ints that it meets here, so both follow from the shape of
the batch and not from its contents: `max_seqlen` is the row's length, an upper bound, and every token stays in the
batch. The one number read from the contents is how many documents there are, rounded up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.kernels.packed import find_run_starts
from zoo.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.mask import Mask

LEAST = 8
"""Documents to a row for which cu_seqlens always has room. An empty sequence costs a kernel thread blocks that end at
once, so that room for a document at every token would be slower than attention itself."""


class Side(NamedTuple):
    """Queries or keys of a varlen batch: in which `order` [N] tokens of the flattened rows lie, None for as they are;
    `hidden` [B, T] is True for padding, None where there is none."""

    order: Tensor | None = None
    hidden: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """Lay rows end to end: [B, T, H, C] → [N, H, C]."""
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
    max_seqlen_k; `rows` is how many rows they describe."""

    queries: Side
    keys: Side
    arguments: dict[str, Any]
    rows: int

    def for_rows(self, rows: int) -> VarlenBatch:
        """The same for so many rows, where one row was described for all of them (the chunks of Llama 4)."""
        if rows == self.rows:
            return self
        first = torch.arange(rows, device=self.arguments["cu_seqlens_q"].device, dtype=torch.int32)[:, None]
        ends = {name: self.arguments[name] for name in ("cu_seqlens_q", "cu_seqlens_k")}
        ends = {name: F.pad((each[1:] + first * each[-1]).flatten(), (1, 0)) for name, each in ends.items()}
        return self._replace(arguments={**self.arguments, **ends}, rows=rows)


def lay_varlen(mask: Mask, device: torch.device) -> VarlenBatch:
    """Describe the documents or the padding of a mask as a varlen batch. Made once and kept on the mask."""
    if "varlen" not in mask.kept:
        mask.kept["varlen"] = _lay_documents(mask, device) if mask.documents is not None else _lay_padded(mask, device)
    return mask.kept["varlen"]


def _lay_documents(mask: Mask, device: torch.device) -> VarlenBatch:
    """Each document is a sequence: two rows [0, 0, 1, 1] and [2, 2, 2, 2] give cu_seqlens [0, 2, 4, 8, 8, …, 8].

    The end is repeated, which adds empty sequences, up to a power of two: batches of about as many documents then have
    cu_seqlens of one shape.
    """
    queries, keys = mask.documents  # type: ignore[misc]
    if queries.shape != keys.shape or queries.data_ptr() != keys.data_ptr():
        return _lay_two_sides(mask, device)
    numbers = queries.to(device)
    rows, total = numbers.shape[0], numbers.numel()
    starts = find_run_starts(numbers).flatten()  # N
    which = starts.cumsum(0)  # the number of a token's document, from 1
    count = int(which[-1])  # waits for the device: once a pass, before the layers
    room = min(1 << (max(count, LEAST * rows) - 1).bit_length(), total)
    token = torch.arange(total, device=device, dtype=torch.int32)
    ends = token.new_full((room + 2,), total)  # the last entry takes all that starts nothing
    ends = ends.scatter_(0, torch.where(starts, which - 1, room + 1), torch.where(starts, token, total))[:-1]
    return VarlenBatch(Side(), Side(), _arguments(mask, ends, ends), rows)


def _lay_two_sides(mask: Mask, device: torch.device) -> VarlenBatch:
    """The same where queries and keys are rows of their own (cross-attention), numbered from 0 in the order of the row:
    a document that only one side has is a sequence of no queries, or of no keys.

    Queries [0, 0, 1] and keys [0, 1, 1, 2] give cu_seqlens_q [0, 2, 3, 3, 3] and cu_seqlens_k [0, 1, 3, 4, 4].
    """
    sides = [each.to(device) for each in mask.documents or ()]
    count = int(torch.stack([each.max() for each in sides]).max()) + 1  # waits for the device: once a pass
    room = 1 << (count - 1).bit_length()
    counts = [each.new_zeros(len(each), room).scatter_add_(1, each, torch.ones_like(each)) for each in sides]
    query_ends, key_ends = (_ends(each.flatten().cumsum(0)) for each in counts)
    return VarlenBatch(Side(), Side(), _arguments(mask, query_ends, key_ends), len(sides[0]))


def _lay_padded(mask: Mask, device: torch.device) -> VarlenBatch:
    """Each row is two sequences, its tokens and then its padding, which see nothing of each other.

    A row [pad, a, b] has the order [a, b, pad] and adds 2 and 3 to cu_seqlens. To drop the padding would be fewer
    products, but a shape that depends on the mask's contents. Where queries are other tokens than the keys
    (cross-attention), the padding of the keys is seen by a sequence of no queries.
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
    """cu_seqlens of where each sequence ends."""
    return F.pad(ends.flatten(), (1, 0)).int()


def _arguments(mask: Mask, query_ends: Tensor, key_ends: Tensor) -> dict[str, Any]:
    """The kernels' arguments, in the order of torch's own operator."""
    return {
        "cu_seqlens_q": query_ends,
        "cu_seqlens_k": key_ends,
        "max_seqlen_q": mask.n_queries,
        "max_seqlen_k": mask.n_keys,
    }
