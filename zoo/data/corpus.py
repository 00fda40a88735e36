"""Read text files as documents. Each pass reads the files again: only one file at a time is in memory."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from zoo.errors import ConfigError

# Folders of the standard library that are left out: third-party packages, tests, and the tables of `encodings`, which
# are generated and nearly equal, so that copies would be in both training and validation.
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".json", ".yaml", ".xml"}
# Files of records, with the text in one of their fields: training on the raw file would be training on its syntax.
RECORDS = {".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".avro", ".orc"}
PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz"}
# A file larger than 1/20 of the corpus is cut into about 200 pieces of 256 to 16,384 characters, so that some of them
# can validate.
LARGE, PIECES, SMALLEST_PIECE, LARGEST_PIECE = 20, 200, 256, 16384
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
FAULTS_SHOWN = 10
LARGE_FILE, BEGINNING = 1 << 26, 1 << 16  # bytes; a large file is binary if its beginning has a NUL, as in git
WOULD = "data=jsonl and data=parquet read records; or move it away"


class Document(NamedTuple):
    """The unit of the split: a file, a piece of a large one (pieces count from 0), or a record.

    `texts` is one text; for a pair, a source and a target; for a conversation, the parts of
    `zoo.data.chat.turns.Turns`, or a prompt and its completion.
    """

    path: str
    piece: int
    texts: tuple[str, ...]
    validates: bool = False
    """Whether the setting `validation` names this document. If it names none, all documents are split."""


class Documents(Protocol):
    """A source of text. Each iteration yields the same documents in the same order."""

    @property
    def n_bytes(self) -> int:
        """Estimate the bytes to read; 0 if unknown."""
        ...

    def __iter__(self) -> Iterator[Document]: ...


@dataclass(frozen=True)
class WithValidation:
    """The documents of two sources: one to train on, one to validate on."""

    train: Documents
    validation: Documents

    @property
    def n_bytes(self) -> int:
        return self.train.n_bytes + self.validation.n_bytes

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents of both sources. ConfigErrors of the second name `data.validation` in place of
        `data.path`."""
        yield from self.train
        try:
            for document in self.validation:
                yield document._replace(validates=True)
        except ConfigError as error:
            raise ConfigError(*(re.sub(r"^data\.path", "data.validation", fault) for fault in error.faults)) from error


@dataclass(frozen=True)
class Corpus:
    """Text files as documents, in the order of their paths, without the empty ones.

    Binary files (git's rule: they have a NUL byte) are skipped. With `strict`, three kinds of files are faults: a file
    in another encoding than UTF-8; a binary file that is the only file or has the suffix of a text file; and a file of
    records such as JSON Lines, or of packed text. Without `strict`, the first two kinds are skipped, and the third is
    read as any other file is.
    """

    root: Path
    files: tuple[Path, ...]
    strict: bool = True

    def __iter__(self) -> Iterator[Document]:
        """Read every file. Raises ConfigError after the last file if some cannot be read (a line for each of the first
        FAULTS_SHOWN), or if none has text."""
        total, empty = self.n_bytes, True
        faults = []
        for file in self.files:
            if self.strict and (found := describe_records_fault(file)):
                faults.append(found)
                continue
            try:
                text = decode_text(read_text_bytes(file), file.suffix, alone=len(self.files) == 1)
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
                for document in cut_document(file.relative_to(self.root).as_posix(), text, total):
                    empty = False
                    yield document
        if faults:
            more = len(faults) - FAULTS_SHOWN
            raise ConfigError(*faults[:FAULTS_SHOWN], *([f"data.path: and {more} more such files"] if more > 0 else []))
        if empty:
            place = self.files[0] if len(self.files) == 1 else self.root
            raise ConfigError(
                f"data.path: no text to read, found nothing in {place} (a text file, or a folder of them)"
            )

    @property
    def n_bytes(self) -> int:
        """Add up the files' sizes, text or not."""
        return sum(file.stat().st_size for file in self.files)


def open_stdlib_corpus() -> Corpus:
    """Open the Python standard library of this machine as a corpus of source files, without its tests. Raises
    ConfigError if no source file is found."""
    root = Path(sysconfig.get_path("stdlib"))

    def keep(file: Path) -> bool:
        build_settings = file.name.startswith("_sysconfigdata") or file.parent.name.startswith("config-")
        return file.suffix == ".py" and not build_settings  # these differ from machine to machine

    files = list_files(root, NOT_LIBRARY, keep)
    if not files:
        found = f"none in {root}"
        raise ConfigError(f"data.kind: stdlib reads Python's own source, found {found} (data=text data.path=FOLDER)")
    return Corpus(root, files, strict=False)


def open_text_corpus(path: str | Path, key: str = "data.path") -> Corpus:
    """Open a file, or all files below a folder that are not hidden. Raises ConfigError, which names the setting `key`,
    if `path` is missing."""
    root = Path(path).expanduser()
    if root.is_dir():
        files = list_files(root, set(), lambda file: not file.name.startswith("."))
    elif root.is_file():
        files = (root,)
    else:
        raise ConfigError(f"{key}: no such file or folder, found {root} (a text file, or a folder of them)")
    return Corpus(root if root.is_dir() else root.parent, files)


def list_files(root: Path, without: set[str], keep: Callable[[Path], bool]) -> tuple[Path, ...]:
    """List the files below `root` that pass `keep`, sorted by relative path. Hidden folders, folders named in `without`
    and links to folders are skipped. Raises ConfigError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        what = f"cannot read {error.filename}, found {error.strerror}"
        raise ConfigError(f"data.path: {what} (allow it, or move it away)")

    found: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if name not in without and not name.startswith(".")]
        found += [file for name in names if keep(file := Path(folder, name)) and file.is_file()]
    return tuple(sorted(found, key=lambda file: file.relative_to(root).as_posix()))


def describe_records_fault(file: Path) -> str | None:
    """Return why a file is refused if its suffixes mean records or packed text; None for any other file."""
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


def read_text_bytes(file: Path) -> bytes:
    """Read a file; of a large binary file, only the first BEGINNING bytes."""
    if file.stat().st_size > LARGE_FILE:
        with open(file, "rb") as stream:
            if b"\0" in (head := stream.read(BEGINNING)):
                return head
    return file.read_bytes()


def decode_text(data: bytes, suffix: str, *, alone: bool) -> str:
    """Decode UTF-8 without its byte order mark; "" for a binary file (one with a NUL). Raises UnicodeDecodeError for
    another encoding, and for a binary file that is `alone`, is UTF-16 or has the suffix of a text file."""
    if b"\0" in data:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        if alone or utf16 or suffix.lower() in TEXT_SUFFIXES:
            raise UnicodeDecodeError("utf-8", data, data.index(b"\0"), data.index(b"\0") + 1, "not text")
        return ""
    return data.decode("utf-8-sig")


def cut_document(path: str, text: str, total: int) -> Iterator[Document]:
    """Yield the text as one document, or in pieces if it is more than 1/20 of a corpus of `total` bytes."""
    pieces: Iterable[str] = [text]
    if len(text) * LARGE > total:
        pieces = cut_paragraphs(text, min(max(len(text) // PIECES, SMALLEST_PIECE), LARGEST_PIECE))
    for number, piece in enumerate(pieces):
        if piece and not piece.isspace():
            yield Document(path, number, (piece,))


def cut_paragraphs(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of `size` to 2 × `size` characters (the last may be shorter).

    A piece ends after the first blank line in that range, else after the last line end in it, else at 2 × `size`.
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
