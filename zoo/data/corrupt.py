"""Corrupt rows of token ids for a model to restore: masks, noise spans, infilling, sentences in another order.

Each function takes one row or document [L] and a numpy generator, and depends on nothing else. L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IGNORED = -100


class Corrupted(NamedTuple):
    """A corrupted example: the tokens [S] that the model reads, and the targets [T]."""

    inputs: np.ndarray
    targets: np.ndarray


def count_noise(length: int, rate: float, mean: float) -> tuple[int, int]:
    """Count the noise tokens of a row, and the spans that they form: as T5's `random_spans_noise_mask` (Raffel et al.,
    2020). At least one token is noise, and at least one is not.

    512 tokens at rate 0.15 and a mean of 3: 77 tokens of noise in 26 spans.
    """
    noise = min(max(round(length * rate), 1), length - 1)
    return noise, min(max(round(noise / mean), 1), noise, length - noise)


def draw_spans(length: int, rate: float, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Draw which tokens of a row are noise [L], in spans that are cut in any way with equal chance (T5). A row begins
    with a token that is none."""
    noise, spans = count_noise(length, rate, mean)
    lengths = np.stack([_segment(length - noise, spans, rng), _segment(noise, spans, rng)], 1).ravel()
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _segment(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Cut `count` tokens into so many parts of at least one, all ways equally likely."""
    cuts = np.sort(rng.choice(count - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [count])))


def fold(ids: np.ndarray, noise: np.ndarray, sentinels: Sequence[int], eos_id: int) -> Corrupted:
    """Put a sentinel in place of each span of noise; the targets are each sentinel and what stood there (T5).

    a b c d e with b c and e as noise: inputs a <0> d <1> EOS, targets <0> b c <1> e EOS.
    """
    starts = noise & ~np.concatenate(([False], noise[:-1]))
    numbers = np.asarray(sentinels)[np.cumsum(starts) - 1]  # of the span that a token is in, or that came last
    inputs = np.where(starts, numbers, ids)[~noise | starts]
    spelled = np.stack([numbers, ids], 1)[noise]  # a sentinel before each; kept before a span's first
    kept = np.stack([starts[noise], np.ones(int(noise.sum()), bool)], 1)
    return Corrupted(np.append(inputs, eos_id), np.append(spelled[kept], eos_id))


def count_infilled(length: int, rate: float, mean: float) -> tuple[int, int]:
    """Count the tokens that infilling takes away from a row, and the masks that it puts in."""
    noise = min(max(round(length * rate), 1), length)
    return noise, max(round(noise / mean), 1)


def infill(ids: np.ndarray, rate: float, mean: float, mask_id: int, rng: np.random.Generator) -> np.ndarray:
    """Replace spans of tokens by one mask each (Lewis et al., 2019, BART: text infilling). Lengths are Poisson draws of
    which the sum is known, so that a row's length is known too: a multinomial. A span of length 0 is a mask put in."""
    noise, spans = count_infilled(len(ids), rate, mean)
    lengths = rng.multinomial(noise, np.full(spans, 1 / spans))
    left = len(ids) - noise
    masks = np.sort(rng.choice(left + spans, spans, replace=False))  # their places in the row that remains
    made = np.full(left + spans, mask_id, np.int64)
    kept = np.ones(left + spans, bool)
    kept[masks] = False
    before = masks - np.arange(spans)  # the tokens left that stand before each mask
    held = np.ones(len(ids), bool)
    held[np.repeat(before, lengths) + np.arange(noise)] = False
    made[kept] = ids[held]
    return made


def permute_sentences(ids: np.ndarray, ends: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put the sentences of a row in a random order (BART). `ends` [V] says which tokens end one; the rest of the row,
    which none ends, is a sentence as well."""
    cuts = np.flatnonzero(ends[ids[:-1]]) + 1
    parts = np.split(ids, cuts)
    return np.concatenate([parts[place] for place in rng.permutation(len(parts))])


def mask_tokens(
    ids: np.ndarray,
    ordinary: np.ndarray,
    words: np.ndarray | None,
    rates: tuple[float, float, float],
    mask_id: int,
    rng: np.random.Generator,
) -> Corrupted:
    """Mask tokens for a model to name (Devlin et al., 2018, BERT): inputs and targets [L], -100 where nothing is asked.

    `rates` are the share of tokens asked for, and of those the shares that become the mask and any other token; the
    rest stay. `ordinary` are the ids that may be asked for and put in: special tokens are not. With `words` [L], the
    number of each token's word, a word is asked for whole.
    """
    rate, masked, random = rates
    open_ = np.flatnonzero(np.isin(ids, ordinary))
    count = min(max(round(rate * len(open_)), 1), len(open_))
    chosen = rng.permutation(open_)[:count] if words is None else _choose_words(open_, words[open_], count, rng)
    inputs, targets = ids.copy(), np.full(len(ids), IGNORED, np.int64)
    targets[chosen] = ids[chosen]
    draw = rng.random(len(chosen))
    inputs[chosen[draw < masked]] = mask_id
    swapped = chosen[(draw >= masked) & (draw < masked + random)]
    inputs[swapped] = rng.choice(ordinary, len(swapped))
    return Corrupted(inputs, targets)


def _choose_words(places: np.ndarray, words: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose whole words of `count` tokens at most, in random order; one that would be too long is passed over."""
    _, numbers = np.unique(words, return_inverse=True)
    sizes = np.bincount(numbers)
    chosen = np.zeros(len(sizes), bool)
    for word in rng.permutation(len(sizes)):
        if sizes[word] <= count:
            chosen[word] = True
            count -= int(sizes[word])
        if not count:
            break
    return places[chosen[numbers]] if len(places) else places
