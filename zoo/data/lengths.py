"""How many bytes of text each token stands for: over a text they add up to its length in UTF-8, for any tokenizer.

Decoding a token alone does not tell: a piece of a character decodes to U+FFFD, which has three bytes, and a tokenizer
may strip, lower or normalise its text. Bits per byte divide by these numbers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from zoo.data.tokenizer import Tokenizer

BYTE_LEVEL = "ByteLevel"


def measure_tokens(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> np.ndarray:
    """Return the bytes of text of each token of `ids`, which encode the text, and of the end of text after them.

    A byte-level vocabulary says how many bytes a token has. Where it is not one, or where these numbers do not add up
    to the text (a normaliser changed it), each token has what lies between its start in the text and the next one's.
    The end of text has no bytes, unless it is the only token: of a text that the tokenizer encodes as nothing.
    """
    import numpy as np

    n_bytes = len(text.encode())
    table = tokenizer.byte_lengths
    if table is not None and len(ids):
        found = table[ids]
        if found.sum() == n_bytes:
            return np.append(found, 0)
    return measure_by_offsets(tokenizer, text, len(ids))


def measure_by_offsets(tokenizer: Tokenizer, text: str, count: int) -> np.ndarray:
    """Divide the bytes of a text among its `count` tokens by the places where they start in it.

    What lies before the first token is the first's; what lies after a token, such as white space, is that token's. Of
    several tokens with one start, such as the bytes of a character, the last has it.
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
    """List the bytes of each token of a byte-level vocabulary, by id; None for another kind of vocabulary.

    Such a vocabulary spells each byte as one character (GPT-2, 2019). Added tokens are spelled as they are: of one that
    is not ASCII the number is wrong, so that a text with it does not add up.
    """
    import numpy as np

    backend = tokenizer.backend
    if BYTE_LEVEL not in json.dumps(json.loads(backend.to_str()).get("decoder")):
        return None
    table = np.zeros(tokenizer.vocab_size, np.int64)
    for token, number in backend.get_vocab(with_added_tokens=True).items():
        table[number] = len(token)
    return table
