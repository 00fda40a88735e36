# B rows, V vocabulary, N tokens with a penalty
"""Sample the next tokens of a batch whose rows have different options: edit logits, then take the argmax or draw."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.errors import ConfigError
from zoo.lazy import F, Tensor, torch
from zoo.sampling.draws import DrawState
from zoo.sampling.guide import find_banned
from zoo.sampling.options import Sampling
from zoo.sampling.truncate import Cuts, draw, find_head, find_likeliest, find_shares

GREEDY, PLAIN, CUT = range(3)
"""Ways in which a recorded step samples a batch: all rows are greedy; some rows are drawn; some drawn rows have top_k
or top_p, for which rows are sorted."""


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability under the unedited logits (`value`), and the likeliest tokens at its position, each
    with its log-probability (`top`)."""

    value: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Choose a token for each row. The rows' options are packed as tensors once, and reused while the batch has the
    same rows in the same order."""

    def __init__(self) -> None:
        self._layout: BatchLayout | None = None

    def choose(self, logits: Tensor, states: Sequence[DrawState]) -> list[int]:
        """Return the next token of each row from logits [B, V]. A row gets −1 if its logits are NaN or all −inf, its
        options forbid every token, or its grammar cannot be followed (`DrawState.fault`).

        States are read, not advanced. If all rows are greedy without further options, only the tokens are copied from
        the device. Raises ConfigError for a `process` that returns no logits.
        """
        layout = self._lay_out(logits, states)
        scores = layout.edit(logits)
        tokens = None
        for group in layout.groups:
            some = scores if group.index is None else scores[group.index]
            chosen = _take_likeliest(some) if group.cuts is None else self._draw(some, group, states)
            if group.index is None:
                return chosen.tolist()
            tokens = torch.empty_like(scores[:, 0], dtype=torch.int64) if tokens is None else tokens
            tokens[group.index] = chosen
        return [] if tokens is None else tokens.tolist()

    def _draw(self, scores: Tensor, group: RowGroup, states: Sequence[DrawState]) -> Tensor:
        assert group.cuts is not None
        points = torch.tensor([[states[row].point()] for row in group.rows], dtype=torch.float64, device=scores.device)
        return draw(scores, group.cuts, points, group.head)

    def find_shares(self, logits: Tensor, states: Sequence[DrawState]) -> Tensor:
        """Return the probabilities [B, V] of the next tokens, with all options applied; NaN for a row without a next
        token (see `choose`)."""
        layout = self._lay_out(logits, states)
        scores = layout.edit(logits)
        shares = torch.empty_like(scores, dtype=torch.float64)
        for group in layout.groups:
            rows = slice(None) if group.index is None else group.index
            if group.cuts is None:
                best, tokens = find_likeliest(scores[rows])
                alone = torch.zeros_like(shares[rows]).scatter_(1, tokens[:, None], 1.0)
                shares[rows] = alone.masked_fill_((best > -math.inf).logical_not()[:, None], math.nan)
            else:
                shares[rows] = find_shares(scores[rows], group.cuts, group.head)
        return shares

    def _lay_out(self, logits: Tensor, states: Sequence[DrawState]) -> BatchLayout:
        layout, key = self._layout, (logits.shape[1], logits.device)
        if layout is None or layout.key != key or layout.states != list(states):
            layout = self._layout = BatchLayout(states, *key)
        return layout


@dataclass(frozen=True)
class RowGroup:
    """Rows that are sampled in the same way: greedily if `cuts` is None, else by drawing with this `head`
    (`find_head`)."""

    rows: list[int]
    index: Tensor | None  # None: the whole batch
    cuts: Cuts | None
    head: int | None


def _group(options: Sequence[Sampling], vocab: int, device: torch.device) -> list[RowGroup]:
    """Group rows by their own options alone, so that a row's computation does not depend on the other rows."""
    alike: dict[tuple[bool, int | None], list[int]] = defaultdict(list)
    for row, each in enumerate(options):
        alike[(False, None) if each.temperature == 0 else (True, find_head(each, vocab))].append(row)
    groups = []
    for (drawn, head), rows in alike.items():
        cuts = Cuts.of([options[row] for row in rows], vocab, device) if drawn else None
        index = None if len(rows) == len(options) else torch.tensor(rows, device=device)
        groups.append(RowGroup(rows, index, cuts, head))
    return groups


class BatchLayout:
    """The options of a batch's rows, as tensors and lists of rows."""

    def __init__(self, states: Sequence[DrawState], vocab: int, device: torch.device) -> None:
        self.key = vocab, device
        self.states = list(states)
        options = [state.sampling for state in states]
        self.groups = _group(options, vocab, device)
        self.barring = [row for row, each in enumerate(options) if each.bad_words or each.min_tokens]
        self.processed = [row for row, each in enumerate(options) if each.process is not None]
        self.guided = [row for row, state in enumerate(states) if state.matcher is not None]
        self.tallied = [row for row, state in enumerate(states) if state.tally is not None]
        biased = [(row, *pair) for row, each in enumerate(options) for pair in each.logit_bias.items()]
        self.bias = None
        if biased:
            rows, tokens, values = zip(*biased, strict=True)
            self.bias = torch.tensor([rows, tokens], device=device), torch.tensor(values, device=device)
        penalties = [(each.repetition_penalty, each.presence_penalty, each.frequency_penalty) for each in options]
        self.penalties = torch.tensor(penalties, device=device) if self.tallied else None  # [B, 3]

    def edit(self, logits: Tensor) -> Tensor:
        """Return a copy of the logits, edited by each row's grammar and the options that come before the temperature.
        Return `logits` itself if no row has any of these."""
        if not (self.bias or self.tallied or self.barring or self.processed or self.guided):
            return logits
        scores = logits.to(torch.float32, copy=True)
        if self.bias is not None:
            (rows, tokens), values = self.bias
            scores.index_put_((rows, tokens), values, accumulate=True)
        if self.tallied:
            self._penalise(scores)
        width = scores.shape[1]
        barred = [(row, token) for row in self.barring for token in self.states[row].barred() if token < width]
        if barred:
            rows, tokens = torch.tensor(barred, device=scores.device).T
            scores[rows, tokens] = -math.inf
        for row in self.processed:
            scores[row] = _process(scores[row], self.states[row])
        if self.guided:
            self._constrain(scores)
        return scores

    def _penalise(self, scores: Tensor) -> None:
        """Apply repetition, presence and frequency penalties in place, only at the N tokens that rows contain."""
        tallies = [(row, tally) for row in self.tallied if (tally := self.states[row].tally) and tally.tokens]
        if not tallies:
            return
        tokens = torch.frombuffer(bytearray().join(tally.tokens for _, tally in tallies), dtype=torch.int64)
        counts = torch.frombuffer(bytearray().join(tally.counts for _, tally in tallies), dtype=torch.float32)
        lengths = torch.tensor([len(tally.tokens) for _, tally in tallies])
        rows = torch.tensor([row for row, _ in tallies]).repeat_interleave(lengths)
        if int(tokens.max()) >= scores.shape[1]:  # prompt tokens that the model reads but cannot write
            written = tokens < scores.shape[1]
            rows, tokens, counts = rows[written], tokens[written], counts[written]
        rows, tokens, counts = (each.to(scores.device) for each in (rows, tokens, counts))
        assert self.penalties is not None
        repetition, presence, frequency = self.penalties[rows].unbind(1)
        old = scores[rows, tokens]
        new = torch.where(old < 0, old * repetition, old / repetition)
        scores[rows, tokens] = new - counts * frequency - (counts > 0) * presence

    def _constrain(self, scores: Tensor) -> None:
        banned = find_banned([self.states[row].matcher for row in self.guided], scores.shape[1], scores.device)
        if len(self.guided) == len(scores):
            scores.masked_fill_(banned, -math.inf)
        else:
            rows = torch.tensor(self.guided, device=scores.device)
            scores[rows] = scores[rows].masked_fill_(banned, -math.inf)


def _process(scores: Tensor, state: DrawState) -> Tensor:
    assert state.sampling.process is not None
    found = state.sampling.process([*state.context, *state.generated], scores.clone())
    if not isinstance(found, torch.Tensor) or found.shape != scores.shape:
        shape = f"shape {list(found.shape)}" if isinstance(found, torch.Tensor) else repr(type(found).__name__)
        raise ConfigError(f"process: gave {shape}, not logits of shape {list(scores.shape)}")
    return found


def find_way(sampling: Sampling, vocab: int) -> int:
    """Return the simplest of GREEDY, PLAIN and CUT by which a row can be sampled."""
    if sampling.temperature == 0:
        return GREEDY
    return PLAIN if find_head(sampling, vocab) is None else CUT


def choose_recorded(logits: Tensor, columns: Tensor, way: int) -> Tensor:
    """Choose the next token of each row [B] from logits [B, V], as `Sampler.choose` does for rows that are `plain`, in
    operations that a CUDA graph can contain. `columns` [5, B], float64, has each row's draw point and its result of
    `list_cuts`; `way` is the largest of the rows' ways."""
    likeliest = _take_likeliest(logits)
    if way == GREEDY:
        return likeliest
    points, greedy = columns[0][:, None], columns[1] == 0
    cuts = Cuts.read(columns[1:], logits.shape[1], sorts=way == CUT)
    drawn = draw(logits, cuts, points, 0 if way == CUT else None)  # of greedy rows (temperature 0) any token
    return torch.where(greedy, likeliest, drawn)


def _take_likeliest(scores: Tensor) -> Tensor:
    best, tokens = find_likeliest(scores)
    return torch.where(best > -math.inf, tokens, -1)  # a NaN is the largest of its row, and not above -inf


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """Join parts [K, V] to logits [B, V], without a copy if the parts are contiguous in memory, as in one pass. Copying
    32 rows of 32,000 logits takes longer than all other work in a step, except the model."""
    first = parts[0]
    rows, start = 0, first.storage_offset()
    for part in parts:
        follows = part.storage_offset() == start + rows * first.shape[1] and part.is_contiguous()
        if not follows or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(list(parts))
        rows += len(part)
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


def find_logprobs(logits: Tensor, tokens: Sequence[int], tops: Sequence[int | None]) -> list[Logprob | None]:
    """Compute the log-probability of each row's token, and of the row's `tops[row]` likeliest tokens, from unedited
    logits [B, V]. None for a row whose `tops` is None, or that has no token (−1). A token that the model excludes has
    −inf."""
    asked = [row for row, top in enumerate(tops) if top is not None and tokens[row] >= 0]
    found: list[Logprob | None] = [None] * len(tops)
    if not asked:
        return found
    chosen = logits if len(asked) == len(tops) else logits[torch.tensor(asked, device=logits.device)]
    logprobs = F.log_softmax(chosen.float(), -1)
    own = logprobs.gather(1, torch.tensor([[tokens[row]] for row in asked], device=logits.device))[:, 0].tolist()
    most = min(max(tops[row] or 0 for row in asked), logits.shape[1])
    values, ids = (each.tolist() for each in logprobs.topk(most))
    for row, value, likeliest, at in zip(asked, own, values, ids, strict=True):
        pairs = zip(at, likeliest, strict=True)
        found[row] = Logprob(value, tuple(pairs)[: tops[row]])
    return found
