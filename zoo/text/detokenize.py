"""Decode tokens to text as they come: whole characters only, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

REPLACEMENT = "\ufffd"  # what a decoder gives for bytes that are no character, or not one yet
CONTEXT = 8  # tokens decoded along with a new one: how a token is spelled may depend on those before it
LONGEST_WAIT = 16  # tokens that end in no character; a character has four bytes, so these are none and never will be


class TextStream:
    """Turn one sequence's tokens into its text: what `push` of each token and then `finish` return, joined.

    The text ends before the first of the strings `stop`, and `stopped` says so; what is pushed afterwards is ignored.
    `before` are the tokens that the sequence continues.
    """

    def __init__(self, backend: tokenizers.Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(backend, before)
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def push(self, token: int) -> str:
        """Take a token and return the text that is certain now."""
        return "" if self.stopped else self._stop.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """Return what was held back."""
        return "" if self.stopped else self._stop.push(self._detokenizer.finish()) + self._stop.finish()


class StopStrings:
    """Cut a text before the first stop string that is complete, even one that spans several pieces.

    Held back is the longest end of the text that a stop string begins with, and nothing else. With the stop string END,
    "abE" gives "ab"; "N" then gives nothing, "x" gives "ENx" and "D" the end.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise ConfigError("stop: an empty string would end every text at once (leave it out)")
        self.stop, self.stopped, self._held = tuple(stop), False, ""

    def push(self, text: str) -> str:
        """Take a piece of text and return what is before every stop string that may be coming."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(place + len(word), place) for word in self.stop if (place := text.find(word)) >= 0]
        self.stopped = bool(ends)
        sure = min(ends)[1] if ends else len(text) - max((_begun(text, word) for word in self.stop), default=0)
        self._held = "" if ends else text[sure:]
        return text[:sure]

    def finish(self) -> str:
        """Return what was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, word: str) -> int:
    """The length of the longest proper prefix of `word` that `text` ends in."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)


class Detokenizer:
    """Decode tokens, which follow the tokens `before`, to pieces of text that never end inside a character.

    For the tokens of "é" in a byte-level vocabulary, C3 and A9, the first gives nothing and the second "é". Where
    `before` ends inside a character, the whole character is part of the new text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, before: Sequence[int] = ()) -> None:
        self._backend = backend
        self._window = _last_words(backend, before)  # tokens that are decoded together with the next one
        self._waiting = 0  # how many of them are new since a piece was given
        self._start = self._decode(self._window)  # the text of `before` in the window, until the first piece
        self._whole = self._start  # the same without the bytes at its end that are no character yet
        for missing in range(1, min(4, len(self._window))):
            if not self._whole.endswith(REPLACEMENT):
                break
            self._whole = self._decode(self._window[:-missing])
        self._given = len(self._start)  # characters of the window's text that were given, or are `before`

    def push(self, token: int) -> str:
        """Take a token and return the characters that it completes."""
        self._window.append(token)
        self._waiting += 1
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):  # may become a character
            return self._give_up(text) if self._waiting > LONGEST_WAIT else ""
        piece = text[self._known(text) :]
        if piece:
            new = self._window[-self._waiting :]
            rest = self._decode(new)
            if rest.startswith(REPLACEMENT):  # begins inside a character: decoded alone, what follows might be spoiled
                new, rest = self._window, text
            self._window, self._given, self._waiting, self._start = new, len(rest), 0, ""
        return piece

    def finish(self) -> str:
        """Return what was held back: bytes that are no character, as U+FFFD."""
        text = self._decode(self._window)
        piece = text[self._known(text) :]
        self._start, self._given = "", len(text)
        return piece

    def _known(self, text: str) -> int:
        """How many characters of the window's text are not new. Bytes at the end of `before` may have become part of a
        character, which is then new."""
        if self._start and not text.startswith(self._start):
            return max(_shared(had, text) for had in (self._start, self._whole))
        return self._given

    def _give_up(self, text: str) -> str:
        """Give all but the last three U+FFFD, which may be bytes of one character, and shorten the window.

        Without this a model that writes the same stray byte for ever would have all of them decoded at each step.
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
    """How many characters two texts begin with alike."""
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _last_words(backend: tokenizers.Tokenizer, tokens: Sequence[int]) -> list[int]:
    """The last tokens whose text begins with a character. Decoding a whole prompt at every step would take too long."""
    count = CONTEXT
    while count < len(tokens):
        last = list(tokens[-count:])
        text = backend.decode(last, skip_special_tokens=True)
        if text and not text.startswith(REPLACEMENT):
            return last
        count *= 2
    return list(tokens)
