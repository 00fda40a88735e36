"""Describe settings of a training run for `zoo explain`: an axis (`objective`), a choice (`objective.chat`), a field
(`data.form`)."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

from zoo.data.settings import DataSettings
from zoo.errors import ConfigError, did_you_mean
from zoo.grammar.vocabulary import write_value
from zoo.paths import conf_dir
from zoo.spec import Spec
from zoo.spec.fields import SpecField, find_axes, first_sentence, list_kinds, read_fields
from zoo.training.settings import Training

VALUES = re.compile(r"(?:(?<=\.)|;) (?=`[^`]+`: )")
"""Where a value of a field begins in its description: "The form. `messages`: a list …; `alpaca`: an instruction …"."""


def explain_setting(name: str) -> dict[str, Any] | None:
    """Describe a dotted name of a training config; None if its first word is no axis of one. Raises ConfigError for
    another unknown word."""
    first, *rest = name.split(".")
    base = {"data": DataSettings, **_list_axes(Training)}.get(first)
    return None if base is None else _explain_axis(first, base, rest, f"zoo train MODEL {first}")


def _list_axes(choice: type[Spec]) -> dict[str, type[Spec]]:
    """List the fields of a choice that hold a component of one axis, with that axis."""
    hints = typing.get_type_hints(choice, include_extras=True)
    found = {field.name: [*find_axes(hints[field.name])] for field in choice.fields()}
    return {name: axes[0] for name, axes in found.items() if len(axes) == 1 and not axes[0].kind}


def _explain_axis(place: str, base: type[Spec], rest: list[str], command: str) -> dict[str, Any]:
    """Describe an axis, or what the words in `rest` name below it. `command` selects a choice of it, after `=`."""
    kinds = {kind: base.kinds[kind] for kind in list_kinds(base)}
    if not rest or rest == ["kind"]:
        values = [f"{kind}: {first_sentence(inspect.getdoc(each) or '')}" for kind, each in kinds.items()]
        other = next((kind for kind in kinds if kind != base.default), base.default)
        return _page(place, inspect.getdoc(base), f"{command}={other}", values, default=base.default)
    if rest[0] in kinds:
        kinds, (word, *rest) = {rest[0]: kinds[rest[0]]}, rest
        if not rest:
            values = [_describe_field(field, kinds[word]) for field in read_fields(kinds[word]).values()]
            return _page(f"{place}.{word}", inspect.getdoc(kinds[word]), f"{command}={word}", values)
    having = [kind for kind, each in kinds.items() if rest[0] in read_fields(each)]
    if not having:
        known = {*base.kinds, *(field for each in kinds.values() for field in read_fields(each))}
        hint = did_you_mean(rest[0], known) or f" (`zoo explain {place}` lists them)"
        raise ConfigError(f"{place}.{rest[0]}: is no choice and no field of {place}{hint}")
    owner, command = kinds[having[0]], f"{command}={having[0]} {place}.{rest[0]}"
    if below := _list_axes(owner).get(rest[0]):
        return _explain_axis(f"{place}.{rest[0]}", below, rest[1:], command)
    return _explain_field(f"{place}.{rest[0]}", read_fields(owner)[rest[0]], owner, command) | {"kinds": having}


def _explain_field(name: str, field: SpecField, owner: type[Spec], command: str) -> dict[str, Any]:
    """Describe a field. The example sets its first described value, else the other truth value, else a blank."""
    text, *values = VALUES.split(_find_text(field, owner))
    example = values[0].split("`")[1] if values else "…"
    if isinstance(field.default, bool):
        example = write_value(not field.default)
    default = "must be given" if field.is_required else write_value(field.default)
    return _page(name, text, f"{command}={example}", values, type=field.type, default=default)


def _page(name: str, text: str | None, example: str, values: list[str], **more: str) -> dict[str, Any]:
    """Make a page: `values` are lines on the choices of an axis, the fields of a choice or the values of a field."""
    shown = {"page": "setting", "name": name, "text": " ".join((text or "").split()), "values": values}
    return {**shown, **more, "example": example}


def _describe_field(field: SpecField, owner: type[Spec]) -> str:
    return f"{field.name}: {first_sentence(_find_text(field, owner))} [{field.type}]"


def _find_text(field: SpecField, owner: type[Spec]) -> str:
    """Return a field's docstring, else the comment beside it in the files of its axis in conf/."""
    folder = conf_dir() / owner.axis
    files = sorted(folder.glob("*.yaml"), key=lambda file: file.stem != owner.kind)
    found = (re.search(rf"^{field.name}:.*?#\s*(.+)$", file.read_text(encoding="utf-8"), re.M) for file in files)
    return field.text or next((each[1] for each in found if each), "")
