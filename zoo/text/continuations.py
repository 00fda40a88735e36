# B rows, T tokens, N tokens of continuations, D model width
"""Score continuations: how likely a model finds some tokens after others, for many of them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from zoo.errors import ConfigError, ZooError
from zoo.lazy import torch
from zoo.run.likelihood import score_targets
from zoo.text.reading import pad_rows
from zoo.text.score import CHUNK, MANY_TOGETHER, TOGETHER


class Continuation(NamedTuple):
    """Tokens after a context, of one token at least. Where both are longer than a model reads, the context loses its
    beginning."""

    context: Sequence[int]
    tokens: Sequence[int]


class Likelihood(NamedTuple):
    """The log-probability of a continuation in nats, and whether each of its tokens is the likeliest at its place."""

    logprob: float
    greedy: bool


@dataclass
class Row:
    """A row of tokens that the model reads once, and the continuations at its end: their numbers, and their tokens."""

    ids: Sequence[int]
    asked: list[tuple[int, Sequence[int]]] = field(default_factory=list)


def score_continuations(
    model: Any, asked: Sequence[Continuation], limit: int, advance: Callable[[int], object] | None = None
) -> list[Likelihood]:
    """Score continuations of a decoder, which reads at most `limit` tokens; equal rows are read once.

    The longest come first. `advance` is called with the number of continuations scored since. Raises ConfigError for a
    continuation that is longer than the model reads or has no token, ZooError where a likelihood is no number.
    """
    found: dict[int, Likelihood] = {}
    with torch.inference_mode():
        for batch in _group(_make_rows(asked, limit), _count_together(model)):
            scored = _score_rows(model, batch)
            found |= scored
            if advance is not None:
                advance(len(scored))
    return [found[number] for number in range(len(asked))]


def _make_rows(asked: Sequence[Continuation], limit: int) -> list[Row]:
    """Make the rows that the model reads, the longest first; those of several continuations are one."""
    rows: dict[tuple[int, ...], Row] = {}
    for number, (context, tokens) in enumerate(asked):
        if not 0 < len(tokens) <= limit:
            raise ConfigError(f"tasks: a continuation has {len(tokens)} tokens, the model reads 1 to {limit}")
        ids = tuple([*context, *tokens][-(limit + 1) : -1])  # the last is predicted only
        rows.setdefault(ids, Row(ids)).asked.append((number, tokens))
    return sorted(rows.values(), key=lambda row: -len(row.ids))


def _count_together(model: Any) -> int:
    device = next(each for each in model.parameters() if each.device.type != "meta").device
    return TOGETHER.get(device.type, MANY_TOGETHER)


def _group(rows: Sequence[Row], tokens: int) -> Iterator[Sequence[Row]]:
    """Groups of rows that have about so many tokens together with their padding."""
    start = 0
    while start < len(rows):
        count = max(tokens // max(len(rows[start].ids), 1), 1)
        yield rows[start : start + count]
        start += count


def _score_rows(model: Any, rows: Sequence[Row]) -> dict[int, Likelihood]:
    """Score the continuations of some rows, by their numbers."""
    device = next(each for each in model.parameters() if each.device.type != "meta").device
    ids, there = pad_rows([row.ids for row in rows], 0, device)
    padded = any(len(row.ids) < ids.shape[1] for row in rows)
    hidden = model(ids, there if padded else None, logits_to_keep=0).hidden  # B T D
    places, targets, sizes = [], [], []
    for line, row in enumerate(rows):
        for number, tokens in row.asked:
            last = line * ids.shape[1] + len(row.ids)
            places += range(last - len(tokens), last)
            targets += tokens
            sizes.append((number, len(tokens)))
    at = torch.tensor(places, device=device)
    logprobs, likeliest = score_targets(model, hidden.flatten(0, 1)[at], torch.tensor(targets, device=device), CHUNK)
    values, hits = logprobs.tolist(), likeliest.tolist()
    found, start = {}, 0
    for number, size in sizes:
        total = math.fsum(values[start : start + size])
        if math.isnan(total):  # a token that the model excludes has -inf
            raise ZooError(f"eval: a log-likelihood is {total} (sound weights, or dtype=fp32)")
        found[number] = Likelihood(total, all(hits[start : start + size]))
        start += size
    return found
