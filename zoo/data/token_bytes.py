"""Count the bytes of text that each token stands for.

Bits per byte divide by the bytes of tokens, which add up to the text's length in UTF-8 for any tokenizer. Decoding a
single token does not give its bytes: a part of a character decodes to U+FFFD, which has three bytes, and a tokenizer
may strip, lower-case or normalise its text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from zoo.data.tokenizer import Tokenizer

BYTE_LEVEL = "ByteLevel"


def measure_tokens(tokenizer: Tokenizer, text: str, ids: np.ndarray, *, bare: bool = False) -> np.ndarray:
    """Count the bytes of `text` that each token stands for [L + 1]: the tokens `ids` [L] of the text, and the end of
    text after them. Tokens that the tokenizer adds around a text count no bytes. With `bare`, `ids` has no such tokens.

    In a byte-level vocabulary a token's spelling gives its bytes. In any other, or if these do not add up to the text
    (a normaliser changed it), a token has the bytes from its start in the text to the next token's start. The end of
    text has none, unless the text has no tokens at all: then it has all bytes.
    """
    import numpy as np

    before, after = (0, 0) if bare else map(len, tokenizer.around)
    lengths = np.zeros(len(ids) + 1, np.int64)
    own = ids[before : len(ids) - after]
    n_bytes, table = len(text.encode()), tokenizer.byte_lengths
    if table is not None and len(own) and (found := table[own]).sum() == n_bytes:
        lengths[before : before + len(own)] = found
    else:
        found = measure_by_offsets(tokenizer, text, len(own))
        lengths[before : before + len(found)] = found
    return lengths


def measure_by_offsets(tokenizer: Tokenizer, text: str, count: int) -> np.ndarray:
    """Divide the bytes of a text among its `count` tokens [count + 1]: each token has those from its start to the next
    token's start, and the end of text has none.

    Text before the first token counts for the first; text after a token, such as white space, counts for that token. If
    several tokens have the same start, such as the bytes of one character, the last token gets all bytes.
    """
    import numpy as np

    before = np.concatenate([[0], np.cumsum(measure_characters(text))])  # bytes before each character
    starts = np.zeros(count + 2, np.int64)
    starts[1:count] = [start for start, _ in tokenizer.find_offsets(text)[1:]]
    starts[count:] = len(text)
    lengths = np.diff(before[np.maximum.accumulate(starts)])
    return lengths if count else np.array([before[-1]])


def measure_characters(text: str) -> np.ndarray:
    """Return the bytes of each character in UTF-8."""
    import numpy as np

    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    return 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)


def tabulate_byte_level(tokenizer: Tokenizer) -> np.ndarray | None:
    """Count the bytes of each token of a byte-level vocabulary, by id [V]; None for another kind of vocabulary.

    A byte-level vocabulary spells each byte as one character (GPT-2, 2019). Added tokens are spelled in plain text, so
    the count of a non-ASCII one is wrong, and a text that contains it does not add up.
    """
    import numpy as np

    backend = tokenizer.backend
    if BYTE_LEVEL not in json.dumps(json.loads(backend.to_str()).get("decoder")):
        return None
    table = np.zeros(tokenizer.vocab_size, np.int64)
    for token, number in backend.get_vocab(with_added_tokens=True).items():
        table[number] = len(token)
    return table
