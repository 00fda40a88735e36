# B records, T tokens
"""Rows of preferences: a record's two answers, which stay together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from zoo.data.chat.conversation_rows import TurnFile, TurnRow
from zoo.data.collate import IGNORED, STEP, pad, to_tensor
from zoo.data.cut_rows import describe_cuts
from zoo.data.tokens import Batch
from zoo.errors import ConfigError


@dataclass
class RecordNumbers:
    """Numbers of each record of a split, [N, 2], which are computed before its rows are read: the log-probability of
    both answers under the starting weights (`zoo.training.objective.kept_reference`). NaN where it is not needed."""

    values: np.ndarray | None = None


class PreferenceRow(NamedTuple):
    """The two conversations of a record, the better first, and its numbers [2] if there are any."""

    answers: tuple[TurnRow, TurnRow]
    reference: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class PreferenceFile(TurnFile):
    """One part of a corpus of preferences. The first half of a document's sequences is one conversation, the second
    half the other.

    A row is a record of which both conversations have at most T + 1 tokens; other records are left out, because an
    answer that lost its end is another answer.
    """

    reference: RecordNumbers = field(default_factory=RecordNumbers, compare=False, repr=False)

    @cached_property
    def layout(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As a TurnFile's, of conversations: those of record n have the numbers 2n and 2n + 1."""
        sizes, counts = self.sequences()
        firsts = np.concatenate([[0], np.cumsum(np.repeat(counts // 2, 2))])
        return sizes, firsts, 1 + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[firsts[:-1]]

    @cached_property
    def measured(self) -> np.ndarray:
        """The tokens [N, 2] of each conversation up to the end of its last answer; 0 where a record has none."""
        return self.cut(0).whole.reshape(-1, 2)

    @cached_property
    def records(self) -> Callable[[int], np.ndarray]:
        """Return the numbers of the records that are whole in rows of a length. Raises ConfigError if none is."""

        @cache
        def records(seq_len: int) -> np.ndarray:
            longest = self.measured.max(1)
            numbers = np.flatnonzero(longest <= seq_len + 1)
            if not len(numbers):
                part = "" if self.path is None else f" of the {self.path.name} split"
                found = f"is {seq_len}, and no record{part} has its answers within it"
                raise ConfigError(f"seq_len: {found} (a larger one: with {longest.max() - 1} all would be whole)")
            return numbers

        return records

    def count_rows(self, seq_len: int) -> int:
        return len(self.records(seq_len))

    def read_row(self, number: int, seq_len: int) -> PreferenceRow:
        record = int(self.records(seq_len)[number])
        first, second = (
            self.read_conversations([(2 * record + each, int(kept))]) for each, kept in enumerate(self.measured[record])
        )
        known = self.reference.values
        return PreferenceRow((first, second), None if known is None else known[record])

    def count_cut(self, number: int, seq_len: int) -> list[int]:
        return []  # a record is whole, or left out

    def describe_cuts(self, of: str, seq_len: int, key: str = "seq_len=") -> Iterator[str]:
        what = f"records{of} are left out, as an answer does not fit"
        line = describe_cuts(self.measured.max(1) - 1, seq_len, what, lambda n: f"{key}{n}")
        if line is not None:
            yield line


def collate_answers(rows: Sequence[PreferenceRow], keys: Any, *, eos_id: int, seq_len: int, one_shape: bool) -> Batch:
    """Make a batch of B records for next-token prediction: rows [2B, T] of which 2n and 2n + 1 are record n's, padded
    at their end, and the records' numbers [2B]. Nothing in it is random. T is the longest row's, rounded up to a
    multiple of STEP; with `one_shape` it is `seq_len`."""
    turns = [each for row in rows for each in row.answers]
    longest = max(len(each.ids) for each in turns) - 1
    width = seq_len if one_shape else min(-(-longest // STEP) * STEP, seq_len)
    targets = [np.where(each.learned, each.ids, IGNORED)[1:] for each in turns]
    known = [row.reference for row in rows if row.reference is not None]
    return Batch(
        to_tensor(pad([each.ids[:-1] for each in turns], width, eos_id)),
        to_tensor(pad(targets, width, IGNORED)),
        reference=to_tensor(np.concatenate(known), np.float32) if known else None,
    )
