"""Define a Request to the engine, and an Event, which reports one new token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from zoo.sampling.options import Sampling
from zoo.sampling.sampler import Logprob

if TYPE_CHECKING:
    from zoo.sampling.guide import Guide

Reason = Literal["stop", "length", "aborted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt for the engine, with its options.

    `ids` are the prompt's tokens; for an encoder-decoder, the source's. A sample ends at one of `stop_ids` ("stop") or
    after `max_new_tokens` ("length"). `n` is the number of samples; with `n_beams` above 1 they are the best beams of a
    beam search, by log-probability ÷ length^length_penalty (Wu et al., 2016). `copy` numbers requests with equal
    prompts, so that each draws other tokens. `logprobs=k` reports each new token's log-probability and the k likeliest
    tokens, `prompt_logprobs=k` the same for the prompt's tokens. `guide` is a compiled grammar that every token must
    follow. `adapter` names one of the adapters that the model was loaded with; None is the model itself.
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
    guide: Guide | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Event:
    """A new token of a request's sample. `finished` has the reason if the sample ends with it (a stop id is itself a
    token). A sample that was aborted or failed ends with `token` None; `fault` says why it failed ("has logits that are
    NaN …"). If the request has `prompt_logprobs`, the event of each sample's first new token has the prompt's
    log-probabilities in `prompt`."""

    request: int
    sample: int
    token: int | None
    finished: Reason | None = None
    logprob: Logprob | None = None
    prompt: tuple[Logprob | None, ...] | None = None
    fault: str = ""
