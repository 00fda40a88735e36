# B rows, T tokens
"""Decode rows of a batch, to show what a model reads and which tokens its loss is on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from zoo.model.loss import IGNORED
from zoo.untrusted.printable import shorten

if TYPE_CHECKING:
    from zoo.data import Batch, Tokenizer

SHOWN = 100
"""Number of characters of a row that a line shows."""


class RowPiece(NamedTuple):
    """A piece of a row's text, and whether its tokens are targets of the loss; None for a mark between texts."""

    text: str
    learned: bool | None


BORDER = RowPiece("┃", None)
"""The mark between packed documents."""


def decode_row(batch: Batch, row: int, tokenizer: Tokenizer, cut: Sequence[int] = ()) -> list[RowPiece]:
    """Decode a row, special tokens included and padding left out. `cut` lists the numbers of tokens cut from the
    documents' ends.

    - Next-token objectives: the row and its last target, in order.
    - Encoder-decoders: the source, then the targets.
    - Targets in place (a masked language model, tags): each target follows the token at its place.
    - A target of the whole row (a class, numbers): the target follows the row.
    - Several texts to compare: the second, the positive, is the target.

    BORDER is put between packed documents.
    """
    if batch.input_ids.ndim == 3:
        return list(_set_beside(batch, row, tokenizer))
    ids, targets = batch.input_ids[row].tolist(), batch.targets[row].tolist()
    if batch.attention_mask is not None:
        ids = [token for token, real in zip(ids, batch.attention_mask[row].tolist(), strict=True) if real]
    if batch.decoder_input_ids is not None:
        marked = [*((token, False) for token in ids), *((token, True) for token in targets if token != IGNORED)]
        return list(_join(marked, tokenizer))
    if batch.targets.shape != batch.input_ids.shape:
        return [*_join(((token, False) for token in ids), tokenizer), RowPiece(f" → {targets}", True)]
    documents = [0] * len(ids) if batch.documents is None else batch.documents[row].tolist()
    return list(_decode_documents(ids, targets, documents, tokenizer, cut))


def _set_beside(batch: Batch, row: int, tokenizer: Tokenizer) -> Iterator[RowPiece]:
    """Yield the texts of a record, in order."""
    assert batch.attention_mask is not None
    for number, (ids, real) in enumerate(zip(batch.input_ids[row], batch.attention_mask[row].bool(), strict=True)):
        yield RowPiece(" | " * (number > 0) + tokenizer.decode(ids[real].tolist(), special=True), number == 1)


def _decode_documents(
    ids: list[int], targets: list[int], documents: list[int], tokenizer: Tokenizer, cut: Sequence[int]
) -> Iterator[RowPiece]:
    """Decode the documents of a row one by one. In a row of next tokens, a document without a target is padding."""
    shifted = _predicts_next(ids, targets, documents)
    for number, (_, group) in enumerate(groupby(range(len(ids)), key=documents.__getitem__)):
        places = list(group)
        own, wanted = ([each[place] for place in places] for each in (ids, targets))
        if shifted and number and all(target == IGNORED for target in wanted):
            continue
        if number:
            yield BORDER
        marked = [(own[0], False), *_shift(own, wanted)] if shifted else _in_place(own, wanted)
        yield from _join(marked, tokenizer)
        if number < len(cut) and cut[number]:
            yield RowPiece(f"… {cut[number]:,} tokens cut", None)


def _predicts_next(ids: list[int], targets: list[int], documents: list[int]) -> bool:
    """Whether most targets are the next token of their row. The last targets of a row and of its documents may differ,
    and are left out if there are others."""
    places = [place for place, target in enumerate(targets) if target != IGNORED and place + 1 < len(ids)]
    inner = [at for at in places[:-1] if documents[at] == documents[at + 1]]
    pairs = [(ids[at + 1], targets[at]) for at in inner or places]
    return 2 * sum(token == target for token, target in pairs) > len(pairs) or not pairs


def _shift(ids: list[int], targets: list[int]) -> Iterator[tuple[int, bool]]:
    """Yield (token, learned) after each position of a document: the target, or the next input if there is no target.
    Tokens after the last target are padding."""
    last = max((place for place, target in enumerate(targets) if target != IGNORED), default=len(ids) - 2)
    for place in range(last + 1):
        learned = targets[place] != IGNORED
        yield (targets[place], True) if learned else (ids[place + 1], False)


def _in_place(ids: list[int], targets: list[int]) -> Iterator[tuple[int, bool]]:
    for token, target in zip(ids, targets, strict=True):
        yield token, False
        if target != IGNORED:
            yield target, True


def _join(marked: Iterable[tuple[int, bool]], tokenizer: Tokenizer) -> Iterator[RowPiece]:
    """Decode runs of tokens with equal marks together: the bytes of a character may be several tokens."""
    for learned, run in groupby(marked, key=lambda each: each[1]):
        yield RowPiece(tokenizer.decode([token for token, _ in run], special=True), learned)


def describe_row(batch: Batch, row: int, tokenizer: Tokenizer) -> str:
    """Describe in one line how rows begin, judging from one row of a batch."""
    pieces = [piece.text for piece in decode_row(batch, row, tokenizer) if piece.learned is not None]
    text = "".join(pieces)
    if batch.input_ids.ndim == 3:
        return f"data: the first record has {batch.input_ids.shape[1]} texts, {shorten(text, SHOWN)!r}"
    if batch.decoder_input_ids is None and batch.targets.shape != batch.input_ids.shape:
        return f"data: the first row begins {shorten(pieces[0], SHOWN)!r}, its target is {batch.targets[row].tolist()}"
    count = int((batch.targets[row] != IGNORED).sum())
    return f"data: the first row begins {shorten(text, SHOWN)!r}, its loss is on {count:,} tokens"
