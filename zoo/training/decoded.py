# B rows, T tokens
"""Decode rows of a batch, to show what a model reads and which tokens its loss is on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from zoo.model.loss import IGNORED
from zoo.untrusted.printable import shorten

if TYPE_CHECKING:
    from zoo.data import Batch, Tokenizer

SHOWN = 100
"""Characters of a row that a line shows."""


class RowPiece(NamedTuple):
    """A piece of a row's text, and whether its tokens are targets of the loss."""

    text: str
    learned: bool


def decode_row(batch: Batch, row: int, tokenizer: Tokenizer) -> list[RowPiece]:
    """Decode a row, special tokens included and padding left out.

    For next-token objectives, the row and its last target, in order. For an encoder-decoder, the source, then the
    targets. For targets in place (a masked language model, tags), each target follows the token that stands there. For
    a target of the whole row (a class, numbers), that target follows the row.
    """
    ids, targets = batch.input_ids[row].tolist(), batch.targets[row].tolist()
    if batch.attention_mask is not None:
        ids = [token for token, real in zip(ids, batch.attention_mask[row].tolist(), strict=True) if real]
    if batch.decoder_input_ids is not None:
        marked = [*((token, False) for token in ids), *((token, True) for token in targets if token != IGNORED)]
    elif batch.targets.shape != batch.input_ids.shape:
        return [*_join(((token, False) for token in ids), tokenizer), RowPiece(f" → {targets}", True)]
    elif _predicts_next(ids, targets, None if batch.documents is None else batch.documents[row].tolist()):
        marked = [(ids[0], False), *_shift(ids, targets)]
    else:
        marked = [each for token, target in zip(ids, targets, strict=False) for each in _in_place(token, target)]
    return list(_join(marked, tokenizer))


def _predicts_next(ids: list[int], targets: list[int], documents: list[int] | None) -> bool:
    """Tell whether most targets are the next token of their row. The last targets of a row and of packed documents,
    which need not be, are left out where there are others."""
    places = [place for place, target in enumerate(targets) if target != IGNORED and place + 1 < len(ids)]
    inner = [at for at in places[:-1] if documents is None or documents[at] == documents[at + 1]]
    pairs = [(ids[at + 1], targets[at]) for at in inner or places]
    return 2 * sum(token == target for token, target in pairs) > len(pairs) or not pairs


def _shift(ids: list[int], targets: list[int]) -> Iterator[tuple[int, bool]]:
    """Yield what follows each position: its target if it has one, and the next token if that is another one, with which
    a packed document begins. Trailing tokens that no target follows are padding."""
    last = max((place for place, target in enumerate(targets) if target != IGNORED), default=len(ids) - 2)
    for place in range(last + 1):
        learned = targets[place] != IGNORED
        if learned:
            yield targets[place], True
        if not learned or (place < last and ids[place + 1] != targets[place]):
            yield ids[place + 1], False


def _in_place(token: int, target: int) -> Iterator[tuple[int, bool]]:
    yield token, False
    if target != IGNORED:
        yield target, True


def _join(marked: Iterable[tuple[int, bool]], tokenizer: Tokenizer) -> Iterator[RowPiece]:
    """Decode runs of tokens with equal marks together: the bytes of a character may be several tokens."""
    for learned, run in groupby(marked, key=lambda each: each[1]):
        yield RowPiece(tokenizer.decode([token for token, _ in run], special=True), learned)


def describe_rows(batch: Batch, tokenizer: Tokenizer) -> str:
    """Describe in one line how rows begin, by the first row of a batch."""
    text = "".join(piece.text for piece in decode_row(batch, 0, tokenizer))
    count = int((batch.targets[0] != IGNORED).sum())
    return f"data: the first row begins {shorten(text, SHOWN)!r}, its loss is on {count:,} tokens"
