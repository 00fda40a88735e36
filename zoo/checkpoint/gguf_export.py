"""Write a model as a GGUF file by the catalogue that also reads GGUF (conf/gguf.yaml), and read the draft back.

A tensor is converted, quantised by the package `gguf`, and written before the next one is read.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.conversion import Entry
from zoo.checkpoint.gguf.tensors import describe_dense, lay_keys, name_dense, require_gguf, to_gguf_name
from zoo.checkpoint.gguf.unpacking import POOLINGS, RANK, unpack
from zoo.checkpoint.gguf_vocabulary import describe_vocabulary, open_tokenizer
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.likeness import list_spec_differences
from zoo.checkpoint.llama_cpp_form import find_row_head, restate
from zoo.checkpoint.llama_cpp_logits import compare_with_llama_cpp
from zoo.checkpoint.mapping import find_entries
from zoo.checkpoint.stored import StoredModel
from zoo.disk import replace_file
from zoo.errors import CheckpointError, ConfigError, FitsNoFamily, refuse
from zoo.families import family as families
from zoo.families.gguf import PLAIN, GGUFFile, StoredTensor, describe_gguf, is_gguf, read_catalogue, read_gguf
from zoo.families.gguf_metadata import find_factors, find_metadata, list_writable
from zoo.lazy import Tensor, torch
from zoo.model.head import can_be_tied

if TYPE_CHECKING:
    from zoo.families.body import Body

STEPS = {"F32": 2.0**-22, "F16": 2.0**-11, "BF16": 2.0**-8}
STEPS |= {kind: step + 2.0**-10 for kind, step in {"Q8_0": 1 / 254, "Q5_0": 1 / 16, "Q5_1": 1 / 31}.items()}
STEPS |= {kind: step + 2.0**-10 for kind, step in {"Q4_0": 1 / 8, "Q4_1": 1 / 15}.items()}
"""The ggml types that can be written, and for each the largest error of a value, relative to the largest value of its
tensor. The error is half the distance of two stored values (the whole distance where the last value is cut off, Q4_0
and Q5_0), plus the rounding of a block's scale to 16 bits."""

LEAST = 1e-7
"""An absolute error that is accepted whatever the values: the scales of blocks are stored in 16 bits."""

WRITER = "zoo.writer"
"""The metadata key that marks a file as written by Zoo."""

ROW_HEAD = "cls.output"
"""The tensor that computes logits of whole rows; only some architectures have it."""

EXACT = ("ffn_gate_inp", "position_embd", "token_types", "ssm_conv1d", "shortconv.conv")
"""Tensors that llama.cpp needs in float32, in addition to vectors and norms."""


@dataclass(frozen=True)
class Layout:
    """The content of a model's GGUF file: architecture, metadata, the name map's entries, the ggml type and shape of
    each tensor, the factors of rotary frequencies, and the dense layers behind a pooling."""

    architecture: str
    metadata: dict[str, Any]
    entries: list[tuple[Entry, list[str]]]
    kinds: dict[str, tuple[str, tuple[int, ...]]]
    factors: dict[str, list[float]]
    dense: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A written GGUF file: its architecture and type; the matrices stored as F16, because their rows are no multiple of
    the type's blocks; the result of reading it back, in words; and the parts of the model that are `left_out`."""

    architecture: str
    kind: str
    widened: int
    compared: str
    left_out: Sequence[str] = ()

    def describe(self) -> str:
        """Describe the types in a few words, and the parts of an encoder that llama.cpp lacks."""
        wide = f", {self.widened} matrices as F16 (their rows are no multiple of a block)" if self.widened else ""
        without = f", without its {' and '.join(self.left_out)}" if self.left_out else ""
        return f"llama.cpp's {self.architecture}, {self.kind}{wide}{without}"


def save(
    model: StoredModel,
    out: Path,
    folder: Path,
    kind: str | None = None,
    *,
    pooling: str = "",
    dense: Sequence[Tensor] | None = (),
    force: bool = False,
    verify: bool = True,
) -> Written:
    """Write a GGUF file with the tokenizer of `folder`. Matrices get the ggml type `kind`, by default the model's
    dtype.

    The file states the `pooling` of a sentence-transformers folder if llama.cpp has it (mean, cls or last). The `dense`
    layers behind the pooling are written if the architecture has them. `Written` lists what was left out.

    The draft is read back and must have the same tensors and token ids (`compare`) before the file appears. With
    `verify`, and llama.cpp installed, it must also give the same logits there, which needs memory for the model. Raises
    ConfigError for an architecture that llama.cpp or the catalogue lacks, for a type that the package cannot write, and
    for a tokenizer that GGUF cannot hold. Raises CheckpointError for an existing file that zoo did not write, unless
    `force`.
    """
    require_gguf()
    kind = (kind or {each: name for name, each in PLAIN.items()}[str(model.dtype).removeprefix("torch.")]).upper()
    if kind not in STEPS:
        raise ConfigError(f"--type: {kind.lower()} is not quantised here (one of: {', '.join(STEPS).lower()})")
    _refuse_to_replace(out, model, force)
    model, left_out = restate(model.refuse_nonfinite())
    layout = lay_out(model, kind)
    numbers = {name: number for number, name in {**POOLINGS, RANK: "rank"}.items()}
    pooling = "rank" if find_row_head(model.spec) else pooling
    if pooling in numbers:
        layout.metadata[f"{layout.architecture}.pooling_type"] = numbers[pooling]
    left_out += [f"pooling ({pooling})"] * (pooling not in ("", *numbers)) + _add_dense(layout, model, kind, dense)
    layout.metadata.update({**describe_vocabulary(folder, model.spec.vocab_size), **layout.metadata})
    layout.metadata.update(_describe_file(out, kind))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) as draft:
        _write(model, layout, draft)
        compared = compare(model, layout, draft, folder, verify)
    widened = sum(stated == "F16" for stated, _ in layout.kinds.values()) if kind not in PLAIN else 0
    return Written(layout.architecture, kind, widened, compared, left_out)


def _add_dense(layout: Layout, model: StoredModel, kind: str, dense: Sequence[Tensor] | None) -> list[str]:
    """Add the dense layers after the pooling to the layout. Returns their name in a list if llama.cpp lacks them."""
    named = name_dense(layout.architecture, model.spec.d_model, dense)
    layout.dense.update(named)
    layout.kinds.update(
        {name: (_choose_kind(name, (*each.shape,), kind), (*each.shape,)) for name, each in named.items()}
    )
    layout.metadata.update(describe_dense(layout.architecture, named))
    return [] if named or dense == () or dense == [] else ["dense layers"]


def _describe_file(out: Path, kind: str) -> dict[str, Any]:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    number = LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"]
    said = {"general.name": out.stem, "general.file_type": int(number), WRITER: "transformer-zoo"}
    return said | ({} if kind in PLAIN else {"general.quantization_version": GGML_QUANT_VERSION})


def _refuse_to_replace(out: Path, model: StoredModel, force: bool) -> None:
    if not is_gguf(out):
        raise ConfigError(f"{out}: a GGUF file's name ends in .gguf (that name)")
    if out.is_dir():
        raise CheckpointError(f"{out}: is a folder (a new file would do)")
    source = model.source.file if model.source else None
    if out.exists() and source is not None and out.samefile(source):
        raise CheckpointError(f"{out}: is the checkpoint itself (a new file would do)")
    if out.exists() and not force and WRITER not in read_gguf(out).metadata:
        raise CheckpointError(f"{out}: would be replaced, and zoo did not write it (a new file, or --force)")


# ---------------------------------------------------------------- the header


def lay_out(model: StoredModel, kind: str) -> Layout:
    """Lay out a GGUF file that reads as this model: architecture, metadata and tensor names. Raises ConfigError if no
    architecture fits, with the fields that differ from the nearest."""
    spec = model.spec
    tried, faults = [find_config(spec)], []
    if model.source is not None:
        with suppress(FitsNoFamily):  # the source's family may not have a restated model
            tried.append(find_config(spec, model.source))
    for config, body in tried:
        for name in list_writable(config["model_type"]):
            try:
                return _lay_out_as(name, config, body, model, kind)
            except ConfigError as error:
                faults += [
                    f"{fault}; {name}, an architecture of llama.cpp's, cannot describe this" for fault in error.faults
                ]
    if not faults:
        found, known = tried[-1][0]["model_type"], read_catalogue()["written"]
        head = find_row_head(spec)
        found, known = (f"{found} with a head of kind '{head.kind}'", _list_headed()) if head else (found, known)
        raise ConfigError(f"--to gguf: {found} is not written (one of: {', '.join(known)})")
    raise ConfigError(*[*dict.fromkeys(faults)][:8])


def _list_headed() -> list[str]:
    """List the architectures for which llama.cpp computes logits of whole rows."""
    rows = read_catalogue()["architectures"].items()
    return [name for name, row in rows if ROW_HEAD in ((row or {}).get("names") or {}).values()]


def _lay_out_as(architecture: str, config: Mapping[str, Any], body: Body, model: StoredModel, kind: str) -> Layout:
    head = find_row_head(model.spec)
    if head and architecture not in (known := _list_headed()):
        raise ConfigError(f"head: is kind '{head.kind}', where llama.cpp has none (with one: {', '.join(known)})")
    start = GGUFFile(Path(f"{architecture}.gguf"), {"general.architecture": architecture}, {})
    entries, lost = find_entries(model.spec, lay_keys(body, start))
    if lost:
        raise ConfigError(*(f"{name}: has no tensor" for name in lost[:3]))
    named, kinds = [], {}
    layers = max(tower.n_layers for tower in model.spec.towers().values())
    for entry in entries:
        names = []
        for theirs, shape in entry.shapes_of_theirs():
            own = to_gguf_name(theirs, architecture, layers)
            if own is None:
                raise ConfigError(f"{theirs}: has no tensor")
            names.append(own)
            kinds[own] = (_choose_kind(own, shape, kind), shape)
        named.append((entry, names))
    metadata = find_metadata(config, architecture, [*kinds])
    metadata.setdefault(f"{architecture}.context_length", model.spec.max_seq_len)
    metadata.setdefault(f"{architecture}.vocab_size", model.spec.vocab_size)
    if model.spec.kind == "encoder":  # llama.cpp adds the first type's vector to each token
        metadata["tokenizer.ggml.token_type_count"] = kinds.get("token_types.weight", ("", (1,)))[1][0]
    if head and head.skip_id is not None:
        metadata["tokenizer.ggml.padding_token_id"] = head.skip_id
    layout = Layout(architecture, metadata, named, kinds, find_factors(config, metadata, architecture))
    _check_header(layout, model)
    return layout


def _choose_kind(name: str, shape: tuple[int, ...], kind: str) -> str:
    """Choose the ggml type of a tensor. A matrix whose rows are no multiple of the type's blocks is stored as F16."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2 or "norm" in name or not name.endswith(".weight") or any(each in name for each in EXACT):
        return "F32"
    return kind if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] == 0 else "F16"


def _check_header(layout: Layout, model: StoredModel) -> None:
    """Raise ConfigError unless the header describes the model to write; the error lists the fields that differ."""
    import numpy as np

    from zoo.compose import load

    with tempfile.TemporaryDirectory() as folder:
        held = {}
        for name, factors in layout.factors.items():
            file = Path(folder) / name
            np.array(factors, np.float32).tofile(file)
            held[name] = StoredTensor(file, "F32", (len(factors),), 0)
        file = Path(f"{layout.architecture}.gguf")
        held |= {name: StoredTensor(file, kind, shape, 0) for name, (kind, shape) in layout.kinds.items()}
        header = {"general.architecture": layout.architecture, **layout.metadata}
        config = describe_gguf(GGUFFile(file, header, held))
        family = families.family_of_config(config, str(file))
        body = family.body(config, str(file))
        if body.head is not None and can_be_tied(body.model.get("head") or {}):  # as on reading, tensors decide
            body = family.body(config, str(file), {"head": {"tied": "output.weight" not in held}})
        refuse(list_spec_differences(model.spec, load(body.model)))


# ---------------------------------------------------------------- the file


def _write(model: StoredModel, layout: Layout, file: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(file, layout.architecture)
    for name, value in layout.metadata.items():
        writer.add_key_value(name, value, _find_type(value))
    factors = {name: np.array(each, np.float32) for name, each in layout.factors.items()}
    for name, each in factors.items():
        writer.add_tensor_info(name, each.shape, each.dtype, each.nbytes)
    for name, (stated, shape) in layout.kinds.items():
        type_ = gguf.GGMLQuantizationType[stated]
        values, size = gguf.GGML_QUANT_SIZES[type_]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), prod(shape) // values * size, type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each in factors.values():
        writer.write_tensor_data(each)
    for name, tensor in _list_theirs(model, layout):
        type_ = gguf.GGMLQuantizationType[layout.kinds[name][0]]
        writer.write_tensor_data(gguf.quants.quantize(np.ascontiguousarray(tensor.numpy()), type_))
    writer.close()


def _find_type(value: object) -> Any:
    """Find the GGUF type of a metadata value; bytes are an array."""
    from gguf import GGUFValueType

    if isinstance(value, bytes):
        return GGUFValueType.ARRAY
    return GGUFValueType.UINT32 if type(value) is int and value >= 0 else GGUFValueType.get_type(value)


def _list_theirs(model: StoredModel, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Yield the file's tensors in float32, in the file's order."""
    for entry, names in layout.entries:
        ours = [model.tensors[name].float() for name in entry.ours]
        yield from zip(names, entry.to_theirs(ours), strict=True)
    yield from layout.dense.items()


# ---------------------------------------------------------------- read back


def compare(model: StoredModel, layout: Layout, file: Path, folder: Path, verify: bool) -> str:
    """Read a file by zoo's own reader, and compare it with the model it was written from: tensors within the rounding
    of their types, and token ids; with `verify` also llama.cpp's logits. Returns what was compared. Raises
    CheckpointError if tensors or logits differ, ConfigError if token ids do."""
    from zoo.checkpoint.store import open_model

    with warnings.catch_warnings():
        if "tokenizer.ggml.tokens" not in layout.metadata:
            warnings.simplefilter("ignore")  # it is no surprise that the file has no tokenizer
        unpacked = unpack(file)
    try:
        found = open_model(unpacked, torch.float32, mapped=False)
        largest = max(_measure_error(model, found, layout, entry, names) for entry, names in layout.entries)
        error = f"within {largest:.1e} of a tensor's largest value" if largest else "equal"
        texts = _compare_ids(folder, unpacked) if (folder / "tokenizer.json").is_file() else 0
        logits = compare_with_llama_cpp(found, file, layout.dense.values()) if verify else "not read by llama.cpp"
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    ids = f"the same ids of {texts} texts" if texts else "no text, as it has no tokenizer.json"
    return f"zoo's reader gives {len(found.tensors)} tensors, {error}; {ids}; {logits}"


def _measure_error(model: StoredModel, found: StoredModel, layout: Layout, entry: Entry, names: list[str]) -> float:
    """Measure the largest error of an entry's tensors, relative to their largest stored value. Raises CheckpointError
    for an error beyond rounding."""
    step = max(STEPS[layout.kinds[name][0]] for name in names)
    ours = [model.tensors[name].float() for name in entry.ours]
    stored = max(float(each.abs().max()) for each in entry.to_theirs(ours))
    errors = [
        float((found.tensors[name].float() - each).abs().max()) for name, each in zip(entry.ours, ours, strict=True)
    ]
    if not max(errors) <= step * stored + LEAST:
        raise CheckpointError(f"{entry.ours[0]}: is read back with an error of {max(errors):.2g} (a bug here)")
    return max(errors) / max(stored, LEAST)


TEXTS = ("Hello!", "A longer text, of naïve words, 42 numbers and 東京.", " x  y\n\n\tz it's 12345", "")


def _compare_ids(folder: Path, unpacked: Path) -> int:
    """Count the texts that both tokenizers encode to the same ids. Raises ConfigError for a text with other ids."""
    ours, theirs = map(open_tokenizer, (folder, unpacked))
    added = ours.get_added_tokens_decoder().values()
    special = [each.content for each in added if each.special and not each.lstrip]  # GGUF has no form of lstrip
    texts = (*TEXTS, " and ".join(["special tokens", *special[-3:]]))
    for text in texts:
        wanted, got = ours.encode(text).ids, theirs.encode(text).ids
        if wanted != got:
            raise ConfigError(
                f"{folder / 'tokenizer.json'}: GGUF has no form of it, {text!r} would be {got}, is {wanted}"
            )
    return len(texts)
