"""Write a model as a Hugging Face folder: config.json, safetensors, and the files of its tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.files import BESIDE, INDEX, SINGLE, Reader, read_headers, refuse_to_replace, write_tensors
from zoo.checkpoint.hf.opening import HFSource, name_tensors
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.mapping import Entry, map_tensors
from zoo.errors import CheckpointError
from zoo.families.described import CONFIG, is_folder, read_json, to_jsonable
from zoo.families.expression import evaluate_tree
from zoo.families.family import Body

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 5_000_000_000
"""Most bytes of weights in one file; more are written to several."""


def save(model: Any, out: Path, *, beside: Path | None = None, shard: int = SHARD) -> dict[str, Any]:
    """Write config.json, safetensors, and the tokenizer's files found in `beside` or where the model came from.

    Gives the config. That of a model that came from no Hugging Face folder states the start and end tokens of the
    tokenizer in `beside`: transformers and serving engines would otherwise take the defaults of the class (Llama: 2
    ends a text). The folder appears whole or not at all. Raises ConfigError for an architecture that no family can
    describe, CheckpointError where `out` holds something else.
    """
    from zoo.disk import replace_folder

    source = getattr(model, "source", None)
    config, body = find_config(model.spec, source)
    refuse_to_replace(out, "a checkpoint", (CONFIG, INDEX, SINGLE, "model-*-of-*.safetensors", *BESIDE))
    if (out / CONFIG).exists() and not read_json(out / CONFIG).keys() & {"model_type", "architectures"}:
        raise CheckpointError(
            f"{out / CONFIG}: is the config of no model, and would be replaced (a new folder would do)"
        )
    mapped = map_tensors(model.spec, body)
    with replace_folder(out) as draft:
        dtype = next(model.parameters()).dtype
        special = {} if source is not None or beside is None else _read_special_ids(beside)
        config = {**special, **config, "dtype": str(dtype).removeprefix("torch.")}
        (draft / CONFIG).write_text(json.dumps(to_jsonable(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _write_shards(model, mapped, draft, shard, _unread_tensors(model, body, mapped, source))
        for folder in (each for each in (beside, source.folder if source else None) if each is not None):
            copy_beside(folder, draft)
    return config


def _read_special_ids(folder: Path) -> dict[str, int]:
    """Read `eos_token_id` and `bos_token_id` from the tokenizer in a folder, as far as it states them."""
    if not all((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return {}
    tokenizer, stated = read_json(folder / "tokenizer.json"), read_json(folder / "tokenizer_config.json")
    numbers = {each["content"]: each["id"] for each in tokenizer.get("added_tokens") or []}
    found = {}
    for name in ("eos_token", "bos_token"):
        token = stated.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if text in numbers:
            found[f"{name}_id"] = numbers[text]
    return found


def copy_beside(folder: Path, out: Path) -> None:
    """Copy the tokenizer and generation files of a folder, without those that `out` has."""
    for name in BESIDE:
        if (folder / name).is_file() and not (out / name).exists():
            shutil.copyfile(folder / name, out / name)


def _unread_tensors(model: Any, body: Body, mapped: Sequence[Entry], source: HFSource | None) -> dict[str, Tensor]:
    """Tensors that files of the family have and the model does not read.

    Taken from the folder that the model came from; without one, copied from the tensor that the family names.
    """
    holders = {name: entry for entry in mapped for name in entry.theirs}
    rows = evaluate_tree(body.family.unread, body.fields)
    named = {body.full_name(name): body.full_name(other) for name, other in rows.items() if other is not None}
    spare = {name: other for name, other in named.items() if name not in holders and (other in holders or not other)}
    if spare and source is not None and is_folder(source.folder):
        found = name_tensors(read_headers(source.folder), body)
        with Reader(source.folder, found) as reader:
            return {name: reader[name].clone() for name in spare if name in found}
    held = model.state_dict()
    return {name: held[holders[other].ours[0]].clone() for name, other in spare.items() if other}


def _write_shards(model: Any, mapped: Sequence[Entry], folder: Path, shard: int, spare: Mapping[str, Tensor]) -> None:
    """Write the tensors in files of at most `shard` bytes, `spare` ones into the last, and an index of several."""
    held = model.state_dict()
    groups = list(_fill_shards(mapped, held, shard))
    listed: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        written: dict[str, Tensor] = {}
        for entry in group:
            written |= zip(entry.theirs, entry.to_theirs([held[each] for each in entry.ours]), strict=True)
        written |= spare if group is groups[-1] else {}
        write_tensors({key: _own_storage(each) for key, each in written.items()}, folder / name)
        listed |= dict.fromkeys(written, name)
    if len(groups) > 1:
        size = sum(held[name].nbytes for entry in mapped for name in entry.ours)
        index = {"metadata": {"total_size": size}, "weight_map": listed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _fill_shards(mapped: Sequence[Entry], held: Mapping[str, Tensor], shard: int) -> Iterator[list[Entry]]:
    """Split the entries, in order, into groups of at most `shard` bytes; a larger entry has a group of its own."""
    group: list[Entry] = []
    room = shard
    for entry in mapped:
        size = sum(held[name].nbytes for name in entry.ours)
        if group and size > room:
            yield group
            group, room = [], shard
        group.append(entry)
        room -= size
    yield group


def _own_storage(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is part of a larger one, which safetensors refuses to write."""
    whole = tensor.contiguous()
    return whole.clone() if whole.untyped_storage().nbytes() != whole.nbytes else whole
