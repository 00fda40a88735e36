"""Read records as documents: JSON Lines here, Parquet in `zoo.data.parquet`. Each record is a document; or a pair, a
source and its target. Labelled records are read as they are (`zoo.data.labelled`).

A record that cannot be read is named by its file and line. Reading stops after a few of them.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, ClassVar

from zoo.data.corpus import FAULTS_SHOWN, Document, list_files
from zoo.errors import CheckpointError, ConfigError, short
from zoo.untrusted.lines import read_lines
from zoo.untrusted.text import escape_controls, shorten

JSONL = (".jsonl", ".ndjson")
PACKED_JSONL = tuple(f"{suffix}{packed}" for suffix in JSONL for packed in (".gz", ".zst"))
FIELDS_SHOWN = 8
RATIO, SMALL = 100, 1 << 28
"""A packed file that unpacks to more than SMALL bytes, and to more than RATIO times its own, is no text: text packs to
a tenth."""


def find_files(path: str, suffixes: Sequence[str], key: str = "data.path") -> tuple[Path, ...]:
    """List the files that `key` means: a file, those below a folder by their suffix, or those of a pattern.

    Raises ConfigError where there are none.
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
    """List what a pattern matches, as `glob` does, but that `**` follows no links: two that lead round would give it
    paths without end."""
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
    """Tell whether the parts of a path match those of a pattern, in which `**` stands for any number of folders."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return len(pattern) == 1 or any(matches(parts[skip:], pattern[1:]) for skip in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


class Faults:
    """The faults that were found so far, with the `key` that named the records. Raises ConfigError with all of them
    when there are FAULTS_SHOWN."""

    def __init__(self, key: str = "data.path") -> None:
        self.key = key
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(f"{self.key}: {escape_controls(line)}")
        if len(self.lines) >= FAULTS_SHOWN:
            raise ConfigError(*self.lines, f"{self.key}: reading stopped here, there may be more")

    def settle(self) -> None:
        """Raise ConfigError where there are any."""
        if self.lines:
            raise ConfigError(*self.lines)


def name_keys(columns: Sequence[str]) -> str:
    """Name the keys of a config that choose these columns."""
    return "data.field=NAME" if len(columns) == 1 else "data.source=NAME data.target=NAME"


def has_fields(record: Mapping[str, Any], columns: Sequence[str], keys: str, where: str, faults: Faults) -> bool:
    """Whether a record has all of these fields, which the `keys` of the config name. One that it lacks is a fault."""
    for column in columns:
        if column not in record:
            fields = ", ".join(shorten(str(each), 40) for each in list(record)[:FIELDS_SHOWN]) or "none"
            faults.add(f"{where} has no field '{column}', found {fields} ({keys}, or a record that has it)")
            return False
    return True


def is_text(text: Any, column: str, where: str, faults: Faults) -> bool:
    """Whether the value of a field is a text that UTF-8 can hold. Another value is a fault."""
    if not isinstance(text, str):
        faults.add(f"{where} has no text in '{column}', found {type(text).__name__} (a string, or another field)")
        return False
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x} alone at character {error.start}"
        faults.add(f"{where} has half a character in '{column}', found {found} (both halves, or neither)")
        return False
    return True


def make_document(record: Mapping[str, Any], columns: Sequence[str], where: str, faults: Faults) -> Document | None:
    """Make a document of a record; None for one without text, and for one that is at fault."""
    texts = []
    for column in columns:
        if not has_fields(record, [column], name_keys(columns), where, faults):
            return None
        if not is_text(text := record[column], column, where, faults):
            return None
        texts.append(text)
    if any(not text or text.isspace() for text in texts):
        return None
    return Document(where, 0, *texts)


class RecordSource:
    """Records, which can be read again and again: as documents of their `columns`, or as they are."""

    columns: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Tell about how much there is to read, in bytes; 0 where that is not known."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Document]:
        """Read every record as a document. Raises ConfigError with a line for each that cannot be read, and where there
        is none."""
        faults, found = Faults(), False
        for where, record in self.read(faults):
            document = make_document(record, self.columns, where, faults)
            if document is not None:
                found = True
                yield document
        faults.settle()
        self.refuse_nothing(found)

    def read(self, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Read every record as it is, and say where it stands; one that cannot be read is a fault."""
        raise NotImplementedError

    def refuse_nothing(self, found: bool) -> None:
        """Raise ConfigError where no record was of use."""
        raise NotImplementedError


@dataclass(frozen=True)
class RecordFiles(RecordSource):
    """Files of records as documents, in the order of files and records. Those without text are left out.

    `keys` are those of the config that choose the columns, as messages name them.
    """

    suffixes: ClassVar[tuple[str, ...]]
    """How the names of such files end."""

    files: tuple[Path, ...]
    columns: tuple[str, ...]
    keys: str

    @property
    def n_bytes(self) -> int:
        """Add up the files' sizes, as they are packed."""
        return sum(file.stat().st_size for file in self.files)

    def read(self, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for file in self.files:
            yield from self.read_file(file, faults)

    def read_file(self, file: Path, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Read the records of one file."""
        raise NotImplementedError

    def refuse_nothing(self, found: bool) -> None:
        """Raise ConfigError where no record was of use, with the reason if all files are empty."""
        if not found:
            empty = all(file.stat().st_size == 0 for file in self.files)
            what = "an empty file" if empty else "no record with a text"
            first, *others = self.files
            more = f" and {len(others)} more" if others else ""
            raise ConfigError(f"data.path: {first}{more}: nothing to read, found {what} (records with texts)")


class JsonLines(RecordFiles):
    """JSON Lines. Blank lines are left out."""

    suffixes = (*JSONL, *PACKED_JSONL)

    def read_file(self, file: Path, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return ((f"{file}, line {line:,}", record) for line, record in read_json_lines(file, faults))


def read_json_lines(file: Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with the numbers of their lines, from 1. What is no object in UTF-8 is a fault."""
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
    except CheckpointError as error:  # a line without end
        faults.add(str(error))
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            faults.add(f"cannot read {file}, found {error.strerror} (allow it, or move it away)")
            return
        faults.add(f"{file} is damaged after line {number:,}, found {short(error)} (a whole file)")


def parse_line(line: bytes, where: str, offset: int, faults: Faults) -> dict[str, Any] | None:
    """Read one line as an object; None for a blank one, and for one at fault. `offset` is its first byte's."""
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
    except ValueError as error:  # a number of thousands of digits
        faults.add(f"{where} is not read as JSON, found {shorten(str(error))} (a shorter number)")
    else:
        if isinstance(record, dict):
            return record
        faults.add(f"{where} is no record, found {type(record).__name__} (an object in each line)")
    return None


@contextmanager
def open_packed(file: Path) -> Iterator[IO[bytes]]:
    """Open a file of bytes, unpacked where its suffix says gzip or zstd. Raises ConfigError where a package lacks."""
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
    """Import Python's own zstd (3.14), or its backport. Unlike `zstandard` both notice a file that is cut off."""
    if sys.version_info >= (3, 14):
        return import_package("compression.zstd", "a Python with zstd", f"{file} is packed by zstd")
    return import_package("backports.zstd", "'transformer-zoo[zstd]'", f"{file} is packed by zstd")


def import_package(name: str, install: str, what: str) -> Any:
    """Import a package of an extra. Raises ConfigError with how to install it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"data.path: {what}, found no {name} (pip install {install})") from error
