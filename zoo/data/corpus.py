"""Where text comes from, as documents, and which of them train and which validate.

A corpus is read anew at each pass, so that only one file of it is in memory.
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
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".csv", ".json", ".jsonl", ".yaml", ".xml"}
# A file of more than 1/20 of a corpus could be a whole part of it, so it is cut into pieces of about 1/200.
LARGE, PIECES, SMALLEST_PIECE, LARGEST_PIECE = 20, 200, 256, 16384
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
FAULTS_SHOWN = 10


class Document(NamedTuple):
    """What the split never cuts: a file, or a piece of a large one (pieces count from 0)."""

    path: str
    piece: int
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their paths, empty ones left out.

    A file that is not text by git's rule (it has a NUL byte) is passed over, unless its suffix promises text. Any other
    file that is not UTF-8 is a fault when `strict`, and passed over otherwise.
    """

    root: Path
    files: tuple[Path, ...]
    strict: bool = True

    def __iter__(self) -> Iterator[Document]:
        """Raises ConfigError, with a line for each file that cannot be read, once all have been tried."""
        total = self.n_bytes
        faults = []
        for file in self.files:
            try:
                text = decode(file.read_bytes(), file.suffix, alone=len(self.files) == 1)
            except OSError as error:
                faults.append(f"data.path: cannot read {file}, found {error.strerror} (allow it, or move it away)")
            except UnicodeDecodeError as error:
                if self.strict:
                    found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
                    faults.append(f"data.path: {file} is not UTF-8, found {found} (convert it, or move it away)")
            else:
                yield from cut(file.relative_to(self.root).as_posix(), text, total)
        if faults:
            more = len(faults) - FAULTS_SHOWN
            raise ConfigError(*faults[:FAULTS_SHOWN], *([f"data.path: and {more} more such files"] if more > 0 else []))

    @property
    def n_bytes(self) -> int:
        """Of the files, text or not."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> str:
        """Of the content and its order; not of names, dates or the place on disk."""
        whole = hashlib.blake2b(digest_size=16)
        for document in self:
            data = document.text.encode()
            whole.update(f"{document.piece} {len(data)} ".encode())
            whole.update(data)
        return whole.hexdigest()


def stdlib_corpus() -> Corpus:
    """The source of the Python standard library on this machine, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))

    def keep(file: Path) -> bool:
        build_settings = file.name.startswith("_sysconfigdata") or file.parent.name.startswith("config-")
        return file.suffix == ".py" and not build_settings  # these differ from machine to machine

    files = walk(root, NOT_LIBRARY, keep)
    if not files:
        found = f"none in {root}"
        raise ConfigError(f"data.kind: stdlib reads Python's own source, found {found} (data=text data.path=FOLDER)")
    return Corpus(root, files, strict=False)


def text_corpus(path: str | Path) -> Corpus:
    """A file, or every text file of a folder and the folders in it, but for hidden ones."""
    root = Path(path).expanduser()
    if root.is_dir():
        files = walk(root, set(), lambda file: not file.name.startswith("."))
    elif root.is_file():
        files = (root,)
    else:
        raise ConfigError(f"data.path: no such file or folder, found {root} (a text file, or a folder of them)")
    corpus = Corpus(root if root.is_dir() else root.parent, files)
    if next(iter(corpus), None) is None:
        raise ConfigError(f"data.path: no text to read, found nothing in {root} (a text file, or a folder of them)")
    return corpus


def walk(root: Path, without: set[str], keep: Callable[[Path], bool]) -> tuple[Path, ...]:
    """Files below `root` in the order of their relative paths; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        what = f"cannot read {error.filename}, found {error.strerror}"
        raise ConfigError(f"data.path: {what} (allow it, or move it away)")

    found: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if name not in without and not name.startswith(".")]
        found += [file for name in names if keep(file := Path(folder, name)) and file.is_file()]
    return tuple(sorted(found, key=lambda file: file.relative_to(root).as_posix()))


def decode(data: bytes, suffix: str, *, alone: bool) -> str:
    """UTF-8 without its byte order mark; "" for one file among others that is not text. Raises UnicodeDecodeError."""
    if b"\0" in data:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        if alone or utf16 or suffix.lower() in TEXT_SUFFIXES:
            raise UnicodeDecodeError("utf-8", data, data.index(b"\0"), data.index(b"\0") + 1, "not text")
        return ""
    return data.decode("utf-8-sig")


def cut(path: str, text: str, total: int) -> Iterator[Document]:
    """The text as one document, or as pieces when it is a large part of a corpus of `total` bytes."""
    pieces: Iterable[str] = [text]
    if len(text) * LARGE > total:
        pieces = paragraphs(text, min(max(total // PIECES, SMALLEST_PIECE), LARGEST_PIECE))
    for number, piece in enumerate(pieces):
        if piece and not piece.isspace():
            yield Document(path, number, piece)


def paragraphs(text: str, size: int) -> Iterator[str]:
    """Pieces that joined are the text, of `size` to 2 × `size` characters (the last may be shorter).

    They end after a blank line; where none comes in time, at a line's end; where that does not either, anywhere.
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


def digest(text: str) -> bytes:
    """Equal for texts that differ in white space only: a copy with other line ends is a copy."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def split(documents: Iterable[Document], validation_fraction: float, max_bytes: int | None = None) -> list[Part | None]:
    """Which part each document belongs to; None for a repeated one and for those beyond `max_bytes`.

    The digest of its content decides, against a fixed threshold, so names and order change nothing, copies cannot
    stand on both sides, and a document stays where it is when the corpus grows. Only where a side would be empty does
    the document nearest to the threshold go there. Raises ConfigError when there are not two different documents.
    """
    first: dict[bytes, int] = {}
    sizes = []
    for number, document in enumerate(documents):
        first.setdefault(digest(document.text), number)
        sizes.append(len(document.text.encode()))
    kept = first if max_bytes is None else within(first, sizes, max_bytes)
    if len(kept) < 2:
        what = "a longer text" if max_bytes is None else f"a larger data.max_bytes than {max_bytes}"
        raise ConfigError(f"data: training and validation need a document each at least, found {len(kept)} ({what})")
    ranked = sorted(kept)
    threshold = int(validation_fraction * 2**64)
    n_validation = sum(int.from_bytes(key[:8], "big") < threshold for key in ranked)
    n_validation = min(max(n_validation, 1), len(ranked) - 1)
    parts: list[Part | None] = [None] * len(sizes)
    for rank, key in enumerate(ranked):
        parts[kept[key]] = "validation" if rank < n_validation else "train"
    return parts


def within(first: dict[bytes, int], sizes: list[int], max_bytes: int) -> dict[bytes, int]:
    """An even sample: documents taken while they fit, by the half of the digest that the split does not look at."""
    chosen = {}
    for key in sorted(first, key=lambda key: key[8:]):
        if sizes[first[key]] <= max_bytes:
            chosen[key] = first[key]
            max_bytes -= sizes[first[key]]
    return chosen


def joined(documents: Iterable[Document], parts: list[Part | None]) -> Iterator[tuple[Part, str]]:
    """The texts of each part; pieces that follow one another in a file and share a part are one text again.

    Raises ZooError when there are no longer as many documents as parts.
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
