# V vocabulary, L tokens
"""Classify the tokens of a vocabulary: ordinary or special, whether a token begins a word or ends a sentence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zoo.data.tokenizer import Tokenizer

SPACES = ("Ġ", "Ċ", "ĉ", "▁", " ", "\n", "\t")
"""Spellings of the space, line end or tab before a word: in byte-level BPE, in sentencepiece, and as themselves."""

CONTINUES = "##"
"""WordPiece's prefix of a piece that continues a word."""

LINE_ENDS = ("Ċ", "\n", "<0x0A>")
STOPS = (".", "!", "?")
CLOSING = "\"')]»”\u2019"
"""Characters that may follow a full stop within its sentence."""


SPACE, LETTER, OTHER = range(3)
"""Kinds of characters; digits and underscores count as letters."""


class Pieces(NamedTuple):
    """Arrays [V] that describe each id of a vocabulary."""

    ordinary: np.ndarray
    """The sorted ids of all tokens but special ones; shorter than V."""
    begins: np.ndarray
    """Whether a word begins with this token, whichever token precedes it."""
    first: np.ndarray
    """Kind of the token's first character after white space: LETTER or OTHER. It is SPACE if the token is white space
    alone, and for all tokens of WordPiece. A word also begins where `first` differs from the previous token's `last`,
    unless this `last` is SPACE."""
    last: np.ndarray
    """Kind of the token's last character, else SPACE as in `first`."""
    ends: np.ndarray
    """Whether a sentence ends with this token: at `.`, `!`, `?`, a line end or the end of a text."""


def read_pieces(tokenizer: Tokenizer) -> Pieces:
    """Classify every token of a tokenizer's vocabulary."""
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
    """Return the number of each token's word [L]."""
    before, after = pieces.last[ids[:-1]], pieces.first[ids[1:]]
    changes = np.concatenate(([True], (before != after) & (before != SPACE)))
    return np.cumsum(pieces.begins[ids] | changes)


def _kind(character: str) -> int:
    return LETTER if character.isalnum() or character == "_" else OTHER
