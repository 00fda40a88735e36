"""Hugging Face folders, in and out: config.json to a model in our grammar, their tensors to ours, and both back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.files import BESIDE, INDEX, SINGLE, Header, Reader, headers, refuse_to_replace
from zoo.checkpoint.mapping import Entry, entries, matches, worked_out
from zoo.errors import CheckpointError, ConfigError, did_you_mean
from zoo.families import family as families
from zoo.families.described import CONFIG, is_folder, jsonable, read_body, read_json
from zoo.families.expression import resolved
from zoo.families.family import Body, Family
from zoo.lazy import torch
from zoo.spec import Buffer, tensors

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 5_000_000_000
"""Bytes above which weights are written to several files."""


@dataclass(frozen=True)
class HFSource:
    """A folder as it was read: what its config.json says, and the model that is."""

    folder: Path
    config: dict[str, Any]
    body: Body

    @property
    def family(self) -> Family:
        return self.body.family


def open_folder(folder: Path) -> tuple[HFSource, dict[str, Header]]:
    """A folder's model and the tensors in it: heads tied as the file has them, and of the class that the file is.

    A file without the head that config.json's class has is read as the family's class without one.
    """
    file = folder / CONFIG
    config = read_json(file)
    if config.get("quantization_config"):
        fault = "quantization_config: its weights are quantised (the unquantised checkpoint)"
        raise CheckpointError(f"{file}: {fault}")
    family, listed = families.family_of_config(config, str(file)), headers(folder)
    stated = {
        k: v for name, fields in family.present.items() if name in listed for k, v in fields.items() if k not in config
    }
    opened = _opened(folder, listed, stated)
    if _fits(*opened):
        return opened
    for architecture in family.architectures:
        other = _opened(folder, listed, {**stated, "architectures": [architecture]})
        if _fits(*other):
            return other
    return opened


def _opened(
    folder: Path, listed: Mapping[str, Header], stated: Mapping[str, Any]
) -> tuple[HFSource, dict[str, Header]]:
    """A folder read as a model of one class."""
    config, body = read_body(folder, stated=stated)
    found = _named(listed, body)
    changes = None if _has_copy(folder, body, found) else _tying(body, found)
    if changes is not None:
        config, body = read_body(folder, changes, stated)
    return HFSource(folder, config, body), {**_stand_ins(body, found), **found}


def _fits(source: HFSource, found: Mapping[str, Header]) -> bool:
    """Whether the tensors are those of the model, by name."""
    body = source.body
    laid = entries(spec_of(body), body.family.keys, body.prefix, body.fields, body.kinds)
    return not any("has shape" not in fault for fault in differences(laid, found, source))


def _has_copy(folder: Path, body: Body, found: Mapping[str, Header]) -> bool:
    """Whether the file has a tied head's weight a second time, as old ones do; the family's `same` says of what."""
    own = str(body.family.about.get("head"))
    of = body.family.same.get(own, "").replace("~", body.prefix)
    if own not in found or of not in found or found[own].shape != found[of].shape:
        return False
    with Reader(folder, found) as reader:
        return torch.equal(reader[own], reader[of])


def _stand_ins(body: Body, found: Mapping[str, Header]) -> dict[str, Header]:
    """What a file has under the name of its copy alone."""
    pairs = [
        (copy.replace("~", body.prefix), name.replace("~", body.prefix)) for copy, name in body.family.same.items()
    ]
    return {
        name: _known_as(found[copy], copy)
        for copy, name in pairs
        if copy in found and copy != body.family.about.get("head")
    }


def _named(found: Mapping[str, Header], body: Body) -> dict[str, Header]:
    """The tensors that are the model's, by the names that this class of the family has.

    Files of a class with a head serve one without, and the other way round, as transformers reads them: the prefix is
    put on or taken off.
    """
    family, prefix = body.family, body.prefix
    kept = {name: each for name, each in found.items() if not matches(name, family.ignore)}
    kept = {_renamed(name): _known_as(each, name) for name, each in kept.items()}
    longest = max((each.get("prefix") or "" for each in family.architectures.values()), key=len)
    if longest and prefix == longest and not any(name.startswith(prefix) for name in kept):
        return {name if _apart(name, family) else prefix + name: each for name, each in kept.items()}
    if longest and not prefix and any(name.startswith(longest) for name in kept):
        return {name.removeprefix(longest): each for name, each in kept.items()}
    return kept


def _known_as(header: Header, name: str) -> Header:
    return dataclasses.replace(header, name=header.name or name)


def _renamed(name: str) -> str:
    """TensorFlow's words for a norm's tensors, which old BERT files still have."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _apart(name: str, family: Family) -> bool:
    """Whether a tensor is of a head, which has no prefix."""
    return any(
        not theirs.startswith("~") and name.startswith(theirs.split(" |")[0])
        for theirs in family.keys.values()
        if theirs
    )


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
    from zoo.compose import load

    return load(body.model)


def load(folder: Path, dtype: Any = None, device: str = "cpu") -> Any:
    """The model of a Hugging Face folder, in eval mode, with `source` saying where it came from.

    Tensors that are ours as they are stay mapped into memory until they are used; others are made one by one. Raises
    CheckpointError, a line for each thing that is wrong, before any weight is read.
    """
    from zoo.run.builder import build, pick_device, torch_dtype

    source, found = open_folder(folder)
    spec = spec_of(source.body)
    laid = lay(source, spec, found)
    where, kind = pick_device(device), None if dtype is None else torch_dtype(dtype)
    model = build(spec, device="meta")
    with Reader(folder, found) as reader:
        for name, tensor in _ours(laid, reader, source):
            _place(model, name, tensor.to(where), kind)
    for name, tensor in _fresh(spec, laid, found):
        _place(model, name, tensor.to(where), kind)
    model.source = source
    return model.eval()


def lay(source: HFSource, spec: Any, found: Mapping[str, Header]) -> list[Entry]:
    """How their tensors are ours, held against a folder's headers: names and shapes. Raises CheckpointError."""
    body = source.body
    laid = entries(spec, body.family.keys, body.prefix, body.fields, body.kinds)
    faults = differences(laid, found, source)
    if faults:
        raise CheckpointError(*faults)
    return laid


def differences(laid: Sequence[Entry], found: Mapping[str, Header], source: HFSource) -> list[str]:
    """What a folder's tensors have that the model has not, and the other way round: a line each."""
    wanted = {name: shape for entry in laid for name, shape in _shapes(entry)}
    family, folder = source.family, source.folder
    extra = {theirs.replace("~", source.body.prefix) for theirs in (*family.same, *family.unread)}
    optional = [theirs.replace("~", source.body.prefix) for theirs in family.optional]
    dropped = tuple(
        worked_out(each.replace("~", source.body.prefix), (), source.body.fields) for each in family.dropped
    )
    strange = [n for n in found if n not in wanted and n not in extra and not matches(n, dropped)]
    faults = [
        f"{folder}: {name} is missing, of shape {list(shape)}{did_you_mean(name, strange)}"
        for name, shape in wanted.items()
        if name not in found and not matches(name, optional)
    ]
    faults += [
        f"{folder}: {name} has no row in the map of {family.name} (it belongs to no part of the model)"
        for name in strange
    ]
    return faults + [
        f"{folder}: {name} has shape {list(found[name].shape)}, the model's is {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]


def _shapes(entry: Entry) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Their names and shapes, as an entry writes them."""
    made = entry.to_theirs([torch.empty(shape, device="meta") for shape in entry.shapes])
    yield from ((name, tuple(tensor.shape)) for name, tensor in zip(entry.theirs, made, strict=True))


def _ours(laid: Sequence[Entry], reader: Reader, source: HFSource) -> Iterator[tuple[str, Tensor]]:
    wanted = {name for entry in laid for name in entry.theirs}
    for theirs, canonical in source.family.same.items():
        if theirs == source.family.about.get("head"):
            continue  # seen to when the folder was opened
        theirs, canonical = (name.replace("~", source.body.prefix) for name in (theirs, canonical))
        if theirs in reader.found and theirs not in wanted and not torch.equal(reader[theirs], reader[canonical]):
            raise CheckpointError(
                f"{source.folder}: {theirs} differs from {canonical}, which it is a copy of (equal ones)"
            )
    for entry in laid:
        if all(name in reader.found for name in entry.theirs):  # others may be left out
            yield from zip(entry.ours, entry.to_ours([reader[name] for name in entry.theirs]), strict=True)


def _fresh(spec: Any, laid: Sequence[Entry], found: Mapping[str, Header]) -> Iterator[tuple[str, Tensor]]:
    """What a file may leave out and did, as a fresh model has it."""
    lost = {name for entry in laid if not all(each in found for each in entry.theirs) for name in entry.ours}
    for name, part, _ in tensors(spec, spec.d_model):
        if name in lost:
            assert isinstance(part, Buffer), f"{name} may be left out, and has no value of its own to start from"
            tensor = torch.empty(part.shape)
            part.init(tensor) if callable(part.init) else tensor.fill_(part.init)
            yield name, tensor


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
    from zoo.disk import replace_folder

    config, body = target(model)
    refuse_to_replace(out, "a checkpoint", (CONFIG, INDEX, SINGLE, "model-*-of-*.safetensors", *BESIDE))
    if (out / CONFIG).exists() and not read_json(out / CONFIG).keys() & {"model_type", "architectures"}:
        raise CheckpointError(
            f"{out / CONFIG}: is the config of no model, and would be replaced (a new folder would do)"
        )
    laid = entries(model.spec, body.family.keys, body.prefix, body.fields, body.kinds)
    with replace_folder(out) as draft:
        dtype = next(model.parameters()).dtype
        config = {**config, "dtype": str(dtype).removeprefix("torch.")}
        (draft / CONFIG).write_text(json.dumps(jsonable(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        source = getattr(model, "source", None)
        _write(model, laid, draft, shard, _unread(model, body, laid, source))
        for folder in (each for each in (beside, source.folder if source else None) if each is not None):
            copy_beside(folder, draft)
    return config


def copy_beside(folder: Path, out: Path) -> None:
    """Copies what stands beside a model's weights, where it is not there yet."""
    for name in BESIDE:
        if (folder / name).is_file() and not (out / name).exists():
            shutil.copyfile(folder / name, out / name)


def _unread(model: Any, body: Body, laid: Sequence[Entry], source: HFSource | None) -> dict[str, Tensor]:
    """Tensors of a family's files that are of no part of the model: those of the folder that it came from, or a copy of
    the one that stands in for each, where one is named."""
    holders = {name: entry for entry in laid for name in entry.theirs}
    rows = {ours: theirs for ours, theirs in resolved(body.family.unread, body.fields).items() if theirs is not None}
    named = {ours.replace("~", body.prefix): theirs.replace("~", body.prefix) for ours, theirs in rows.items()}
    spare = {name: other for name, other in named.items() if name not in holders and (other in holders or not other)}
    if spare and source is not None and is_folder(source.folder):
        found = _named(headers(source.folder), body)
        with Reader(source.folder, found) as reader:
            return {name: reader[name].clone() for name in spare if name in found}
    held = model.state_dict()
    return {name: held[holders[other].ours[0]].clone() for name, other in spare.items() if other}


def _write(model: Any, laid: Sequence[Entry], folder: Path, shard: int, spare: Mapping[str, Tensor]) -> None:
    """The tensors under their names, in files of at most `shard` bytes; the last has those that are `spare` as well."""
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
        written = {
            key: each.contiguous() for entry, parts in made for key, each in zip(entry.theirs, parts, strict=True)
        }
        written |= spare if group is groups[-1] else {}
        save_file(
            {key: each.clone() if _shared(each) else each for key, each in written.items()},
            folder / name,
            {"format": "pt"},
        )
        listed |= dict.fromkeys(written, name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": listed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shared(tensor: Tensor) -> bool:
    """Whether a tensor is a part of a larger one, which safetensors does not write."""
    return tensor.untyped_storage().nbytes() != tensor.nbytes


def compare_headers(folder: Path) -> tuple[HFSource, list[Entry], list[str]]:
    """A folder's headers held against the model that its config.json says. No weight is read."""
    source, found = open_folder(folder)
    spec = spec_of(source.body)
    laid = entries(spec, source.family.keys, source.body.prefix, source.body.fields, source.body.kinds)
    return source, laid, differences(laid, found, source)


def end_ids(folder: Path) -> list[int]:
    """The tokens that end a text, as a folder's generation_config.json or config.json says."""
    for name in ("generation_config.json", CONFIG):
        stated = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if stated is not None:
            return [int(each) for each in (stated if isinstance(stated, list) else [stated])]
    return []


__all__ = [
    "ConfigError",
    "compare_headers",
    "copy_beside",
    "end_ids",
    "load",
    "open_folder",
    "save",
    "spec_of",
    "target",
]
