"""Describe a name of the YAML grammar, as plain data: an axis, a choice of an axis, a field of a choice, a model's key.

`zoo explain`, `zoo list --axis AXIS CHOICE` and docs/choices/ print these descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zoo.analysis.axes import describe_axis, describe_choice, list_axes
from zoo.analysis.trying import FieldExample, read_common, try_field
from zoo.analysis.uses import find_setters, find_users, list_stated
from zoo.errors import ConfigError, did_you_mean, name_options
from zoo.grammar import vocabulary
from zoo.grammar.dialect import list_fields, list_files
from zoo.grammar.keys import BOTH, OWN, STRUCTURE, TOWERS
from zoo.grammar.vocabulary import AxisChoice, list_filled, read_choices
from zoo.paths import conf_dir
from zoo.spec.fields import SpecField, first_sentence
from zoo.spec.foreign import FOREIGN, translate_name

MOST_DEFAULTS = 3
"""Maximum number of different defaults that the page of a key states."""

MOST_FOUND, MOST_LESS = 12, 10
"""MOST_FOUND: places that are listed for an ambiguous word. MOST_LESS: a place with more than 10 times the models of
any other place is taken without asking."""


def explain(name: str) -> dict[str, Any]:
    """Describe a dotted name: `attention`, `attention.gqa`, `attention.gqa.qk_norm`, `n_kv_heads`. Raises ConfigError
    for an unknown or ambiguous name."""
    first, *rest = name.split(".")
    if first not in vocabulary.list_axes():
        return _explain_bare(name, first, rest)
    if not rest:
        return describe_place(first)
    choices = read_choices(first)
    word, *inner = rest if rest[0] in choices else (_find_word(first, rest[0]), *rest)
    if not inner:
        return describe_page(choices[word])
    return _explain_field(choices[word], inner, name)


def _explain_bare(name: str, first: str, rest: list[str]) -> dict[str, Any]:
    """Describe a key of the model, or a choice or field that is named without its axis. If the name stands in several
    places, describe the place that has over MOST_LESS times the packaged models of any other, and name the others
    (`also`). Raises ConfigError for an unknown name, and if there is no such place."""
    if not rest and (first in list_keys()):
        return describe_key(first)
    places = find_places(first, *rest)
    most, *others = sorted(places, key=lambda place: -places[place]) or [""]
    if not most:
        raise ConfigError(f"{name}: {_describe_unknown(first)}")
    if all(places[most] > MOST_LESS * places[each] for each in others):
        return explain(most) | ({"also": others} if others else {})
    more = f" and {len(places) - MOST_FOUND} more" if len(places) > MOST_FOUND else ""
    raise ConfigError(f"{name}: is ambiguous (one of: {', '.join([most, *others][:MOST_FOUND])}{more})")


def find_places(first: str, *rest: str) -> dict[str, int]:
    """Find the places of a choice or a field that is named without its axis, each with the number of packaged models
    that have it."""
    owners = [axis for axis in vocabulary.list_axes() if first in read_choices(axis)]
    places = {".".join([axis, first, *rest]): len(find_users(axis, first)[0]) for axis in owners}
    return places if rest else places | _find_fields(first)


def _describe_unknown(name: str) -> str:
    """Suggest a replacement for an unknown name: its new spelling, Zoo's word for another library's, a near name."""
    if now := _find_moved(name):
        places = ", ".join(f"{place}: {{{spelling}}}" for place, spelling in now.items())
        return f"is no name of the grammar any more (now {places})"
    if theirs := translate_name(name):
        page = f"; zoo explain {FOREIGN[name]}" if name in FOREIGN else ""
        return f"is no name of the grammar ({theirs}{page})"
    known = {*vocabulary.list_axes(), *list_keys(), *(word for axis in list_axes() for word in read_choices(axis))}
    hint = did_you_mean(name, known) or " (an axis, as attention; a choice, attention.gqa; a field; a key of a model)"
    return f"is no name of the grammar{hint}"


def _find_moved(name: str) -> dict[str, str]:
    """Find the new spellings of a field that was renamed, by axis."""
    found = {
        (axis, choice.spec.moved[name])
        for axis in vocabulary.list_axes()
        for choice in read_choices(axis).values()
        if axis != "cross" and name in choice.spec.moved
    }
    spellings: dict[str, list[str]] = {}
    for axis, spelling in sorted(found):
        spellings.setdefault(axis, []).append(spelling)
    return {axis: " or ".join(each) for axis, each in spellings.items()}


def _find_fields(name: str) -> dict[str, int]:
    """Find the places of a field name (`axis.choice.field`), each with the number of packaged models that have a choice
    with the field. All classes that inherit a field from one class are one place."""
    groups: dict[Any, dict[str, AxisChoice]] = {}
    for axis in vocabulary.list_axes():
        for word, choice in read_choices(axis).items() if axis != "cross" else ():
            if name in choice.fields:
                groups.setdefault(choice.fields[name].owner, {})[word] = choice
    found = {}
    for owner, choices in groups.items():
        users = {word: set(find_users(choice.axis, word)[0]) for word, choice in choices.items()}
        best = max(choices, key=lambda word: (choices[word].spec is owner, len(users[word])))
        found[f"{choices[best].axis}.{_plain(choices[best], best)}.{name}"] = len(set().union(*users.values()))
    return found


def _plain(choice: AxisChoice, word: str) -> str:
    """Name a choice by its kind, if the kind is the name of a choice too; else by `word`."""
    return choice.spec.kind if choice.spec.kind in read_choices(choice.axis) else word


def _find_word(axis: str, name: str) -> str:
    """Find the choice of an axis that has this field; of several, the choice that most packaged models have."""
    choices = read_choices(axis)
    having = [word for word, choice in choices.items() if name in choice.fields]
    if not having:
        if axis in (now := _find_moved(name)):
            raise ConfigError(f"{axis}.{name}: is no name of the grammar any more (now {axis}: {{{now[axis]}}})")
        fields = {each for choice in choices.values() for each in choice.fields}
        hint = did_you_mean(name, {*choices, *fields}) or f" (one of: {', '.join(choices)})"
        raise ConfigError(f"{axis}.{name}: {axis} has no such choice, and none of its choices has such a field{hint}")
    return max(having, key=lambda word: len(find_users(axis, word)[0]))


def _explain_field(choice: AxisChoice, names: list[str], whole: str) -> dict[str, Any]:
    first, *rest = names
    if first not in choice.fields:
        now = choice.spec.moved.get(first)
        hint = f" any more (now {now})" if now else did_you_mean(first, choice.fields)
        hint = hint or f" (it has: {', '.join(choice.fields) or 'none'})"
        raise ConfigError(f"{whole}: {choice.axis} '{choice.word}' has no such field{hint}")
    if not rest:
        whole_model = choice.axis == "topology" and first in list_keys()
        return describe_key(first) if whole_model else describe_field(choice, choice.fields[first])
    inner = list_fields(choice.spec).get(first)
    if inner is None:
        raise ConfigError(f"{whole}: {first} holds {choice.fields[first].type}, which has no fields")
    if (node := choice.open_node(first)) is not None:
        main = list_fields(node.spec).get(getattr(node.spec, "word", ""))
        if rest[0] in node.fields or main is None:
            return _explain_field(node, rest, whole)
        return explain(".".join([main.axis, *rest]))  # the field belongs to the component that the node holds
    return explain(".".join([inner.axis, *rest]))


def list_names(above: str) -> list[str]:
    """List the names below an axis or a choice (`attention`, `attention.gqa`); none below any other name. For an empty
    name, list the axes and the model's keys."""
    axes = vocabulary.list_axes()
    axis, _, word = above.partition(".")
    if not above:
        return sorted({*axes, *list_keys()})
    if axis not in axes or (word and word not in read_choices(axis)):
        return []
    return [f"{above}.{name}" for name in (read_choices(axis)[word].fields if word else read_choices(axis))]


# ---------------------------------------------------------------- the four kinds of page


def describe_place(axis: str) -> dict[str, Any]:
    """Describe an axis: its meaning, and its choices."""
    found = {"page": "axis", "name": axis, "what": vocabulary.describe_axis(axis)}
    if axis in list_axes():
        return found | {"choices": describe_axis(axis)}
    choices = [
        {"choice": word, "what": choice.what, "source": choice.paper} for word, choice in read_choices(axis).items()
    ]
    return found | {"choices": choices}


def describe_named(axis: str, word: str) -> dict[str, Any]:
    """Describe a choice of an axis by its name. Raises ConfigError for an unknown choice."""
    choices = read_choices(axis)
    if word not in choices:
        hint = name_options(word, choices)
        raise ConfigError(f"axis: {axis} has no choice {word!r}{hint}")
    return describe_page(choices[word])


def describe_page(choice: AxisChoice) -> dict[str, Any]:
    """Describe a choice: its meaning, paper, growth with T, fields, and the models and families that have it."""
    models, families = find_users(choice.axis, choice.word)
    found = {"page": "choice", "name": f"{choice.axis}.{choice.word}", "kind": choice.spec.kind}
    if choice.word in list_files(choice.axis) and choice.axis in list_axes():
        grown = describe_choice(choice.axis, conf_dir() / choice.axis / f"{choice.word}.yaml")
        found |= {key: grown[key] for key in ("source", "looks", "time", "token", "cache")}
    else:
        found["source"] = choice.paper
    fields = [row for field in choice.fields.values() for row in _describe_rows(choice, field)]
    found |= {"what": choice.what, "fields": fields}
    return found | {"models": models, "families": families}


def _describe_rows(choice: AxisChoice, field: SpecField, above: str = "") -> Iterator[dict[str, Any]]:
    """Describe a field in a row, with the packaged models that set it; for a node, also each of the node's fields."""
    name = f"{above}{field.name}"
    default = choice.describe_default(field.name)
    models = sorted({name for names in find_setters(choice.spec, field.name)[0].values() for name in names})
    yield {"field": name, "type": field.type, "default": default, "what": field.sentence, "models": models}
    node = choice.open_node(field.name)
    if node is not None:
        for each in node.fields.values():
            yield from _describe_rows(node, each, f"{name}.")


def describe_field(choice: AxisChoice, field: SpecField) -> dict[str, Any]:
    """Describe a field of a choice: its type, effect, the models that set it, an example with its cost."""
    models, families = find_setters(choice.spec, field.name)
    key = choice.find_key(field.name)
    example = try_field(choice, field, read_common(models))
    return {
        "page": "field",
        "name": f"{choice.axis}.{choice.word}.{field.name}",
        "type": field.type,
        "unit": field.unit,
        "default": choice.describe_default(field.name),
        "key": key,
        "stated": list_stated(key) if key else {},
        "text": field.text,
        "formula": field.formula,
        "paper": field.paper,
        "declared": f"{field.owner.__module__}.{field.owner.__name__}",
        "models": models,
        "families": families,
        "example": _describe_example(example),
    }


def _describe_example(example: FieldExample | None) -> dict[str, Any] | None:
    if example is None:
        return None
    figures = {name: {"before": one, "after": two} for name, (one, two) in example.figures.items()}
    tried = {"model": " ".join([example.target, *example.overrides]), "refusal": example.refusal}
    return tried | {"line": example.line, "command": example.command, "figures": figures}


def list_keys() -> set[str]:
    """List the keys of a model that hold no component."""
    return (OWN | BOTH | set(STRUCTURE) | set(list_filled())) - set(vocabulary.list_axes()) - set(TOWERS)


def describe_key(key: str) -> dict[str, Any]:
    """Describe a key of the model: as a field of the model itself, or as the component's field that it fills."""
    fills = list_filled().get(key, [])
    found: dict[str, Any] = {"page": "key", "name": key, "stated": list_stated(key)}
    found["read_by"] = list(dict.fromkeys(f"{choice.axis}.{choice.word}" for choice, _ in fills))
    place = _find_own(key) or _pick_filled(key)
    if place is None:
        return found | {"text": STRUCTURE.get(key) or key_sentence(key)}
    choice, field = place
    own = choice.fields.get(field.name) == field  # else the field belongs to a component within the choice
    whole = own and key in (field.name, choice.find_key(field.name))
    page = describe_field(choice, field) if whole else {"text": field.text}
    if "default" in page:
        page["default"] = _describe_defaults(key) or choice.describe_filling(field.name, key)
    page["text"] = vocabulary.COMMON.get(key) or page["text"]
    shown = ("type", "unit", "default", "text", "formula", "paper", "example")
    return found | {"type": field.type} | {name: page[name] for name in shown if name in page}


def _describe_defaults(key: str) -> str:
    """Describe the values that choices take for a key that is not stated. Empty if there is only one value, or more
    than MOST_DEFAULTS different values, or if a choice needs the key."""
    found: dict[str, list[AxisChoice]] = {}
    for choice, field in list_filled().get(key, []):
        if choice.fields.get(field.name) == field and choice.find_key(field.name) == key:
            found.setdefault(choice.describe_filling(field.name, key), []).append(choice)
    shown = [f"{value} in {_name_most_used(choices)}" for value, choices in found.items()]
    needed = any(value.startswith("must be stated") for value in found)
    return "; ".join(shown) if 1 < len(shown) <= MOST_DEFAULTS and not needed else ""


def _name_most_used(choices: list[AxisChoice]) -> str:
    first = max(choices, key=lambda choice: len(find_users(choice.axis, choice.word)[0]))
    return f"{first.axis}.{first.word}" + (f" and {len(choices) - 1} more" if choices[1:] else "")


def key_sentence(key: str) -> str:
    """Say in one sentence what a key of a model is; empty if its field has no description."""
    if text := STRUCTURE.get(key) or vocabulary.COMMON.get(key):
        return first_sentence(text)
    if key in vocabulary.list_axes():
        return vocabulary.describe_axis(key)
    place = _find_own(key) or _pick_filled(key)
    return place[1].sentence if place else ""


def _pick_filled(key: str) -> tuple[AxisChoice, SpecField] | None:
    """Pick the field by which a key is described: one with a description, of the choice that most models have."""
    fills = list_filled().get(key, [])

    def rank(fill: tuple[AxisChoice, SpecField]) -> tuple[bool, int, bool]:
        choice, field = fill
        return bool(field.text), len(find_users(choice.axis, choice.word)[0]), field.name == key

    return max(fills, key=rank, default=None)


def _find_own(key: str) -> tuple[AxisChoice, SpecField] | None:
    """Find the model's own field with the name of a key; None if it is no field of the model."""
    for kind in ("decoder", "encoder_decoder"):
        choice = read_choices("topology")[kind]
        if key in choice.fields and key not in STRUCTURE:
            return choice, choice.fields[key]
    return None
