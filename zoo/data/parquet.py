"""Read the rows of Parquet files, within a budget of bytes.

A dictionary-encoded column stores a text once for all rows that have it, so a file of kilobytes can unpack to a hundred
gigabytes. Such columns are read as dictionaries, and rows are converted to Python strings about PIECE bytes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.data.records import (
    FIELDS_SHOWN,
    RATIO,
    SMALL,
    Faults,
    RecordFiles,
    import_package,
)
from zoo.errors import short
from zoo.untrusted.lines import LINE
from zoo.untrusted.printable import shorten

READ_AT_ONCE = 1024  # records: a few MiB of ordinary text
PIECE = 16 << 20
"""Bytes of rows converted to Python strings at once. A larger single row is converted alone."""


class Parquet(RecordFiles):
    """The rows of Parquet files. Null is read as an empty text."""

    suffixes = (".parquet",)

    def read_file(self, file: Path, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Read one file, a few rows at a time."""
        opener = import_package("pyarrow.parquet", "'transformer-zoo[parquet]'", f"{file} is Parquet").ParquetFile
        number = 0
        try:
            with opener(file) as table:
                if fault := self._find_fault(table, file):
                    faults.add(fault)
                    return
                texts = _list_texts(table)
            with opener(file, read_dictionary=texts) as table:
                most, total = max(SMALL, RATIO * file.stat().st_size), 0
                names = [*self.columns, *(each for each in self.optional if each in table.schema_arrow.names)]
                batches = table.iter_batches(batch_size=READ_AT_ONCE, columns=names)
                for rows, size in (each for batch in batches for each in _split(batch)):
                    total += size
                    if size > LINE and len(rows) == 1:
                        faults.add(f"{file}, row {number + 1:,}: is longer than {LINE >> 20} MiB (shorter texts)")
                        return
                    if total > most:
                        faults.add(
                            f"{file} unpacks to more than {RATIO} times its size after row {number:,} (a file of text)"
                        )
                        return
                    for record in rows.to_pylist():
                        number += 1
                        values = {name: "" if value is None else value for name, value in record.items()}
                        yield f"{file}, row {number:,}", values
        except (OSError, ValueError, ArithmeticError, LookupError, NotImplementedError, TypeError) as error:
            # pyarrow raises these classes
            faults.add(f"{file} is damaged after row {number:,}, found {short(error)} (a whole file)")

    def _find_fault(self, table: Any, file: Path) -> str | None:
        """Describe a fault of a file's columns, judged from its schema and metadata alone; None if there is none."""
        names, read = table.schema_arrow.names, {*self.columns, *self.optional}
        if twice := [column for column in names if column in read and names.count(column) > 1]:
            return f"{file} has the field '{twice[0]}' {names.count(twice[0])} times (once)"
        if lacking := [column for column in self.columns if column not in names]:
            found = ", ".join(shorten(each, 40) for each in names[:FIELDS_SHOWN]) or "none"
            return f"{file} has no field '{lacking[0]}', found {found} ({self.keys})"
        meta = table.metadata
        groups = [meta.row_group(group) for group in range(meta.num_row_groups)]
        used = [at for at in range(meta.num_columns) if meta.schema.column(at).path.split(".")[0] in read]
        size = sum(group.column(at).total_uncompressed_size for group in groups for at in used)
        if size > max(SMALL, RATIO * file.stat().st_size):
            return f"{file} unpacks to {size:,} bytes, more than {RATIO} times its size (a file of text)"
        return None


def _list_texts(table: Any) -> list[str]:
    """List the byte-array columns, nested ones too. They can be read as dictionaries."""
    columns = map(table.schema.column, range(len(table.schema)))
    return [each.path for each in columns if each.physical_type == "BYTE_ARRAY" and each.logical_type.type != "DECIMAL"]


def _split(rows: Any) -> Iterator[tuple[Any, int]]:
    """Split a batch into pieces of at most PIECE bytes, or of one row. Yields each with its unpacked size."""
    size = sum(map(_measure, rows.columns))
    if size <= PIECE or len(rows) <= 1:
        yield rows, size
        return
    half = len(rows) // 2
    yield from _split(rows.slice(0, half))
    yield from _split(rows.slice(half))


def _measure(array: Any) -> int:
    """Count the bytes of an array's values, dictionaries expanded."""
    import pyarrow
    from pyarrow import compute

    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary)  # pyright: ignore[reportAttributeAccessIssue]
        return compute.sum(lengths.cast("int64").take(array.indices)).as_py() or 0  # pyright: ignore
    if pyarrow.types.is_struct(kind):
        return sum(map(_measure, array.flatten()))
    if pyarrow.types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return sum(_measure(each.slice(first, last - first)) for each in (array.keys, array.items))
    if pyarrow.types.is_nested(kind):
        return _measure(array.flatten())
    return array.nbytes
