"""List the quantisation methods that a config.json may name, and find a folder's quantised weights.

Which weights are quantised is decided by the tensors in the files, not by the config's lists of modules. Weights are
dequantised as they are read and run in the model's dtype; the model knows nothing of quantisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.checkpoint.mapping import matches
from zoo.checkpoint.quantised.base import QuantisedLayout, refuse
from zoo.checkpoint.quantised.bitsandbytes import EightBit, FourBit
from zoo.checkpoint.quantised.float4 import MXFP4, Float4Beside, Float4Experts, ModelOptFloat4, PackedFloat4
from zoo.checkpoint.quantised.packed_integers import AWQ, GPTQ, PackedIntegers, Ternary
from zoo.checkpoint.quantised.scaled import STORED, ScaledBeside, ScaledWeight, TorchAO
from zoo.checkpoint.tensor_files import NAMES, Header, Packed, TensorReader
from zoo.errors import CheckpointError, did_you_mean
from zoo.untrusted.json_file import JsonShape, check_shape
from zoo.untrusted.printable import quote

FIELD = "quantization_config"

ACTIVATIONS = ("*.input_scale", "*.output_scale", "*.activation_scale", "*.input_zero_point", "*.input_global_scale")
ACTIVATIONS += ("*.k_scale", "*.v_scale", "*.q_scale", "*.input_scale_ub", "*_activation_scale")
"""Scales of activations and KV caches. They are not read: activations and caches stay in the model's dtype."""


class GroupNode(JsonShape):
    """One of compressed-tensors' groups of weights."""

    weights: dict[str, Any] | None = None


class SettingsNode(JsonShape):
    """The keys of a quantization_config whose types are checked."""

    quant_method: str | None = None
    bits: int | None = None
    config_groups: dict[str, GroupNode] | None = None
    weight_block_size: list[int] | None = None


@dataclass(frozen=True)
class Method:
    """A method's layouts, the tensors that are not read, and the settings that must have one of the listed values."""

    layouts: tuple[type[QuantisedLayout], ...]
    dropped: tuple[str, ...] = ()
    requires: Mapping[str, tuple[Any, ...]] | None = None


COMPRESSED = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
COMPRESSED += ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized")

METHODS: dict[str, Method] = {
    "fp8": Method((ScaledWeight, ScaledBeside, Float4Beside, Float4Experts), ACTIVATIONS),
    "fbgemm_fp8": Method((ScaledWeight,), ACTIVATIONS),
    "mxfp4": Method((MXFP4,)),
    "compressed-tensors": Method(
        (PackedIntegers, PackedFloat4, ScaledWeight),
        ACTIVATIONS,
        {"format": (*COMPRESSED, None), "sparsity_config": (None, {}), "transform_config": (None, {})},
    ),
    "modelopt": Method((ModelOptFloat4, ScaledWeight), ACTIVATIONS),
    "gptq": Method((GPTQ,), (), {"checkpoint_format": ("gptq", "gptq_v2", None), "bits": (2, 3, 4, 8)}),
    "awq": Method((AWQ,), (), {"version": ("gemm", "GEMM", None), "bits": (4, None)}),
    "bitsandbytes": Method((FourBit, EightBit)),
    "torchao": Method((TorchAO,)),
    "bitnet": Method((Ternary,), (), {"quantization_mode": ("offline", None), "use_rms_norm": (False, None)}),
}
"""The supported methods by their `quant_method` in a config.json."""

SCALES = ("_scale", "_amax")
UNSTATED = Method((ScaledWeight, Float4Experts), ACTIVATIONS)
"""The method of weights that have scales although config.json names no method (Inkling 2)."""


def find_method(config: Mapping[str, Any], where: str) -> Method | None:
    """Find the method of a config's quantization_config, if any. Raises CheckpointError for an unsupported one."""
    settings = config.get(FIELD)
    if not settings:
        return None
    check_shape(settings, SettingsNode, f"{where}: {FIELD}")
    older = settings.get("load_in_4bit") or settings.get("load_in_8bit")  # files older than quant_method
    name = settings.get("quant_method") or ("bitsandbytes" if older else None)
    if name not in METHODS:
        hint = did_you_mean(str(name), METHODS) or f" (one of: {', '.join(METHODS)}; or the unquantised checkpoint)"
        raise CheckpointError(f"{where}: {FIELD}.quant_method: {quote(name)} is not read{hint}")
    method = METHODS[name]
    faults = [
        f"{where}: {FIELD}.{field}: is {quote(settings.get(field))}, which is not read "
        f"(one of: {', '.join(str(each) for each in values if each)})"
        if any(values)
        else f"{where}: {FIELD}.{field}: is {quote(settings.get(field))}, which is not read (none would do)"
        for field, values in (method.requires or {}).items()
        if settings.get(field) not in values
    ]
    if faults:
        raise CheckpointError(*faults)
    return method


def unpack_headers(folder: Path, config: Mapping[str, Any], found: Mapping[str, Header]) -> dict[str, Header]:
    """Replace the tensors of each quantised weight by one `Packed` header with the weight's name and shape.

    Weights get the dtype of `_read_dtype`. Raises CheckpointError for an unsupported method, for tensors that do not
    fit the method, and for float8 or int8 weights without a scale.
    """
    where = str(folder / "config.json")
    method = find_method(config, where)
    if method is None and not any(name.endswith(SCALES) for name in found):
        return dict(found)
    settings = config.get(FIELD) or {}
    dtype = _read_dtype(config, found, where)
    kept = {name: replace(each, name=each.name or name) for name, each in found.items()}
    reader = TensorReader(folder, found)
    layouts = list(_find_layouts(method or UNSTATED, kept))
    if method is None and not layouts:
        return dict(found)
    for stem, layout, parts in layouts:
        header = next(iter(parts.values()))
        made = _make_layout(layout, settings, parts, reader)
        for each in parts.values():
            kept.pop(each.name or "", None)
        weight = stem + layout.target
        kept[weight] = Packed(header.file, dtype, made.shape, name=weight, parts=parts, layout=made)
    kept = {name: each for name, each in kept.items() if not matches(name, (method or UNSTATED).dropped)}
    _refuse_bare(kept)
    return kept


def _read_dtype(config: Mapping[str, Any], found: Mapping[str, Header], where: str) -> str:
    """Find the dtype of dequantised weights: the config's, else the embeddings', else bfloat16. Raises CheckpointError
    if the config names no dtype of torch."""
    stated = config.get("dtype") or config.get("torch_dtype")
    if not isinstance(stated, str) or stated == "auto":
        own = (each.dtype for name, each in found.items() if "embed" in name)
        return next((dtype for dtype in own if dtype in ("F32", "F16", "BF16")), "BF16")
    named = NAMES.get(stated.removeprefix("torch."))
    if named is None:
        raise CheckpointError(f"{where}: dtype: is {quote(stated)}, no dtype of torch's (bfloat16)")
    return named


def _make_layout(
    layout: type[QuantisedLayout], settings: Mapping[str, Any], parts: Mapping[str, Header], reader: TensorReader
) -> QuantisedLayout:
    """Make the layout of a weight. Raises CheckpointError if tensors or settings do not fit the method."""
    try:
        return layout(settings, parts, reader.read)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        header = next(iter(parts.values()))
        shapes = ", ".join(f"{role} {each.dtype} {list(each.shape)}" for role, each in parts.items())
        raise refuse(header, f"is no weight of {layout.__name__}, found {shapes}", "a whole file") from error


def _find_layouts(
    method: Method, found: Mapping[str, Header]
) -> Iterator[tuple[str, type[QuantisedLayout], dict[str, Header]]]:
    """Yield the stem of each quantised weight's name, its layout, and its tensors by role."""
    for name in found:
        for layout in method.layouts:
            for mark in layout.marks:
                stem = name.removesuffix(mark)
                if stem == name:
                    continue
                parts = {role: found[stem + end] for role, end in layout.ends.items() if stem + end in found}
                if layout.fits(parts):
                    yield stem, layout, parts


def _refuse_bare(found: Mapping[str, Header]) -> None:
    """Raise CheckpointError for float8 or int8 weights that no layout covers."""
    bare = [each for name, each in found.items() if not isinstance(each, Packed) and each.dtype in STORED]
    bare = [each for each in bare if each.name and each.name.endswith("weight")]
    if bare:
        found_ = f"is {bare[0].dtype} without a scale" + (f", and {len(bare) - 1} more" if len(bare) > 1 else "")
        raise CheckpointError(f"{bare[0].file}: {bare[0].name}: {found_} (a whole checkpoint)")
