"""Hugging Face folders, in and out: config.json to a model in our grammar, their tensors to ours, and both back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import family as families
from zoo.checkpoint.family import Body, Family
from zoo.checkpoint.files import INDEX, SINGLE, Header, Reader, headers, read_json
from zoo.checkpoint.mapping import Entry, entries, matches
from zoo.errors import CheckpointError, ConfigError, did_you_mean
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
SHARD = 5_000_000_000
"""Bytes above which weights are written to several files."""

BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "added_tokens.json", "chat_template.jinja"),
    "generation_config.json",
)
"""What stands beside weights, and goes with them."""


def is_folder(path: Path) -> bool:
    """Whether a path is a Hugging Face folder."""
    return (path / CONFIG).is_file()


def is_config(path: Any) -> bool:
    """Whether a target is a config.json, or a folder with one."""
    path = Path(path)
    return path.suffix == ".json" or (path.is_dir() and is_folder(path))


@dataclass(frozen=True)
class Source:
    """A folder as it was read: what its config.json says, and the model that is."""

    folder: Path
    config: dict[str, Any]
    body: Body

    @property
    def family(self) -> Family:
        return self.body.family


def read_body(path: Path, changes: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Body]:
    """A config.json, or that of a folder, and the model it describes. No torch. Raises CheckpointError."""
    file = path / CONFIG if path.is_dir() else path
    config = read_json(file)
    return config, families.of(config, str(file)).body(config, str(file), changes)


def open_folder(folder: Path) -> tuple[Source, dict[str, Header]]:
    """A folder's model and the tensors in it, heads tied as the file has them."""
    config, body = read_body(folder)
    found = _named(headers(folder), body)
    changes = _tying(body, found)
    if changes is not None:
        config, body = read_body(folder, changes)
    return Source(folder, config, body), found


def _named(found: Mapping[str, Header], body: Body) -> dict[str, Header]:
    """The tensors that are the model's, by the names that this class of the family has.

    Files of a class with a head serve one without, and the other way round, as transformers reads them: the prefix is
    put on or taken off.
    """
    family, prefix = body.family, body.prefix
    kept = {name: each for name, each in found.items() if not matches(name, family.ignore)}
    kept = {_renamed(name): each for name, each in kept.items()}
    longest = max((each.get("prefix") or "" for each in family.architectures.values()), key=len)
    if longest and prefix == longest and not any(name.startswith(prefix) for name in kept):
        return {name if _apart(name, family) else prefix + name: each for name, each in kept.items()}
    return kept


def _renamed(name: str) -> str:
    """TensorFlow's words for a norm's tensors, which old BERT files still have."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _apart(name: str, family: Family) -> bool:
    """Whether a tensor is of a head, which has no prefix."""
    return any(not theirs.startswith("~") and name.startswith(theirs.split(" |")[0]) for theirs in family.keys.values() if theirs)


def _tying(body: Body, found: Mapping[str, Header]) -> dict[str, Any] | None:
    """What must change of a model whose config.json ties its head otherwise than its file does."""
    head = body.model.get("decoder", {}).get("head") or body.model.get("head") or {}
    own = body.family.about.get("head")
    if own is None or not isinstance(head, Mapping) or head.get("kind", "lm") == "none":
        return None
    there = own in found
    if bool(head.get("tied")) is not there:
        return None
    return {"head": {"tied": not there}}


def spec_of(body: Body) -> Any:
    """The Spec of a model that a config.json describes."""
    from zoo.config import load

    return load(body.model)


def load(folder: Path, dtype: Any = None, device: str = "cpu") -> Any:
    """The model of a Hugging Face folder, in eval mode, with `source` saying where it came from.

    Tensors that are ours as they are stay mapped into memory until they are used; others are made one by one. Raises
    CheckpointError, a line for each thing that is wrong, before any weight is read.
    """
    from zoo.builder import build, pick_device, torch_dtype

    source, found = open_folder(folder)
    spec = spec_of(source.body)
    laid = lay(source, spec, found)
    where, kind = pick_device(device), None if dtype is None else torch_dtype(dtype)
    model = build(spec, device="meta")
    with Reader(folder, found) as reader:
        for name, tensor in _ours(laid, reader, source):
            _place(model, name, tensor.to(where), kind)
    model.source = source
    return model.eval()


def lay(source: Source, spec: Any, found: Mapping[str, Header]) -> list[Entry]:
    """How their tensors are ours, held against a folder's headers: names and shapes. Raises CheckpointError."""
    body = source.body
    laid = entries(spec, body.family.keys, body.prefix, body.fields, body.kinds)
    faults = differences(laid, found, source)
    if faults:
        raise CheckpointError(*faults)
    return laid


def differences(laid: Sequence[Entry], found: Mapping[str, Header], source: Source) -> list[str]:
    """What a folder's tensors have that the model has not, and the other way round: a line each."""
    wanted = {name: shape for entry in laid for name, shape in _shapes(entry)}
    family, folder = source.family, source.folder
    extra = {theirs.replace("~", source.body.prefix) for theirs in family.same}
    strange = [n for n in found if n not in wanted and n not in extra and not matches(n, tuple(family.dropped))]
    faults = [
        f"{folder}: {name} is missing, of shape {list(shape)}{did_you_mean(name, strange)}"
        for name, shape in wanted.items()
        if name not in found
    ]
    faults += [f"{folder}: {name} has no row in the map of {family.name} (it belongs to no part of the model)" for name in strange]
    return faults + [
        f"{folder}: {name} has shape {list(found[name].shape)}, the model's is {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]


def _shapes(entry: Entry) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Their names and shapes, as an entry writes them."""
    made = entry.to_theirs([torch.empty(shape, device="meta") for shape in entry.shapes])
    yield from ((name, tuple(tensor.shape)) for name, tensor in zip(entry.theirs, made, strict=True))


def _ours(laid: Sequence[Entry], reader: Reader, source: Source) -> Iterator[tuple[str, Tensor]]:
    for theirs, canonical in source.family.same.items():
        theirs, canonical = (name.replace("~", source.body.prefix) for name in (theirs, canonical))
        if theirs in reader.found and not torch.equal(reader[theirs], reader[canonical]):
            raise CheckpointError(f"{source.folder}: {theirs} differs from {canonical}, which it is a copy of (equal ones)")
    for entry in laid:
        yield from zip(entry.ours, entry.to_ours([reader[name] for name in entry.theirs]), strict=True)


def _place(model: Any, name: str, tensor: Tensor, dtype: Any) -> None:
    """Puts a tensor where a model on meta has its name; a parameter in this dtype, if one is given."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        module._parameters[leaf] = torch.nn.Parameter(tensor if dtype is None else tensor.to(dtype))


# ---------------------------------------------------------------- out


def target(model: Any, architecture: str | None = None) -> tuple[dict[str, Any], Body]:
    """The config.json that says this model, and the model it says. Raises ConfigError with what stands in the way."""
    from zoo.checkpoint.inverse import config_of

    return config_of(model.spec, getattr(model, "source", None), architecture)


def save(model: Any, out: Path, *, beside: Path | None = None, shard: int = SHARD) -> dict[str, Any]:
    """Writes config.json, safetensors and the files that `beside` has of a tokenizer; gives the config.

    The folder is whole or not there. Raises ConfigError for an architecture that no family is, CheckpointError when
    something else is in the way.
    """
    from zoo.checkpoint.store import whole

    config, body = target(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not is_folder(out):
        raise CheckpointError(f"{out}: holds something that is no checkpoint (a new folder would do)")
    laid = entries(model.spec, body.family.keys, body.prefix, body.fields, body.kinds)
    with whole(out) as draft:
        dtype = next(model.parameters()).dtype
        config = {**config, "dtype": str(dtype).removeprefix("torch.")}
        (draft / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _write(model, laid, draft, shard)
        source = getattr(model, "source", None)
        for folder in (each for each in (beside, source.folder if source else None) if each is not None):
            for name in BESIDE:
                if (folder / name).is_file() and not (draft / name).exists():
                    shutil.copyfile(folder / name, draft / name)
    return config


def _write(model: Any, laid: Sequence[Entry], folder: Path, shard: int) -> None:
    """The tensors under their names, in files of at most `shard` bytes."""
    from safetensors.torch import save_file

    held = model.state_dict()
    sizes = [sum(held[name].nbytes for name in entry.ours) for entry in laid]
    groups: list[list[Entry]] = [[]]
    room = shard
    for entry, size in zip(laid, sizes, strict=True):
        if groups[-1] and size > room:
            groups.append([])
            room = shard
        groups[-1].append(entry)
        room -= size
    listed: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        made = [(entry, entry.to_theirs([held[each] for each in entry.ours])) for entry in group]
        tensors = {key: each.contiguous() for entry, parts in made for key, each in zip(entry.theirs, parts, strict=True)}
        save_file({key: each.clone() if _shared(each) else each for key, each in tensors.items()}, folder / name, {"format": "pt"})
        listed |= dict.fromkeys(tensors, name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": listed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shared(tensor: Tensor) -> bool:
    """Whether a tensor is a part of a larger one, which safetensors does not write."""
    return tensor.untyped_storage().nbytes() != tensor.nbytes


def check(folder: Path) -> tuple[Source, list[Entry], list[str]]:
    """A folder's headers held against the model that its config.json says. No weight is read."""
    source, found = open_folder(folder)
    spec = spec_of(source.body)
    laid = entries(spec, source.family.keys, source.body.prefix, source.body.fields, source.body.kinds)
    return source, laid, differences(laid, found, source)


__all__ = ["ConfigError", "check", "is_config", "is_folder", "load", "open_folder", "read_body", "save", "spec_of", "target"]
