# T tokens
"""Encode whole texts as rows: one text, two texts, or words. Rows of words have the index of each word's first
token."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers


class EncodedRow(NamedTuple):
    """A row's tokens: ids [T]; `types` [T], 1 for tokens of a second text, else 0; `places`, the index of each word's
    first token (None for a word without a token, or truncated); and how many tokens the row had before truncation."""

    ids: list[int]
    types: list[int]
    places: list[int | None]
    whole: int

    @property
    def cut(self) -> bool:
        """Whether anything was truncated."""
        return self.whole > len(self.ids)


@dataclass(frozen=True)
class RowEncoder:
    """Encodes texts as rows of at most `limit` tokens, with the special tokens of the tokenizer's file. Longer texts
    lose their end; of two texts, the longer one is truncated first.

    If the file adds no special tokens, an end of text separates two texts and, with `opens`, also begins a row, for a
    head that reads the first token.
    """

    tokenizer: Tokenizer
    limit: int
    opens: bool

    @cached_property
    def plain(self) -> bool:
        """Whether the tokenizer puts no special tokens around a text."""
        return self.tokenizer.backend.num_special_tokens_to_add(False) == 0

    def encode(self, texts: Sequence[tuple[str, ...]]) -> list[EncodedRow]:
        """Encode rows of one text or two."""
        if self.plain:
            rest = iter(self.tokenizer.encode_many([text for row in texts for text in row], bare=True))
            return [self._join([next(rest).ids for _ in row]) for row in texts]
        inputs = [text if not second else (text, *second) for text, *second in texts]
        return [EncodedRow(each.ids, each.type_ids, [], whole) for each, whole in self._encode(inputs)]

    def encode_words(self, rows: Sequence[Sequence[str]]) -> list[EncodedRow]:
        """Encode rows of words joined by spaces. `EncodedRow.places` has the first token that begins in each word."""
        texts = [" ".join(words) for words in rows]
        found = self._encode(texts, 0 if not self.plain else int(self.opens))
        return [self._place(words, text, *each) for words, text, each in zip(rows, texts, found, strict=True)]

    def _encode(self, inputs: Sequence[Any], less: int = 0) -> list[tuple[tokenizers.Encoding, int]]:
        """Encode inputs, truncated to `limit - less` tokens. Returns each encoding with its length before
        truncation."""
        with self._cutting(less) as backend:
            found = backend.encode_batch(inputs)
        long = [number for number, each in enumerate(found) if each.overflowing]
        again = self.tokenizer.backend.encode_batch([inputs[number] for number in long])
        whole = {number: len(each) for number, each in zip(long, again, strict=True)}
        return [(each, whole.get(number, len(each))) for number, each in enumerate(found)]

    @contextmanager
    def _cutting(self, less: int = 0) -> Iterator[tokenizers.Tokenizer]:
        """Truncate to `limit - less` tokens inside the `with` block only, because the tokenizer is saved with a run and
        encodes other texts too."""
        backend = self.tokenizer.backend
        backend.encode_special_tokens = self.tokenizer.split
        backend.enable_truncation(self.limit - less)
        try:
            yield backend
        finally:
            backend.no_truncation()

    def _join(self, parts: list[list[int]]) -> EncodedRow:
        """Join the ids of one text or two to a row, for tokenizers without special tokens."""
        eos = [self.tokenizer.eos_id]
        room = self.limit - int(self.opens) - (len(parts) - 1)
        kept = [part[:size] for part, size in zip(parts, share_room([*map(len, parts)], room), strict=True)]
        ids, types = (eos, [0]) if self.opens else ([], [])
        for number, part in enumerate(kept):
            between = eos if number else []
            ids, types = [*ids, *between, *part], [*types, *[number] * (len(between) + len(part))]
        return EncodedRow(ids, types, [], len(ids) + sum(map(len, parts)) - sum(map(len, kept)))

    def _place(self, words: Sequence[str], text: str, found: tokenizers.Encoding, whole: int) -> EncodedRow:
        """Make a row of encoded words, with the index of each word's first token. `whole` is the row's length before
        truncation."""
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
        return EncodedRow(ids, [*[0] * len(opening), *found.type_ids], places, len(opening) + whole)


def share_room(lengths: Sequence[int], room: int) -> list[int]:
    """Share `room` tokens among one text or two: the longer is truncated first.

    Example: of 10 and 3 tokens in a room of 8, the first keeps 5; of 10 and 9, both keep 4.
    """
    if len(lengths) == 1 or sum(lengths) <= room:
        return [min(length, room) for length in lengths]
    first, second = lengths
    half = room // 2
    if min(first, second) <= half:
        return [room - second, second] if second < first else [first, room - first]
    return [room - half, half]
