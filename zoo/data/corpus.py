"""Read a corpus as documents, and split them into training and validation.

Each pass reads the files again, so that only one is in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from zoo.errors import ConfigError, ZooError

Part = Literal["train", "validation"]

# Folders below the standard library that are left out: other people's packages, tests, and the tables of `encodings`,
# which are made by a program and near copies of one another, so that they would stand on both sides of the split.
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".json", ".yaml", ".xml"}
# Records with the text in one of their fields: training on such a file would be training on its syntax.
RECORDS = {".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".avro", ".orc"}
PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz"}
# A file of more than 1/20 of a corpus is cut into pieces of about 1/200 of it, so that some of them can validate.
LARGE, PIECES, SMALLEST_PIECE, LARGEST_PIECE = 20, 200, 256, 16384
MOST_BLOCKS = 10  # contiguous blocks of validation text in one large file
PIECES_PER_BLOCK = 2  # at least, where a file has more than one block
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
FAULTS_SHOWN = 10
WOULD = "write its texts to .txt files and name their folder, or move it away"


class Document(NamedTuple):
    """The unit of the split: a file, or a piece of a large one (pieces count from 0)."""

    path: str
    piece: int
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their paths, without the empty ones.

    Binary files (with a NUL byte, which is git's rule) are skipped, unless their suffix promises text. Any other file
    that is not UTF-8 is a fault when `strict`, and skipped otherwise. So is a file of records, such as JSON Lines.
    """

    root: Path
    files: tuple[Path, ...]
    strict: bool = True

    def __iter__(self) -> Iterator[Document]:
        """Read every file. Raises ConfigError at the end, with a line for each that cannot be read as text."""
        total = self.n_bytes
        faults = []
        for file in self.files:
            if self.strict and (found := describe_records_fault(file)):
                faults.append(found)
                continue
            try:
                text = decode_text(file.read_bytes(), file.suffix, alone=len(self.files) == 1)
            except OSError as error:
                faults.append(f"data.path: cannot read {file}, found {error.strerror} (allow it, or move it away)")
            except UnicodeDecodeError as error:
                if self.strict:
                    found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
                    faults.append(f"data.path: {file} is not UTF-8, found {found} (convert it, or move it away)")
            else:
                if self.strict and file.suffix.lower() == ".json" and (len(self.files) == 1 or is_json_records(text)):
                    faults.append(f"data.path: {file} holds records, not text, found JSON ({WOULD})")
                    continue
                yield from cut_document(file.relative_to(self.root).as_posix(), text, total)
        if faults:
            more = len(faults) - FAULTS_SHOWN
            raise ConfigError(*faults[:FAULTS_SHOWN], *([f"data.path: and {more} more such files"] if more > 0 else []))

    @property
    def n_bytes(self) -> int:
        """Add up the files' sizes, text or not."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> str:
        """Hash the content and its order, but not names, dates or the place on disk."""
        whole = hashlib.blake2b(digest_size=16)
        for document in self:
            data = document.text.encode()
            whole.update(f"{document.piece} {len(data)} ".encode())
            whole.update(data)
        return whole.hexdigest()


def open_stdlib_corpus() -> Corpus:
    """Open the Python standard library of this machine as a corpus of source files, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))

    def keep(file: Path) -> bool:
        build_settings = file.name.startswith("_sysconfigdata") or file.parent.name.startswith("config-")
        return file.suffix == ".py" and not build_settings  # these differ from machine to machine

    files = list_files(root, NOT_LIBRARY, keep)
    if not files:
        found = f"none in {root}"
        raise ConfigError(f"data.kind: stdlib reads Python's own source, found {found} (data=text data.path=FOLDER)")
    return Corpus(root, files, strict=False)


def open_text_corpus(path: str | Path) -> Corpus:
    """Open a file, or every text file below a folder, without hidden ones. Raises ConfigError where there is no
    text."""
    root = Path(path).expanduser()
    if root.is_dir():
        files = list_files(root, set(), lambda file: not file.name.startswith("."))
    elif root.is_file():
        files = (root,)
    else:
        raise ConfigError(f"data.path: no such file or folder, found {root} (a text file, or a folder of them)")
    corpus = Corpus(root if root.is_dir() else root.parent, files)
    if next(iter(corpus), None) is None:
        raise ConfigError(f"data.path: no text to read, found nothing in {root} (a text file, or a folder of them)")
    return corpus


def list_files(root: Path, without: set[str], keep: Callable[[Path], bool]) -> tuple[Path, ...]:
    """List the files below `root` in the order of their relative paths. Links to folders are not followed."""

    def refuse(error: OSError) -> None:
        what = f"cannot read {error.filename}, found {error.strerror}"
        raise ConfigError(f"data.path: {what} (allow it, or move it away)")

    found: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if name not in without and not name.startswith(".")]
        found += [file for name in names if keep(file := Path(folder, name)) and file.is_file()]
    return tuple(sorted(found, key=lambda file: file.relative_to(root).as_posix()))


def describe_records_fault(file: Path) -> str | None:
    """Write the line for a file of records, or for packed text, recognised by its suffixes; None for any other file."""
    *before, last = ["", *(suffix.lower() for suffix in file.suffixes)]
    packed = last in PACKED
    kind = before[-1] if packed and before else last
    if kind in RECORDS:
        return f"data.path: {file} holds records, not text, found {kind} ({WOULD})"
    if packed and kind in TEXT_SUFFIXES:
        return f"data.path: {file} is packed, found {last} (unpack it, or move it away)"
    return None


def is_json_records(text: str) -> bool:
    """Tell whether a .json file is a data set: a list of objects, or an object in each line."""
    lines = [line.strip() for line in text.strip().split("\n", 2)[:2]]
    in_lines = len(lines) == 2 and lines[0].endswith("}") and all(line.startswith("{") for line in lines)
    return in_lines or re.match(r"\s*\[\s*\{", text) is not None


def decode_text(data: bytes, suffix: str, *, alone: bool) -> str:
    """Decode UTF-8 without its byte order mark; "" for a binary file among others. Raises UnicodeDecodeError."""
    if b"\0" in data:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        if alone or utf16 or suffix.lower() in TEXT_SUFFIXES:
            raise UnicodeDecodeError("utf-8", data, data.index(b"\0"), data.index(b"\0") + 1, "not text")
        return ""
    return data.decode("utf-8-sig")


def cut_document(path: str, text: str, total: int) -> Iterator[Document]:
    """Yield the text as one document, or as pieces when it is a large part of a corpus of `total` bytes."""
    pieces: Iterable[str] = [text]
    if len(text) * LARGE > total:
        pieces = cut_paragraphs(text, min(max(len(text) // PIECES, SMALLEST_PIECE), LARGEST_PIECE))
    for number, piece in enumerate(pieces):
        if piece and not piece.isspace():
            yield Document(path, number, piece)


def cut_paragraphs(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of `size` to 2 × `size` characters (the last may be shorter).

    A piece ends after a blank line; where none comes in time, after a line; where no line ends either, anywhere.
    """
    start = 0
    while len(text) - start > size:
        limit = start + 2 * size
        if blank := BLANK_LINE.search(text, max(start, start + size - 2), limit):
            end = blank.end()
        elif limit >= len(text):
            break
        else:
            end = text.rfind("\n", start + size - 1, limit) + 1 or limit
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def hash_text(text: str) -> bytes:
    """Hash a text without its white space: a copy with other line ends is a copy."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def split_corpus(
    documents: Iterable[Document], validation_fraction: float, max_bytes: int | None = None
) -> list[Part | None]:
    """Choose the part of each document; None for a repeated one and for those left out by `max_bytes`.

    Validation gets its fraction of the bytes, in contiguous blocks. A large file (one in pieces) gives blocks of its
    own, at the end of each of up to MOST_BLOCKS equal sections. The rest are whole files, in the order of the hash of
    their content until there are bytes enough. So neither names nor order matter, no copy stands in both parts, and a
    file that is added moves about as much text as it has itself. Raises ConfigError unless both parts get a document.

    Example: of a book of 1,000,000 bytes and a fraction of 0.05, validation has the bytes from 190,000 to 200,000, from
    390,000 to 400,000 and so on, cut where paragraphs end.
    """
    units = [Unit(hash_text(each.text), each.path, len(each.text.encode())) for each in documents]
    first: dict[bytes, int] = {}
    for number, unit in enumerate(units):
        first.setdefault(unit.key, number)
    kept = sorted(first.values(), key=lambda number: units[number].key)
    chosen = choose_validation(units, kept, validation_fraction)
    validation, train = ([n for n in kept if (n in chosen) == side] for side in (True, False))
    if max_bytes is not None:
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


def describe_missing_part(pieces: int, different: int, chosen: int, max_bytes: int | None) -> str:
    """Word why there is no text for one of the two parts: so many pieces, so many of them different, so many
    chosen."""
    if different == 1 and pieces > 1:
        found = f"found {pieces:,} pieces of text that are all the same, of which one is kept"
        return f"data: training and validation need different text, {found} (a text that repeats itself less)"
    what = "a longer text" if max_bytes is None else f"a larger data.max_bytes than {max_bytes}"
    return f"data: training and validation need a document each at least, found {chosen} ({what})"


class Unit(NamedTuple):
    """A document as the split sees it: the hash of its text, its file, and its bytes."""

    key: bytes
    path: str
    size: int


def choose_validation(units: list[Unit], kept: list[int], fraction: float) -> set[int]:
    """Choose the documents that validate, of those `kept`, which are in the order of their hashes. Neither part is
    empty."""
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
    """Choose the validation pieces of one file: it is divided into sections of equally many bytes, and each gives the
    pieces at its end."""
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
    """Sample documents of `room` bytes evenly: they are taken while they fit, in the order of the half of the hash that
    the split does not use. Where none fits, the smallest is taken if it has at most `most` bytes."""
    chosen = []
    for number in sorted(numbers, key=lambda number: units[number].key[8:]):
        if units[number].size <= room:
            chosen.append(number)
            room -= units[number].size
    smallest = min(numbers, key=lambda number: units[number].size, default=None)
    if not chosen and smallest is not None and units[smallest].size <= most:
        return [smallest]
    return chosen


def join_pieces(documents: Iterable[Document], parts: list[Part | None]) -> Iterator[tuple[Part, str]]:
    """Yield the texts of each part. Pieces that follow one another in a file and share a part are joined again.

    Raises ZooError when the corpus no longer has as many documents as there are parts.
    """
    held: list[str] = []
    held_part: Part | None = None
    expected = ("", 0)
    try:
        for document, part in zip(documents, parts, strict=True):
            if (document.path, document.piece) != expected or part != held_part:
                if held_part is not None:
                    yield held_part, "".join(held)
                held = []
            held.append(document.text)
            held_part, expected = part, (document.path, document.piece + 1)
    except ValueError as error:  # of the zip
        raise ZooError("data: the corpus changed while it was read (start again)") from error
    if held_part is not None:
        yield held_part, "".join(held)
