"""Find the config.json that describes a Spec: a family's rows read backwards, and the result imported as a proof."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.checkpoint.likeness import list_spec_differences
from zoo.checkpoint.rows import find_fields
from zoo.errors import ConfigError
from zoo.families import family as families
from zoo.families.binding import assemble_fields
from zoo.families.expression import evaluate_tree, is_expression
from zoo.families.family import Body, Family
from zoo.model.head import can_be_tied
from zoo.model.tower import Tower
from zoo.paths import conf_dir
from zoo.spec import components

FIRST = ("llama", "gpt2", "mistral", "mixtral", "qwen2", "qwen3", "bert", "t5", "gptj", "opt")
"""Families tried first: a Spec that several can describe is written as the best known of them."""

NEAR = 4
"""How many families are tried for a Spec that none is likely to describe, so that an error can name the nearest."""


def find_config(spec: Any, source: Any = None) -> tuple[dict[str, Any], Body]:
    """Find a config.json that describes a Spec, and the model that it describes.

    A model that came from a folder keeps the family and class of its `source`; any other takes the first family that
    describes all of it. Raises ConfigError with the fields that the nearest family cannot describe.
    """
    if source is not None:
        tried = [(0, source.family, source.body.architecture)]
    else:
        tried = sorted(_candidates(spec), key=lambda each: each[0])
    likely = sum(1 for distance, _, _ in tried if distance == 0)
    nearest: tuple[tuple[bool, int], str, list[str]] | None = None
    for _, family, name in tried[: max(likely, NEAR)]:
        config, body, faults = try_family(family, name, spec, source)
        if body is not None and not faults:
            return config, body
        rank = (body is None, len(faults))
        if nearest is None or rank < nearest[0]:
            nearest = (rank, family.name, faults)
    if nearest is None:
        raise ConfigError(f"kind: no family has models of kind '{spec.kind}'")
    _, name, faults = nearest
    raise ConfigError(*(f"{fault}; {name}, the nearest family, cannot describe this" for fault in faults[:8]))


def _candidates(spec: Any) -> Iterator[tuple[int, Family, str]]:
    """Every class of every family of the Spec's topology, the best known first, with its distance from the Spec."""
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
    """Whether a family's models, of a stated kind or of one that an expression chooses, may be of this kind."""
    return f'"{kind}"' in stated if is_expression(stated) else stated == kind


def _distance(template: Mapping[str, Any], used: set[tuple[str, str]]) -> int:
    """How many of the choices that a family states without an expression the Spec does not have."""
    axes = ("attention", "block", "norm", "ffn")
    entries = [entry for entry in template.get("defaults") or [] if isinstance(entry, Mapping)]
    chosen = {axis.strip("/"): str(name) for entry in entries for axis, name in entry.items()}
    head = template.get("head")
    stated = {"head": head["kind"]} if isinstance(head, Mapping) and not is_expression(head.get("kind", "=")) else {}
    patches = [template, *(patch or {} for patch in (template.get("layers") or {}).values())]
    kept = (axis for axis in axes if axis in chosen and all(_keeps_kind(each.get(axis)) for each in patches))
    stated |= {axis: _kind_of_choice(axis, chosen[axis]) for axis in kept}
    return sum((axis, kind) not in used for axis, kind in stated.items())


def _keeps_kind(patch: Any) -> bool:
    """Whether a patch over a choice keeps its kind."""
    return patch is None or (isinstance(patch, Mapping) and "kind" not in patch)


@functools.cache
def _kind_of_choice(axis: str, choice: str) -> str:
    """The kind of a packaged choice of an axis."""
    text = (conf_dir() / axis / f"{choice}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^kind: (\w+)", text, re.MULTILINE)
    assert found is not None
    return found[1]


def try_family(
    family: Family, architecture: str, spec: Any, source: Any = None
) -> tuple[dict[str, Any], Body | None, list[str]]:
    """Find a config.json of one family and class: the config, the model it describes, and the fields that differ from
    the Spec. The config of a `source` is kept where it still holds."""
    template = family.template(architecture)
    start = dict(source.config) if source is not None else {}
    if source is not None and source.body.architecture == architecture and _is_same(_compose(source.body), spec):
        return {**start, "architectures": [architecture]}, source.body, []  # unchanged since it was read
    try:
        found, kinds = find_fields(template, spec, {**family.defaults, **start})
    except ConfigError as error:
        return {}, None, list(error.faults)
    required = {name: value[0] if isinstance(value, list) else value for name, value in family.requires.items()}
    of_class = family.architectures[architecture].get("requires") or {}
    left_out = {k: v for k, v in family.defaults.items() if v is not None and not k.startswith("default_")}
    config = {**required, **left_out, **of_class, **start, **assemble_fields(found), "architectures": [architecture]}
    twice = {
        name for name, other in family.aliases.items() if other in config
    }  # another name of a field that is stated
    config = {name: value for name, value in config.items() if name not in twice}
    config["model_type"] = config.get("model_type") or family.model_types[0]
    layers = {"pattern": kinds, "n_layers": spec.n_layers, "weights": _index_weights(spec)}
    try:
        for name, text in family.export.items():
            config[name] = evaluate_tree(text, {**family.defaults, **config, **layers})
    except (ConfigError, TypeError, KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        return {}, None, [f"{name}: does not follow from the model, {error}"]
    try:
        body = family.body(config, "config.json", _change_of_tying(family, template, spec))
        return config, body, list_spec_differences(spec, _compose(body))
    except ConfigError as error:
        return config, None, list(error.faults)


def _is_same(ours: Any, theirs: Any) -> bool:
    """Whether two Specs compute the same."""
    return ours == theirs or not list_spec_differences(ours, theirs)


def _change_of_tying(family: Family, template: Mapping[str, Any], spec: Any) -> dict[str, Any] | None:
    """The change that ties the head as the Spec does: importing a folder takes it from the tensors, not the config."""
    head = next((tower.head for tower in spec.towers().values() if tower.head.kind != "none"), None)
    tied = getattr(head, "tied", None)
    if tied is None or family.about.get("head") is None:
        return None
    return {"head": {"tied": tied}} if can_be_tied(template.get("head") or {}) else None


def _index_weights(spec: Any) -> list[int]:
    """The index of each layer's weights: 0, 1, 2, … unless layers share them."""
    return [spec.stack.index(layer) for layer in range(spec.n_layers)] if isinstance(spec, Tower) else []


def _compose(body: Body) -> Any:
    from zoo.compose import load

    return load(body.model)
