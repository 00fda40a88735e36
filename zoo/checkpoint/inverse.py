"""Find the config.json that describes a Spec: invert a family's expressions, then import the result to check it."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.field_pairs import FieldRow, find_fields, pair_fields
from zoo.checkpoint.likeness import list_spec_differences
from zoo.errors import ConfigError, FitsNoFamily
from zoo.families import family as families
from zoo.families.binding import assemble_fields
from zoo.families.body import Body
from zoo.families.expression import Bindings, evaluate_tree, is_expression
from zoo.families.family import Family
from zoo.families.tower_configs import find_member
from zoo.grammar import to_dict
from zoo.grammar.keys import BOTH
from zoo.model.head import NoHead, can_be_tied
from zoo.model.lending import find_sources
from zoo.model.tower import Tower
from zoo.paths import conf_dir
from zoo.spec import components, shares_part

if TYPE_CHECKING:
    from zoo.checkpoint.hf import HFSource
    from zoo.checkpoint.stored import WholeSpec
    from zoo.model.tower import Topology

FIRST = ("llama", "gpt2", "mistral", "mixtral", "qwen2", "qwen3", "bert", "t5", "gptj", "opt")
"""Families tried first: if several families describe a Spec, the best known one is written."""

NEAR = 4
"""Minimum number of families that are tried, nearest first; then as many more, those that lack the fewest mixers. An
error can then name the nearest family."""


WEIGHTS = {"attention": 5, "ffn": 5, "layers": 3}
"""Weight of a part whose kind differs, when families are ranked by what they cannot describe. A differing field weighs
1. A block is named `layers`."""


def find_config(spec: WholeSpec, source: HFSource | None = None) -> tuple[dict[str, Any], Body]:
    """Find a config.json that describes a Spec, and the model that this config describes.

    A model from a folder (`source`) keeps its family and class. Any other gets the first family that describes all of
    it. Raises FitsNoFamily with the fields that the nearest family cannot describe.
    """
    if source is not None:
        tried = [(0, source.family, source.body.architecture)]
    else:
        tried = sorted(_candidates(spec), key=lambda each: each[0])
    likely = sum(1 for distance, _, _ in tried if distance == 0)
    first = tried[: max(likely, NEAR)]
    mixers = {block.attention.kind for tower in spec.towers().values() for block in tower.blocks.values()}
    more = sorted(tried[len(first) :], key=lambda each: (_count_lacking(each[1].template(each[2]), mixers), each[0]))
    nearest: tuple[tuple[int, bool, int], str, list[str]] | None = None
    for _, family, name in [*first, *more[:NEAR]]:
        config, body, faults = try_family(family, name, spec, source)
        if body is not None and not faults:
            return config, body
        rank = (_count_lacking(family.template(name), mixers), body is None, _weigh(faults))
        if nearest is None or rank < nearest[0]:
            nearest = (rank, family.name, faults)
    if nearest is None:
        raise FitsNoFamily(f"kind: no family has models of kind '{spec.kind}'")
    _, name, faults = nearest
    raise FitsNoFamily(*(f"{fault}; {name}, the nearest family, cannot describe this" for fault in faults[:8]))


def _count_lacking(template: Mapping[str, Any], mixers: set[str]) -> int:
    """Count the mixers (attention or recurrent) that a family's models never have. A family that has all mixers counts
    as nearer than any other, whatever else differs."""
    return len(mixers - set(_name_mixers(template)))


def _name_mixers(body: Mapping[str, Any]) -> Iterator[str]:
    """Name the mixers of a family's models: those in its defaults list, its patches, and its expressions."""
    for key, value in body.items():
        if key == "defaults":
            entries = [item for each in value or [] if isinstance(each, Mapping) for item in each.items()]
            named = [choice for axis, choice in entries if axis.removeprefix("override ").strip("/") == "attention"]
            yield from (_kind_of_choice("attention", choice) for choice in named)
        elif key == "attention":
            stated = value.get("kind") if isinstance(value, Mapping) else value
            for word in re.findall(r"\w+", str(stated)):
                yield _kind_of_choice(key, word) if word in _list_choices(key) else word
        if isinstance(value, Mapping):
            yield from _name_mixers(value)


def _weigh(faults: list[str]) -> int:
    """Sum the weights of a family's faults. A part of another kind weighs more than a field, because its fields differ
    too."""
    kinds = [re.search(r"(\w+): is kind ", fault) for fault in faults]
    return sum(1 if found is None else WEIGHTS.get(found[1], 1) for found in kinds)


@functools.cache
def _list_choices(axis: str) -> frozenset[str]:
    return frozenset(path.stem for path in (conf_dir() / axis).glob("*.yaml"))


def _candidates(spec: Topology) -> Iterator[tuple[int, Family, str]]:
    """List the classes of all families with the Spec's topology, best known first: (distance, family, class)."""
    used = {
        (each.axis, each.kind) for tower in spec.towers().values() for _, each, _ in components(tower, tower.d_model)
    }
    order = sorted(families.family_names(), key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    for name in order:
        family = families.read_family(name)
        for each in family.architectures:
            template = family.template(each)
            is_own = not family.architectures[each].keys() & {"as", "within"}
            if is_own and _may_be(template.get("kind", "decoder"), spec.kind):
                yield _distance(template, used), family, each


def _may_be(stated: str, kind: str) -> bool:
    """Whether a family's models can be of this kind; `stated` is a kind, or an expression that chooses one."""
    return f'"{kind}"' in stated if is_expression(stated) else stated == kind


def _distance(template: Mapping[str, Any], used: set[tuple[str, str]]) -> int:
    """Count the kinds of component that a family states as constants and the Spec does not have."""
    axes = ("attention", "block", "norm", "ffn")
    entries = [entry for entry in template.get("defaults") or [] if isinstance(entry, Mapping)]
    chosen = {axis.strip("/"): str(name) for entry in entries for axis, name in entry.items()}
    head = template.get("head")
    stated = {"head": head["kind"]} if isinstance(head, Mapping) and not is_expression(head.get("kind", "=")) else {}
    patches = [template, *(patch or {} for patch in (template.get("layers") or {}).values())]
    kept = (axis for axis in axes if axis in chosen and all(_keeps_kind(each.get(axis)) for each in patches))
    stated |= {axis: _kind_of_choice(axis, chosen[axis]) for axis in kept}
    return sum((axis, kind) not in used for axis, kind in stated.items())


def _keeps_kind(patch: object) -> bool:
    return patch is None or (isinstance(patch, Mapping) and "kind" not in patch)


@functools.cache
def _kind_of_choice(axis: str, choice: str) -> str:
    """Read the kind of a packaged choice, conf/AXIS/CHOICE.yaml."""
    text = (conf_dir() / axis / f"{choice}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^kind: (\w+)", text, re.MULTILINE)
    assert found is not None
    return found[1]


def try_family(
    family: Family, architecture: str, spec: WholeSpec, source: HFSource | None = None
) -> tuple[dict[str, Any], Body | None, list[str]]:
    """Find a config.json of one family and class: the config, the model it describes, and the fields that differ from
    the Spec. Fields of the config of `source` are kept if they still describe the Spec."""
    template = family.template(architecture)
    start = dict(source.config) if source is not None else {}
    if source is not None and source.body.architecture == architecture and not list_spec_differences(source.spec, spec):
        return {**start, "architectures": [architecture]}, source.body, []  # unchanged since it was read
    if family.towers:
        return _try_towers(family, architecture, spec, source)
    try:
        found, kinds = find_fields(template, spec, {**family.defaults, **start})
    except ConfigError as error:
        return {}, None, list(error.faults)
    required = {name: value[0] if isinstance(value, list) else value for name, value in family.requires.items()}
    of_class = family.architectures[architecture].get("requires") or {}
    config = {
        **required,
        **family.written,
        **of_class,
        **start,
        **assemble_fields(found),
        "architectures": [architecture],
    }
    twice = {
        name for name, other in family.aliases.items() if other in config
    }  # another name of a field that is stated
    config = {name: value for name, value in config.items() if name not in twice and not family.is_helper(name)}
    config["model_type"] = config.get("model_type") or family.model_types[0]
    layers = {"pattern": kinds, "n_layers": spec.n_layers, "weights": _index_weights(spec)}
    layers["sources"] = _index_sources(spec)
    layers["common"] = sum(
        shares_part(block, tower.d_model) for tower in spec.towers().values() for block in tower.blocks.values()
    )
    for name, text in family.export.items():
        try:
            config[name] = evaluate_tree(text, {**family.defaults, **config, **layers})
        except (ConfigError, TypeError, KeyError, IndexError, ValueError, ZeroDivisionError) as error:
            return {}, None, [f"{name}: does not follow from the model, {error}"]
    return _import_again(family, config, _change_of_tying(family, template, spec), spec)


def _import_again(
    family: Family, config: dict[str, Any], changes: Mapping[str, Any] | None, spec: WholeSpec
) -> tuple[dict[str, Any], Body | None, list[str]]:
    """Import a config.json that was found: return it, the model it describes, and the fields that differ."""
    from zoo.compose import load

    try:
        body = family.body(config, "config.json", changes)
        return config, body, list_spec_differences(spec, load(body.model))
    except ConfigError as error:
        return config, None, list(error.faults)


def _try_towers(
    family: Family, architecture: str, spec: Any, source: HFSource | None
) -> tuple[dict[str, Any], Body | None, list[str]]:
    """Find a config.json as `try_family` does, for a family whose config.json contains a config for each tower. The
    towers' configs are found one by one."""
    config = {**family.defaults, **(dict(source.config) if source is not None else {})}
    config |= {"architectures": [architecture], "model_type": family.model_types[0]}
    template = family.template(architecture)
    bindings: Bindings = {}
    head = (template.get("decoder") or {}).get("head")  # the whole family's, if it states one
    for tower, place in family.towers.items():
        inner = None if source is None else _take_tower(source, family, tower)
        alone = _without_joint(spec.towers()[tower], bare=tower == "decoder" and head is not None)
        found, faults = _find_tower(place.family, tower, alone, inner)
        if found is None:
            return config, None, [f"{tower}.{fault}" for fault in faults]
        place.write(config, found)
    rows = [FieldRow(stated, to_dict(getattr(spec, key))) for key, stated in template.items() if key in BOTH]
    for row in [*rows, *([] if head is None else pair_fields(head, spec.decoder.head))]:
        row.bind_into(bindings, config)
    for name, value in assemble_fields(bindings).items():
        config[name] = {**config[name], **value} if isinstance(value, Mapping) and name in family.towers else value
    tied = getattr(spec.decoder.head, "tied", None)
    return _import_again(family, config, None if tied is None else {"head": {"tied": tied}}, spec)


def _take_tower(source: HFSource, family: Family, tower: str) -> HFSource:
    """Take one tower's part of a source: the tower's config, and the model that it describes."""
    inner = family.towers[tower].read(source.config, "config.json")
    return dataclasses.replace(source, config=inner, body=source.body.towers[tower])


def _without_joint(tower: Tower, *, bare: bool) -> Tower:
    """Remove from a tower the fields that join it to the other tower, such as widths; if `bare`, its head too. These
    fields follow from both towers, and are checked when the config that was found is imported."""
    blocks = {
        name: block
        if not (block.cross and block.cross.memory and block.cross.memory.width)
        else dataclasses.replace(block, cross=dataclasses.replace(block.cross, memory_width=None))
        for name, block in tower.blocks.items()
    }
    head = NoHead(vocab_size=tower.vocab_size) if bare else tower.head
    embedding = tower.embedding
    if tower.causal and hasattr(embedding, "apart_id"):  # `tied` and `apart_id` refer to the encoder
        embedding = dataclasses.replace(embedding, tied=None, apart_id=None)
    return dataclasses.replace(tower, blocks=blocks, embedding=embedding, head=head, out_width=None, out_bias=False)


def _find_tower(
    family: Family | None, tower: str, spec: Tower, source: HFSource | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """Find the config of one tower in `family` or, if `family` is None, in any family that can be this tower of a pair.
    If none fits, return None and the faults of the nearest."""
    stated = None if family is None else [(family, name) for name in family.architectures]
    members = stated or _members(tower, spec, source)
    nearest: list[str] | None = None
    for own, name in members:
        config, body, faults = try_family(own, name, spec, source)
        if body is not None and not faults:
            return {key: value for key, value in config.items() if key != "architectures"}, []
        nearest = faults if nearest is None or len(faults) < len(nearest) else nearest
    return None, nearest or [f"kind: no family has a class that is this {tower}"]


def _members(tower: str, spec: Tower, source: HFSource | None) -> Iterator[tuple[Family, str]]:
    """Yield the families, each with a class, that can be one tower of a pair, the likeliest first."""
    if source is not None:
        yield source.body.family, source.body.architecture
        return
    named = {family.name: distance for distance, family, _ in sorted(_candidates(spec), key=lambda each: -each[0])}
    for name in sorted(named, key=lambda name: named[name]):
        member = find_member(families.read_family(name), tower)
        if member is not None:
            yield member


def _change_of_tying(family: Family, template: Mapping[str, Any], spec: Topology) -> dict[str, Any] | None:
    """Return the patch that ties or unties a model's head as in the Spec. On import, the tensors decide this."""
    head = next((tower.head for tower in spec.towers().values() if tower.head.kind != "none"), None)
    tied = getattr(head, "tied", None)
    if tied is None or family.about.get("head") is None:
        return None
    return {"head": {"tied": tied}} if can_be_tied(template.get("head") or {}) else None


def _index_weights(spec: WholeSpec) -> list[int]:
    """List the index of each layer's weights: 0, 1, 2, … unless layers share weights. Empty for an encoder-decoder."""
    return [*map(spec.stack.index, range(spec.n_layers))] if isinstance(spec, Tower) else []


def _index_sources(spec: WholeSpec) -> list[int]:
    """List for each layer the index of the layer whose keys and values it reads: itself, or an earlier one."""
    sources = find_sources(spec.blocks, spec.pattern) if isinstance(spec, Tower) else {}
    return [sources.get(layer, layer) for layer in range(spec.n_layers)]
