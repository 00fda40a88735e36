"""Write a model as a Hugging Face folder, a tensor at a time: config.json, safetensors, and its tokenizer's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from zoo.checkpoint import sentence_files
from zoo.checkpoint.beside import BESIDE, GENERATION, copy_beside, copy_inside
from zoo.checkpoint.conversion import Entry
from zoo.checkpoint.hf.multimodal_folder import Whole, list_other_files, write_config, write_whole
from zoo.checkpoint.hf.opening import HFSource, list_tensors, name_tensors, open_folder
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.mapping import map_tensors, matches
from zoo.checkpoint.model_card import CARD, write_card
from zoo.checkpoint.stored import StoredModel, StoredTensors
from zoo.checkpoint.tensor_files import INDEX, SINGLE, TensorReader, refuse_to_replace, stream_tensors
from zoo.checkpoint.tokenizer_file import LARGEST, TokenizerJson, read_special_tokens
from zoo.disk import replace_folder
from zoo.errors import CheckpointError
from zoo.families.body import Body
from zoo.families.config_types import GenerationFile
from zoo.families.described import CONFIG, is_folder, read_config, read_json, write_json
from zoo.families.expression import evaluate_tree
from zoo.lazy import Tensor

SHARD = 5_000_000_000
"""Maximum bytes of weights in one file; the weights of a larger model are written to several files."""


def save(
    model: StoredModel,
    out: Path,
    *,
    beside: Path | None = None,
    shard: int = SHARD,
    into: Path | None = None,
    pooling: str | None = None,
    force: bool = False,
    check: Callable[[Path], object] | None = None,
) -> dict[str, Any]:
    """Write a Hugging Face folder: config.json, safetensors, the tokenizer's files, a model card. Returns the config.

    The tokenizer's files are copied from `beside`, or from the folder that the model came from. A model from a
    multimodal folder is written as that folder, with its text model's tensors replaced and everything else unchanged;
    `into` names such a folder for any other model. With `pooling`, the folder also has the files of
    sentence-transformers: embeddings are pooled by `pooling` and scaled to length 1.

    The config of a model that came from no Hugging Face folder gets the EOS, BOS and padding ids of `beside`; otherwise
    transformers would use the class's defaults (Llama: EOS is 2). The folder appears whole or not at all, and only if
    `check`, called with its draft, raises nothing. With `force` a model that zoo did not write is replaced too. Raises
    ConfigError for an architecture that no family can describe, CheckpointError if `out` has other files, and for a
    tensor that is not finite.
    """
    model = model.refuse_nonfinite()
    source = model.source if into is None else _open_multimodal(into)
    config, body = find_config(model.spec, source)
    if source is not None and source.whole is not None:
        return _save_whole(model, source, source.whole, config, body, out, force, check)
    own = beside or (source and source.folder)
    if (out / CONFIG).exists() and not read_json(out / CONFIG).keys() & {"model_type", "architectures"}:
        raise CheckpointError(
            f"{out / CONFIG}: is the config of no model, and would be replaced (a new folder would do)"
        )
    names = (CONFIG, INDEX, SINGLE, CARD, "model-*-of-*.safetensors", *BESIDE)
    refuse_to_replace(out, "a checkpoint", names, source=own, force=force)
    mapped = map_tensors(model.spec, body)
    with replace_folder(out) as draft:
        special = {} if source is not None or beside is None else read_special_ids(beside, model.spec.vocab_size)
        config = {**special, **config, "dtype": str(model.dtype).removeprefix("torch.")}
        config = _leave_out_own(config, body)
        write_json(draft / CONFIG, config, sort_keys=True)
        _write_shards(model.tensors, mapped, draft, shard, _find_unread(model, body, mapped))
        if pooling is not None:
            tower = next(iter(model.spec.towers().values()))
            sentence_files.write_modules(draft, (pooling,), tower.out_width or tower.d_model, tower.max_seq_len)
        if own is not None:
            if pooling is None:
                sentence_files.list_modules(own)  # refuses what it cannot read
            copy_beside(own, draft)
        write_card(draft, out, model.spec, config["architectures"][0], own)
        if check is not None:
            check(draft)
    return config


def _open_multimodal(folder: Path) -> HFSource:
    source, _ = open_folder(folder)
    if source.whole is None:
        raise CheckpointError(f"{folder}: is no multimodal folder (--into takes the one that the model belongs into)")
    return source


def _save_whole(
    model: StoredModel,
    source: HFSource,
    whole: Whole,
    config: Mapping[str, Any],
    body: Body,
    out: Path,
    force: bool,
    check: Callable[[Path], object] | None,
) -> dict[str, Any]:
    """Write a multimodal folder with this model as its text model. Returns the whole config."""
    files = list_other_files(source.folder)
    weights = [header.file.name for header in whole.listed.values()]
    names = (CONFIG, INDEX, *(file.name for file in files), *weights, *BESIDE)
    refuse_to_replace(out, "a checkpoint", names, source=source.folder, force=force)
    with replace_folder(out) as draft:
        write_whole(model.tensors, whole, source.folder, draft, body, map_tensors(model.spec, body))
        write_config(whole, source.folder, draft, None if body is source.body else _leave_out_own(config, body))
        for file in files:
            copy_inside(source.folder, file.name, draft)
        if check is not None:
            check(draft)
    return read_config(out / CONFIG)


def _leave_out_own(config: Mapping[str, Any], body: Body) -> dict[str, Any]:
    """Remove the fields beginning with _, which describe a file's layout of tensors (`present` of a family)."""
    own = {key for fields in body.family.present.values() for key in fields if key.startswith("_")}
    left = {key: value for key, value in config.items() if key not in own}
    for tower, inner in body.towers.items():
        place = body.family.towers[tower]
        place.write(left, _leave_out_own(place.read(left, CONFIG), inner))
    return left


def read_special_ids(folder: Path, size: int) -> dict[str, Any]:
    """Read the EOS, BOS and padding ids below `size` from generation_config.json, or else from the tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        return {}
    file = folder / GENERATION
    stated: Mapping[str, Any] = read_json(file, GenerationFile) if file.is_file() else {}
    tokens = read_special_tokens(folder)
    tokenizer = read_json(folder / "tokenizer.json", TokenizerJson, LARGEST)
    numbers = {each["content"]: each["id"] for each in tokenizer.get("added_tokens") or []}
    found = {}
    for name in ("eos_token", "bos_token", "pad_token"):
        given = stated.get(f"{name}_id")
        ids = numbers.get(tokens.get(name)) if given is None else given
        if ids is not None and all(0 <= each < size for each in (ids if isinstance(ids, list) else [ids])):
            found[f"{name}_id"] = ids
    return found


def _find_unread(model: StoredModel, body: Body, mapped: Sequence[Entry]) -> StoredTensors:
    """Find the tensors that files of the family have but the model does not read (`unread` of the family).

    They come from the model's own folder; without one, they are copies of the tensors that the family names.
    """
    holders = {name: entry for entry in mapped for name in entry.theirs}
    rows = body.pair_names(lambda each: evaluate_tree(each.family.unread, each.fields))
    named = {name: other for name, other in rows.items() if other is not None}
    spare = {name: other for name, other in named.items() if name not in holders and (other in holders or not other)}
    source = model.source
    if spare and source is not None and source.laid is None and is_folder(folder := source.folder):
        found = name_tensors(list_tensors(folder, read_config(folder / CONFIG)), body)
        kept = (name for name in found if matches(name, [*spare]) and name not in holders)
        forms = {name: found[name].make_empty("meta") for name in kept}
        return StoredTensors(forms, TensorReader(folder, found, mapped=False).__getitem__)
    copied = {name: holders[other].ours[0] for name, other in spare.items() if other}
    forms = {name: model.tensors.forms[ours] for name, ours in copied.items()}
    return StoredTensors(forms, lambda name: model.tensors[copied[name]])


def _write_shards(held: StoredTensors, mapped: Sequence[Entry], folder: Path, shard: int, spare: StoredTensors) -> None:
    """Write the tensors in files of at most `shard` bytes, with an index for several; `spare` go into the last."""
    groups = list(_fill_shards(mapped, held.forms, shard))
    listed: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        more = spare if group is groups[-1] else {}
        forms = {**dict(_list_theirs(group, held.forms)), **(spare.forms if more else {})}
        stream_tensors(forms, chain(_list_theirs(group, held), more.items()), folder / name)
        listed |= dict.fromkeys(forms, name)
    if len(groups) > 1:
        size = sum(held.forms[name].nbytes for entry in mapped for name in entry.ours)
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": listed})


def _list_theirs(group: Sequence[Entry], held: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for entry in group:
        yield from entry.name_theirs(held)


def _fill_shards(mapped: Sequence[Entry], forms: Mapping[str, Tensor], shard: int) -> Iterator[list[Entry]]:
    """Split the entries, in order, into groups of at most `shard` bytes; a larger entry is a group of its own."""
    group: list[Entry] = []
    room = shard
    for entry in mapped:
        size = sum(forms[name].nbytes for name in entry.ours)
        if group and size > room:
            yield group
            group, room = [], shard
        group.append(entry)
        room -= size
    yield group
