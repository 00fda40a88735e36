# R rows, V vocabulary, K likeliest tokens of a row
"""Truncate distributions (top-k, top-p, min-p, typical) and draw from them, for rows with different options at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.generation.sampling import Sampling
from zoo.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

TILE, BLOCK = 32, 128  # logits whose largest is found, and whose probabilities are summed, at a time
HEADS = (64, 128)  # likeliest tokens that are looked at before the whole row is sorted


@dataclass(frozen=True)
class Cuts:
    """The options of a draw as tensors with an entry a row [R, 1]; an option that a row lacks changes nothing there."""

    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    typical_p: Tensor | None
    unbounded: Tensor  # [R, 1] no top_k: shares are of the whole row
    truncated: tuple[int, ...]  # rows with top_k, top_p or typical_p: these need an order
    head: int | None

    @classmethod
    def of(cls, options: Sequence[Sampling], vocab: int, device: torch.device | str) -> Cuts:
        """Lay these rows' options out. A CPU looks at the head of a row first, where any top_k fits in it."""
        ks = [vocab if each.top_k is None else min(each.top_k, vocab) for each in options]
        ps = [math.inf if each.top_p in (None, 1) else each.top_p for each in options]
        mins = [each.min_p or 0.0 for each in options]
        typical = [math.inf if each.typical_p in (None, 1) else each.typical_p for each in options]

        def column(values: Sequence[float | None], neutral: float | None, dtype: torch.dtype) -> Tensor | None:
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        wanted = [k for k in ks if k < max(HEADS)]
        cut = zip(ks, ps, typical, strict=True)
        return cls(
            temperature=torch.tensor([each.temperature for each in options], device=device)[:, None],
            top_k=column(ks, vocab, torch.int64),
            top_p=column(ps, math.inf, torch.float64),
            min_p=column(mins, 0, torch.float64),
            typical_p=column(typical, math.inf, torch.float64),
            unbounded=torch.tensor([k == vocab for k in ks], device=device)[:, None],
            truncated=tuple(r for r, (k, p, t) in enumerate(cut) if k < vocab or (p, t) != (math.inf, math.inf)),
            head=next((size for size in HEADS if max(wanted, default=0) < size), None) if device == "cpu" else None,
        )

    def take(self, rows: Tensor) -> Cuts:
        """The options of some of the rows."""

        def some(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows]

        columns = (some(self.top_k), some(self.top_p), some(self.min_p), some(self.typical_p))
        return Cuts(self.temperature[rows], *columns, self.unbounded[rows], (), self.head)


def find_likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and the first token that has it: (values [R], tokens [R]); NaN counts as largest.

    torch's argmax takes a CPU three times as long as the largest of each block, and then the place in the one block.
    """
    vocab = logits.shape[1]
    if not logits.is_cpu or vocab < 2 * BLOCK:
        tokens = logits.argmax(-1)
        return logits.gather(1, tokens[:, None])[:, 0], tokens
    even = vocab // BLOCK * BLOCK
    largest = logits[:, :even].unflatten(1, (-1, BLOCK)).amax(-1)
    if even < vocab:
        largest = torch.cat([largest, logits[:, even:].amax(-1, keepdim=True)], 1)
    ids = (largest.argmax(-1, keepdim=True) * BLOCK + torch.arange(BLOCK)).clamp_(max=vocab - 1)
    block = logits.gather(1, ids)
    place = block.argmax(-1, keepdim=True)
    return block.gather(1, place)[:, 0], ids.gather(1, place)[:, 0]


def draw(scores: Tensor, cuts: Cuts, points: Tensor) -> Tensor:
    """One token a row [R] from edited logits [R, V], decided by `points` [R, 1] in [0, 1); −1 for rows without any.

    The cumulative distribution, in the order of token ids, is inverted at the point. A row is sorted only where its
    likeliest tokens do not tell what is kept.
    """
    scaled, best = _scale(scores, cuts.temperature)
    if not cuts.truncated:
        tokens = _invert(_weigh(scaled, best, cuts), points)
    elif len(cuts.truncated) == len(scores):
        tokens = _draw_truncated(scaled, best, cuts, points)
    else:
        rows = torch.tensor(cuts.truncated, device=scores.device)
        tokens = _invert(_weigh(scaled, best, cuts), points)
        some = _draw_truncated(scaled[rows], best[rows], cuts.take(rows), points[rows])
        tokens = tokens.index_copy(0, rows, some)
    return torch.where(best[:, 0] > -math.inf, tokens, -1)


def find_shares(scores: Tensor, cuts: Cuts) -> Tensor:
    """The probabilities [R, V] that `draw` draws by, in float64; NaN for rows that have no token."""
    scaled, best = _scale(scores, cuts.temperature)
    weights = _weigh(scaled, best, cuts)
    if cuts.truncated:
        rows = torch.tensor(cuts.truncated, device=scores.device)
        weights[rows] = _weigh_truncated(scaled[rows], best[rows], cuts.take(rows))
    weights = weights[:, : scores.shape[1]].double()
    return weights / weights.sum(-1, keepdim=True)


def _scale(scores: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Logits over temperature in float32, padded to whole blocks with -inf, and each row's largest [R, 1]. Infinite
    logits, or such as overflow, are held at float32's largest number: they share all the probability."""
    scaled = scores.float() / temperature
    if over := -scaled.shape[1] % BLOCK:
        scaled = F.pad(scaled, (0, over), value=-math.inf)
    best = scaled.unflatten(1, (-1, TILE)).amax(-1).amax(-1, keepdim=True)
    if not scaled.is_cpu or bool((best == math.inf).any()):
        most = torch.finfo(torch.float32).max
        scaled, best = scaled.clamp_(max=most), best.clamp_(max=most)
    return scaled, best


def _weigh(scaled: Tensor, best: Tensor, cuts: Cuts) -> Tensor:
    """Probabilities over the largest one; 0 where min_p refuses."""
    weights = (scaled - best).exp_()
    return weights if cuts.min_p is None else weights.masked_fill_(weights < cuts.min_p, 0)


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """The token [R] at which the cumulative weights pass `points` [R, 1] of their sum: the block first, then in it.

    Sums are in float64, so that rare tokens keep their share. A cumulative sum of the whole row takes ten times as
    long.
    """
    blocks = weights.unflatten(1, (-1, BLOCK))
    sums = blocks.sum(-1).double()
    total = sums.cumsum(-1)
    block, rest = _pick(sums, total, points * total[:, -1:])
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].double()
    return (block * BLOCK + _pick(inside, inside.cumsum(-1), rest)[0])[:, 0]


def _pick(weights: Tensor, total: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The index [R, 1] whose weight covers the target in the cumulative `total`, and how far in; never one of weight 0,
    whatever the rounding."""
    places = torch.arange(weights.shape[1], device=weights.device)
    last = (places * (weights > 0)).amax(-1, keepdim=True)
    index = torch.minimum(torch.searchsorted(total, target, right=True), last)
    before = total.gather(1, index) - weights.gather(1, index)
    return index, (target - before).clamp_(min=0)


# ---------------------------------------------------------------- top-k, top-p, typical


def _draw_truncated(scaled: Tensor, best: Tensor, cuts: Cuts, points: Tensor) -> Tensor:
    if cuts.head is None or scaled.shape[1] <= cuts.head * TILE:
        return _invert(_weigh_truncated(scaled, best, cuts), points)
    values, ids = _find_head(scaled, cuts.head)
    shares = (values - best).double().exp_()
    kept = _count_kept(values, shares, _sum_shares(scaled, best, cuts), cuts)
    last, tail = values.gather(1, kept - 1), values[:, -1:]
    enough = (tail < last) | (tail == -math.inf)  # else tokens outside the head may be kept
    weights = shares * (torch.arange(cuts.head) < kept)
    weights = weights if cuts.typical_p is None else weights * _find_typical(weights, cuts.typical_p)
    ids, order = ids.sort()
    weights = weights.gather(1, order)
    total = weights.cumsum(-1)
    tokens = ids.gather(1, _pick(weights, total, points * total[:, -1:])[0])[:, 0]
    if not bool(enough.all()):
        rows = (~enough[:, 0]).nonzero()[:, 0]
        tokens[rows] = _invert(_weigh_truncated(scaled[rows], best[rows], cuts.take(rows)), points[rows])
    return tokens


def _find_head(scaled: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of each row, descending, ties in the order of ids: (values, ids) [R, size].

    They stand in the tiles whose largest logits are the largest; a top-k of the whole row takes several times as long.
    Of tokens that tie with the last of these, any may be missing.
    """
    tiles = scaled.unflatten(1, (-1, TILE))
    best = tiles.amax(-1).topk(size, sorted=False).indices
    values, places = tiles.gather(1, best[..., None].expand(-1, -1, TILE)).flatten(1).topk(size, sorted=False)
    ids, order = (best.gather(1, places // TILE) * TILE + places % TILE).sort()
    values, order = values.gather(1, order).sort(descending=True, stable=True)
    return values, ids.gather(1, order)


def _sum_shares(scaled: Tensor, best: Tensor, cuts: Cuts) -> Tensor | None:
    """What the weights of the whole row add up to [R, 1], where top_p needs it."""
    if cuts.top_p is None or not (scaled.is_cuda or bool(cuts.unbounded.any())):
        return None
    return (scaled - best).exp_().unflatten(1, (-1, BLOCK)).sum(-1).double().sum(-1, keepdim=True)


def _count_kept(values: Tensor, shares: Tensor, whole: Tensor | None, cuts: Cuts) -> Tensor:
    """How many of the descending logits top_k, top_p and min_p keep [R, 1]; `shares` are theirs over the largest."""
    kept = torch.ones_like(values, dtype=torch.bool)
    if cuts.top_k is not None:
        kept = values >= values.gather(1, (cuts.top_k - 1).clamp(max=values.shape[1] - 1))
    if cuts.top_p is not None:
        held = shares * kept
        total = held.sum(-1, keepdim=True)
        total = total if whole is None else torch.where(cuts.unbounded, whole, total)
        kept = kept & (held.cumsum(-1) - held < cuts.top_p * total)  # the likelier ones alone do not hold p
    if cuts.min_p is not None:
        kept = kept & (shares >= cuts.min_p)
    return kept.sum(-1, keepdim=True).clamp_(min=1)


def _weigh_truncated(scaled: Tensor, best: Tensor, cuts: Cuts) -> Tensor:
    """Weights of the tokens that are kept, in whole rows. Of tokens that tie at the border of top_p the first stay."""
    values = _sort(scaled)
    kept = _count_kept(values, (values - best).double().exp_(), _sum_shares(scaled, best, cuts), cuts)
    last = values.gather(1, kept - 1)
    above, ties = scaled > last, scaled == last
    room = kept - above.sum(-1, keepdim=True)
    if not scaled.is_cpu or bool((ties.sum(-1, keepdim=True) > room).any()):
        ties = ties & (ties.cumsum(-1) <= room)
    weights = (scaled - best).exp_() * (above | ties)
    return weights if cuts.typical_p is None else weights * _find_typical(weights, cuts.typical_p)


def _sort(scaled: Tensor) -> Tensor:
    """Rows in descending order. numpy sorts with vector instructions, in a tenth of torch's time on a CPU."""
    if not scaled.is_cpu:
        return scaled.sort(descending=True).values
    import numpy as np

    return torch.from_numpy(np.sort(scaled.numpy(), axis=-1)).flip(1)


def _find_typical(weights: Tensor, mass: Tensor) -> Tensor:
    """Which tokens typical sampling keeps: those nearest to the entropy, up to the mass, and all that tie with the
    last of them."""
    shares = weights.double() / weights.sum(-1, keepdim=True)
    surprisal = -shares.log()
    entropy = (shares * surprisal).nansum(-1, keepdim=True)
    distance, order = (surprisal - entropy).abs().sort()
    last = (shares.gather(1, order).cumsum(-1) < mass).sum(-1, keepdim=True)
    return (surprisal - entropy).abs() <= distance.gather(1, last.clamp_(max=weights.shape[1] - 1))
