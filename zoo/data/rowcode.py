# T tokens
"""Encode whole texts as rows: a text, two texts, or words whose first pieces are known."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from zoo.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers


class Row(NamedTuple):
    """A text's tokens: ids [T], the number of each token's text [T] (0, of a second text 1), for words the place of
    each one's first piece (None for a word that has none, or that was cut off), and whether something was cut off."""

    ids: list[int]
    types: list[int]
    places: list[int | None]
    cut: bool


@dataclass(frozen=True)
class RowEncoder:
    """Encode texts as rows of at most `limit` tokens, with the special tokens that the tokenizer's file puts around
    them. Longer ones lose their end; of two texts the longer one.

    A tokenizer whose file puts none around them gives the plain tokens; then two texts are parted by its end of text,
    and with `opens` a row begins with that: a token of its own for a head that reads the first one.
    """

    tokenizer: Tokenizer
    limit: int
    opens: bool

    @cached_property
    def plain(self) -> bool:
        """Whether the tokenizer puts no special tokens around a text."""
        return self.tokenizer.backend.num_special_tokens_to_add(False) == 0

    def encode(self, texts: Sequence[tuple[str, ...]]) -> list[Row]:
        """Encode rows of one text or two."""
        if self.plain:
            parts = self.tokenizer.encode_batch([text for row in texts for text in row])
            rest = iter(parts)
            return [self._join([next(rest) for _ in row]) for row in texts]
        with self._cutting() as backend:
            found = backend.encode_batch([text if not second else (text, *second) for text, *second in texts])
        return [Row(each.ids, each.type_ids, [], bool(each.overflowing)) for each in found]

    def encode_words(self, rows: Sequence[Sequence[str]]) -> list[Row]:
        """Encode rows of words, with a space between two. A word's first piece is the first token that begins in it."""
        texts = [" ".join(words) for words in rows]
        with self._cutting(0 if not self.plain else int(self.opens)) as backend:
            found = backend.encode_batch(texts)
        return [self._place(*each) for each in zip(rows, texts, found, strict=True)]

    @contextmanager
    def _cutting(self, less: int = 0) -> Iterator[tokenizers.Tokenizer]:
        """Let the tokenizer cut rows off, and not afterwards: it is saved with a run, and encodes other texts too."""
        backend = self.tokenizer.backend
        backend.encode_special_tokens = True  # what a text spells is text
        backend.enable_truncation(self.limit - less)
        try:
            yield backend
        finally:
            backend.no_truncation()

    def _join(self, parts: list[list[int]]) -> Row:
        """Put the ids of one text or two into a row, where the tokenizer does not."""
        eos = [self.tokenizer.eos_id]
        room = self.limit - int(self.opens) - (len(parts) - 1)
        kept = [part[:size] for part, size in zip(parts, share_room([*map(len, parts)], room), strict=True)]
        ids, types = (eos, [0]) if self.opens else ([], [])
        for number, part in enumerate(kept):
            between = eos if number else []
            ids, types = [*ids, *between, *part], [*types, *[number] * (len(between) + len(part))]
        return Row(ids, types, [], kept != parts)

    def _place(self, words: Sequence[str], text: str, found: tokenizers.Encoding) -> Row:
        """Find the first piece of each word."""
        starts, at = [], 0
        for word in words:
            starts.append(at)
            at += len(word) + 1
        opening = [self.tokenizer.eos_id] if self.plain and self.opens else []
        places: list[int | None] = [None] * len(words)
        for place, ((start, end), special) in enumerate(zip(found.offsets, found.special_tokens_mask, strict=True)):
            piece = text[start:end]
            if special or not piece.strip():
                continue
            word = bisect_right(starts, start + len(piece) - len(piece.lstrip())) - 1
            if places[word] is None:
                places[word] = place + len(opening)
        ids = [*opening, *found.ids]
        return Row(ids, [*[0] * len(opening), *found.type_ids], places, bool(found.overflowing))


def share_room(lengths: Sequence[int], room: int) -> list[int]:
    """Share `room` tokens among one text or two: the longer loses first.

    Example: of 10 and 3 tokens in a room of 8, the first keeps 5; of 10 and 9, both keep 4.
    """
    if len(lengths) == 1 or sum(lengths) <= room:
        return [min(length, room) for length in lengths]
    first, second = lengths
    half = room // 2
    if min(first, second) <= half:
        return [room - second, second] if second < first else [first, room - first]
    return [room - half, half]
