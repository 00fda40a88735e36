# B batch, V vocabulary, T tokens so far
"""Choose the next token from logits: greedy, or drawn after temperature, top-k, top-p, min-p and repetition penalty."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.errors import ConfigError
from zoo.generation.draws import make_generator
from zoo.generation.sampling import Sampling
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

HEAD = 512  # tokens that hold top_p of most distributions a trained model gives


def sample(logits: Tensor, sampling: Sampling, points: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
    """The next token of each row [B] from logits [B, V]; −1 for a row whose logits are NaN or all −inf.

    `points` [B] are the uniform numbers that decide a draw (`draw_points`); greedy choice needs none. `seen` [B, T] are
    the tokens that a repetition penalty counts.

    Raises ConfigError for options that need more than the logits: `sampler.Sampler` has them.
    """
    if lacking := [*sampling.edits, *(["typical_p"] if sampling.typical_p not in (None, 1) else [])]:
        raise ConfigError(*(f"{name}: generation in lockstep does not have it (leave it out)" for name in lacking))
    if sampling.temperature == 0:
        chosen = _penalise(logits, sampling, seen).argmax(-1)
    else:
        assert points is not None
        chosen = draw(adjust(logits, sampling, seen), points)
    return torch.where(logits.amax(-1) > -math.inf, chosen, -1)  # a NaN is the largest of its row, and not above −inf


def adjust(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """The logits that a token is drawn by, in float32: refused tokens at -inf.

    A logit of +inf, or one that overflows, is held at float32's largest number: such tokens share all the probability.
    """
    scores = _penalise(logits.float(), sampling, seen) / sampling.temperature
    scores = scores.clamp(max=torch.finfo(torch.float32).max)
    if sampling.top_k is not None:
        scores = _top_k(scores, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        scores = _top_p(scores, sampling.top_p)
    if sampling.min_p:
        scores = _min_p(scores, sampling.min_p)
    return scores


def draw(scores: Tensor, points: Tensor) -> Tensor:
    """One token a row [B], each with the probability that softmax gives it, decided by `points` [B] in [0, 1).

    Inverts the cumulative distribution with one uniform number a row. torch.multinomial draws one a token (0.6 against
    0.1 ms at 32,000 tokens on a CPU) and waits for the device. In float64, so that rare tokens keep their share.
    """
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    point = points[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, point, right=True)  # right: never a token of no share
    return chosen.squeeze(1).clamp_(max=scores.shape[-1] - 1)


def draw_points(sampling: Sampling, prompts: Sequence[Sequence[int]], steps: int) -> Tensor:
    """Uniform numbers in [0, 1) for every step and row [steps, B], float64 on the CPU.

    Each row has a generator of its own, seeded from the seed and the row's prompt: neither the batch's size, nor other
    rows, nor the device, nor the number of steps changes what a row draws. Copies of one prompt differ: their seeds
    also count which copy a row is.
    """
    seed = int(torch.randint(2**63 - 1, ())) if sampling.seed is None else sampling.seed
    copies: Counter[tuple[int, ...]] = Counter()
    rows = []
    for prompt in map(tuple, prompts):
        generator = make_generator(seed, prompt, copies[prompt])
        copies[prompt] += 1
        rows.append(torch.rand(steps, dtype=torch.float64, generator=generator))
    return torch.stack(rows, 1)


def _penalise(scores: Tensor, sampling: Sampling, seen: Tensor | None) -> Tensor:
    penalty = sampling.repetition_penalty
    if penalty == 1 or seen is None:
        return scores
    old = scores.float().gather(1, seen)
    return scores.float().scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))


def _top_k(scores: Tensor, k: int) -> Tensor:
    last = scores.topk(min(k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < last, -math.inf)


def _top_p(scores: Tensor, p: float) -> Tensor:
    shares, order = _likeliest(scores.softmax(-1), p)
    refused = shares.cumsum(-1) - shares >= p  # the likelier ones alone hold p; never so for the likeliest
    kept = scores.gather(1, order).masked_fill(refused, -math.inf)
    return torch.full_like(scores, -math.inf).scatter(1, order, kept)


def _likeliest(shares: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The largest probabilities, descending, that hold at least p, and their tokens. Sorting the whole vocabulary takes
    a CPU tens of times longer."""
    if shares.is_cpu:
        head, order = shares.topk(min(HEAD, shares.shape[-1]))
        if bool((head.sum(-1) >= p).all()):
            return head, order
    return shares.sort(descending=True)


def _min_p(scores: Tensor, p: float) -> Tensor:
    shares = scores.softmax(-1)
    return scores.masked_fill(shares < p * shares.amax(-1, keepdim=True), -math.inf)
