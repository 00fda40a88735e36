"""Read the text model of a multimodal folder, and write it back in place: all other tensors stay bit-identical."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from zoo.checkpoint.beside import copy_inside
from zoo.checkpoint.conversion import Entry
from zoo.checkpoint.stored import StoredTensors
from zoo.checkpoint.tensor_files import INDEX, Header, Packed, TensorReader, stream_tensors
from zoo.errors import CheckpointError
from zoo.families.body import Body
from zoo.families.config_types import IndexFile
from zoo.families.described import CONFIG, read_json, write_json
from zoo.families.family import Family
from zoo.families.multimodal import TensorPrefixes, Wrapper, read_catalogue
from zoo.lazy import Tensor
from zoo.untrusted.json_file import FILE

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Suffixes of weight files. Only the weights that were read are written back; other weight files are not copied."""


@dataclass(frozen=True)
class Whole:
    """The multimodal folder around a text model: its config.json, where the text model's tensors are, and the headers
    of all tensors by their names in the files."""

    wrapper: Wrapper
    layout: TensorPrefixes
    listed: Mapping[str, Header]

    def name_in_file(self, name: str, prefix: str) -> str:
        """Translate a tensor's name in the text model's class to its name in the files. If the name begins with the
        class's `prefix`, the layout's `base` replaces the prefix; any other tensor belongs to the head, and the
        layout's `head` is put before its name.
        """
        if name.startswith(prefix):
            return self.layout.base + name.removeprefix(prefix)
        return self.layout.head + name

    def describe_rest(self, mapped: Iterable[Entry], prefix: str) -> str:
        """List in one line the parts that are not read, each with its parameters: "vision_tower (412,442,352), …"."""
        read = {self.name_in_file(name, prefix) for entry in mapped for name in entry.theirs}
        counts: Counter[str] = Counter()
        for name, header in self.listed.items():
            if name not in read:
                counts[name.removeprefix("model.").split(".")[0]] += prod(header.shape)
        parts = ", ".join(f"{name} ({count:,} parameters)" for name, count in counts.most_common())
        return f"{self.wrapper.kind}: its text model alone; {parts or 'nothing'} not read"


def check_wrapper(wrapper: Wrapper, file: Path) -> None:
    """Raise CheckpointError for models not in conf/multimodal.yaml: a wrapper may change the attention between text
    tokens."""
    if not wrapper.is_read:
        known = ", ".join(read_catalogue().models)
        raise CheckpointError(
            f"{file}: model_type: the text model inside {wrapper.kind!r} is not loaded (that of: {known}); "
            "`zoo stats` prices it"
        )


def take_text(
    wrapper: Wrapper, family: Family, listed: Mapping[str, Header], folder: Path
) -> tuple[Whole, dict[str, Header]]:
    """Find the text model's tensors in a folder, and give them the names of one of the family's classes: the class with
    the longest prefix, or one that exists only inside multimodal folders (`within`). Raises CheckpointError if no known
    prefix fits."""
    layout, naming = _find_layout(family, listed, folder)
    prefix, roots, heads = naming
    found: dict[str, Header] = {}
    for name, header in listed.items():
        own = name.removeprefix(layout.base)
        if name.startswith(layout.base) and own.split(".")[0] in roots:
            found[prefix + own] = dataclasses.replace(header, name=name)
        elif name.startswith(layout.head) and name.removeprefix(layout.head).split(".")[0] in heads:
            found[name.removeprefix(layout.head)] = dataclasses.replace(header, name=name)
    return Whole(wrapper, layout, listed), found


class Naming(NamedTuple):
    """How a class names its tensors: the prefix, and the first words of the names in the base model and in the head."""

    prefix: str
    base: set[str]
    head: set[str]


def _find_layout(family: Family, listed: Mapping[str, Header], folder: Path) -> tuple[TensorPrefixes, Naming]:
    namings = list(_list_namings(family))
    for naming, layout in product(namings, read_catalogue().layouts):
        if all(any(f"{name}.".startswith(f"{layout.base}{root}.") for name in listed) for root in naming.base):
            return layout, naming
    tried = ", ".join(f"{layout.base}{min(namings[0].base)}" for layout in read_catalogue().layouts)
    raise CheckpointError(f"{folder}: the tensors of its text model were not found (looked for {tried})")


def _list_namings(family: Family) -> Iterator[Naming]:
    """Yield the Naming of the family's class with the longest prefix, then of each `within` class that has `keys`."""
    inner = [each for each in family.architectures.values() if each.get("within") and each.get("keys")]
    outer = (each.get("prefix") or "" for each in family.architectures.values() if each not in inner)
    yield _read_naming(max(outer, key=len), family.keys)
    for each in inner:
        yield _read_naming(each.get("prefix") or "", each["keys"])


def _read_naming(prefix: str, keys: Mapping[str, str]) -> Naming:
    rows = [str(theirs) for theirs in keys.values()]
    base = {root for row in rows for root in re.findall(r"~(\w+)", row)}
    return Naming(prefix, base, {row.split(".")[0] for row in rows if row and not row.startswith(("~", "="))})


# ---------------------------------------------------------------- writing


def write_whole(
    held: StoredTensors, whole: Whole, folder: Path, draft: Path, body: Body, mapped: Sequence[Entry]
) -> None:
    """Write a multimodal folder anew with Zoo's tensors in place of its text model's, one tensor at a time. Raises
    CheckpointError for files other than safetensors, and for quantised weights."""
    ours = {whole.name_in_file(name, body.prefix): entry for entry in mapped for name in entry.theirs}
    lost, placed = _lost_heads(whole, body, ours), {}
    files = list(dict.fromkeys(header.file for header in whole.listed.values()))
    if any(file.suffix != ".safetensors" for file in files):
        raise CheckpointError(f"{folder}: is not written back into {files[0].name} (a folder of safetensors would do)")
    if any(isinstance(header, Packed) for header in whole.listed.values()):
        raise CheckpointError(f"{folder}: is quantised, and is not written back (one with whole weights would do)")
    reader = TensorReader(folder, whole.listed, mapped=False)
    for file in files:
        names = [name for name, header in whole.listed.items() if header.file == file and name not in lost]
        names += [name for name in ours if name not in whole.listed] if file is files[-1] else []
        entries = list(dict.fromkeys(ours[name] for name in names if name in ours))
        rest = [name for name in names if name not in ours]
        forms = dict(_list_theirs(entries, held.forms, whole, body)) | {
            name: whole.listed[name].make_empty("meta") for name in rest
        }
        text = ((name, each) for name, each in _list_theirs(entries, held, whole, body) if name in set(names))
        kept = ((name, reader[name]) for name in rest)
        stream_tensors({name: forms[name] for name in names}, chain(text, kept), draft / file.name)
        placed |= dict.fromkeys(names, file.name)
    if (folder / INDEX).is_file():
        _write_index(folder, draft, placed)


def _lost_heads(whole: Whole, body: Body, ours: Mapping[str, Entry]) -> set[str]:
    """Return the name of the head's weight if the files have it and the model has not, because its head is tied."""
    head = body.family.about.get("head")
    name = "" if head is None else whole.name_in_file(head, body.prefix or "~")
    return {name} if name in whole.listed and name not in ours else set()


def _list_theirs(
    entries: Sequence[Entry], held: Mapping[str, Tensor], whole: Whole, body: Body
) -> Iterator[tuple[str, Tensor]]:
    """Convert Zoo's tensors to those of the files, one entry at a time. Yields the files' names and tensors."""
    for entry in entries:
        yield from ((whole.name_in_file(name, body.prefix), each) for name, each in entry.name_theirs(held))


def _write_index(folder: Path, draft: Path, placed: Mapping[str, str]) -> None:
    """Copy the index, or rewrite it if a tensor was added or removed."""
    index = read_json(folder / INDEX, IndexFile, FILE)
    if index["weight_map"] == placed:
        copy_inside(folder, INDEX, draft)
        return
    write_json(draft / INDEX, {**index, "weight_map": dict(sorted(placed.items()))})


def write_config(whole: Whole, folder: Path, draft: Path, text: Mapping[str, Any] | None) -> None:
    """Write the whole config.json with `text` as the config of the text model; None copies the file unchanged."""
    if text is None:
        copy_inside(folder, CONFIG, draft)
        return
    write_json(draft / CONFIG, whole.wrapper.put_back(text), sort_keys=True)


def list_other_files(folder: Path) -> list[Path]:
    """List the files of a folder other than weights and config.json: tokenizer, processors, templates."""
    kept = (each for each in sorted(folder.iterdir()) if each.is_file() and each.suffix not in WEIGHTS)
    return [each for each in kept if each.name not in (CONFIG, INDEX) and not each.name.startswith(".")]
