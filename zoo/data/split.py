"""Split documents into training and validation by a hash of their content, and rejoin the pieces of each part."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator
from typing import Literal, NamedTuple

from zoo.data.corpus import Document, cut_paragraphs
from zoo.errors import ConfigError, ZooError

Part = Literal["train", "validation"]

Texts = tuple[str, ...]
"""The texts of a document (`zoo.data.corpus.Document`)."""

MOST_BLOCKS = 10  # contiguous blocks of validation text in one large file
LONGEST = 1 << 20
"""Texts of more characters are cut: a tokenizer encodes a text on one core, with about 120 bytes of memory a
character."""
PIECES_PER_BLOCK = 2  # fewest pieces in a block, where a file has several blocks


def hash_text(text: str) -> bytes:
    """Hash a text with each run of white space replaced by a space, so that copies with other line ends are
    duplicates."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def split_units(units: list[Unit], validation_fraction: float, max_bytes: int | None = None) -> list[Part | None]:
    """Choose the part of each document from its Unit; None for duplicates and for documents left out by `max_bytes`. If
    the setting `validation` names documents, they validate, and all others train, limited by `max_bytes`.

    Otherwise validation gets its fraction of the bytes. A large file (one in pieces) gives contiguous blocks, one at
    the end of each of up to MOST_BLOCKS equal sections. Then whole files are added, in the order of their content's
    hash, until the fraction is reached. So names and order do not matter, and no text is in both parts. Adding a file
    moves no more text between the parts than about the file's size. Raises ConfigError unless both parts get a
    document.

    Example: of a book of 1,000,000 bytes and a fraction of 0.05, validation has the bytes from 190,000 to 200,000, from
    390,000 to 400,000 and so on, cut where paragraphs end.
    """
    first: dict[tuple[bytes, bool], int] = {}
    for number, unit in enumerate(units):
        first.setdefault((unit.key, unit.validates), number)
    kept = sorted(first.values(), key=lambda number: units[number].key)
    named = {number for number in kept if units[number].validates}
    chosen = named or choose_validation(units, kept, validation_fraction)
    validation, train = ([n for n in kept if (n in chosen) == side] for side in (True, False))
    if max_bytes is not None and named:
        train = sample_within(units, train, max_bytes)
    elif max_bytes is not None:
        validation = sample_within(units, validation, round(max_bytes * validation_fraction), max_bytes)
        train = sample_within(units, train, max_bytes - sum(units[n].size for n in validation))
    if not (validation and train):
        raise ConfigError(describe_missing_part(len(units), len(kept), len(validation) + len(train), max_bytes))
    parts: list[Part | None] = [None] * len(units)
    for number in validation:
        parts[number] = "validation"
    for number in train:
        parts[number] = "train"
    return parts


def keep_whole(units: list[Unit], max_bytes: int | None = None) -> list[Part | None]:
    """Put all documents into validation, duplicates too; with `max_bytes`, a sample (by hash) of at most that size.
    Raises ConfigError if there are none."""
    everything = list(range(len(units)))
    chosen = set(everything if max_bytes is None else sample_within(units, everything, max_bytes))
    if not chosen:
        what = "a text" if max_bytes is None else f"a larger data.max_bytes than {max_bytes}"
        raise ConfigError(f"data: there is nothing to score, found {len(units)} documents ({what})")
    return ["validation" if number in chosen else None for number in everything]


def describe_missing_part(pieces: int, different: int, chosen: int, max_bytes: int | None) -> str:
    """Describe why a part is empty, given the numbers of pieces, of different pieces and of chosen pieces."""
    if different == 1 and pieces > 1:
        found = f"found {pieces:,} pieces of text that are all the same, of which one is kept"
        return f"data: training and validation need different text, {found} (a text that repeats itself less)"
    what = "a longer text" if max_bytes is None else f"a larger data.max_bytes than {max_bytes}"
    return f"data: training and validation need a document each at least, found {chosen} ({what})"


class Unit(NamedTuple):
    """The facts about a document that the split needs: the hash of its text, its file, its size in bytes, and whether
    the setting `validation` names it."""

    key: bytes
    path: str
    size: int
    validates: bool = False


def measure_unit(document: Document) -> Unit:
    """Measure a document for the split. A pair is hashed as a whole: two targets of one source are two documents."""
    size = sum(len(text.encode()) for text in document.texts)
    return Unit(hash_text("\0".join(document.texts)), document.path, size, document.validates)


def describe_copies(train: Iterable[Hashable], validation: Iterable[Hashable]) -> Iterator[str]:
    """Yield a warning with the number of texts in a separate `validation` source that are also in the training data."""
    if not (held := [*validation]):
        return
    known = {*train}
    if copies := sum(each in known for each in held):
        yield f"data: {copies:,} of {len(held):,} records that validate have a text that trains too"


def choose_validation(units: list[Unit], kept: list[int], fraction: float) -> set[int]:
    """Choose the validation documents among `kept`, which are sorted by hash. If there are two documents or more,
    validation and training each get at least one."""
    files: dict[str, list[int]] = {}
    for number, unit in enumerate(units):
        files.setdefault(unit.path, []).append(number)
    large = [numbers for numbers in files.values() if len(numbers) > 1]
    in_pieces = {number for numbers in large for number in numbers}
    chosen = {number for numbers in large for number in choose_blocks(units, numbers, fraction)} & set(kept)
    missing = fraction * sum(units[n].size for n in kept) - sum(units[n].size for n in chosen)
    for number in kept:
        if number not in in_pieces and missing >= units[number].size / 2:
            chosen.add(number)
            missing -= units[number].size
    if not chosen:
        return set(kept[:1]) if len(kept) > 1 else set()
    return chosen - set(kept[-1:]) if len(chosen) == len(kept) else chosen


def choose_blocks(units: list[Unit], numbers: list[int], fraction: float) -> set[int]:
    """Choose the validation pieces of one file: the last pieces of each section. The sections have equal bytes."""
    total = sum(units[number].size for number in numbers)
    sections = min(MOST_BLOCKS, max(1, int(fraction * len(numbers) / PIECES_PER_BLOCK)))
    length, start, chosen = total / sections, 0, set()
    for number in numbers:
        middle = start + units[number].size / 2
        if middle % length >= (1 - fraction) * length:
            chosen.add(number)
        start += units[number].size
    return chosen


def sample_within(units: list[Unit], numbers: list[int], room: int, most: int = 0) -> list[int]:
    """Sample documents of at most `room` bytes in all. They are tried in the order of the second half of their hash,
    and taken if they still fit. If none fits, the smallest is taken if it has at most `most` bytes."""
    chosen = []
    for number in sorted(numbers, key=lambda number: units[number].key[8:]):
        if units[number].size <= room:
            chosen.append(number)
            room -= units[number].size
    smallest = min(numbers, key=lambda number: units[number].size, default=None)
    if not chosen and smallest is not None and units[smallest].size <= most:
        return [smallest]
    return chosen


def join_pieces(documents: Iterable[Document], parts: Iterable[Part | None]) -> Iterator[tuple[Part, Texts]]:
    """Yield texts with their part; documents whose part is None are left out. Consecutive pieces of a file in one part
    are joined; a text of more than LONGEST characters is cut where a paragraph ends.

    Raises ZooError when the corpus no longer has as many documents as there are parts.
    """
    held: list[tuple[str, ...]] = []
    held_part: Part | None = None
    expected = ("", 0)
    try:
        for document, part in zip(documents, parts, strict=True):
            if (document.path, document.piece) != expected or part != held_part:
                if held_part is not None:
                    yield from cut_long(held_part, held)
                held = []
            held.append(document.texts)
            held_part, expected = part, (document.path, document.piece + 1)
    except ValueError as error:  # from zip: the lengths differ
        raise ZooError("data: the corpus changed while it was read (start again)") from error
    if held_part is not None:
        yield from cut_long(held_part, held)


def cut_long(part: Part, pieces: list[Texts]) -> Iterator[tuple[Part, Texts]]:
    """Join the pieces of one text. If it has more than LONGEST characters, cut it into texts of LONGEST to 2 × LONGEST
    characters (the last may be shorter). A pair is never cut."""
    if len(pieces[0]) > 1:
        yield part, pieces[0]
        return
    for text in cut_paragraphs("".join(text for (text,) in pieces), LONGEST):
        yield part, (text,)
