# R rank
"""Read an adapter in peft's format, by unpacking it into a checkpoint of Zoo in the cache folder. The checkpoint has
only the adapters, and names the base."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from zoo.checkpoint import hf
from zoo.checkpoint.adapter_files import PLAN, choose_base
from zoo.checkpoint.beside import BESIDE, TOKENIZER, copy_beside
from zoo.checkpoint.conversion import Entry, Transpose
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.manifest import write_manifests
from zoo.checkpoint.mapping import map_tensors
from zoo.checkpoint.tensor_files import TensorReader, read_header, write_tensors
from zoo.disk import replace_folder
from zoo.errors import CheckpointError, FitsNoFamily
from zoo.families.described import PEFT as SETTINGS
from zoo.families.described import find_peft_base, read_json, write_json
from zoo.grammar.saved import read_spec, write_spec
from zoo.lazy import Tensor, torch
from zoo.paths import find_cache_folder
from zoo.runs import ADAPTERS, ARCHITECTURE, WEIGHTS
from zoo.untrusted.json_file import JsonShape
from zoo.untrusted.printable import list_first, quote, shorten

if TYPE_CHECKING:
    from zoo.families.body import Body
    from zoo.run.adapters import Adapters

TENSORS = "adapter_model.safetensors"
"""The name of the tensor file in peft's format."""

PREFIX = "base_model.model."
"""The prefix of the names of a peft model's tensors."""

MAGNITUDES = ".lora_magnitude_vector"
"""The end of the name of a module's magnitudes (DoRA)."""

VERSION = 1
"""Version of the unpacked files: a folder of an older version is made anew."""


Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PeftConfig(JsonShape):
    """The keys of adapter_config.json that are read."""

    peft_type: str
    lora_alpha: Alpha = 8.0
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    alpha_pattern: dict[str, Alpha] | None = None
    use_rslora: bool | None = None


def unpack_adapter(folder: Path) -> Path:
    """Unpack an adapter in peft's format into a checkpoint of Zoo, unless that is done already; return its folder.

    adapter_config.json names the base. Raises CheckpointError, a line for each fault, if the base is missing, or for
    tensors that are not LoRA adapters of the base's Linears.
    """
    config = read_json(folder / SETTINGS, PeftConfig)
    if config["peft_type"] != "LORA":
        found = f"peft_type: is {quote(config['peft_type'])}, which is not read (LORA)"
        raise CheckpointError(f"{folder / SETTINGS}: {found}")
    for key in config.get("alpha_pattern") or {}:
        if not re.fullmatch(r"[\w.]+", key):
            what = f"alpha_pattern: {quote(key)} is no name of a module, and patterns are not read (names)"
            raise CheckpointError(f"{folder / SETTINGS}: {what}")
    base, found = choose_base(find_peft_base(folder))
    if not (folder / TENSORS).is_file():
        raise CheckpointError(f"{folder / TENSORS}: no such file (peft's adapter, in safetensors)")
    stamps = [(each.stat().st_size, each.stat().st_mtime_ns) for each in (folder / SETTINGS, folder / TENSORS)]
    key = hashlib.sha256(f"{VERSION} {folder.resolve()} {stamps} {base} {found}".encode()).hexdigest()[:12]
    out = find_cache_folder() / "peft" / f"{folder.resolve().name}-{key}"
    if (out / PLAN).is_file():
        return out
    spec, entries = _open_base(Path(base))
    modules, own = _read_modules(folder, config, entries)
    plan, adapters = _convert(modules)
    trained, dropout = tuple(sorted(own)), config.get("lora_dropout", 0.0)
    plan = dataclasses.replace(plan, trained=trained, dropout=dropout, base=base, hash=found)
    with replace_folder(out) as draft:
        write_spec(spec, draft)
        write_json(draft / PLAN, dataclasses.asdict(plan))
        write_tensors(adapters, draft / ADAPTERS)
        write_tensors(own, draft / WEIGHTS)
        if (folder / "tokenizer.json").is_file():
            copy_beside(folder, draft, TOKENIZER)
        copy_beside(Path(base), draft, BESIDE)
        write_manifests(draft)
    return out


def _open_base(base: Path) -> tuple[Any, tuple[Entry, ...]]:
    """Open the Spec of a base, and the entries that map the tensors of its Hugging Face model to Zoo's."""
    if (base / ARCHITECTURE).is_file():
        spec = read_spec(base)
        return spec, tuple(map_tensors(spec, find_published(spec, base, "another base, or an adapter of zoo's own")))
    source = hf.open_folder(base)[0]
    return source.spec, tuple(map_tensors(source.spec, source.body))


def find_published(spec: Any, folder: Path, cure: str) -> Body:
    """Find the published model that describes a Spec: peft's format uses its tensor names. Raises FitsNoFamily, in one
    line with a `cure`, if no family describes the Spec."""
    try:
        return find_config(spec)[1]
    except FitsNoFamily as error:
        more = f"; and {len(error.faults) - 1} more" if len(error.faults) > 1 else ""
        found = f"peft's format needs the names of a published family, and none fits: {error.faults[0]}{more}"
        raise FitsNoFamily(f"{folder}: {found} ({cure})") from None


class PeftModule(NamedTuple):
    """The adapter of a module of the Hugging Face model: a [R, d_in], b [d_out, R], the factor of b·a, and, for DoRA,
    the magnitudes m [d_out]."""

    entry: Entry
    a: Tensor
    b: Tensor
    scale: float
    m: Tensor | None


def _read_modules(
    folder: Path, config: Mapping[str, Any], entries: tuple[Entry, ...]
) -> tuple[list[PeftModule], dict[str, Tensor]]:
    """Read the file of an adapter: the tensors of each adapted module, and the weights trained whole, by Zoo's names.
    Raises CheckpointError with a line for each tensor that is not read."""
    file = folder / TENSORS
    reader, by_name = TensorReader(folder, read_header(file)), {name: e for e in entries for name in e.theirs}
    left = {name.removeprefix(PREFIX): name for name in reader.found}
    modules, own, scaled = [], {}, _scaling(config)
    for name in [each for each in left if each.endswith(".lora_A.weight")]:
        path = name.removesuffix(".lora_A.weight")
        entry = by_name.get(f"{path}.weight")
        if entry is not None and _is_plain(entry) and f"{path}.lora_B.weight" in left:
            a, b = (reader[left.pop(f"{path}.lora_{each}.weight")].float() for each in "AB")
            m = reader[left.pop(f"{path}{MAGNITUDES}")].float() if f"{path}{MAGNITUDES}" in left else None
            modules.append(PeftModule(entry, a, b, scaled(path, len(a)), m))
    for name in [each for each in left if each in by_name]:
        entry = by_name[name]
        if name in left and all(each in left for each in entry.theirs):
            theirs = [reader[left.pop(each)] for each in entry.theirs]
            own |= dict(zip(entry.ours, (each.contiguous() for each in entry.to_ours(theirs)), strict=True))
    said = "is no LoRA of a product of the base, nor a weight of it"
    if left:
        raise CheckpointError(*list_first([*left], lambda name: f"{file}: {shorten(name)}: {said}", file))
    if not modules:
        raise CheckpointError(f"{file}: has no adapters (peft's LoRA)")
    return modules, own


def _convert(modules: list[PeftModule]) -> tuple[Adapters, dict[str, Tensor]]:
    """Convert to Zoo's adapters, which share one rank and one scale: a lower rank is filled up with zeros, another
    scale multiplies b. Returns their plan and their tensors."""
    from zoo.run.adapters import INSIDE, Adapters

    rank, scale, tensors = max(len(each.a) for each in modules), modules[0].scale, {}
    for each in modules:
        for path, b in _split_outputs(each.entry, each.b):
            b = b * (each.scale / scale) if each.scale != scale else b
            tensors[f"{path}{INSIDE}a"] = torch.nn.functional.pad(each.a, (0, 0, 0, rank - len(each.a))).clone()
            tensors[f"{path}{INSIDE}b"] = torch.nn.functional.pad(b, (0, rank - b.shape[1])).contiguous()
        if each.m is not None:
            rows = _split_outputs(each.entry, each.m.reshape(-1, 1))
            tensors |= {f"{path}{INSIDE}m": row.flatten() for path, row in rows}
    paths = tuple(name.removesuffix(f"{INSIDE}a") for name in tensors if name.endswith(f"{INSIDE}a"))
    dora = any(each.m is not None for each in modules)
    return Adapters(rank, scale * rank, 0.0, paths, (), dora=dora), tensors


def _is_plain(entry: Entry) -> bool:
    """Whether an entry is one matrix in the Hugging Face model, which may fuse several Linears."""
    return len(entry.theirs) == 1 and not entry.experts and not entry.stacked


def _scaling(config: Mapping[str, Any]) -> Any:
    """Make the function that finds the factor of a module's adapter from the module's path and rank, as peft does."""
    patterns = config.get("alpha_pattern") or {}

    def scale(path: str, rank: int) -> float:
        own = (alpha for key, alpha in patterns.items() if f".{path}".endswith(f".{key}"))
        alpha = next(own, config.get("lora_alpha", 8.0))
        return alpha / (rank**0.5 if config.get("use_rslora") else rank)

    return scale


def _split_outputs(entry: Entry, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Split rows [d_out, …] of a module among the Linears that it fuses. Yields each Linear's path and rows."""
    parts = [rows]
    for step in entry.steps:
        parts = parts if isinstance(step, Transpose) else step.read(parts, entry)
    for name, part in zip(entry.ours, parts, strict=True):
        yield name.removesuffix(".weight"), part
