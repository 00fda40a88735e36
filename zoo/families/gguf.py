"""Read the header of a GGUF file (llama.cpp's), and its metadata as a config.json. Needs no torch and reads no weight.

The package `gguf` reads headers too, in 9 s of processor time for a vocabulary of 150,000 tokens and as many merges,
where a price is to take half a second: this takes 0.3.
"""

from __future__ import annotations

import copy
import functools
import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, ConfigError, did_you_mean, short
from zoo.families.expression import Expression
from zoo.families.family import family_of_config

SUFFIX = ".gguf"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
"""Types of metadata, as the file numbers them."""

TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16"},
    **{34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}
"""ggml's names of the types in which tensors are stored."""

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that are dtypes of torch."""

ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Factors of rotary frequencies, which a config.json states as numbers."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The scaling of Llama 3.1 to 3.3 (Grattafiori et al., 2024), all files of which have these."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file: its type, shape (the last dimension is contiguous), file, and where it begins in it."""

    file: Path
    kind: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file, and of the files that it is split into. `size` counts the bytes of tensors."""

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
        """The type of most values."""
        counts: dict[str, int] = {}
        for each in self.tensors.values():
            counts[each.kind] = counts.get(each.kind, 0) + math.prod(each.shape)
        return max(counts, key=lambda kind: counts[kind])


def is_gguf(path: Any) -> bool:
    """Whether a path names a GGUF file."""
    return Path(path).suffix == SUFFIX


# ---------------------------------------------------------------- the header


def read_gguf(file: Path, *, texts: bool = False) -> GGUFFile:
    """Read the header of a GGUF file, and of its other parts if it is split. Raises CheckpointError.

    Lists of texts (a vocabulary) are read with `texts`; else there is their length.
    """
    first = _read_part(file, texts)
    count = int(first.metadata.get("split.count") or 1)
    if count == 1:
        return first
    named = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})", file.stem)
    if named is None or int(named[2]) != count:
        raise CheckpointError(f"{file}: is one of {count} parts, whose names end in -00001-of-{count:05} (those names)")
    parts = [_read_part(file.with_name(f"{named[1]}-{n:05}-of-{count:05}{SUFFIX}"), texts) for n in range(1, count + 1)]
    tensors = {name: each for part in parts for name, each in part.tensors.items()}
    return GGUFFile(file, parts[0].metadata, tensors, sum(part.size for part in parts))


def _read_part(file: Path, texts: bool) -> GGUFFile:
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data, texts).read(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{file}: cannot be read, found {short(error)} (a GGUF file)") from error


class _Header:
    """Reader of a header, from front to back."""

    def __init__(self, data: mmap.mmap, texts: bool) -> None:
        self.data, self.texts, self.place = data, texts, 0

    def read(self, file: Path) -> GGUFFile:
        if self.data[:4] != b"GGUF":
            raise ValueError("other bytes than GGUF at its beginning")
        self.place = 4
        version, tensors, pairs = self.take("<IQQ")
        if version not in VERSIONS:
            raise ValueError(f"version {version}, of which 2 and 3 are known")
        metadata = dict(self.pair() for _ in range(pairs))
        listed = [self.tensor() for _ in range(tensors)]
        border = int(metadata.get("general.alignment", 32))
        begin = -(-self.place // border) * border
        found = {}
        for name, shape, kind, start in listed:
            if begin + start > len(self.data):
                raise ValueError(f"{name} at byte {begin + start:,} of {len(self.data):,}")
            found[name] = StoredTensor(file, kind, shape, begin + start)
        return GGUFFile(file, metadata, found, len(self.data) - begin)

    def take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return found

    def text(self) -> str:
        (length,) = self.take("<Q")
        if length > len(self.data) - self.place:
            raise ValueError(f"a text of {length:,} bytes in a file of {len(self.data):,}")
        self.place += length
        return self.data[self.place - length : self.place].decode("utf-8", "replace")

    def pair(self) -> tuple[str, Any]:
        name = self.text()
        (kind,) = self.take("<I")
        return name, self.value(kind)

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind != LIST:
            return self.take(f"<{_scalar(kind)}")[0]
        inner, count = self.take("<IQ")
        if inner != TEXT:
            return list(self.take(f"<{count}{_scalar(inner)}"))
        if self.texts:
            return [self.text() for _ in range(count)]
        for _ in range(count):
            (length,) = self.take("<Q")
            self.place += length
        return count

    def tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        name = self.text()
        (dimensions,) = self.take("<I")
        shape = self.take(f"<{dimensions}Q")
        kind, start = self.take("<IQ")
        return name, tuple(reversed(shape)), TYPES.get(kind, f"type {kind}"), start


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"metadata of type {kind}")
    return SCALARS[kind]


# ---------------------------------------------------------------- the config


@functools.cache
def read_catalogue() -> dict[str, Any]:
    """Read conf/gguf.yaml: what architectures of llama.cpp are here."""
    import yaml

    from zoo.paths import conf_dir

    return yaml.safe_load((conf_dir() / "gguf.yaml").read_text(encoding="utf-8"))


def find_architecture(found: GGUFFile) -> Mapping[str, Any]:
    """Find the row of a file's architecture. Raises CheckpointError when there is none."""
    known = read_catalogue()["architectures"]
    if found.architecture not in known:
        hint = did_you_mean(found.architecture, known) or f" (one of: {', '.join(known)})"
        raise CheckpointError(f"{found.file}: general.architecture: {found.architecture!r} is not read{hint}")
    return known[found.architecture] or {}


def describe_gguf(found: GGUFFile) -> dict[str, Any]:
    """The config.json of the model in a GGUF file. Raises CheckpointError."""
    row = find_architecture(found)
    fields = Reads(_gather_fields(found))
    own = row.get("config") or {}
    common = {name: value for name, value in read_catalogue()["config"].items() if name.removesuffix("?") not in own}
    stated = {**common, **own}
    config: dict[str, Any] = {}
    try:
        config["model_type"] = _evaluate(row.get("model_type", found.architecture), fields)
        for name, value in stated.items():
            if value is None or (name.endswith("?") and not _has_fields(value, fields)):
                continue
            config[name.removesuffix("?")] = _evaluate(value, fields)
    except (ConfigError, TypeError, KeyError, ZeroDivisionError) as error:
        raise CheckpointError(f"{found.file}: its metadata cannot be read, found {short(error)}") from error
    _refuse_unread(found, fields, row)
    kind = family_of_config(config, str(found.file))
    ids = {name: found.metadata.get(f"tokenizer.ggml.{key}") for name, key in SPECIAL.items()}
    ends = [found.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    ids["eos_token_id"] = list(dict.fromkeys(each for each in ends if each is not None))  # type: ignore[assignment]
    config |= {name: each for name, each in ids.items() if each not in (None, [])}
    architecture = row.get("architecture") or next(iter(kind.architectures))
    return {**config, "architectures": [architecture], "dtype": PLAIN.get(found.kind, "bfloat16")}


SPECIAL = {"bos_token_id": "bos_token_id", "pad_token_id": "padding_token_id"}


class Reads(dict[str, Any]):
    """Nested metadata that remembers the dotted paths that were read."""

    def __init__(self, node: Mapping[str, Any], path: str = "", seen: set[str] | None = None) -> None:
        super().__init__(node)
        self.path, self.seen = path, set() if seen is None else seen

    def __getitem__(self, name: str) -> Any:
        path, value = self.path + name, super().__getitem__(name)
        self.seen.add(path)
        return Reads(value, f"{path}.", self.seen) if isinstance(value, Mapping) else value


def _refuse_unread(found: GGUFFile, fields: Reads, row: Mapping[str, Any]) -> None:
    """Raises CheckpointError with a line for each entry of the architecture's metadata that nothing here reads."""
    catalogue, faults = read_catalogue(), []
    requires = {**catalogue["requires"], **(row.get("requires") or {})}
    harmless = [*catalogue["harmless"], *(row.get("harmless") or ())]
    seen, start = set(fields.seen), f"{found.architecture}."
    for name, value in found.metadata.items():
        path = name.removeprefix(start)
        known = any(path == each or path.startswith(f"{each}.") for each in harmless)
        if path == name or path in seen or known:
            continue
        wanted = _evaluate(requires[path], fields) if path in requires else None
        if value not in (wanted, 0, False) and not (
            isinstance(value, float) and math.isclose(value, wanted or 0, rel_tol=1e-6)
        ):
            would = "leave it out" if wanted is None else f"{wanted} would do"
            faults.append(f"{found.file}: {name}: is {value!r}, which no model here reads ({would})")
    if faults:
        raise CheckpointError(*faults)


def _gather_fields(found: GGUFFile) -> dict[str, Any]:
    """The metadata of the architecture as nested mappings, and what its tensors tell."""
    fields: dict[str, Any] = copy.deepcopy(read_catalogue()["absent"])
    for name, value in found.metadata.items():
        own, _, rest = name.partition(".")
        if own == found.architecture:
            inner = fields
            *above, last = rest.split(".")
            for each in above:
                inner = inner.setdefault(each, {})
            inner[last] = value
    if "token_embd.weight" not in found.tensors:
        raise CheckpointError(f"{found.file}: token_embd.weight is missing (a file with a language model)")
    fields |= {"vocab_size": found.tensors["token_embd.weight"].shape[0], "tied": "output.weight" not in found.tensors}
    heads = fields["attention"].get("head_count") or 1
    head_dim = fields["attention"].get("key_length") or fields.get("embedding_length", 0) // heads
    alike = {re.sub(r"\.\d+\.", ".#.", name) for name in found.tensors}
    fields |= {"tensors": [*found.tensors, *alike], "head_dim": head_dim}
    if (scaling := describe_scaling(found, fields)) is not None:
        fields |= {"rope_scaling": scaling, "untruncated": {**scaling, "truncate": False}}
        tempered = {"llama_4_scaling_beta": fields["attention"].get("temperature_scale", 0.0)}
        fields["tempered"] = {**scaling, "rope_theta": (fields.get("rope") or {}).get("freq_base"), **tempered}
    return fields


def _evaluate(value: Any, fields: Mapping[str, Any]) -> Any:
    return Expression(value[1:]).value(fields) if isinstance(value, str) and value.startswith("=") else value


def _has_fields(value: str, fields: Mapping[str, Any]) -> bool:
    """Whether the file states what an expression reads."""
    for path in re.findall(r"[a-z_]\w*(?:\.[a-z_]\w*)*", re.sub(r"\"[^\"]*\"", "", value)):
        node: Any = fields
        names = path.split(".")
        if names[0] in ("if", "else", "in", "or", "and", "not", "each", "layer"):
            continue
        for name in names:
            if not isinstance(node, Mapping) or name not in node:
                return False
            node = node[name]
    return True


# ---------------------------------------------------------------- rotary scaling


def describe_scaling(found: GGUFFile, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `rope_scaling` of a config.json, from metadata and from tensors of factors. Raises CheckpointError."""
    rope = fields.get("rope") or {}
    stated = rope.get("scaling") or {}
    original = {"original_max_position_embeddings": stated.get("original_context_length")}
    if ROPE[1] in found.tensors:
        factors = {f"{name}_factor": read_floats(found.tensors[each]) for name, each in _longrope()}
        return {"rope_type": "longrope", **factors, **original}
    if ROPE[0] in found.tensors:
        return _find_llama3(found, read_floats(found.tensors[ROPE[0]]), float(rope.get("freq_base", 10000.0)))
    kind = stated.get("type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": stated["factor"]}
    times = find_architecture(found).get("mscale", 0)
    known = stated.get("yarn_attn_factor", stated.get("attn_factor", 1.0)) == 1.0
    if kind == "yarn" and known and (times or not stated.get("yarn_log_multiplier")):
        betas = {name: stated[f"yarn_{name}"] for name in ("beta_fast", "beta_slow") if f"yarn_{name}" in stated}
        mscale = ("mscale", "mscale_all_dim") if times else ()
        equal = dict.fromkeys(mscale, times * stated.get("yarn_log_multiplier", 0.0))
        return {"rope_type": "yarn", "factor": stated["factor"], **original, **betas, **equal}
    raise CheckpointError(f"{found.file}: rope.scaling: is {dict(stated)}, which is not read (none, linear or yarn)")


def _longrope() -> Iterator[tuple[str, str]]:
    yield from (("long", ROPE[1]), ("short", ROPE[2]))


def _find_llama3(found: GGUFFile, factors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """The scaling of Llama 3 that has these factors: the file has no other trace of it."""
    largest = max(factors)
    if largest == min(factors) == 1.0:
        return None
    scaling = {"rope_type": "llama3", "factor": float(round(largest, 4)), **LLAMA3}
    low, high, length = (
        LLAMA3["low_freq_factor"],
        LLAMA3["high_freq_factor"],
        LLAMA3["original_max_position_embeddings"],
    )
    for place, each in enumerate(factors):
        turns = length / (2 * math.pi * theta ** (place / len(factors)))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        wanted = 1 / ((1 - smooth) / largest + smooth)
        if abs(wanted - each) > 1e-4 * wanted:
            raise CheckpointError(
                f"{found.file}: {ROPE[0]}: has a factor {each:.4g} where Llama 3's scaling has {wanted:.4g} ({LLAMA3})"
            )
    return scaling


def read_floats(tensor: StoredTensor) -> list[float]:
    """Read a small tensor of float32."""
    if tensor.kind != "F32":
        raise CheckpointError(f"{tensor.file}: factors of rotary frequencies are {tensor.kind} (F32)")
    count = math.prod(tensor.shape)
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        return list(struct.unpack(f"<{count}f", stream.read(4 * count)))
