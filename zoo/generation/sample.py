# B batch, V vocabulary, T tokens so far
"""Choose the next token from logits: greedy, or drawn after temperature, top-k, top-p, min-p and repetition penalty."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from zoo.errors import ConfigError
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

COLDEST = 1e-3  # below it the choice is greedy in all but name
HEAD = 512  # tokens that hold top_p of most distributions a trained model gives


def _must(accepts: Callable[[Any], bool], wanted: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if value is not None and not accepts(value):
            raise ValueError(f"is {value!r}, not {wanted}")
        return value

    return AfterValidator(check)


_Temperature = Annotated[
    float, _must(lambda t: t == 0 or COLDEST <= t < math.inf, f"0 (greedy) or a finite number from {COLDEST}")
]
_Count = Annotated[int | None, _must(lambda k: k >= 1, "at least 1 (leave it out to keep every token)")]
_Mass = Annotated[float | None, _must(lambda p: 0 < p <= 1, "above 0 and at most 1 (1 keeps every token)")]
_Share = Annotated[float | None, _must(lambda p: 0 <= p <= 1, "from 0 to 1 (0 keeps every token)")]
_Penalty = Annotated[float, _must(lambda r: 0 < r < math.inf, "a finite number above 0 (1 changes nothing)")]
_Seed = Annotated[int | None, _must(lambda s: 0 <= s < 2**63, "from 0 to 2**63 - 1")]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Sampling:
    """Sampling parameters. Applied in this order, which is transformers':

    - `repetition_penalty` (Keskar et al., 2019) divides the logit of a token already there; if negative, multiplies it;
    - `temperature` divides the logits; 0 takes the likeliest token and leaves the rest of this list out;
    - `top_k` (Fan et al., 2018) keeps the k likeliest, and all that tie with the last of them;
    - `top_p` (Holtzman et al., 2020) keeps the fewest likeliest tokens that hold at least this much probability;
    - `min_p` (Nguyen et al., 2024) keeps the tokens at least this likely relative to the likeliest.

    With a `seed` a row draws what it would draw alone (see `draw_points`). Without one, the seed comes from torch's own
    generator.
    """

    temperature: _Temperature = 0.0
    top_k: _Count = None
    top_p: _Mass = None
    min_p: _Share = None
    repetition_penalty: _Penalty = 1.0
    seed: _Seed = None

    @classmethod
    def checked(cls, **options: Any) -> Sampling:
        """Sampling parameters that a user gave. Raises ConfigError with one line for each that will not do."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise ConfigError(*(_fault(item) for item in error.errors(include_url=False))) from None


def _fault(item: Any) -> str:
    name = str(item["loc"][0])
    if item["type"] == "value_error":
        return f"{name}: {item['ctx']['error']}"
    return f"{name}: {item['msg'][0].lower()}{item['msg'][1:]}, found {item['input']!r}"


def sample(logits: Tensor, sampling: Sampling, points: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
    """The next token of each row [B] from logits [B, V]; −1 for a row whose logits are NaN or all −inf.

    `points` [B] are the uniform numbers that decide a draw (`draw_points`); greedy choice needs none. `seen` [B, T] are
    the tokens that a repetition penalty counts.
    """
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
        key = f"{seed} {copies[prompt]} {prompt}".encode()
        copies[prompt] += 1
        generator = torch.Generator().manual_seed(int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1)
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
