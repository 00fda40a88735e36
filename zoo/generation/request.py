"""A Request to the engine, and its answer: an Event for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zoo.sampling.options import Sampling
from zoo.sampling.sampler import Logprob

Reason = Literal["stop", "length", "aborted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue.

    `ids` are the prompt's tokens; of an encoder-decoder, the source's. Ends at one of `stop_ids` ("stop") or after
    `max_new_tokens` ("length"). `n` samples continue one prompt; with `n_beams` above 1 they are the best of a beam
    search, by log-probability over length to the power of `length_penalty` (Wu et al., 2016). `copy` tells equal
    prompts apart, which then draw other tokens. `logprobs` k reports each new token's log-probability and those of the
    k likeliest, `prompt_logprobs` the same of the prompt's tokens. `guide` is a compiled grammar that every token must
    follow.
    """

    ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    n: int = 1
    copy: int = 0
    n_beams: int = 1
    length_penalty: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    guide: Any = None


@dataclass(frozen=True)
class Event:
    """A new token of a request's sample; or the end of one, where `finished` says why (the stop id itself comes as a
    token). One that "failed" has no next token, and `fault` says why: "has logits that are NaN …". `prompt` holds the
    prompt's log-probabilities, with the first event of a request that asks for them."""

    request: int
    sample: int
    token: int | None
    finished: Reason | None = None
    logprob: Logprob | None = None
    prompt: tuple[Logprob | None, ...] | None = None
    fault: str = ""
