"""Read records as documents: JSON Lines here, Parquet in `zoo.data.parquet`. Each record is a text, or a pair of source
and target. `zoo.data.labelled_records` reads labelled records.

A record that cannot be read is named by its file and line. Reading stops after FAULTS_SHOWN such records.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, ClassVar

from zoo.data.corpus import FAULTS_SHOWN, Document, list_files
from zoo.errors import CheckpointError, ConfigError, short
from zoo.untrusted.lines import read_lines
from zoo.untrusted.printable import escape_controls, quote, shorten

JSONL = (".jsonl", ".ndjson")
PACKED_JSONL = tuple(f"{suffix}{packed}" for suffix in JSONL for packed in (".gz", ".zst"))
FIELDS_SHOWN = 8
SIGNS = {
    "messages": "messages",
    "conversations": "sharegpt",
    "instruction": "alpaca",
    "completion": "prompt_completion",
    "rejected": "preference",
}
"""Maps a field name to the form of conversations (`zoo.data.chat.forms`) that has it, to suggest this form."""
RATIO, SMALL = 100, 1 << 28
"""A compressed file is refused if it unpacks to more than SMALL bytes and more than RATIO times its size: text
compresses to about a tenth."""


def find_files(path: str, suffixes: Sequence[str], key: str = "data.path") -> tuple[Path, ...]:
    """List the files of `path`: itself, the files below a folder with one of the suffixes, or the matches of a pattern.

    Raises ConfigError, which names the setting `key`, if there are none.
    """
    root = Path(path).expanduser()
    wanted = ", ".join(suffixes)
    if root.is_file():
        return (root,)
    if root.is_dir():
        found = list_files(
            root, set(), lambda file: file.name.lower().endswith(tuple(suffixes)) and not file.name.startswith(".")
        )
    else:
        found = tuple(sorted(each for each in match_pattern(root) if each.is_file()))
        if not found and not glob.has_magic(str(root)):
            raise ConfigError(f"{key}: no such file or folder, found {root} (a file, or a folder of {wanted})")
    if not found:
        raise ConfigError(f"{key}: no records to read, found nothing in {root} (a file, or a folder of {wanted})")
    return found


def match_pattern(pattern: Path) -> Iterator[Path]:
    """List the matches of a pattern as `glob` does, but `**` follows no links, because they may be circular."""
    parts = pattern.parts
    if "**" not in parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files = (Path(folder, name) for name in names if not name.startswith("."))
        yield from (file for file in files if matches(file.relative_to(root).parts, parts[first:]))


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern, in which `**` stands for any number of folders."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return len(pattern) == 1 or any(matches(parts[skip:], pattern[1:]) for skip in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


class Faults:
    """Collects faults of records, reported under the setting `key`. When FAULTS_SHOWN are collected, raises ConfigError
    with all of them."""

    def __init__(self, key: str = "data.path") -> None:
        self.key = key
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(f"{self.key}: {escape_controls(line)}")
        if len(self.lines) >= FAULTS_SHOWN:
            raise ConfigError(*self.lines, f"{self.key}: reading stopped here, there may be more")

    def settle(self) -> None:
        """Raise ConfigError if there are faults."""
        if self.lines:
            raise ConfigError(*self.lines)


def name_keys(columns: Sequence[str]) -> str:
    """Name the config keys that choose these columns."""
    return "data.field=NAME" if len(columns) == 1 else "data.source=NAME data.target=NAME"


def has_fields(record: Mapping[str, Any], columns: Sequence[str], keys: str, where: str, faults: Faults) -> bool:
    """Whether a record has all fields `columns`. A missing field is added to `faults`, with the config's `keys` that
    choose the fields."""
    for column in columns:
        if column not in record:
            fields = ", ".join(shorten(str(each), 40) for each in list(record)[:FIELDS_SHOWN]) or "none"
            named = [form for sign, form in SIGNS.items() if sign in record and column in ("text", *SIGNS)]
            forms = "".join(f"data.form={form}, " for form in named)
            faults.add(f"{where} has no field '{column}', found {fields} ({forms}{keys}, or a record that has it)")
            return False
    return True


def is_text(text: object, column: str, where: str, faults: Faults) -> bool:
    """Whether a field's value is a text that UTF-8 can encode. Any other value is added to `faults`."""
    if not isinstance(text, str):
        faults.add(f"{where} has no text in '{column}', found {quote(text)} (a string, or another field)")
        return False
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x} alone at character {error.start}"
        faults.add(f"{where} has half a character in '{column}', found {found} (both halves, or neither)")
        return False
    return True


def read_texts(record: Mapping[str, Any], columns: Sequence[str], where: str, faults: Faults) -> tuple[str, ...] | None:
    """Read the texts in a record's fields; None if one is empty, or has a fault, which is added to `faults`."""
    texts = tuple(record[column] for column in columns)
    if not all(is_text(text, column, where, faults) for text, column in zip(texts, columns, strict=True)):
        return None
    return None if any(not text or text.isspace() for text in texts) else texts


class RecordSource:
    """A source of records that can be read repeatedly: as documents made of `columns`, or as mappings."""

    columns: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Estimate the bytes to read; 0 if unknown."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Document]:
        """Read every record as a document. Raises ConfigError with a line for each bad record, or if none has text."""

        def find_texts(record: Mapping[str, Any], where: str, faults: Faults) -> tuple[str, ...] | None:
            there = has_fields(record, self.columns, name_keys(self.columns), where, faults)
            return read_texts(record, self.columns, where, faults) if there else None

        return self.list_documents(find_texts)

    def list_documents(
        self, find_texts: Callable[[Mapping[str, Any], str, Faults], tuple[str, ...] | None]
    ) -> Iterator[Document]:
        """Yield a document for each record of which `find_texts` finds texts. Raises ConfigError as `__iter__` does."""
        faults, found = Faults(), False
        for where, record in self.read(faults):
            if (texts := find_texts(record, where, faults)) is not None:
                found = True
                yield Document(where, 0, texts)
        faults.settle()
        self.refuse_nothing(found)

    def read(self, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each record with its place, for messages. Unreadable records are added to `faults`."""
        raise NotImplementedError

    def refuse_nothing(self, found: bool) -> None:
        """Raise ConfigError unless a record was `found`."""
        raise NotImplementedError


@dataclass(frozen=True)
class RecordFiles(RecordSource):
    """Files of records, read in the order of files and lines. Records without text give no document.

    `keys` names the config keys that choose the columns, for messages. Records may have the `optional` fields too.
    """

    suffixes: ClassVar[tuple[str, ...]]
    """The endings of these files' names."""

    files: tuple[Path, ...]
    columns: tuple[str, ...]
    keys: str
    optional: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Add up the files' sizes on disk, compressed or not."""
        return sum(file.stat().st_size for file in self.files)

    def read(self, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for file in self.files:
            yield from self.read_file(file, faults)

    def read_file(self, file: Path, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        raise NotImplementedError

    def refuse_nothing(self, found: bool) -> None:
        """Raise ConfigError unless a record was `found`. The message distinguishes empty files from files without a
        text."""
        if not found:
            empty = all(file.stat().st_size == 0 for file in self.files)
            what = "an empty file" if empty else "no record with a text"
            first, *others = self.files
            more = f" and {len(others)} more" if others else ""
            raise ConfigError(f"data.path: {first}{more}: nothing to read, found {what} (records with texts)")


class JsonLines(RecordFiles):
    """JSON Lines. Blank lines are skipped."""

    suffixes = (*JSONL, *PACKED_JSONL)

    def read_file(self, file: Path, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return ((f"{file}, line {line:,}", record) for line, record in read_json_lines(file, faults))


def read_json_lines(file: Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with their line numbers, from 1. A line that is no JSON object is a fault."""
    offset, number = 0, 0
    try:
        most = max(SMALL, RATIO * file.stat().st_size)
        with open_packed(file) as stream:
            for number, line in enumerate(read_lines(stream, str(file)), 1):
                if offset > most:
                    faults.add(
                        f"{file} unpacks to more than {RATIO} times its size after line {number:,} (a file of text)"
                    )
                    return
                record = parse_line(line, f"{file}, line {number:,}", offset, faults)
                offset += len(line)
                if record is not None:
                    yield number, record
    except CheckpointError as error:  # a line beyond the limit of length
        faults.add(str(error))
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            faults.add(f"cannot read {file}, found {error.strerror} (allow it, or move it away)")
            return
        faults.add(f"{file} is damaged after line {number:,}, found {short(error)} (a whole file)")


def parse_line(line: bytes, where: str, offset: int, faults: Faults) -> dict[str, Any] | None:
    """Parse one line as an object; None for a blank or faulty line. `offset` is the place of the line's first byte in
    the file."""
    line = line.rstrip()
    if offset == 0:
        line = line.removeprefix(codecs.BOM_UTF8)
    if not line:
        return None
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at {offset + error.start}"
        faults.add(f"{where} is not UTF-8, found {found} (convert it)")
    except json.JSONDecodeError as error:
        found = f"{error.msg.removesuffix(' at')} at {offset + len(error.doc[: error.pos].encode())}"
        faults.add(f"{where} is not JSON, found {found} (an object in each line)")
    except RecursionError:
        faults.add(f"{where} is not read as JSON, found too many brackets within one another (fewer)")
    except ValueError as error:  # an integer of thousands of digits
        faults.add(f"{where} is not read as JSON, found {shorten(str(error))} (a shorter number)")
    else:
        if isinstance(record, dict):
            return record
        faults.add(f"{where} is no record, found {quote(record)} (an object in each line)")
    return None


@contextmanager
def open_packed(file: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if its suffix says gzip or zstd. Raises ConfigError if the package for zstd is missing,
    and EOFError for damaged zstd."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        with gzip.open(file, "rb") as lines:
            yield lines  # pyright: ignore[reportReturnType]
    elif suffix == ".zst":
        zstd = import_zstd(file)
        try:
            with zstd.open(file, "rb") as lines:
                yield lines
        except zstd.ZstdError as error:
            raise EOFError(str(error)) from error
    else:
        with open(file, "rb") as lines:
            yield lines


def import_zstd(file: Path) -> Any:
    """Import Python's own zstd (3.14), or its backport. Unlike `zstandard`, both detect a truncated file."""
    if sys.version_info >= (3, 14):
        return import_package("compression.zstd", "a Python with zstd", f"{file} is packed by zstd")
    return import_package("backports.zstd", "'transformer-zoo[zstd]'", f"{file} is packed by zstd")


def import_package(name: str, install: str, what: str) -> Any:
    """Import a package of an optional extra. Raises ConfigError that says how to install it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"data.path: {what}, found no {name} (pip install {install})") from error
