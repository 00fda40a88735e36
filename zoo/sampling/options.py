"""Define and check the sampling parameters of a request."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from zoo.errors import ConfigError, refuse
from zoo.lazy import torch

COLDEST = 1e-3  # lowest temperature above 0: below it, sampling is as good as greedy


def _must(accepts: Callable[[Any], bool], wanted: str) -> AfterValidator:
    def check(value: object) -> Any:
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
    """Sampling parameters of one request. They are applied in the order of this list, as in transformers:

    - `logit_bias` adds to the logits of single tokens; −inf forbids a token;
    - `repetition_penalty` (Keskar et al., 2019) divides positive logits of tokens in the prompt or the text so far,
      and multiplies negative ones;
    - `presence_penalty` is subtracted from the logit of every token generated so far, `frequency_penalty` once for each
      time that the token was generated (OpenAI's definitions; tokens of the prompt do not count);
    - `bad_words` are token sequences that must not be written: the last token of a sequence is forbidden after all its
      other tokens;
    - `min_tokens` forbids stop ids until that many tokens are generated;
    - `process` is the caller's function of the token ids so far and the logits [V]; it returns new logits [V];
    - `temperature` divides the logits; 0 takes the likeliest token and skips the rest of this list;
    - `top_k` (Fan et al., 2018) keeps the k likeliest tokens, and all that tie with the k-th;
    - `top_p` (Holtzman et al., 2020) keeps the fewest likeliest tokens whose probabilities sum to at least p;
    - `min_p` (Nguyen et al., 2024) keeps tokens with at least p times the probability of the likeliest;
    - `typical_p` (Meister et al., 2022) ranks tokens by the distance of their negative log-likelihood from the
      entropy, and keeps the first whose probabilities sum to at least p.

    With a `seed` the draws do not depend on the rest of the batch. Without it, the seed is drawn from torch's own
    generator.
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
        """Make sampling parameters from a user's options. Raises ConfigError with a line for each invalid option."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise ConfigError(*(_fault(item) for item in error.errors(include_url=False))) from None

    def seeded(self) -> Sampling:
        """Return the same parameters with a seed: the existing one, or a seed drawn from torch's generator."""
        return self if self.seed is not None else dataclasses.replace(self, seed=int(torch.randint(2**63 - 1, ())))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise ConfigError if `logit_bias` or `bad_words` has a token outside the vocabulary."""
        named = {"logit_bias": [*self.logit_bias], "bad_words": [token for word in self.bad_words for token in word]}
        faults = [
            f"{name}: names token {max(ids)}, the model's vocabulary is 0 to {vocab_size - 1}"
            for name, ids in named.items()
            if ids and max(ids) >= vocab_size
        ]
        refuse(faults)


def _fault(item: Any) -> str:
    name = str(item["loc"][0])
    if item["type"] == "value_error":
        return f"{name}: {item['ctx']['error']}"
    return f"{name}: {item['msg'][0].lower()}{item['msg'][1:]}, found {item['input']!r}"
