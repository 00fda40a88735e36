"""Sampling parameters: what a request may ask of the choice of its tokens, checked in one place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from zoo.errors import ConfigError
from zoo.lazy import torch

COLDEST = 1e-3  # below it the choice is greedy in all but name


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
_Factor = Annotated[float, _must(lambda r: 0 < r < math.inf, "a finite number above 0 (1 changes nothing)")]
_Penalty = Annotated[float, _must(math.isfinite, "a finite number (0 changes nothing)")]
_Tokens = Annotated[int, _must(lambda n: n >= 0, "0 or more")]
_Bias = Annotated[
    dict[int, float],
    _must(lambda bias: all(token >= 0 for token in bias), "token ids from 0"),
    _must(lambda bias: all(-math.inf <= b < math.inf for b in bias.values()), "finite numbers, or -inf to bar a token"),
]
_Words = Annotated[
    tuple[tuple[int, ...], ...],
    _must(all, "words of a token at least"),
    _must(lambda words: all(token >= 0 for word in words for token in word), "token ids from 0"),
]
_Seed = Annotated[int | None, _must(lambda s: 0 <= s < 2**63, "from 0 to 2**63 - 1")]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Sampling:
    """Sampling parameters of one request. Applied in this order, which is transformers' where it has the option:

    - `logit_bias` adds to the logits of single tokens; −inf bars one;
    - `repetition_penalty` (Keskar et al., 2019) divides the logit of a token already there, the prompt's too; if
      negative, multiplies it;
    - `presence_penalty` is subtracted from the logit of every token generated so far, `frequency_penalty` once for each
      time it was (OpenAI's definitions; tokens of the prompt do not count);
    - `bad_words` are token sequences that must not be written: the last token of one is barred after the others;
    - `min_tokens` bars the tokens that would stop the text before so many are generated;
    - `process` is a function of the caller's: from the token ids so far and the logits [V] to new logits [V];
    - `temperature` divides the logits; 0 takes the likeliest token and leaves the rest of this list out;
    - `top_k` (Fan et al., 2018) keeps the k likeliest, and all that tie with the last of them;
    - `top_p` (Holtzman et al., 2020) keeps the fewest likeliest tokens that hold at least this much probability;
    - `min_p` (Nguyen et al., 2024) keeps the tokens at least this likely relative to the likeliest;
    - `typical_p` (Meister et al., 2022) keeps the tokens whose surprisal is nearest to the entropy, up to this much
      probability.

    With a `seed` a row draws what it would draw alone, whatever else is in the batch. Without one, the seed comes from
    torch's own generator.
    """

    temperature: _Temperature = 0.0
    top_k: _Count = None
    top_p: _Mass = None
    min_p: _Share = None
    typical_p: _Mass = None
    repetition_penalty: _Factor = 1.0
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: _Bias = dataclasses.field(default_factory=dict)
    bad_words: _Words = ()
    min_tokens: _Tokens = 0
    process: Callable[[Sequence[int], Any], Any] | None = None
    seed: _Seed = None

    @classmethod
    def checked(cls, **options: Any) -> Sampling:
        """Sampling parameters that a user gave. Raises ConfigError with one line for each that will not do."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise ConfigError(*(_fault(item) for item in error.errors(include_url=False))) from None

    def seeded(self) -> Sampling:
        """The same with a seed: its own, or one from torch's generator."""
        return self if self.seed is not None else dataclasses.replace(self, seed=int(torch.randint(2**63 - 1, ())))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ConfigError for token ids that the model does not have."""
        named = {"logit_bias": [*self.logit_bias], "bad_words": [token for word in self.bad_words for token in word]}
        faults = [
            f"{name}: names token {max(ids)}, the model's vocabulary is 0 to {vocab_size - 1}"
            for name, ids in named.items()
            if ids and max(ids) >= vocab_size
        ]
        if faults:
            raise ConfigError(*faults)


def _fault(item: Any) -> str:
    name = str(item["loc"][0])
    if item["type"] == "value_error":
        return f"{name}: {item['ctx']['error']}"
    return f"{name}: {item['msg'][0].lower()}{item['msg'][1:]}, found {item['input']!r}"
