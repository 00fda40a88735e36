"""Read the header of a GGUF file (llama.cpp's) within budgets: metadata, with checked types, and offsets of tensors.

The package `gguf` needs 9 s of processor time for the header of a vocabulary of 150,000 tokens and as many merges; this
reader needs 0.3 s, so a price takes less than half a second. It does not import numpy.
"""

from __future__ import annotations

import functools
import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field, FiniteFloat, PlainValidator, create_model
from pydantic_core import PydanticCustomError

from zoo.errors import CheckpointError
from zoo.untrusted.json_file import JsonShape, check_shape, refuse_pointer
from zoo.untrusted.printable import quote, shorten

SUFFIX = ".gguf"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
"""Numbers of the types of metadata: text and list. SCALARS has those of numbers, each with its `struct` format."""

TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16"},
    **{34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}
"""ggml's names of the types of stored tensors, by number."""

PAIRS, TENSORS, ENTRIES = 4096, 65_536, 4 << 20
"""Maximum numbers of metadata entries, of tensors, and of values in all lists together. A large vocabulary has 262,144
tokens and 514,906 merges."""
TEXT_BYTES, NAME_BYTES, LISTED_BYTES = 1 << 20, 1024, 4096
"""Maximum bytes of a text (a chat template), of a name, and of a text in a list (a token)."""
DIMENSIONS, LARGEST = 4, 2**53
"""Maximum number of dimensions (ggml's), and of values of a tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file: ggml's type, its shape (the last dimension is contiguous) and the byte of its start."""

    file: Path
    kind: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file, including all parts of a split file. `size` counts the bytes after the headers:
    tensors and padding."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    size: int = 0

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata.get("general.architecture"))

    @property
    def kind(self) -> str:
        """The ggml type of most values."""
        counts: Counter[str] = Counter()
        for each in self.tensors.values():
            counts[each.kind] += math.prod(each.shape)
        return max(counts, key=counts.__getitem__, default="no tensor")


def is_gguf(path: str | Path) -> bool:
    return Path(path).suffix == SUFFIX


# ---------------------------------------------------------------- types of metadata


@dataclass(frozen=True)
class Unread:
    """Stands for a list of texts that was skipped."""

    count: int

    def __len__(self) -> int:
        return self.count


def _check_texts(value: object) -> Any:
    if not isinstance(value, Unread) and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise PydanticCustomError("texts", "a list of texts")
    return value


Count = Annotated[int, Field(ge=0, lt=2**31)]
Counts = Count | Annotated[list[Count], Field(fail_fast=True)]
Switches = (
    bool | Annotated[list[bool], Field(fail_fast=True)] | Counts
)  # layers with a window are given by a period, or layer by layer
Number = FiniteFloat
Texts = Annotated[Any, PlainValidator(_check_texts)]

GENERAL: dict[str, Any] = {
    "general.architecture": str,
    "general.alignment": Annotated[int, Field(ge=1, le=1 << 20)],
    "split.count": Annotated[int, Field(ge=0, le=99_999)],
    "tokenizer.chat_template": str,
}
VOCABULARY: dict[str, Any] = {
    **dict.fromkeys(("model", "pre"), str),
    **dict.fromkeys(("tokens", "merges"), Texts),
    "token_type": Annotated[list[int], Field(fail_fast=True)],
    "scores": Annotated[list[Number], Field(fail_fast=True)],
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces"), bool),
    **dict.fromkeys(("normalizer.lowercase", "normalizer.strip_accents"), bool),
    "precompiled_charsmap": Annotated[list[Annotated[int, Field(ge=0, lt=256)]], Field(fail_fast=True)],
}
"""Types of the entries `tokenizer.ggml.*`. Each `…_token_id` is an integer, too."""

ARCHITECTURE: dict[str, Any] = {
    **dict.fromkeys(("block_count", "decoder_block_count", "embedding_length", "context_length"), Count),
    **dict.fromkeys(("expert_count", "expert_used_count", "leading_dense_block_count", "nextn_predict_layers"), Count),
    **dict.fromkeys(("attention.head_count_kv", "feed_forward_length"), Counts),
    **dict.fromkeys(
        ("attention.head_count", "attention.key_length", "attention.value_length", "rope.dimension_count"), Count
    ),
    **dict.fromkeys(("attention.sliding_window_pattern", "attention.recurrent_layers"), Switches),
    **dict.fromkeys(("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"), Number),
    **dict.fromkeys(("rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor"), Annotated[Number, Field(gt=0)]),
    **dict.fromkeys(("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"), Number),
    **dict.fromkeys(("rope.scaling.yarn_log_multiplier", "attention.temperature_scale"), Number),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv"), Number),
    **dict.fromkeys(("attention.scale", "embedding_scale", "residual_scale", "logit_scale"), Number),
    **dict.fromkeys(("expert_weights_scale", "attention.max_alibi_bias"), Number),
    "rope.scaling.original_context_length": Count,
    "rope.scaling.type": str,
    "classifier.output_labels": Texts,
    "classifier.pooling_type": Count,
}
"""Types of the architecture's entries, by name without the architecture's prefix. The types of other entries are
checked by the expressions that read them."""


@functools.cache
def _shape(architecture: str) -> type[JsonShape]:
    """Make the pydantic type of the metadata that Zoo reads."""
    own = {f"{architecture}.{name}": kind for name, kind in ARCHITECTURE.items()}
    types = {**GENERAL, **{f"tokenizer.ggml.{name}": kind for name, kind in VOCABULARY.items()}, **own}
    fields: dict[str, Any] = {
        f"f{number}": (kind | None, Field(None, alias=name)) for number, (name, kind) in enumerate(types.items())
    }
    return create_model("Metadata", __base__=JsonShape, **fields)


def check_metadata(file: Path, metadata: Mapping[str, Any]) -> None:
    """Raise CheckpointError if metadata has wrong types, or a vocabulary's lists and ids are inconsistent."""
    architecture = metadata.get("general.architecture")
    check_shape(metadata, _shape(architecture if isinstance(architecture, str) else ""), str(file))
    faults, tokens = [], metadata.get("tokenizer.ggml.tokens")
    size = None if tokens is None else len(tokens)
    for name, value in metadata.items():
        if name.startswith("tokenizer.ggml.") and name.endswith("_token_id"):
            most = 2**31 if size is None else size  # some files have no vocabulary
            if type(value) is not int or not 0 <= value < most:
                faults.append(f"{file}: {name}: is {quote(value)} (a token's number, below {most:,})")
    for name in ("token_type", "scores"):
        listed = metadata.get(f"tokenizer.ggml.{name}")
        if listed is not None and len(listed) != (size or 0):
            found = f"has {len(listed):,} entries (one for each of {size or 0:,} tokens)"
            faults.append(f"{file}: tokenizer.ggml.{name}: {found}")
    merges = metadata.get("tokenizer.ggml.merges")
    odd = next((each for each in merges if " " not in each), None) if isinstance(merges, list) else None
    if odd is not None:
        faults.append(f"{file}: tokenizer.ggml.merges: holds {quote(odd)} (two tokens and a space)")
    if faults:
        raise CheckpointError(*faults[:5])


# ---------------------------------------------------------------- the header


def read_gguf(file: Path, *, texts: bool = False) -> GGUFFile:
    """Read the header of a GGUF file, and of its other parts if it is split. Raises CheckpointError for a faulty or
    missing part.

    The vocabulary's lists of texts are read only with `texts`; otherwise each is replaced by an Unread.
    """
    first = _read_part(file, texts)
    count = first.metadata.get("split.count") or 1
    if count == 1:
        return first
    named = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})", file.stem)
    if named is None or int(named[2]) != count:
        raise CheckpointError(f"{file}: is one of {count} parts, whose names end in -00001-of-{count:05} (those names)")
    metadata, tensors, size = {}, {}, 0
    for number in range(1, count + 1):
        part = _read_part(file.with_name(f"{named[1]}-{number:05}-of-{count:05}{SUFFIX}"), texts)
        if twice := next((name for name in part.tensors if name in tensors), None):
            raise CheckpointError(f"{part.file}: {shorten(twice)}: is in another part too (once)")
        metadata = metadata or dict(part.metadata)
        tensors |= part.tensors
        size += part.size
        if len(tensors) > TENSORS:
            raise CheckpointError(f"{part.file}: its parts have more than {TENSORS:,} tensors (fewer)")
    return GGUFFile(file, metadata, tensors, size)


def _read_part(file: Path, texts: bool) -> GGUFFile:
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _Header(file, data, texts).read()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"{file}: cannot be read, found {shorten(str(error))} (a GGUF file)") from error
    check_metadata(file, found.metadata)
    border = found.metadata.get("general.alignment") or 32
    return _place_tensors(found, border)


def _place_tensors(found: GGUFFile, border: int) -> GGUFFile:
    """Turn the tensors' offsets into positions in the file. The data starts at the next multiple of `border` bytes
    after the header, whose length is `found.size`. Raises CheckpointError if the file ends before a tensor starts."""
    begin, there = -(-found.size // border) * border, found.file.stat().st_size
    placed = {}
    for name, each in found.tensors.items():
        if begin + each.start > there:
            place = f"is at byte {begin + each.start:,} of {there:,}"
            raise CheckpointError(f"{found.file}: {shorten(name)}: {place} (a whole file)")
        placed[name] = StoredTensor(each.file, each.kind, each.shape, begin + each.start)
    return GGUFFile(found.file, found.metadata, placed, max(there - begin, 0))


class _Header:
    """Reads a header from front to back. `at` is the name of the entry or tensor being read, for messages."""

    def __init__(self, file: Path, data: mmap.mmap, texts: bool) -> None:
        self.file, self.data, self.texts, self.place, self.at, self.entries = file, data, texts, 0, "", 0

    def refuse(self, what: str) -> NoReturn:
        key = f"{shorten(self.at)}: " if self.at else ""
        raise CheckpointError(f"{self.file}: {key}{what}")

    def read(self) -> GGUFFile:
        """Read the whole header. The result's `size` is the header's length; tensors' starts count from its end."""
        refuse_pointer(self.data[:64], self.file)
        if self.data[:4] != b"GGUF":
            self.refuse("cannot be read, found other bytes than GGUF at its beginning (a GGUF file)")
        self.place = 4
        (version,) = self.take("<I")
        if version not in VERSIONS:
            self.refuse(f"cannot be read, found version {version} (2 or 3)")
        tensors, pairs = self.take("<QQ")
        for what, count, most in (("entries of metadata", pairs, PAIRS), ("tensors", tensors, TENSORS)):
            if count > most:
                self.refuse(f"has {count:,} {what} (at most {most:,})")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            name = self.name()
            if name in metadata:
                self.refuse("is there twice (once)")
            (kind,) = self.take("<I")
            metadata[name] = self.value(kind)
        found: dict[str, StoredTensor] = {}
        for _ in range(tensors):
            name = self.name()
            if name in found:
                self.refuse("is there twice (once)")
            found[name] = self.tensor()
        return GGUFFile(self.file, metadata, found, self.place)

    def take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))

    def skip(self, size: int) -> int:
        """Skip bytes, and return the place of the first."""
        if size > len(self.data) - self.place:
            self.refuse(f"ends at byte {len(self.data):,}, within its header (a whole file)")
        self.place += size
        return self.place - size

    def skip_text(self, most: int) -> int:
        """Skip a text, and return its place."""
        (length,) = self.take("<Q")
        if length > most:
            self.refuse(f"has a text of {length:,} bytes (at most {most:,})")
        return self.skip(length)

    def text(self, most: int) -> str:
        start = self.skip_text(most)
        return self.data[start : self.place].decode("utf-8", "replace")

    def name(self) -> str:
        """Read the name of an entry or a tensor, and set `at` to it."""
        self.at = ""
        self.at = self.text(NAME_BYTES)
        return self.at

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text(TEXT_BYTES)
        if kind != LIST:
            return self.take(f"<{self.scalar(kind)}")[0]
        inner, count = self.take("<IQ")
        self.entries += count
        if self.entries > ENTRIES:
            self.refuse(f"has {count:,} entries (at most {ENTRIES:,} in a file)")
        if inner == LIST:
            self.refuse("is a list of lists (of numbers or texts)")
        if inner != TEXT:
            return list(self.take(f"<{count}{self.scalar(inner)}"))
        if self.texts or not self.at.startswith("tokenizer."):
            return [self.text(LISTED_BYTES) for _ in range(count)]
        for _ in range(count):
            self.skip_text(LISTED_BYTES)
        return Unread(count)

    def scalar(self, kind: int) -> str:
        if kind not in SCALARS:
            self.refuse(f"is of type {kind} (one of {', '.join(map(str, SCALARS))}, 8 and 9)")
        return SCALARS[kind]

    def tensor(self) -> StoredTensor:
        (dimensions,) = self.take("<I")
        if not 1 <= dimensions <= DIMENSIONS:
            self.refuse(f"has {dimensions:,} dimensions (1 to {DIMENSIONS})")
        shape = tuple(reversed(self.take(f"<{dimensions}Q")))
        if not 0 < math.prod(shape) <= LARGEST:
            self.refuse(f"has the shape {list(shape)} (of 1 to 2**53 values)")
        kind, start = self.take("<IQ")
        return StoredTensor(self.file, TYPES.get(kind, f"type {kind}"), shape, start)
