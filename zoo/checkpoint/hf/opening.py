"""Open a Hugging Face folder: find its family and class, its model, and its tensors under the class's names."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import gguf
from zoo.checkpoint.conversion import Entry
from zoo.checkpoint.headers import describe_differences
from zoo.checkpoint.hf.multimodal_folder import Whole, check_wrapper, take_text
from zoo.checkpoint.mapping import fill_braces, map_tensors, matches
from zoo.checkpoint.quantised import FIELD, unpack_headers
from zoo.checkpoint.tensor_files import Header, TensorReader, read_headers
from zoo.errors import ConfigError
from zoo.families import family as families
from zoo.families.binding import try_evaluate
from zoo.families.body import Body
from zoo.families.config_types import ConfigFile, GenerationFile
from zoo.families.described import CONFIG, read_body, read_config, read_json
from zoo.families.expression import Expression
from zoo.families.family import Family
from zoo.families.multimodal import find_wrapper
from zoo.lazy import torch
from zoo.model.head import can_be_tied

if TYPE_CHECKING:
    from zoo.checkpoint.stored import WholeSpec


@dataclass(frozen=True)
class HFSource:
    """A folder that was read: its path, its config.json, and `body`, the model that the config describes. For a
    multimodal folder, `config` and `body` are the text model's, and `whole` has the rest. For a GGUF file, `file` is
    its path, and `laid` is `body` with the name map of its tensors."""

    folder: Path
    config: dict[str, Any]
    body: Body
    whole: Whole | None = None
    laid: Body | None = None
    file: Path | None = None

    @property
    def family(self) -> Family:
        return self.body.family

    @functools.cached_property
    def spec(self) -> WholeSpec:
        """The Spec of the model, composed once."""
        return compose_spec(self.body, self.file or self.folder / CONFIG)

    @property
    def stored(self) -> Body:
        """The model whose name map is used to read the folder's tensors."""
        return self.laid or self.body


def open_folder(folder: Path) -> tuple[HFSource, dict[str, Header]]:
    """Read a folder's config.json and headers: its model, and its tensors under the names of the model's class.

    Where config.json and the tensors disagree, the tensors decide: a head is tied if the file has no weight for it, and
    a file without its class's head is read as the family's class without a head. Raises CheckpointError for a missing
    or broken file, and for an unknown model_type.
    """
    if gguf.is_unpacked(folder):
        return _open_gguf(folder)
    file = folder / CONFIG
    config, whole = read_config(file), None
    wrapper = find_wrapper(config)
    listed = {name: _keep_file_name(each, name) for name, each in list_tensors(folder, config).items()}
    config = wrapper.text if wrapper else config
    family = families.family_of_config(config, str(file))
    if wrapper:
        check_wrapper(wrapper, file)
        whole, listed = take_text(wrapper, family, listed, folder)
    source, found = _open_by_tensors(folder, config, family, listed)
    return (dataclasses.replace(source, whole=whole) if whole else source), found  # a copy would compose its Spec again


def _open_by_tensors(
    folder: Path, config: Mapping[str, Any], family: Family, listed: Mapping[str, Header]
) -> tuple[HFSource, dict[str, Header]]:
    """Read a folder as the class that its config names. If 1 to MOST_OF_CLASS tensors are missing or unknown in that
    class, read the folder as the family's first class that has exactly the folder's tensors, if there is one."""
    stated = read_presence(family, config, {name: header.shape for name, header in listed.items()})
    opened = _open_as_stated(folder, listed, stated)
    unplaced = _count_unplaced(*opened)
    if not unplaced or unplaced > MOST_OF_CLASS:
        return opened
    for architecture in family.architectures:
        if family.unmet({**config, **stated}, architecture):
            continue
        try:
            other = _open_as_stated(folder, listed, {**stated, "architectures": [architecture]})
            has_them = not _count_unplaced(*other)
        except ConfigError:  # no model of this class follows from the config
            continue
        if has_them:
            return other
    return opened


def read_presence(family: Family, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Find fields that a config.json leaves out and that follow from the file's tensors (`present` of a family)."""
    full = {**family.defaults, **config}
    return {
        key: value
        for pattern, fields in family.present.items()
        if any(_is_present(pattern, name, shape, full) for name, shape in shapes.items())
        for key, value in fields.items()
        if key not in config
    }


def _is_present(pattern: str, name: str, given: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether a tensor fits a pattern of a family's `present`: a name, and optionally a shape in expressions over the
    config, as in "*.down_proj [_, moe_intermediate_size, _]"."""
    named, _, shape = pattern.partition(" ")
    wanted = [each.strip() for each in shape.strip("[]").split(",")] if shape else ["_"] * len(given)
    if not matches(name, [named]) or len(wanted) != len(given):
        return False
    sizes = zip(wanted, given, strict=True)
    return all(each == "_" or size in try_evaluate(Expression(each).tree, config) for each, size in sizes)


def _open_gguf(folder: Path) -> tuple[HFSource, dict[str, Header]]:
    config, body = read_body(folder)
    file = gguf.read_unpacked(folder)
    laid = gguf.lay_keys(body, file)
    names = [name for entry in map_tensors(compose_spec(laid, file.file), laid) for name in entry.theirs]
    return HFSource(folder, config, body, laid=laid, file=file.file), gguf.list_tensors(file, names, config["dtype"])


def list_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, Header]:
    """List the headers of a folder's tensors; a quantised weight has one header. Raises CheckpointError for broken
    headers, and for quantised weights that cannot be read."""
    wrapper = find_wrapper(config)
    settings = {**(wrapper.text if wrapper else {}), **config}  # either may say how weights are quantised
    return unpack_headers(folder, settings, read_headers(folder))


def compose_spec(body: Body, file: Path = Path("config.json")) -> WholeSpec:
    """Compose the Spec of a model that a config.json describes. Raises ConfigError with faults that name the file."""
    from zoo.compose import load
    from zoo.compose.sources import StatedFile, locating

    with locating([StatedFile(file, str(file))]):
        return load(body.model)


def find_differences(mapped: Sequence[Entry], found: Mapping[str, Header], source: HFSource) -> list[str]:
    """Describe the tensors that are missing, that have no row in the name map, or that have a wrong shape: a line for
    each of the first few."""
    wanted, missing, strange = _compare_names(mapped, found, source)
    shapes = {name: header.shape for name, header in found.items()}
    said = f"has no row in the map of {source.family.name} (it belongs to no part of the model)"
    return describe_differences(source.file or source.folder, shapes, wanted, missing, strange, said)


def _compare_names(
    mapped: Sequence[Entry], found: Mapping[str, Header], source: HFSource
) -> tuple[dict[str, tuple[int, ...]], list[str], list[str]]:
    """Return the shapes that the model's tensors must have, by name; the names that the file lacks; and the names in
    the file that no row of the map covers."""
    body = source.body
    wanted = {name: shape for entry in mapped for name, shape in entry.shapes_of_theirs()}
    extra = body.full_names(lambda each: (*each.family.same, *each.family.unread))
    optional = body.full_names(lambda each: each.family.optional)
    dropped = body.full_names(lambda each: (fill_braces(name, (), each.fields) for name in each.family.dropped))
    missing = [name for name in wanted if name not in found and not matches(name, optional)]
    return wanted, missing, [name for name in found if name not in wanted and not matches(name, [*extra, *dropped])]


def read_end_ids(folder: Path) -> list[int]:
    """Read the end-of-text token ids from a folder's generation_config.json, or else from its config.json (including
    the config of a multimodal model's text model)."""
    for name, shape in (("generation_config.json", GenerationFile), (CONFIG, ConfigFile)):
        node = read_json(folder / name, shape) if (folder / name).is_file() else {}
        wrapper = find_wrapper(node)
        inner = wrapper.text.get("eos_token_id") if wrapper else None
        stated = node.get("eos_token_id", inner)
        if stated is not None:
            return [each for each in (stated if isinstance(stated, list) else [stated]) if each >= 0]
    return []


def describe_unread(model: Any) -> str:
    """Say in one line which parts of a model's multimodal folder were not read; empty for any other model."""
    source = getattr(model, "source", None)
    if source is None:
        return ""
    if source.whole is None:
        return _describe_beside_towers(source) if any(each.outer for each in source.family.towers.values()) else ""
    return f"{source.folder}: {source.whole.describe_rest(map_tensors(model.spec, source.body), source.body.prefix)}"


def _describe_beside_towers(source: HFSource) -> str:
    """Say in one line what was not read of a folder: all but the text towers of a multimodal encoder (T5Gemma 2)."""
    listed = name_tensors(list_tensors(source.folder, source.config), source.body)
    counts = {
        pattern.removeprefix(source.body.prefix).removesuffix(".*"): sum(
            prod(header.shape) for name, header in listed.items() if matches(name, [pattern])
        )
        for pattern in source.body.full_names(lambda each: each.family.unread)
    }
    parts = ", ".join(f"{name} ({count:,} parameters)" for name, count in counts.items() if count)
    return f"{source.folder}: {source.family.name}: its text towers alone; {parts or 'nothing'} not read"


def _open_as_stated(
    folder: Path, listed: Mapping[str, Header], stated: Mapping[str, Any]
) -> tuple[HFSource, dict[str, Header]]:
    """Read a folder with some fields of its config.json, such as its class, replaced by `stated`."""
    config, body = read_body(folder, stated=stated)
    found = name_tensors(listed, body)
    changes = None if _has_copied_head(folder, body, found) else _find_tying(body, found)
    if changes is not None:
        config, body = read_body(folder, changes, stated)
    plain = {name: value for name, value in config.items() if name != FIELD}  # what is written is not quantised
    return HFSource(folder, plain, body), {**_find_stand_ins(body, found), **found}


MOST_OF_CLASS = 1_000
"""Maximum number of tensors by which two classes of a family differ: the tensors of their heads."""


def _count_unplaced(source: HFSource, found: Mapping[str, Header]) -> int:
    """Count the model's tensors that a folder lacks, plus the folder's tensors that the model lacks."""
    _, missing, strange = _compare_names(map_tensors(source.spec, source.body), found, source)
    return len(missing) + len(strange)


# ---------------------------------------------------------------- tied heads and copies


def _has_copied_head(folder: Path, body: Body, found: Mapping[str, Header]) -> bool:
    """Whether the file stores a tied head as a copy, equal to the weight that the family's `same` names."""
    head = str(body.head)
    original = body.copies.get(head, "")
    if head not in found or original not in found or found[head].shape != found[original].shape:
        return False
    reader = TensorReader(folder, found)
    return torch.equal(reader[head], reader[original])


def _find_tying(body: Body, found: Mapping[str, Header]) -> dict[str, Any] | None:
    """Return the patch that ties or unties the model's head as in the file; None if config.json does so already."""
    head = body.model.get("decoder", {}).get("head") or body.model.get("head") or {}
    own = body.head
    if own is None or not can_be_tied(head):
        return None
    is_stored = own in found
    return {"head": {"tied": not is_stored}} if bool(head.get("tied")) is is_stored else None


def _find_stand_ins(body: Body, found: Mapping[str, Header]) -> dict[str, Header]:
    """Map each tensor with a copy in the files to the copy's header, for files that may lack the tensor itself."""
    pairs = body.copies.items()
    return {name: _keep_file_name(found[copy], copy) for copy, name in pairs if copy in found and copy != body.head}


# ---------------------------------------------------------------- names


def name_tensors(found: Mapping[str, Header], body: Body) -> dict[str, Header]:
    """Rename headers as the model's class does, and leave out those that the family ignores.

    As in transformers, a file of the class with a head can be read as the class without one, and vice versa: the prefix
    is added or removed. Files without the prefix may have other names (`unprefixed` of the family).
    """
    family, prefix = body.family, body.prefix
    ignored = body.full_names(lambda each: each.family.ignore)
    kept = {name: each for name, each in found.items() if not matches(name, ignored)}
    kept = {_replace_old_names(name): _keep_file_name(each, name) for name, each in kept.items()}
    known = {each.get("prefix") or "" for each in family.architectures.values()} - {""}
    found_one = next(
        (each for each in sorted(known, key=len, reverse=True) if any(name.startswith(each) for name in kept)), ""
    )
    if prefix and not found_one:
        return {
            name if _has_no_prefix(name, body) else prefix + _rename_unprefixed(name, family): each
            for name, each in kept.items()
        }
    if found_one and not prefix:
        return {name.removeprefix(found_one): each for name, each in kept.items()}
    return kept


def _rename_unprefixed(name: str, family: Family) -> str:
    """Translate a name in a file without the prefix to the class's name. In `unprefixed`, `#` is a layer's index."""
    place = re.search(r"\.(\d+)\.", name) if family.unprefixed else None
    number = place[1] if place else ""
    other = family.unprefixed.get(name.replace(f".{number}.", ".#.", 1) if place else name)
    return name if other is None else other.replace("#", number)


def _keep_file_name(header: Header, name: str) -> Header:
    """Record in a header the tensor's name in the file: reading needs that name after the tensor is renamed."""
    return header if header.name else dataclasses.replace(header, name=name)


def _replace_old_names(name: str) -> str:
    """Replace TensorFlow's names (gamma, beta) for the tensors of a norm, as in old BERT files."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _has_no_prefix(name: str, body: Body) -> bool:
    """Whether a tensor belongs to a head, whose names have no prefix in any class."""
    return any(
        not theirs.startswith("~") and name.startswith(theirs.split(" |")[0]) for theirs in body.keys.values() if theirs
    )
