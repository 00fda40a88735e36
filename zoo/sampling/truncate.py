# R rows, V vocabulary (padded to whole blocks), K likeliest tokens of a row
"""Truncate distributions (top-k, top-p, min-p, typical) and draw from them, for rows with different options at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from zoo.lazy import F, Tensor, torch
from zoo.sampling.options import Sampling

TILE, BLOCK = 32, 128  # logits per maximum, and probabilities per partial sum
CHUNK = 2**18  # logits that are sorted at a time, so that intermediate results stay in the CPU's cache
HEADS = (64, 128)  # numbers of likeliest tokens to try before sorting a whole row


def find_head(sampling: Sampling, vocab: int) -> int | None:
    """Return the number of likeliest tokens to sort first for a row's truncation: 0 for all, None for no sorting."""
    top_k = min(sampling.top_k or vocab, vocab)
    if top_k == vocab and sampling.top_p in (None, 1):
        return None if sampling.typical_p in (None, 1) else 0
    sizes = HEADS if top_k < vocab else HEADS[:1]
    return next((size for size in sizes if size * TILE < vocab and (top_k == vocab or top_k < size)), 0)


def list_cuts(sampling: Sampling, vocab: int) -> tuple[float, int, float, float]:
    """Return a row's temperature, top_k, top_p and min_p. An unset option gets a value that keeps every token."""
    top_p = sampling.top_p if sampling.top_p and sampling.top_p < 1 else math.inf
    return sampling.temperature, min(sampling.top_k or vocab, vocab), top_p, sampling.min_p or 0.0


@dataclass(frozen=True)
class Cuts:
    """Truncation options as tensors [R, 1]; None if no row has the option. Rows without the option have a value that
    keeps every token."""

    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    typical_p: Tensor | None
    bounded: Tensor  # whether the row has a top_k

    @classmethod
    def of(cls, options: Sequence[Sampling], vocab: int, device: torch.device) -> Cuts:
        """Pack the options of rows as tensors."""

        def column(values: Sequence[float], neutral: float, dtype: torch.dtype) -> Tensor | None:
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        temperature, ks, ps, floors = zip(*(list_cuts(each, vocab) for each in options), strict=True)
        typical = [each.typical_p if each.typical_p and each.typical_p < 1 else math.inf for each in options]
        return cls(
            temperature=torch.tensor(temperature, device=device)[:, None],
            top_k=column(ks, vocab, torch.int64),
            top_p=column(ps, math.inf, torch.float64),
            min_p=column(floors, 0, torch.float32),
            typical_p=column(typical, math.inf, torch.float64),
            bounded=torch.tensor([[k < vocab] for k in ks], device=device),
        )

    @classmethod
    def read(cls, columns: Tensor, vocab: int, sorts: bool) -> Cuts:
        """Read the options of rows from `columns` [4, R], float64, with the result of `list_cuts` for each row. Without
        `sorts` no row has top_k or top_p."""
        temperature, top_k, top_p, min_p = columns[..., None]
        cuts = (top_k.long(), top_p) if sorts else (None, None)
        return cls(temperature.float(), *cuts, min_p.float(), None, top_k < vocab)

    def take(self, rows: Tensor) -> Cuts:
        """Return the options of the given rows."""
        columns = (getattr(self, field.name) for field in fields(self))
        return Cuts(*(None if column is None else column[rows] for column in columns))  # pyright: ignore


def _on_host(values: Tensor) -> bool:
    """Whether the values are on the host. Reading them from another device would wait for it, and no CUDA graph could
    contain that."""
    return values.is_cpu


def find_likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's largest logit and the first token that has it: (values [R], tokens [R]). NaN counts as largest.
    On a CPU the maximum of each block, then argmax in one block, takes a third of argmax's time."""
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


def draw(scores: Tensor, cuts: Cuts, points: Tensor, head: int | None) -> Tensor:
    """Draw one token for each row [R] from edited logits [R, V] by `points` [R, 1] in [0, 1). −1 for rows without a
    token.

    The cumulative distribution over token ids is inverted at the point. `head` is the result of `find_head`, the same
    for all of these rows. On a CPU a whole row is sorted only if `head` tokens do not determine the truncation.
    """
    scores, tiles, best = _tile(scores)
    if head and _on_host(scores):
        tokens = _draw_from_head(scores, tiles, best, cuts, points, head)
    else:
        tokens = _invert(_weigh(scores, best, cuts, head), points)
    return torch.where(best[:, 0] > -math.inf, tokens, -1)


def find_shares(scores: Tensor, cuts: Cuts, head: int | None) -> Tensor:
    """Return the probabilities [R, V] from which `draw` draws, in float64; NaN for rows without a token."""
    padded, _, best = _tile(scores)
    weights = _weigh(padded, best, cuts, head)[:, : scores.shape[1]].double()
    return weights / weights.sum(-1, keepdim=True)


def _tile(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits in float32, padded to whole blocks with −inf; the maximum of each block; and each row's maximum [R,
    1]. Logits of +inf become float32's largest number, so that their tokens share all the probability."""
    scores = scores.float()
    if over := -scores.shape[1] % BLOCK:
        scores = F.pad(scores, (0, over), value=-math.inf)
    tiles = scores.unflatten(1, (-1, TILE)).amax(-1)
    best = tiles.amax(-1, keepdim=True)
    if not _on_host(scores) or bool((best == math.inf).any()):
        most = torch.finfo(torch.float32).max
        scores, tiles, best = scores.clamp(max=most), tiles.clamp_(max=most), best.clamp_(max=most)
    return scores, tiles, best


def _weigh(scores: Tensor, best: Tensor, cuts: Cuts, head: int | None) -> Tensor:
    """Return each token's probability ÷ the row's largest one [R, V], 0 for truncated tokens. Among ties at the border
    of top_p, the tokens with lower ids are kept."""
    falls = (scores - best).div_(cuts.temperature)  # log of (probability ÷ the largest), after temperature
    weights = falls.exp()
    if head is None:
        return weights if cuts.min_p is None else weights.masked_fill_(weights < cuts.min_p, 0)
    ordered = _sort(falls)
    whole = _sum_blocks(weights).sum(-1, keepdim=True)
    kept = _count_kept(ordered, ordered.exp(), whole, cuts)
    last = ordered.gather(1, kept - 1)
    stays = falls >= last
    surplus = stays.sum(-1, keepdim=True, dtype=torch.int32) - kept
    if not _on_host(scores) or bool((surplus > 0).any()):
        ties = falls == last
        stays &= ~ties | (ties.cumsum(-1) <= ties.sum(-1, keepdim=True) - surplus)
    weights.mul_(stays)
    return weights if cuts.typical_p is None else weights.mul_(_find_typical(weights, cuts.typical_p))


def _draw_from_head(scores: Tensor, tiles: Tensor, best: Tensor, cuts: Cuts, points: Tensor, size: int) -> Tensor:
    """Draw from the `size` likeliest tokens of each row, or from the whole row if truncation may keep more tokens."""
    values, ids = _find_head(scores, tiles, size)
    falls = (values - best).div_(cuts.temperature)
    weights = falls.double().exp_()
    whole = None
    if cuts.top_p is not None and not bool(cuts.bounded.all()):
        whole = _sum_blocks((scores - best).div_(cuts.temperature).exp_()).sum(-1, keepdim=True)
    kept = _count_kept(falls, weights, whole, cuts)
    last, tail = falls.gather(1, kept - 1), falls[:, -1:]
    enough = ((tail < last) | (tail == -math.inf))[:, 0]
    weights *= torch.arange(size) < kept
    weights = weights if cuts.typical_p is None else weights * _find_typical(weights, cuts.typical_p)
    ids, order = ids.sort()
    tokens = ids.gather(1, _invert(weights.gather(1, order), points)[:, None])[:, 0]
    for rows in (~enough).nonzero()[:, 0].split(max(1, CHUNK // scores.shape[1])):
        tokens[rows] = _invert(_weigh(scores[rows], best[rows], cuts.take(rows), 0), points[rows])
    return tokens


def _find_head(scores: Tensor, tiles: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens of each row, descending, ties in the order of ids: (values, ids) [R, size].

    They are in the `size` tiles with the largest maxima; a top-k of the whole row takes several times as long. Tokens
    that tie with the last one may be missing.
    """
    best = tiles.topk(size, sorted=False).indices
    inside = scores.unflatten(1, (-1, TILE)).gather(1, best[..., None].expand(-1, -1, TILE))
    values, places = inside.flatten(1).topk(size, sorted=False)
    ids, order = (best.gather(1, places // TILE) * TILE + places % TILE).sort()
    values, order = values.gather(1, order).sort(descending=True, stable=True)
    return values, ids.gather(1, order)


def _count_kept(falls: Tensor, weights: Tensor, whole: Tensor | None, cuts: Cuts) -> Tensor:
    """Count how many of the descending logits top_k, top_p and min_p keep: [R, 1]. `whole` is the sum of a row's
    weights over all tokens, for rows without top_k."""
    width = falls.shape[1]
    kept = torch.full_like(falls[:, :1], width, dtype=torch.int64)
    if cuts.top_k is not None:
        kept = (falls >= falls.gather(1, (cuts.top_k - 1).clamp(max=width - 1))).sum(-1, keepdim=True)
    if cuts.top_p is not None:
        if whole is not None and cuts.top_k is None:
            total = whole
        else:
            held = (weights * (torch.arange(width, device=weights.device) < kept)).sum(-1, keepdim=True).double()
            total = held if whole is None else torch.where(cuts.bounded, held, whole)
        likelier = _search(weights, cuts.top_p * total, right=False)  # count of likeliest tokens below p
        kept = torch.minimum(kept, likelier + 1)
    if cuts.min_p is not None:
        kept = torch.minimum(kept, (weights >= cuts.min_p).sum(-1, keepdim=True))
    return kept.clamp_(min=1)


def _find_typical(weights: Tensor, mass: Tensor) -> Tensor:
    """Return a mask of the fewest tokens with probabilities that sum to at least `mass`, in order of the distance of
    −log p from the entropy. Ties with the last one are included."""
    shares = weights.double() / weights.sum(-1, keepdim=True)
    surprisal = -shares.log()
    distance = (surprisal - (shares * surprisal).nansum(-1, keepdim=True)).abs()
    nearest, order = distance.sort()
    last = (shares.gather(1, order).cumsum(-1) < mass).sum(-1, keepdim=True)
    return distance <= nearest.gather(1, last.clamp_(max=weights.shape[1] - 1))


# ---------------------------------------------------------------- order and sums


def _sort(falls: Tensor) -> Tensor:
    """Sort rows in descending order. On a CPU numpy sorts with vector instructions, in a tenth of torch's time."""
    if not _on_host(falls):
        return falls.sort(descending=True).values
    import numpy as np

    return torch.from_numpy(np.sort(falls.numpy(), axis=-1)).flip(1)


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """Return the token [R] at which the cumulative weights exceed `points` [R, 1] × their sum."""
    sums = _sum_blocks(weights)
    return _search(weights, points * sums.cumsum(-1)[:, -1:], right=True, sums=sums)[:, 0]


def _sum_blocks(weights: Tensor) -> Tensor:
    """Sum weights by block. The sums are float64, so that rare tokens keep their probability."""
    size = min(BLOCK, weights.shape[1])
    return weights.unflatten(1, (-1, size)).sum(-1).double()


def _search(weights: Tensor, target: Tensor, *, right: bool, sums: Tensor | None = None) -> Tensor:
    """Return the index [R, 1] at which the cumulative weights reach the target, or with `right` exceed it. Searches the
    blocks' sums, then one block: a cumulative sum of the whole row takes ten times as long."""
    sums = _sum_blocks(weights) if sums is None else sums
    blocks = weights.unflatten(1, (sums.shape[1], -1))
    block, rest = _pick(sums, target, right)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, blocks.shape[2]))[:, 0].double()
    return block * blocks.shape[2] + _pick(inside, rest, right)[0]


def _pick(weights: Tensor, target: Tensor, right: bool) -> tuple[Tensor, Tensor]:
    """Return the index [R, 1] at which the cumulative `weights` [R, N] reach `target` [R, 1], or with `right` exceed
    it, and the target minus the weights before that index [R, 1]. An index of weight 0 is never returned."""
    total = weights.cumsum(-1)
    places = torch.arange(weights.shape[1], device=weights.device)
    last = (places * (weights > 0)).amax(-1, keepdim=True)
    index = torch.minimum(torch.searchsorted(total, target, right=right), last)
    return index, (target - total.gather(1, index) + weights.gather(1, index)).clamp_(min=0)
