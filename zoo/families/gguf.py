"""Translate the metadata of a GGUF file (llama.cpp's) to a config.json. Needs no torch and reads no weight."""

from __future__ import annotations

import copy
import functools
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from zoo.errors import CheckpointError, ConfigError, name_options, short
from zoo.families.body import write_out_keys
from zoo.families.expression import evaluate_tree
from zoo.families.family import Family, family_of_config
from zoo.families.gguf_header import GGUFFile as GGUFFile
from zoo.families.gguf_header import StoredTensor as StoredTensor
from zoo.families.gguf_header import is_gguf as is_gguf
from zoo.families.gguf_header import read_gguf as read_gguf
from zoo.paths import read_conf
from zoo.untrusted.printable import quote, shorten

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""torch's dtype of a ggml type that is not quantised."""

ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors of factors of rotary frequencies, which a config.json states as numbers; the last two are longrope's."""

MOST_FACTORS = 65_536
"""Maximum number of factors of rotary frequencies; each factor is for two channels of a head."""

FAULTS_SHOWN = 8

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The rotary scaling of all files of Llama 3.1 to 3.3 (Grattafiori et al., 2024), except for its factor."""


# ---------------------------------------------------------------- the config


@functools.cache
def read_catalogue() -> dict[str, Any]:
    """Read conf/gguf.yaml, the supported architectures of llama.cpp."""
    return write_out_keys(read_conf("gguf"))


def find_architecture(found: GGUFFile) -> Mapping[str, Any]:
    """Find the catalogue's row of a file's architecture. Raises CheckpointError if there is none."""
    known = read_catalogue()["architectures"]
    if found.architecture not in known:
        hint = name_options(found.architecture, known)
        raise CheckpointError(f"{found.file}: general.architecture: {quote(found.architecture)} is not read{hint}")
    return known[found.architecture] or {}


def describe_gguf(found: GGUFFile) -> dict[str, Any]:
    """Make the config.json of the model in a GGUF file. Its dtype is the type of most weights, or bfloat16 if they are
    quantised. Raises CheckpointError for an unknown architecture, and for metadata that is faulty or not read here."""
    row = find_architecture(found)
    with _faults_of(found):
        fields = Reads(_gather_fields(found))
        config = _read_config(found, fields, row)
        architecture = evaluate_tree(row.get("architecture"), fields)
        _refuse_unread(found, fields, row)
    kind = family_of_config(config, str(found.file))
    ids = {name: found.metadata.get(f"tokenizer.ggml.{key}") for name, key in SPECIAL.items()}
    ends = [found.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    ids["eos_token_id"] = list(dict.fromkeys(each for each in ends if each is not None))  # type: ignore[assignment]
    config |= {name: each for name, each in ids.items() if each not in (None, [])}
    return {
        **config,
        "architectures": [architecture or next(iter(kind.architectures))],
        "dtype": PLAIN.get(found.kind, "bfloat16"),
    }


@contextmanager
def _faults_of(found: GGUFFile) -> Iterator[None]:
    """Raise errors in evaluating metadata as CheckpointError with the file's name."""
    try:
        yield
    except CheckpointError:
        raise
    except ConfigError as error:
        raise CheckpointError(*(f"{found.file}: {fault}" for fault in error.faults)) from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{found.file}: its metadata cannot be read, found {shorten(short(error))}") from error


def _read_config(found: GGUFFile, fields: Reads, row: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate the catalogue's expressions over the metadata. Returns the fields of a config.json."""
    config = {"model_type": evaluate_tree(row.get("model_type", found.architecture), fields)}
    for name, value in list_rows(family_of_config(config, str(found.file)), row.get("config") or {}).items():
        if value is not None and not (name.endswith("?") and not _has_fields(value, fields)):
            config[name.removesuffix("?")] = evaluate_tree(value, fields)
    return config


def list_rows(family: Family, own: Mapping[str, Any]) -> dict[str, Any]:
    """List the catalogue's rows for the fields of a family's config.json. Rows common to all files come first, under
    the family's names, without fields that the family lacks. An architecture's `own` rows follow, and replace rows of
    the same field."""
    rows = {}
    for name, value in read_catalogue()["config"].items():
        field = family.aliases.get(name.removesuffix("?"), name.removesuffix("?"))
        if field in family.known and not own.keys() & {field, f"{field}?"}:
            rows[field + "?" * name.endswith("?")] = value
    return rows | dict(own)


SPECIAL = {"bos_token_id": "bos_token_id", "pad_token_id": "padding_token_id"}


class Reads(dict[str, Any]):
    """Nested metadata that records the dotted paths that were read."""

    def __init__(self, node: Mapping[str, Any], path: str = "", seen: set[str] | None = None) -> None:
        super().__init__(node)
        self.path, self.seen = path, set() if seen is None else seen

    def __getitem__(self, name: str) -> Any:
        path, value = self.path + name, super().__getitem__(name)
        self.seen.add(path)
        return Reads(value, f"{path}.", self.seen) if isinstance(value, Mapping) else value


def _refuse_unread(found: GGUFFile, fields: Reads, row: Mapping[str, Any]) -> None:
    """Raise CheckpointError with a line for each entry of the architecture's metadata that no expression reads,
    FAULTS_SHOWN lines at most. Entries that are harmless, 0, false or equal to the required value pass."""
    catalogue, faults = read_catalogue(), []
    requires = {**catalogue["requires"], **(row.get("requires") or {})}
    harmless = [*catalogue["harmless"], *(row.get("harmless") or ())]
    seen, start = set(fields.seen), f"{found.architecture}."
    for name, value in found.metadata.items():
        path = name.removeprefix(start)
        known = any(path == each or path.startswith(f"{each}.") for each in harmless)
        if path == name or path in seen or known:
            continue
        wanted = evaluate_tree(requires[path], fields) if path in requires else None
        if value not in (wanted, 0, False) and not (
            isinstance(value, float) and math.isclose(value, wanted or 0, rel_tol=1e-6)
        ):
            would = "leave it out" if wanted is None else f"{wanted} would do"
            faults.append(f"{found.file}: {name}: is {quote(value)}, which no model here reads ({would})")
    if faults:
        more = [f"{found.file}: and {len(faults) - FAULTS_SHOWN:,} more"] if len(faults) > FAULTS_SHOWN else []
        raise CheckpointError(*faults[:FAULTS_SHOWN], *more)


def _gather_fields(found: GGUFFile) -> dict[str, Any]:
    """Nest the metadata of the architecture, and add the fields in DERIVED, which follow from tensors and metadata.
    Raises CheckpointError for a file without a token embedding, and for more blocks than tensors."""
    fields = _nest_metadata(found)
    embedding = found.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{found.file}: token_embd.weight is missing (a file with a language model)")
    for name in ("block_count", "decoder_block_count"):
        if fields.get(name, 0) > len(found.tensors):  # lists of this length are made later
            fault = f"{found.architecture}.{name}: is {fields[name]:,}, the file has {len(found.tensors):,} tensors"
            raise CheckpointError(f"{found.file}: {fault} (no more blocks than these)")
    fields |= {"vocab_size": embedding.shape[0], "tied": "output.weight" not in found.tensors}
    types = found.tensors.get("token_types.weight")
    fields["token_types"] = None if types is None else types.shape[0]
    heads = fields["attention"].get("head_count") or 1
    head_dim = fields["attention"].get("key_length") or fields.get("embedding_length", 0) // heads
    alike = {re.sub(r"\.\d+\.", ".#.", name) for name in found.tensors}
    fields |= {"tensors": [*found.tensors, *alike], "head_dim": head_dim}
    if (scaling := describe_scaling(found, fields)) is not None:
        fields |= {"rope_scaling": scaling, "untruncated": {**scaling, "truncate": False}}
        tempered = {"llama_4_scaling_beta": fields["attention"].get("temperature_scale", 0.0)}
        fields["tempered"] = {**scaling, "rope_theta": (fields.get("rope") or {}).get("freq_base"), **tempered}
    return fields


DERIVED = ("vocab_size", "token_types", "tied", "tensors", "head_dim", "rope_scaling", "untruncated", "tempered")
"""Fields that `_gather_fields` adds; metadata of these names is ignored."""

LONGEST = 80
"""Maximum characters of a text among the architecture's metadata; these are words such as "linear"."""

GROUPS = ("attention", "rope", "rope.scaling", "ssm", "shortconv")


def _nest_metadata(found: GGUFFile) -> dict[str, Any]:
    """Nest the architecture's metadata by dotted names. Raises CheckpointError for a name that is both a value and a
    prefix of other names, and for a long text."""
    fields: dict[str, Any] = copy.deepcopy(read_catalogue()["absent"])
    start = f"{found.architecture}."
    for name, value in found.metadata.items():
        path = name.removeprefix(start)
        if path == name or path in DERIVED:
            continue
        if isinstance(value, str) and len(value) > LONGEST:
            raise CheckpointError(f"{found.file}: {shorten(name)}: is {quote(value)} (a word)")
        inner: Any = fields
        *above, last = path.split(".")
        for each in above:
            inner = inner.setdefault(each, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or isinstance(inner.get(last), dict) or path in GROUPS:
            raise CheckpointError(
                f"{found.file}: {shorten(name)}: is {quote(value)} beside others in it (one of the two)"
            )
        inner[last] = value
    return fields


def _has_fields(value: str, fields: Mapping[str, Any]) -> bool:
    """Whether the file has all fields that an expression reads."""
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
    """Make a config's `rope_scaling` from metadata and factors; None for no scaling. Raises CheckpointError for a
    scaling that is not supported."""
    rope = fields.get("rope") or {}
    stated = rope.get("scaling") or {}
    original = {"original_max_position_embeddings": stated.get("original_context_length")}
    if ROPE[1] in found.tensors:
        if ROPE[2] not in found.tensors:
            raise CheckpointError(f"{found.file}: {ROPE[2]}: is missing, found {ROPE[1]} alone (both)")
        long, short = (read_floats(found.tensors[each]) for each in ROPE[1:])
        return {"rope_type": "longrope", "long_factor": long, "short_factor": short, **original}
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
    what = shorten(str(dict(stated)))
    raise CheckpointError(f"{found.file}: rope.scaling: is {what}, which is not read (none, linear or yarn)")


def _find_llama3(found: GGUFFile, factors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """Find Llama 3's scaling from its factors, the file's only trace of the scaling; None if all are 1. Raises
    CheckpointError for other factors."""
    largest = max(factors)
    if largest == min(factors) == 1.0:
        return None
    scaling = {"rope_type": "llama3", "factor": float(round(largest, 4)), **LLAMA3}
    for wanted, each in zip(find_llama3_factors(largest, theta, len(factors)), factors, strict=True):
        if abs(wanted - each) > 1e-4 * wanted:
            raise CheckpointError(
                f"{found.file}: {ROPE[0]}: has a factor {each:.4g} where Llama 3's scaling has {wanted:.4g} ({LLAMA3})"
            )
    return scaling


def find_llama3_factors(factor: float, theta: float, count: int) -> list[float]:
    """Find the factors by which Llama 3's scaling divides the `count` frequencies: 1 for fast ones, `factor` for slow
    ones, and between them the factor that interpolates the frequencies."""
    low, high, length = LLAMA3.values()
    turns = [length / (2 * math.pi * theta ** (place / count)) for place in range(count)]
    smooth = [min(1.0, max(0.0, (each - low) / (high - low))) for each in turns]
    return [1 / ((1 - each) / factor + each) for each in smooth]


def read_floats(tensor: StoredTensor) -> list[float]:
    """Read a tensor of factors of rotary frequencies. Raises CheckpointError for another type than float32, more than
    MOST_FACTORS factors, a truncated file, and factors that are not positive."""
    if tensor.kind != "F32":
        raise CheckpointError(f"{tensor.file}: factors of rotary frequencies are {tensor.kind} (F32)")
    count = math.prod(tensor.shape)
    if count > MOST_FACTORS:
        raise CheckpointError(f"{tensor.file}: has {count:,} factors of rotary frequencies (at most {MOST_FACTORS:,})")
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        data = stream.read(4 * count)
    if len(data) < 4 * count:
        raise CheckpointError(f"{tensor.file}: ends within its factors of rotary frequencies (a whole file)")
    factors = list(struct.unpack(f"<{count}f", data))
    if not all(0 < each < math.inf for each in factors):
        raise CheckpointError(f"{tensor.file}: has factors of rotary frequencies that are no numbers above 0 (others)")
    return factors
