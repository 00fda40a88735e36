"""Describe settings of a training run for `zoo explain`: an axis (`objective`), a choice (`objective.chat`), a field
(`data.form`, `steps`), a component that has no choices (`lora`)."""

from __future__ import annotations

import inspect
import re
import typing
from dataclasses import replace
from typing import Any

from zoo.data.settings import DataSettings
from zoo.errors import ConfigError, did_you_mean
from zoo.grammar.vocabulary import write_value
from zoo.paths import conf_dir, list_conf, read_conf
from zoo.spec import Spec
from zoo.spec.fields import SpecField, find_axes, first_sentence, list_kinds, read_fields
from zoo.training.settings import Training

COMMENT = r"^{}:.*?#\s*(.+(?:\n\s+#.+)*)$"
"""Pattern of a YAML key and its comment: on the key's line, and on the lines below it that have only a comment."""
VALUES = re.compile(r"(?:(?<=\.)|;) (?=`[^`]+`: )")
"""Pattern of the place where a value begins in a field's description: "The form. `messages`: a list …; `alpaca`: an
instruction …"."""


def explain_setting(name: str) -> dict[str, Any] | None:
    """Describe a dotted name of the training config; None if its first word is no key of the config. Raises ConfigError
    if another word is unknown."""
    first, *rest = name.split(".")
    base = {"data": DataSettings, **_list_components(Training)}.get(first)
    if base is not None:
        only = base.kinds[base.default] if len(list_kinds(base)) == 1 else None
        return (
            _explain_axis(first, base, rest, f"zoo train MODEL {first}") if only is None else _explain_node(only, rest)
        )
    if first not in (fields := read_fields(Training)):
        return None
    if rest:
        raise ConfigError(f"{name}: {first} has no fields (zoo explain {first})")
    field = replace(fields[first], default=read_conf("config").get(first, fields[first].default))
    return _explain_field(first, field, Training, f"zoo train MODEL {first}=%s")


def _list_components(choice: type[Spec]) -> dict[str, type[Spec]]:
    """Return the fields of a choice that hold components of exactly one axis, each with the axis."""
    hints = typing.get_type_hints(choice, include_extras=True)
    found = {field.name: [*find_axes(hints[field.name])] for field in choice.fields()}
    return {name: axes[0] for name, axes in found.items() if len(axes) == 1}


def _explain_node(choice: type[Spec], rest: list[str]) -> dict[str, Any]:
    """Describe a component of training that has no choices, or its field `rest`. A component that is null by default is
    set as a whole, any other one field by field."""
    place, fields = choice.axis, read_fields(choice)
    null = read_fields(Training)[place].default is None and read_conf("config").get(place) is None
    command = f"zoo train MODEL '{place}={{%s: %%s}}'" if null else f"zoo train MODEL {place}.%s=%%s"
    if not rest:
        packaged = {name: (conf_dir() / place / f"{name}.yaml").read_text("utf-8") for name in list_conf(place)}
        values = [f"{name}: {text.splitlines()[0].lstrip('# ')}" for name, text in packaged.items()]
        values += [_describe_field(field, choice) for field in fields.values()]
        example = f"zoo train MODEL {place}={next(iter(packaged))}" if packaged else command % next(iter(fields)) % "…"
        return make_page(place, inspect.getdoc(choice), example, values)
    if rest[0] not in fields or rest[1:]:
        raise ConfigError(f"{'.'.join([place, *rest])}: is no field of {place}{did_you_mean(rest[0], fields)}")
    return _explain_field(f"{place}.{rest[0]}", fields[rest[0]], choice, command % rest[0])


def _explain_axis(place: str, base: type[Spec], rest: list[str], command: str) -> dict[str, Any]:
    """Describe an axis, or the choice or field of it that the words in `rest` name. `command` followed by `=CHOICE`
    selects a choice."""
    kinds = {kind: base.kinds[kind] for kind in list_kinds(base)}
    defaults = [entry for entry in read_conf("config")["defaults"] if isinstance(entry, dict)]
    usual = next((entry[place] for entry in defaults if entry.get(place) in kinds), base.default)
    if not rest or rest == ["kind"]:
        values = [f"{kind}: {first_sentence(inspect.getdoc(each) or '')}" for kind, each in kinds.items()]
        other = next((kind for kind in kinds if kind != usual), usual)
        return make_page(place, inspect.getdoc(base), f"{command}={other}", values, default=usual)
    if rest[0] in kinds:
        kinds, (word, *rest) = {rest[0]: kinds[rest[0]]}, rest
        if not rest:
            values = [_describe_field(field, kinds[word]) for field in read_fields(kinds[word]).values()]
            return make_page(f"{place}.{word}", inspect.getdoc(kinds[word]), f"{command}={word}", values)
    having = [kind for kind, each in kinds.items() if rest[0] in read_fields(each)]
    having.sort(key=lambda kind: kind != usual)  # first the choice that a run has by default
    if not having:
        known = {*base.kinds, *(field for each in kinds.values() for field in read_fields(each))}
        hint = did_you_mean(rest[0], known) or f" (`zoo explain {place}` lists them)"
        raise ConfigError(f"{place}.{rest[0]}: is no choice and no field of {place}{hint}")
    owner, command = kinds[having[0]], f"{command}={having[0]} {place}.{rest[0]}"
    below = _list_components(owner).get(rest[0])
    if below is not None and not below.kind:  # an axis that has choices
        return _explain_axis(f"{place}.{rest[0]}", below, rest[1:], command)
    page = _explain_field(f"{place}.{rest[0]}", read_fields(owner)[rest[0]], owner, f"{command}=%s")
    return page | {"kinds": having}


def _explain_field(name: str, field: SpecField, owner: type[Spec], command: str) -> dict[str, Any]:
    """Describe a field. The example puts another value than the default into the `command` if the field's values are
    known, else a blank."""
    text, *values = VALUES.split(_find_text(field, owner))
    known = [True, False] if isinstance(field.default, bool) else field.schema.get("enum", ())
    others = [write_value(each) for each in known if each is not field.default and each != field.default]
    example = values[0].split("`")[1] if values else others[0] if others else "…"
    default = "must be given" if field.is_required else write_value(_find_default(field, owner))
    return make_page(name, text, command % example, values, type=field.type, default=default)


def _find_default(field: SpecField, owner: type[Spec]) -> Any:
    """Return the default of a field: from its choice's file in conf/, else from its class."""
    stated = read_conf(f"{owner.axis}/{owner.kind}") if owner.kind in list_conf(owner.axis) else {}
    return stated.get(field.name, field.default)


def make_page(name: str, text: str | None, example: str, values: list[str], **more: str) -> dict[str, Any]:
    """Make a page: `values` are lines on the choices of an axis, the fields of a choice or the values of a field."""
    shown = {"page": "setting", "name": name, "text": " ".join((text or "").split()), "values": values}
    return {**shown, **more, "example": example}


def _describe_field(field: SpecField, owner: type[Spec]) -> str:
    return f"{field.name}: {first_sentence(_find_text(field, owner))} [{field.type}]"


def _find_text(field: SpecField, owner: type[Spec]) -> str:
    """Return a field's docstring, else its comment in the files of its axis in conf/."""
    files = sorted((conf_dir() / owner.axis).glob("*.yaml"), key=lambda file: file.stem != owner.kind)
    files = [conf_dir() / "config.yaml"] if owner is Training else files
    found = (re.search(COMMENT.format(field.name), file.read_text(encoding="utf-8"), re.M) for file in files)
    return field.text or next((re.sub(r"\n\s+# ?", " ", each[1]) for each in found if each), "")
