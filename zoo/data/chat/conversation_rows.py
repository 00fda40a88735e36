# L tokens of conversations, B rows of T tokens
"""Read and batch rows of conversations: several packed per row, without attention between them, or one per row."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from zoo.data.collate import IGNORED, pad, to_tensor
from zoo.data.cut_rows import describe_cuts
from zoo.data.tokens import Batch, TokenFile
from zoo.errors import ConfigError


class TurnRow(NamedTuple):
    """A row of L tokens: ids [L], whether each token gets a loss [L], and the number of its conversation [L]."""

    ids: np.ndarray
    learned: np.ndarray
    numbers: np.ndarray


class TurnCuts(NamedTuple):
    """Token counts [N] of N conversations cut to a row length: `kept` up to the end of the last answer that fits (0:
    none fits), and `whole` up to the end of the last answer."""

    kept: np.ndarray
    whole: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TurnFile(TokenFile):
    """One split of a corpus of conversations. In each document, sequences without and with a loss alternate.

    A row holds whole conversations of at most T + 1 tokens, the last token of each as a target only. A longer
    conversation is cut after the last answer that fits. With `packed` a row holds several conversations, else one.
    """

    sequences: Callable[[], tuple[np.ndarray, np.ndarray]] = field(compare=False, repr=False)
    """Reads two arrays: the number of tokens of each sequence, and the number of sequences of each conversation."""
    packed: bool

    @cached_property
    def layout(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three arrays: the number of tokens of each sequence; the first sequence of each conversation, then the total
        number of sequences; and the index of each conversation's first token in `ids`. The first id, an end of text,
        belongs to none."""
        sizes, counts = self.sequences()
        firsts = np.concatenate([[0], np.cumsum(counts)])
        return sizes, firsts, 1 + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[firsts[:-1]]

    def cut(self, seq_len: int) -> TurnCuts:
        """Cut each conversation after the last answer that ends within `seq_len` + 1 tokens."""
        sizes, firsts, starts = self.layout
        of = np.repeat(np.arange(len(starts)), np.diff(firsts))
        ends = 1 + np.cumsum(sizes, dtype=np.int64) - starts[of]
        answers = ((np.arange(len(sizes)) - firsts[of]) % 2 == 1) & (sizes > 0) & (ends > 1)
        kept, whole = np.zeros((2, len(starts)), np.int64)
        np.maximum.at(whole, of[answers], ends[answers])
        answers &= ends <= seq_len + 1
        np.maximum.at(kept, of[answers], ends[answers])
        return TurnCuts(kept, whole)

    @cached_property
    def plan(self) -> Callable[[int], tuple[TurnCuts, list[list[int]]]]:
        """A cached function of `seq_len` that plans the rows: it returns the cuts, and the numbers of each row's
        conversations. It raises ConfigError if no conversation has an answer that fits."""

        @cache
        def plan(seq_len: int) -> tuple[TurnCuts, list[list[int]]]:
            cuts = self.cut(seq_len)
            numbers = np.flatnonzero(cuts.kept)
            if not len(numbers):
                part = "" if self.path is None else f" of the {self.path.name} split"
                found = f"is {seq_len}, and no conversation{part} has its first answer within it"
                raise ConfigError(f"seq_len: {found} (a larger one: with {cuts.whole.max() - 1} all would be whole)")
            if not self.packed:
                return cuts, [[number] for number in numbers.tolist()]
            return cuts, [
                [int(numbers[each]) for each in row] for row in pack_best_fit(cuts.kept[numbers] - 1, seq_len)
            ]

        return plan

    def count_rows(self, seq_len: int) -> int:
        return len(self.plan(seq_len)[1])

    def count_cut(self, number: int, seq_len: int) -> list[int]:
        cuts, rows = self.plan(seq_len)
        return (cuts.whole - cuts.kept)[rows[number]].tolist()

    def read_row(self, number: int, seq_len: int) -> Any:
        cuts, rows = self.plan(seq_len)
        return self.read_conversations([(each, int(cuts.kept[each])) for each in rows[number]])

    def read_conversations(self, which: Sequence[tuple[int, int]]) -> TurnRow:
        """Read several conversations as one row. `which` lists each conversation's number, and how many of its tokens
        to read."""
        (sizes, firsts, starts), ids, learned = self.layout, [], []
        for each, kept in which:
            runs = sizes[firsts[each] : firsts[each + 1]]
            ids.append(self.ids[starts[each] : starts[each] + kept].astype(np.int64))
            learned.append(np.repeat(np.arange(len(runs)) % 2 == 1, runs)[:kept])
        numbers = np.repeat(np.arange(len(ids)), [len(each) for each in ids])
        return TurnRow(np.concatenate(ids), np.concatenate(learned), numbers)

    def describe_cuts(self, of: str, seq_len: int, cure: Callable[[int], str] = "seq_len={}".format) -> Iterator[str]:
        """Yield a message on conversations that lose answers, and a message on conversations that are left out."""
        kept, whole = self.cut(seq_len)
        whats = {
            "lose what follows the last answer that fits": (kept > 0) & (kept < whole),
            "are left out, as their first answer does not fit": kept == 0,
        }
        for what, rows in whats.items():
            if line := describe_cuts(whole - 1, seq_len, f"conversations{of} {what}", cure, int(rows.sum())):
                yield line


def pack_best_fit(sizes: np.ndarray, room: int) -> list[list[int]]:
    """Pack items into rows of `room` tokens by best-fit decreasing: the longest first, each into the fullest row that
    still has room for it (Ding et al., 2024). Returns the numbers of each row's items."""
    rows: list[list[int]] = []
    free: dict[int, list[int]] = {}  # rows by the room that is left in them
    rooms: list[int] = []  # its keys, in order
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        at = bisect_left(rooms, size)
        left = (rooms[at] if at < len(rooms) else room) - size
        if at < len(rooms):
            row = free[rooms[at]].pop()
            if not free[rooms[at]]:
                del free[rooms.pop(at)]
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(item)
        if left:
            if left not in free:
                insort(rooms, left)
            free.setdefault(left, []).append(row)
    return rows


def collate_turns(rows: Sequence[TurnRow], keys: Any, *, eos_id: int, seq_len: int, packed: bool) -> Batch:
    """Make a next-token batch of rows [B, T], padded at their end; nothing in it is random. The last token of a
    conversation is a target only. With `packed` the batch has document numbers, so that a token attends to its own
    conversation alone; padding has a separate number."""
    made = []
    for ids, learned, numbers in rows:
        inside = numbers[1:] == numbers[:-1]
        targets = np.where(learned[1:], ids[1:], IGNORED)
        made.append((ids[:-1][inside], targets[inside], numbers[:-1][inside]))
    ids, targets, numbers = zip(*made, strict=True)
    documents = [np.append(each, np.full(seq_len - len(each), each[-1] + 1)) for each in numbers]
    return Batch(
        to_tensor(pad(ids, seq_len, eos_id)),
        to_tensor(pad(targets, seq_len, IGNORED)),
        to_tensor(np.stack(documents)) if packed else None,
    )
