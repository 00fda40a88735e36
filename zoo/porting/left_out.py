"""Find the values of fields that a config.json leaves out: defaults, and rules that derive them from other fields."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from zoo.errors import ConfigError, ZooError
from zoo.families.expression import Expression, read_names
from zoo.families.family import Family, read_family
from zoo.porting.draft import LOCAL, Draft
from zoo.porting.nearest import list_others
from zoo.porting.reference_model import Maker

DEPTHS = (3, 4, 6, 7, 12, 13)
"""Numbers of layers at which a rule for a list with an entry per layer is compared with the config class."""

PERIODS = range(2, 13)


def complete(draft: Draft, maker: Maker) -> Draft:
    """Add to a draft the defaults of fields that its own expressions read, and rules for derived fields."""
    parent = draft.parent
    own = (read_names(draft.model) | read_names(draft.derive)) - parent.reads - LOCAL
    stated = {name: maker.left_out[name] for name in sorted(own) if name in maker.left_out}
    draft = replace(draft, defaults={**draft.defaults, **stated}, derive={**draft.derive, **_derive_rope(maker)})
    if "rope_parameters" in draft.derive:
        draft = replace(draft, defaults={**draft.defaults, "rope_scaling": None})
    for name in _list_by_layer(draft.to_family(), maker):
        rule = _find_rule(draft, maker, name)
        if rule is not None and draft.to_family().derive.get(name) != rule:
            draft = replace(draft, derive={**draft.derive, name: rule}, defaults={**draft.defaults, name: None})
    return draft


def _derive_rope(maker: Maker) -> dict[str, str]:
    """Make the rule for the class's default rotary parameters, if these are scaled."""
    stated = maker.defaults.get("rope_parameters")
    if not isinstance(stated, Mapping) or any(isinstance(each, Mapping) for each in stated.values()):
        return {}
    if stated.get("rope_type", "default") == "default":
        return {}
    return {"rope_parameters": f"={dict(stated)!r} if rope_scaling is None else None"}


def _list_by_layer(family: Family, maker: Maker) -> list[str]:
    """List the fields that the draft reads and for which the class derives a list with an entry per layer."""
    count = maker.defaults.get(maker.config_class.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    return [
        name
        for name, value in maker.defaults.items()
        if maker.left_out[name] is None and isinstance(value, list) and len(value) == count and name in family.reads
    ]


def _find_rule(draft: Draft, maker: Maker, name: str) -> str | None:
    """Find an expression that derives a list from other fields at every depth: some family's rule, or a periodic
    one."""
    family = draft.to_family()
    samples = list(_list_samples(family, maker, name))
    known = [family.derive.get(name), *(read_family(each).derive.get(name) for each in list_others(draft.model_type))]
    made = _make_periods(samples[-1][1]) if samples else iter(())
    for text in [*dict.fromkeys(each for each in known if each is not None), *made]:
        if samples and all(_gives(text, env, wanted) for env, wanted in samples):
            return text
    return None


def _list_samples(family: Family, maker: Maker, name: str) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Yield configs of several depths, each with the list that the class makes for it."""
    layers = maker.config_class.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for depth in DEPTHS:
        sizes = {key: value for key, value in maker.sizes.items() if key != name}
        try:
            made = maker.config_class(**copy.deepcopy({**sizes, layers: depth})).to_dict()
        except Exception:  # a depth that the class refuses
            continue
        env = {family.aliases.get(key, key): value for key, value in made.items()}
        yield {**family.defaults, **env, name: None}, made[name]


def _gives(text: str, env: Mapping[str, Any], wanted: list[Any]) -> bool:
    try:
        return Expression(text[1:]).value(env) == wanted
    except (ConfigError, ZooError, KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError):
        return False


def _make_periods(found: list[Any]) -> Iterator[str]:
    """Yield rules by which all entries are equal, every p-th layer differs, or the first few layers differ."""
    words = list(dict.fromkeys(found))
    if len(words) == 1:
        yield f"=each(num_hidden_layers, {words[0]!r})"
    for one, other in ((words[0], words[-1]), (words[-1], words[0])):
        for period in PERIODS:
            for shift in range(period):
                at = f"(layer + {shift})" if shift else "layer"
                yield f"=each(num_hidden_layers, {one!r} if {at} % {period} else {other!r})"
        for first in range(1, 4):
            yield f"=each(num_hidden_layers, {one!r} if layer < {first} else {other!r})"
