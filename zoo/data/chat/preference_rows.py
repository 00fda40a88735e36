# B records, T tokens
"""Read and batch rows of preference data. A row holds both answers of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from zoo.data.chat.conversation_rows import TurnFile, TurnRow
from zoo.data.collate import IGNORED, choose_width, pad, to_tensor
from zoo.data.cut_rows import describe_cuts
from zoo.data.tokens import Batch
from zoo.errors import ConfigError


@dataclass
class RecordNumbers:
    """Reference log-probabilities [N, R] of the N records of a split, under the starting weights: one for each of the R
    rows that an objective makes of a record (`zoo.training.objective.kept_reference`). NaN where none is needed; None
    before they are computed."""

    values: np.ndarray | None = None


AnswerPair = tuple[TurnRow, TurnRow]
"""The two conversations of a record, the better one first. A missing conversation has no tokens."""


class PreferenceRow(NamedTuple):
    """A record's answers, its reference log-probabilities [R] or None, and a function that reads the answers of the
    previous record (for the first record, those of the last)."""

    answers: AnswerPair
    reference: np.ndarray | None
    read_before: Callable[[], AnswerPair]


@dataclass(frozen=True, kw_only=True)
class PreferenceFile(TurnFile):
    """One split of a corpus of preferences. Record n has the conversations 2n, the better one, and 2n + 1.

    A row is one record. Records with a conversation of more than T tokens are left out, because a truncated answer is a
    different answer.
    """

    reference: RecordNumbers = field(default_factory=RecordNumbers, compare=False, repr=False)

    @cached_property
    def measured(self) -> np.ndarray:
        """The number of tokens [N, 2] of each conversation up to the end of its last answer; 0 for a missing one."""
        return self.cut(0).whole.reshape(-1, 2)

    @cached_property
    def records(self) -> Callable[[int], np.ndarray]:
        """A cached function of `seq_len` that returns the numbers of the records that fit. It raises ConfigError if
        none fits."""

        @cache
        def records(seq_len: int) -> np.ndarray:
            longest = self.measured.max(1)
            numbers = np.flatnonzero(longest <= seq_len)
            if not len(numbers):
                part = "" if self.path is None else f" of the {self.path.name} split"
                found = f"is {seq_len}, and no record{part} has its answers within it"
                raise ConfigError(f"seq_len: {found} (a larger one: with {longest.max()} all would be whole)")
            return numbers

        return records

    def count_rows(self, seq_len: int) -> int:
        return len(self.records(seq_len))

    def read_row(self, number: int, seq_len: int) -> PreferenceRow:
        records, known = self.records(seq_len), self.reference.values
        record, before = int(records[number]), int(records[number - 1])
        return PreferenceRow(
            self.read_answers(record), None if known is None else known[record], partial(self.read_answers, before)
        )

    def read_answers(self, record: int) -> AnswerPair:
        sizes = enumerate(self.measured[record].tolist(), 2 * record)
        first, second = (self.read_conversations([each]) for each in sizes)
        return first, second

    def count_cut(self, number: int, seq_len: int) -> list[int]:
        return []  # a record is whole, or left out

    def describe_cuts(self, of: str, seq_len: int, cure: Callable[[int], str] = "seq_len={}".format) -> Iterator[str]:
        what = f"records{of} are left out, as an answer does not fit"
        line = describe_cuts(self.measured.max(1), seq_len, what, cure)
        if line is not None:
            yield line


def collate_answers(rows: Sequence[PreferenceRow], keys: Any, *, pad_id: int, seq_len: int, one_shape: bool) -> Batch:
    """Make a next-token batch of B records: rows [2B, T], padded at their end. Record n has the rows 2n and 2n + 1.
    Nothing in it is random. T is the length of the longest row, rounded up to a multiple of STEP; with `one_shape` it
    is `seq_len`."""
    return predict_next(rows, [each for row in rows for each in row.answers], pad_id, seq_len, one_shape)


def collate_judged(rows: Sequence[PreferenceRow], keys: Any, *, pad_id: int, seq_len: int, one_shape: bool) -> Batch:
    """Make a batch of B records with mismatched completions too: rows [4B, T], padded as by `collate_answers`. A record
    has four rows: its two answers, then each of its prompts with a completion of the previous record. Rows of a missing
    answer are padding."""
    turns = []
    for row in rows:
        before = row.read_before()
        turns += [*row.answers, *(mismatch(each, number, before, seq_len) for number, each in enumerate(row.answers))]
    return predict_next(rows, turns, pad_id, seq_len, one_shape)


def mismatch(answer: TurnRow, number: int, before: AnswerPair, seq_len: int) -> TurnRow:
    """Join an answer's prompt to a completion of the previous record, and cut it to `seq_len` tokens. The completion is
    that of answer `number`, or of the other answer if answer `number` is missing."""
    other = before[number] if len(before[number].ids) else before[1 - number]
    if not len(answer.ids):
        return answer
    cuts = int(answer.learned.argmax()), int(other.learned.argmax())
    parts = (np.concatenate([a[: cuts[0]], b[cuts[1] :]])[:seq_len] for a, b in zip(answer, other, strict=True))
    return TurnRow(*parts)


def collate_rated(rows: Sequence[PreferenceRow], keys: Any, *, pad_id: int, seq_len: int, one_shape: bool) -> Batch:
    """Make a batch of B records for a head that scores whole rows: rows [2B, T] as by `collate_answers`, but with every
    token as an input. Targets [2B, 1] are 1 for the better answer and 0 for the other."""
    turns = [each for row in rows for each in row.answers]
    width = choose_width([each.ids for each in turns], seq_len, one_shape)
    there = [np.ones(len(each.ids), np.int64) for each in turns]
    return Batch(
        to_tensor(pad([each.ids for each in turns], width, pad_id)),
        to_tensor(np.tile([[1], [0]], (len(rows), 1))),
        attention_mask=to_tensor(pad(there, width, 0)),
    )


def predict_next(
    rows: Sequence[PreferenceRow], turns: Sequence[TurnRow], pad_id: int, seq_len: int, one_shape: bool
) -> Batch:
    """Make a next-token batch of conversations, padded as by `collate_answers`. Only answers get a loss."""
    width = choose_width([each.ids for each in turns], seq_len, one_shape)
    targets = [np.where(each.learned, each.ids, IGNORED)[1:] for each in turns]
    known = [row.reference for row in rows if row.reference is not None]
    return Batch(
        to_tensor(pad([each.ids[:-1] for each in turns], width, pad_id)),
        to_tensor(pad(targets, width, IGNORED)),
        reference=to_tensor(np.concatenate(known), np.float32) if known else None,
    )
