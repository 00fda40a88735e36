# B rows, T tokens, S tokens of an encoder
"""Make batches of corrupted rows, of pairs and of labelled rows. A row's corruption is a function of (seed, epoch, row
number)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data.corrupt import IGNORED, Corrupted
from zoo.data.tokens import Batch
from zoo.lazy import torch

if TYPE_CHECKING:
    from zoo.data.labelled_records import LabelledRow

Corrupt = Callable[[np.ndarray, np.random.Generator], Corrupted]
"""Makes the inputs and targets of a model from a run of tokens [L], with random draws from the generator."""


def make_generator(seed: int, key: tuple[int, int]) -> np.random.Generator:
    """Make the random generator of a row from the seed and its `key`: the epoch and the row's number."""
    return np.random.default_rng([seed, *key])


def split_documents(row: np.ndarray, eos_id: int) -> list[np.ndarray]:
    """Split a row into its documents. An EOS belongs to the document that it opens."""
    return np.split(row, np.flatnonzero(row[1:] == eos_id) + 1)


def number_documents(rows: np.ndarray, eos_id: int) -> np.ndarray:
    """Return the number of each token's document [B, T], counted from 0 in each row."""
    numbers = (rows == eos_id).cumsum(1)
    return numbers - numbers[:, :1]


def to_tensor(values: np.ndarray, dtype: Any = np.int64) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype))


@dataclass(frozen=True)
class InPlace:
    """Makes batches for one tower: each target stands at the position of its token, as in masked language modelling."""

    corrupt: Corrupt
    seed: int
    eos_id: int
    documents: bool

    def __call__(self, rows: np.ndarray, keys: Sequence[tuple[int, int]]) -> Batch:
        rows = rows[:, :-1]
        made = [self.corrupt(row, make_generator(self.seed, key)) for row, key in zip(rows, keys, strict=True)]
        numbers = to_tensor(number_documents(rows, self.eos_id)) if self.documents else None
        inputs, targets = (to_tensor(np.stack(each)) for each in zip(*made, strict=True))
        return Batch(inputs, targets, numbers)


@dataclass(frozen=True)
class Runs:
    """Corrupts the first `length` tokens of a row: as one run, or with `documents` each document as a separate run.
    Subclasses pack the corrupted runs into one row. Runs that do not fit, and runs of one token, are left out."""

    corrupt: Corrupt
    seed: int
    eos_id: int
    length: int
    documents: bool

    def corrupt_row(self, row: np.ndarray, key: tuple[int, int]) -> Iterator[Corrupted]:
        row, rng = row[: self.length], make_generator(self.seed, key)
        runs = split_documents(row, self.eos_id) if self.documents else [row]
        return (self.corrupt(run, rng) for run in runs if len(run) > 1)


@dataclass(frozen=True)
class Continued(Runs):
    """Makes batches for a decoder: each corrupted run is followed by its targets, in one row.

    Rows have `width` tokens. With `prefixed`, a row has one run, and the tokens of its corrupted input attend to one
    another in both directions (prefix LM).
    """

    width: int
    prefixed: bool

    def __call__(self, rows: np.ndarray, keys: Sequence[tuple[int, int]]) -> Batch:
        sheets = [self._write(row, key) for row, key in zip(rows, keys, strict=True)]
        ids, targets, numbers, read = (to_tensor(np.stack(each)) for each in zip(*sheets, strict=True))
        prefix = read if self.prefixed else None
        return Batch(ids, targets, numbers if self.documents else None, prefix=prefix)

    def _write(self, row: np.ndarray, key: tuple[int, int]) -> tuple[np.ndarray, ...]:
        """Lay out a row: its ids, targets and document numbers, and the length of the corrupted input of the first run
        that fits (0 if none fits)."""
        at, read = 0, 0
        ids, targets = np.full(self.width, self.eos_id, np.int64), np.full(self.width, IGNORED, np.int64)
        numbers = np.zeros(self.width, np.int64)
        for number, part in enumerate(self.corrupt_row(row, key)):
            whole = np.append(part.inputs, part.targets)
            behind = at + len(whole) - 1  # the last token is a target only
            if behind > self.width:
                continue
            ids[at:behind] = whole[:-1]
            targets[behind - len(part.targets) : behind] = part.targets
            numbers[at:behind], numbers[behind:] = number, number + 1
            at, read = behind, read or len(part.inputs)
        return ids, targets, numbers, np.asarray(read)


@dataclass(frozen=True)
class Rewritten(Runs):
    """Makes batches for an encoder-decoder: the encoder reads corrupted runs, the decoder predicts their targets.

    A packed document has the same number in both towers' rows. `widths` are the lengths of the encoder's and the
    decoder's rows, equal for all batches. `padded` says that runs may be shorter than the encoder's rows, which then
    need an attention mask.
    """

    start_id: int
    widths: tuple[int, int]
    padded: bool

    def __call__(self, rows: np.ndarray, keys: Sequence[tuple[int, int]]) -> Batch:
        sheets = [self._write(row, key) for row, key in zip(rows, keys, strict=True)]
        read, targets, written, source, target, real = (to_tensor(np.stack(each)) for each in zip(*sheets, strict=True))
        if self.documents:
            return Batch(read, targets, source, written, target)
        return Batch(read, targets, None, written, None, real if self.padded else None)

    def _write(self, row: np.ndarray, key: tuple[int, int]) -> tuple[np.ndarray, ...]:
        """Lay out a row: the encoder's ids, targets, the decoder's ids, document numbers of both towers, and which of
        the encoder's tokens are not padding."""
        s, t = 0, 0
        read, source = np.full(self.widths[0], self.eos_id, np.int64), np.zeros(self.widths[0], np.int64)
        written, target = np.full(self.widths[1], self.eos_id, np.int64), np.zeros(self.widths[1], np.int64)
        targets = np.full(self.widths[1], IGNORED, np.int64)
        for number, part in enumerate(self.corrupt_row(row, key)):
            behind, after = s + len(part.inputs), t + len(part.targets)
            if behind > self.widths[0] or after > self.widths[1]:
                continue
            read[s:behind], source[s:behind], targets[t:after] = part.inputs, number, part.targets
            written[t:after] = np.append(self.start_id, part.targets[:-1])
            target[t:] = number  # padding too, so that it attends to a source; no token attends to it
            source[behind:] = number + 1  # padding, which no target sees
            s, t = behind, after
        return read, targets, written, source, target, np.arange(self.widths[0]) < s


def pad_pairs(
    sources: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    eos_id: int,
    start_id: int | None,
    widths: tuple[int, int],
    opening: int = 0,
) -> Batch:
    """Make a batch of sources with an answer to each; `eos_id` ends an answer. The loss is on the answers alone.

    An encoder reads the sources [B, S], and a decoder that starts from `start_id` predicts the answers [B, T]. If
    `start_id` is None, one decoder reads each source followed by its answer, in rows of S + T − 1 tokens: the last
    token is a target only. Rows are padded at their end to the `widths` (S, T), or to S + T − 1. Longer sources lose
    their beginning, except its first `opening` tokens (a start token); longer answers lose their end.
    """
    s, t = widths
    asked = [_keep_end(np.asarray(source, np.int64), s, opening) for source in sources]
    told = [np.append(np.asarray(answer, np.int64), eos_id)[:t] for answer in answers]
    if start_id is not None:
        read, real = pad(asked, s, eos_id), pad([np.ones(len(each), np.int64) for each in asked], s, 0)
        written = pad([np.append(start_id, each[:-1]) for each in told], t, eos_id)
        targets = to_tensor(pad(told, t, IGNORED))
        return Batch(to_tensor(read), targets, None, to_tensor(written), None, to_tensor(real))
    rows = [np.concatenate(pair) for pair in zip(asked, told, strict=True)]
    unasked = [np.full(max(len(each) - 1, 0), IGNORED) for each in asked]  # a source's last token predicts the answer
    targets = [np.concatenate([quiet, row[len(quiet) + 1 :]]) for quiet, row in zip(unasked, rows, strict=True)]
    return Batch(
        to_tensor(pad([row[:-1] for row in rows], s + t - 1, eos_id)), to_tensor(pad(targets, s + t - 1, IGNORED))
    )


def _keep_end(ids: np.ndarray, size: int, opening: int) -> np.ndarray:
    """Cut ids [L] to at most `size`: keep the first `opening` ids, and the last."""
    if len(ids) <= size:
        return ids
    first = min(opening, size)
    return np.concatenate([ids[:first], ids[len(ids) - (size - first) :]])


STEP = 8
"""Rows of a batch are padded to a multiple of 8 tokens, to keep the number of shapes small."""


def pad_labelled(
    rows: Sequence[LabelledRow],
    keys: Sequence[tuple[int, int]],
    *,
    pad_id: int,
    seq_len: int,
    one_shape: bool,
    typed: bool,
    by_token: bool,
) -> Batch:
    """Make a batch of labelled rows. Nothing in it is random. Rows are padded at their end to the longest row, rounded
    up to a multiple of STEP but at most `seq_len`; with `one_shape` to `seq_len`. `typed` adds token_type_ids [B, T].
    Targets are [B, T] if `by_token`, else a class [B, 1] or numbers [B, 1, C] for each row."""
    width = choose_width([row.ids for row in rows], seq_len, one_shape)
    there = [np.ones(len(row.ids), np.int64) for row in rows]
    targets = pad([row.target for row in rows], width, IGNORED) if by_token else np.stack([row.target for row in rows])
    return Batch(
        to_tensor(pad([row.ids for row in rows], width, pad_id)),
        to_tensor(targets, targets.dtype),
        attention_mask=to_tensor(pad(there, width, 0)),
        token_type_ids=to_tensor(pad([row.types for row in rows], width, 0)) if typed else None,
    )


def pad_compared(
    rows: Sequence[LabelledRow], keys: Sequence[tuple[int, int]], *, pad_id: int, seq_len: int, one_shape: bool
) -> Batch:
    """Make a batch of records of K texts each (`zoo.data.compared_texts`): ids and mask [B, K, T], padded as
    `pad_labelled` does, and the key of each text as targets [B, K]."""
    texts = [text for row in rows for text in np.split(row.ids, np.flatnonzero(np.diff(row.types)) + 1)]
    shape = (len(rows), -1, choose_width(texts, seq_len, one_shape))
    return Batch(
        to_tensor(pad(texts, shape[-1], pad_id)).view(shape),
        to_tensor(np.stack([row.target for row in rows])),
        attention_mask=to_tensor(pad([np.ones(len(text)) for text in texts], shape[-1], 0)).view(shape),
    )


def choose_width(rows: Sequence[np.ndarray], seq_len: int, one_shape: bool) -> int:
    """Choose the length T of padded rows: `seq_len` with `one_shape`, else that of the longest row rounded up to a
    multiple of STEP, at most `seq_len`."""
    return seq_len if one_shape else min(-(-max(map(len, rows)) // STEP) * STEP, seq_len)


def pad(rows: Sequence[np.ndarray], width: int, value: int) -> np.ndarray:
    """Pad rows at their end with a value, and stack them to [B, width]."""
    return np.stack([np.concatenate([row, np.full(width - len(row), value)]) for row in rows])
