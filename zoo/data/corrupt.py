"""Corrupt rows of token ids for denoising objectives: masks, noise spans, text infilling, sentence permutation.

L tokens of one row or document. All random draws come from the numpy generator that is passed in.
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
    """Count the noise tokens of a row and their spans, as T5's `random_spans_noise_mask` does (Raffel et al., 2020). At
    least one token is noise, and at least one is not.

    Example: 512 tokens at rate 0.15, with spans of 3 tokens on average, have 77 noise tokens in 26 spans.
    """
    noise = min(max(round(length * rate), 1), length - 1)
    return noise, min(max(round(noise / mean), 1), noise, length - noise)


def draw_spans(length: int, rate: float, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Draw which tokens of a row are noise, bool [L], as T5 does; the first token never is. Spans to keep and spans of
    noise alternate; `count_noise` gives their numbers. All divisions into spans are equally likely."""
    noise, spans = count_noise(length, rate, mean)
    lengths = np.stack([_segment(length - noise, spans, rng), _segment(noise, spans, rng)], 1).ravel()
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _segment(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Divide `count` tokens into `parts` parts of 1 token or more, all divisions equally likely. Returns the
    lengths."""
    cuts = np.sort(rng.choice(count - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [count])))


def fold(ids: np.ndarray, noise: np.ndarray, sentinels: Sequence[int], eos_id: int) -> Corrupted:
    """Replace each span of noise by a sentinel; the targets are each sentinel followed by its span (T5).

    Example: a b c d e, of which b c and e are noise, give the inputs a <0> d <1> EOS and the targets <0> b c <1> e EOS.
    """
    starts = noise & ~np.concatenate(([False], noise[:-1]))
    numbers = np.asarray(sentinels)[np.cumsum(starts) - 1]  # sentinel of a token's span, or of the span before
    inputs = np.where(starts, numbers, ids)[~noise | starts]
    spelled = np.stack([numbers, ids], 1)[noise]  # a sentinel before each token; kept before a span's first token only
    kept = np.stack([starts[noise], np.ones(int(noise.sum()), bool)], 1)
    return Corrupted(np.append(inputs, eos_id), np.append(spelled[kept], eos_id))


def count_infilled(length: int, rate: float, mean: float) -> tuple[int, int]:
    """Count the tokens that text infilling removes from a row, and the masks that it inserts."""
    noise = min(max(round(length * rate), 1), length)
    return noise, max(round(noise / mean), 1)


def infill(ids: np.ndarray, rate: float, mean: float, mask_id: int, rng: np.random.Generator) -> np.ndarray:
    """Replace spans of tokens by one mask each (BART's text infilling; Lewis et al., 2019). Span lengths are Poisson
    draws conditioned on their sum, drawn as one multinomial, so the resulting length is known beforehand. A span of
    length 0 only adds a mask."""
    noise, spans = count_infilled(len(ids), rate, mean)
    lengths = rng.multinomial(noise, np.full(spans, 1 / spans))
    left = len(ids) - noise
    masks = np.sort(rng.choice(left + spans, spans, replace=False))  # the masks' places in the resulting row
    made = np.full(left + spans, mask_id, np.int64)
    kept = np.ones(left + spans, bool)
    kept[masks] = False
    before = masks - np.arange(spans)  # number of kept tokens before each mask
    held = np.ones(len(ids), bool)
    held[np.repeat(before, lengths) + np.arange(noise)] = False
    made[kept] = ids[held]
    return made


def permute_sentences(ids: np.ndarray, ends: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute the sentences of a row (BART). `ends` [V] says which tokens end a sentence; the tokens after the last end
    are a sentence too."""
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
    """Mask tokens for prediction (BERT; Devlin et al., 2018). Returns inputs and targets [L]; the target is -100 at a
    token that is not predicted.

    `rates` are three shares: of tokens to predict; of these, the share replaced by the mask, and the share replaced by
    a random token (the others stay). `ordinary` are the ids that may be predicted or drawn: all but special tokens.
    With `words` [L], the number of each token's word, whole words are chosen.
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
    """Choose random whole words of at most `count` tokens in all; a word that no longer fits is skipped. Returns the
    places of their tokens."""
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
