"""Token shards on disk: `.bin` and `.idx` in the format of Megatron-LM's indexed data sets, version 1.

`.bin` holds the ids of all sequences, end to end: uint16, or int32 for a vocabulary above 65,536. `.idx` holds, little
endian: the 9 bytes `MMIDIDX\\0\\0`; the version (1, u64); the code of the dtype (u8); the numbers of sequences and of
document boundaries (u64 each); the length of each sequence (i32); the byte in `.bin` where each begins (i64); the
first sequence of each document, and the number of sequences (i64).

A document is a sequence that ends with the end of text; a pair is two such sequences. In a conversation, sequences
without and with a loss alternate. A validation shard has a third file, `.len`: the bytes of text that each token stands
for (u32).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from zoo.data.checked import FileRecord, FileShape, check_length, verify_file, write_checked
from zoo.disk import write_text
from zoo.errors import ZooError
from zoo.untrusted.json_file import SETTINGS, JsonShape, read_json

if TYPE_CHECKING:
    import numpy as np

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
CODES = {"uint16": 8, "int32": 4}
HEADER = len(MAGIC) + 8 + 1 + 8 + 8
SHARD = 1 << 24
"""Tokens of a full shard. A shard is held in memory until complete, and a killed process loses an incomplete one."""


Count = Annotated[int, Field(ge=0)]


class ShardRecord(JsonShape):
    """The schema of a shard's record. `name` is a file name without a path: the files are in the record's folder."""

    name: Annotated[str, Field(pattern=r"^[a-z]{1,16}-[0-9]{5,9}$")]
    n_tokens: Count
    n_documents: Count
    n_bytes: Count
    files: dict[Literal["bin", "idx", "len"], FileShape]


def choose_dtype(vocab_size: int) -> str:
    """Choose the smallest dtype for the ids of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "int32"


def pack_index(lengths: Sequence[int], counts: Sequence[int], dtype: str) -> bytes:
    """Make the `.idx` from the lengths of the sequences in tokens, and the number of sequences in each document."""
    import numpy as np

    sizes = np.array(lengths, "<i4")
    ends = np.cumsum(sizes, dtype="<i8") * np.dtype(dtype).itemsize
    boundaries = np.cumsum([0, *counts], dtype="<i8")
    head = struct.pack("<9sQBQQ", MAGIC, VERSION, CODES[dtype], len(sizes), len(boundaries))
    return b"".join([head, sizes.tobytes(), (ends - sizes * np.dtype(dtype).itemsize).tobytes(), boundaries.tobytes()])


# ---------------------------------------------------------------- writing


class SplitWriter:
    """Writes one split as shards NAME-00000, NAME-00001 … in a folder. A shard ends with the document that fills it.

    Where shards end depends on the documents alone, so a resumed process makes the same shards. Whole shards that a
    killed process left are kept: `n_documents` counts their documents, and `add` continues after them.
    """

    def __init__(self, folder: Path, name: str, dtype: str, *, keep_lengths: bool = False) -> None:
        self.folder, self.name, self.dtype, self.keep_lengths = folder, name, dtype, keep_lengths
        self.shards = list(find_whole_shards(folder, name))
        self._empty()

    @property
    def n_documents(self) -> int:
        return sum(shard["n_documents"] for shard in self.shards)

    def add(self, sequences: Sequence[np.ndarray], n_bytes: int, lengths: np.ndarray | None = None) -> None:
        """Add a document: its sequences, the bytes of its text, and for a validation split the bytes of each token."""
        self._ids += sequences
        self._sizes += [len(sequence) for sequence in sequences]
        self._tokens += sum(len(sequence) for sequence in sequences)
        self._counts.append(len(sequences))
        self._bytes += n_bytes
        if lengths is not None:
            self._lengths.append(lengths)
        if self._tokens >= SHARD:
            self.flush()

    def flush(self) -> None:
        """Write the shard filled so far, if any. Its record is written last: a shard with a record is whole."""
        import numpy as np

        if not self._counts:
            return
        name = f"{self.name}-{len(self.shards):05}"
        contents = {"bin": np.concatenate(self._ids).astype(self.dtype).tobytes()}
        contents["idx"] = pack_index(self._sizes, self._counts, self.dtype)
        if self.keep_lengths:
            contents["len"] = np.concatenate(self._lengths).astype("<u4").tobytes()
        files = {suffix: write_checked(self.folder / f"{name}.{suffix}", data) for suffix, data in contents.items()}
        record = {"name": name, "n_tokens": self._tokens, "n_documents": len(self._counts), "n_bytes": self._bytes}
        self.shards.append({**record, "files": files})
        write_text(self.folder / f"{name}.json", json.dumps(self.shards[-1]))
        self._empty()

    def _empty(self) -> None:
        self._ids: list[np.ndarray] = []
        self._sizes: list[int] = []
        self._counts: list[int] = []
        self._lengths: list[np.ndarray] = []
        self._tokens = self._bytes = 0


def find_whole_shards(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the records of the whole shards that a killed process left, up to the first shard that is not whole."""
    number = 0
    while (file := folder / f"{name}-{number:05}.json").is_file():
        try:
            record = read_json(file, ShardRecord, most=SETTINGS)
            for suffix, about in record["files"].items():
                verify_file(folder / f"{record['name']}.{suffix}", about)
        except ZooError:
            return
        yield record
        number += 1


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Shard:
    """One shard: its path without suffix, the dtype and number of its tokens, and the records of its files by
    suffix."""

    path: Path
    dtype: str
    n_tokens: int
    files: Mapping[str, FileRecord]

    def check_lengths(self) -> None:
        """Raise ZooError when a file has another length than it was written with."""
        for suffix, record in self.files.items():
            check_length(self.path.with_suffix(f".{suffix}"), record)

    @cached_property
    def whole(self) -> bool:
        """Compare the shard's files with their checksums, once in a process. Raises ZooError if one differs."""
        for suffix, record in self.files.items():
            verify_file(self.path.with_suffix(f".{suffix}"), record)
        return True

    @cached_property
    def ids(self) -> np.ndarray:
        """Memory-map the token ids, after a check of the file."""
        return self._map("bin", self.dtype)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Memory-map the number of bytes of each token's text, after a check of the file."""
        return self._map("len", "<u4")

    @cached_property
    def sizes(self) -> np.ndarray:
        """Read the length of each sequence from the `.idx`, checked first. Raises ZooError if the shard is damaged."""
        import numpy as np

        count, index = self._index
        return np.frombuffer(index[HEADER : HEADER + 4 * count].tobytes(), "<i4")

    @cached_property
    def counts(self) -> np.ndarray:
        """Read the number of sequences in each document from the `.idx`, as `sizes` does."""
        import numpy as np

        count, index = self._index
        return np.diff(np.frombuffer(index[HEADER + 12 * count :].tobytes(), "<i8"))

    @cached_property
    def _index(self) -> tuple[int, np.ndarray]:
        """The number of sequences, and the bytes of the `.idx`."""
        index = self._map("idx", "u1")
        return int(index[HEADER - 16 : HEADER - 8].view("<u8")[0]), index

    def _map(self, suffix: str, dtype: str) -> np.ndarray:
        import numpy as np

        assert self.whole
        return np.memmap(self.path.with_suffix(f".{suffix}"), dtype=dtype, mode="r")


class Joined:
    """Several arrays read as one. Each array is loaded when it is first accessed."""

    def __init__(self, parts: Sequence[tuple[int, Callable[[], np.ndarray]]]) -> None:
        import numpy as np

        self._load = [load for _, load in parts]
        self._ends = np.cumsum([length for length, _ in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: slice) -> np.ndarray:
        """Read a slice without a step."""
        import numpy as np

        start, stop, step = key.indices(len(self))
        assert step == 1
        first = int(np.searchsorted(self._ends, start, "right"))
        pieces: list[np.ndarray] = []
        while start < stop:
            begin = int(self._ends[first - 1]) if first else 0
            end = min(stop, int(self._ends[first]))
            pieces.append(self._load[first]()[start - begin : end - begin])
            start, first = end, first + 1
        if not pieces:
            return self._load[0]()[:0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def max(self) -> int:
        return max(int(part.max()) for load in self._load if len(part := load()))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        import numpy as np

        return np.asarray(self[:], dtype=dtype)
