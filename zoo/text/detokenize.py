"""Decode tokens to text as a stream: whole characters only, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

REPLACEMENT = "\ufffd"  # decoded from bytes that are not UTF-8, or not yet
CONTEXT = 8  # tokens decoded along with a new one: a token's text may depend on the tokens before
LONGEST_WAIT = 16  # tokens to wait for the rest of a character, which has at most four bytes


class TextStream:
    """Decodes one sequence of tokens as a stream. The text is everything that `push` returns, token by token, followed
    by what `finish` returns.

    The text ends before the first of the strings `stop`; then `stopped` is true, and further tokens are ignored.
    `before` are the tokens that the sequence continues.
    """

    def __init__(self, backend: tokenizers.Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(backend, before)
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def push(self, token: int) -> str:
        """Add a token and return the text that is final now."""
        return "" if self.stopped else self._stop.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """Return the text held back."""
        return "" if self.stopped else self._stop.push(self._detokenizer.finish()) + self._stop.finish()


class StopStrings:
    """Cuts a text before the first complete stop string, which may span several pieces.

    Only the longest suffix of the text that is a prefix of a stop string is held back. With the stop string END, "abE"
    gives "ab", and then "N" gives "". Then "x" gives "ENx", or "D" ends the text.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise ConfigError("stop: an empty string would end every text at once (leave it out)")
        self.stop, self.stopped, self._held = tuple(stop), False, ""

    def push(self, text: str) -> str:
        """Add a piece of text. Returns the text that is final now, because no stop string can begin in it."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(place + len(word), place) for word in self.stop if (place := text.find(word)) >= 0]
        self.stopped = bool(ends)
        sure = min(ends)[1] if ends else len(text) - max((_begun(text, word) for word in self.stop), default=0)
        self._held = "" if ends else text[sure:]
        return text[:sure]

    def finish(self) -> str:
        """Return the text held back for a stop string that was not completed."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, word: str) -> int:
    """Return the length of the longest proper prefix of `word` that `text` ends in."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)


class Detokenizer:
    """Decodes tokens into pieces of text that never end inside a character. The tokens follow the tokens `before`.

    Example: of the tokens C3 and A9 of "é" in a byte-level vocabulary, the first gives "" and the second "é". If
    `before` ends inside a character, the whole character is part of the new text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, before: Sequence[int] = ()) -> None:
        self._backend = backend
        self._window = _last_words(backend, before)  # tokens that are decoded together with the next one
        self._waiting = 0  # tokens at the window's end that have given no text yet
        self._start = self._decode(self._window)  # the text of `before` in the window, until the first piece
        self._whole = self._start  # the same without an incomplete character at its end
        for missing in range(1, min(4, len(self._window))):
            if not self._whole.endswith(REPLACEMENT):
                break
            self._whole = self._decode(self._window[:-missing])
        self._given = len(self._start)  # characters of the window's text already returned, or of `before`

    def push(self, token: int) -> str:
        """Add a token and return the characters that it completes."""
        self._window.append(token)
        self._waiting += 1
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):  # may become a character
            return self._give_up(text) if self._waiting > LONGEST_WAIT else ""
        piece = text[self._known(text) :]
        if piece:
            new = self._window[-self._waiting :]
            rest = self._decode(new)
            if rest.startswith(REPLACEMENT):  # begins inside a character: keep the whole window
                new, rest = self._window, text
            self._window, self._given, self._waiting, self._start = new, len(rest), 0, ""
        return piece

    def finish(self) -> str:
        """Return the bytes held back, which are not UTF-8, as U+FFFD."""
        text = self._decode(self._window)
        piece = text[self._known(text) :]
        self._start, self._given = "", len(text)
        return piece

    def _known(self, text: str) -> int:
        """Count the characters of the window's text that are not new. A character that only begins in `before` is
        new."""
        if self._start and not text.startswith(self._start):
            return max(_shared(had, text) for had in (self._start, self._whole))
        return self._given

    def _give_up(self, text: str) -> str:
        """Return the new text without its last three U+FFFD, which may be bytes of one character. Shorten the window.

        A window that is not shortened would grow with a model that repeats a stray byte, and be decoded whole at each
        step.
        """
        known, sure = self._known(text), len(text) - 3
        window = self._window[-CONTEXT:]
        rest = self._decode(window)
        if sure <= known or not rest.endswith(text[sure:]):
            return ""
        self._window, self._waiting, self._start = window, len(window), ""
        self._given = len(rest) - 3
        return text[known:sure]

    def _decode(self, tokens: list[int]) -> str:
        return self._backend.decode(tokens, skip_special_tokens=True)


def _shared(a: str, b: str) -> int:
    """Return the length of the common prefix of two texts."""
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _last_words(backend: tokenizers.Tokenizer, tokens: Sequence[int]) -> list[int]:
    """Return the last few of the tokens, beginning with a whole character, because decoding the whole prompt at each
    step is slow. The last CONTEXT tokens are tried first, then twice as many, and so on."""
    count = CONTEXT
    while count < len(tokens):
        last = list(tokens[-count:])
        text = backend.decode(last, skip_special_tokens=True)
        if text and not text.startswith(REPLACEMENT):
            return last
        count *= 2
    return list(tokens)
