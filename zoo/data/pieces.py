# V vocabulary, L tokens
"""Read off a vocabulary which ids are ordinary tokens, where words begin and where sentences end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zoo.data.tokenizer import Tokenizer

SPACES = ("Ġ", "Ċ", "ĉ", "▁", " ", "\n", "\t")
"""How vocabularies spell the space, line end or tab that a word begins after: byte-level BPE, sentencepiece, itself."""

CONTINUES = "##"
"""What WordPiece puts before a piece that does not begin a word."""

LINE_ENDS = ("Ċ", "\n", "<0x0A>")
STOPS = (".", "!", "?")
CLOSING = "\"')]»”\u2019"
"""What may stand between a full stop and the end of its sentence."""


SPACE, LETTER, OTHER = range(3)
"""Kinds of characters; digits and underscores count as letters."""


class Pieces(NamedTuple):
    """Facts about each id of a vocabulary [V]."""

    ordinary: np.ndarray
    """The ids that are no special tokens, in order; not [V]."""
    begins: np.ndarray
    """Whether a word begins with this token, whatever stands before it."""
    first: np.ndarray
    """What its first character is: LETTER, OTHER, or SPACE where it is all of space. Where this changes, a word begins
    as well, unless behind a space."""
    last: np.ndarray
    """The same of its last character."""
    ends: np.ndarray
    """Whether a sentence ends with it: at a full stop, a line end or the end of a text."""


def read_pieces(tokenizer: Tokenizer) -> Pieces:
    """Read the vocabulary of a tokenizer."""
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    special = {number for number, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    begins, ends = (np.zeros(tokenizer.vocab_size, bool) for _ in range(2))
    first, last = (np.full(tokenizer.vocab_size, SPACE, np.int8) for _ in range(2))
    by_pieces = any(piece.startswith(CONTINUES) for piece in vocabulary)
    for piece, number in vocabulary.items():
        bare = piece.lstrip("".join(SPACES))
        begins[number] = not piece.startswith(CONTINUES) if by_pieces else piece.startswith(SPACES)
        if not by_pieces and bare:
            first[number], last[number] = _kind(bare[0]), _kind(bare[-1])
        ends[number] = any(line in piece for line in LINE_ENDS) or bare.rstrip(CLOSING).endswith(STOPS)
    ends[tokenizer.eos_id] = True
    return Pieces(np.array(sorted(set(vocabulary.values()) - special)), begins, first, last, ends)


def number_words(ids: np.ndarray, pieces: Pieces) -> np.ndarray:
    """Number the words of a row [L]: each token has the number of its word."""
    before, after = pieces.last[ids[:-1]], pieces.first[ids[1:]]
    changes = np.concatenate(([True], (before != after) & (before != SPACE)))
    return np.cumsum(pieces.begins[ids] | changes)


def _kind(character: str) -> int:
    return LETTER if character.isalnum() or character == "_" else OTHER
