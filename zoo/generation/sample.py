"""From logits to the next token. B rows, V words in the vocabulary, T tokens so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from zoo.errors import ConfigError
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

COLDEST = 1e-3  # below it float32 logits overflow on division, and the choice is greedy anyway
HEAD = 512  # words that hold top_p of most distributions a trained model gives


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
    """How the next token is chosen. Applied in this order, which is transformers':

    - `repetition_penalty` (Keskar et al., 2019) divides the logit of a token already there; if negative, multiplies it;
    - `temperature` divides the logits; 0 takes the likeliest token and leaves the rest of this list out;
    - `top_k` (Fan et al., 2018) keeps the k likeliest, and all that tie with the last of them;
    - `top_p` (Holtzman et al., 2020) keeps the fewest likeliest tokens that hold at least this much probability;
    - `min_p` (Nguyen et al., 2024) keeps the tokens at least this likely relative to the likeliest.

    Without a `seed` the draws come from torch's own generator.
    """

    temperature: _Temperature = 0.0
    top_k: _Count = None
    top_p: _Mass = None
    min_p: _Share = None
    repetition_penalty: _Penalty = 1.0
    seed: _Seed = None

    @classmethod
    def checked(cls, **options: Any) -> Sampling:
        """The same, for a user's own words: raises a ConfigError with one line for each option that will not do."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise ConfigError(*(_fault(item) for item in error.errors(include_url=False))) from None

    def generator(self, device: Any) -> Generator | None:
        """What the draws come from: the same on every run of one seed, device and torch version."""
        return None if self.seed is None else torch.Generator(device).manual_seed(self.seed)


def _fault(item: Any) -> str:
    name = str(item["loc"][0])
    if item["type"] == "value_error":
        return f"{name}: {item['ctx']['error']}"
    return f"{name}: {item['msg'][0].lower()}{item['msg'][1:]}, found {item['input']!r}"


def sample(
    logits: Tensor, sampling: Sampling, generator: Generator | None = None, seen: Tensor | None = None
) -> Tensor:
    """The next token of each row, [B], from logits [B, V]. `seen` [B, T] are the tokens a repetition penalty counts."""
    if sampling.temperature == 0:
        return _penalised(logits, sampling, seen).argmax(-1)
    return draw(adjust(logits, sampling, seen), generator)


def adjust(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """The logits that a token is drawn by, in float32: refused tokens at -inf."""
    scores = _penalised(logits.float(), sampling, seen) / sampling.temperature
    if sampling.top_k is not None:
        scores = _top_k(scores, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        scores = _top_p(scores, sampling.top_p)
    if sampling.min_p:
        scores = _min_p(scores, sampling.min_p)
    return scores


def draw(scores: Tensor, generator: Generator | None = None) -> Tensor:
    """One token a row, each with the probability softmax gives it.

    Inverts the cumulative distribution: one uniform number a row, where torch.multinomial draws one a word (0.1 against
    0.6 ms at 32,000 words on a CPU) and waits for the device. In float64, so that rare words keep their share.
    """
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    point = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device, generator=generator)
    chosen = torch.searchsorted(cumulative, point * cumulative[:, -1:], right=True)  # right: never a word of no share
    return chosen.squeeze(1).clamp_(max=scores.shape[-1] - 1)


def _penalised(scores: Tensor, sampling: Sampling, seen: Tensor | None) -> Tensor:
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
    """Falling shares that hold at least p, and their tokens. To sort all words takes a CPU tens of times longer."""
    if shares.is_cpu:
        head, order = shares.topk(min(HEAD, shares.shape[-1]))
        if bool((head.sum(-1) >= p).all()):
            return head, order
    return shares.sort(descending=True)


def _min_p(scores: Tensor, p: float) -> Tensor:
    shares = scores.softmax(-1)
    return scores.masked_fill(shares < p * shares.amax(-1, keepdim=True), -math.inf)
