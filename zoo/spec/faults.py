"""Turn the faults that pydantic finds in a YAML node into messages of one line each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from zoo.errors import did_you_mean
from zoo.paths import conf_dir, list_conf
from zoo.spec.foreign import hint_choice, open_options, translate_name
from zoo.untrusted.printable import quote, shorten

if TYPE_CHECKING:
    from zoo.spec.spec import Spec

LARGEST = 10**15
"""Largest whole number that a field takes."""

WORDS = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    "string_type": "must be a text",
}
"""The expected value, by pydantic's type of the fault."""

SHOWN = 12
"""Number of names (choices, fields) that a line lists if there are more than SHOWN + 4."""


def _fault(template: str, /, **values: Any) -> PydanticCustomError:
    return PydanticCustomError("zoo", template, values)  # type: ignore[arg-type]


def _fault_at(loc: tuple[int | str, ...], template: str, /, **values: Any) -> InitErrorDetails:
    return InitErrorDetails(type=_fault(template, **values), loc=loc, input=None)


def _show(value: object) -> str:
    return quote(value) if isinstance(value, int) else shorten(repr(value))


def make_refusal(axis: type[Spec], fault: PydanticCustomError) -> ValidationError:
    """Make the error for a node as a whole. If it is raised while an outer node is validated, it becomes one of the
    outer node's faults."""
    return ValidationError.from_exception_data(axis.axis, [{"type": fault, "loc": (), "input": None}])


def make_refusals(axis: type[Spec], found: Iterable[tuple[tuple[str, ...], str]]) -> ValidationError:
    """Make the error for fields within a node, each with its path and a line about it."""
    return ValidationError.from_exception_data(
        axis.axis, [_fault_at(path, "{text}", text=text) for path, text in found]
    )


def list_choices(axis: type[Spec]) -> list[str]:
    """List the names of an axis's choices, as `zoo list --axis` does. They are the files in conf/, each of which
    presets a kind (`mha`, `rope_yarn`), or the kinds of an axis without files."""
    return list_conf(axis.axis) or sorted(axis.kinds)


def _is_of_model(axis: type[Spec]) -> bool:
    return axis.__module__.startswith("zoo.model.")


def _is_listed(axis: type[Spec]) -> bool:
    """Tell whether `zoo list --axis` knows an axis: the axis belongs to a model and has files in conf/."""
    return _is_of_model(axis) and (conf_dir() / axis.axis).is_dir()


def list_options(names: Iterable[str], listed: str = "", near: str = "") -> str:
    """List names on one line: all, or the first of many and `listed`, the command that lists them all. Names that begin
    like `near` come first."""
    names = list(names)
    if len(names) > SHOWN + 4:
        names.sort(key=lambda name: not (near and name.startswith(near[:3])))
        more = f"{len(names) - SHOWN} more"
        return f"{', '.join(names[:SHOWN])} and {more}{f': {listed}' if listed else ''}"
    return ", ".join(names) or "none"


def _show_options(axis: type[Spec], near: str = "") -> str:
    return list_options(list_choices(axis), f"zoo list --axis {axis.axis}" if _is_listed(axis) else "", near)


def describe_no_node(axis: type[Spec], node: object) -> PydanticCustomError:
    if _is_node(axis):
        fields = ", ".join(field.name for field in axis.fields())
        return _fault("is {found}, not a mapping (its fields: {fields})", found=_show(node), fields=fields)
    if node is None:
        return _fault("is missing (one of: {options})", options=_show_options(axis))
    if isinstance(node, str):
        hint = open_options(node, list_choices(axis))
        text = "is {found}, no choice of {axis}{hint}one of: {options})"
        return _fault(text, found=_show(node), axis=axis.axis, hint=hint, options=_show_options(axis, node))
    text = "is {found}, neither the name of a choice nor a mapping (one of: {options})"
    return _fault(text, found=_show(node), options=_show_options(axis))


def describe_unknown_kind(axis: type[Spec], kind: object) -> PydanticCustomError:
    if kind is None:
        return _fault("has no 'kind' (one of: {options})", options=_show_options(axis))
    hint = open_options(str(kind), list_choices(axis))
    text = "kind {kind} is not a choice of {axis}{hint}one of: {options})"
    return _fault(text, kind=_show(kind), axis=axis.axis, hint=hint, options=_show_options(axis, str(kind)))


def describe_unknown_field(choice: type[Spec], name: str, value: object) -> InitErrorDetails:
    """Describe a field that a choice does not have. The hint is Zoo's name for another library's field, else the
    nearest field, else the first fields, required ones before the others."""
    if name in choice.moved:
        return _fault_at((name,), "{label}no such field any more ({now})", label=_label(choice), now=choice.moved[name])
    names = [field.name for field in choice.fields()]
    if ours := translate_name(name, value, names) if _is_of_model(choice) else "":
        hint = f" ({ours})"
    elif not (hint := did_you_mean(name, names)):
        optional = {f.name for f in choice.fields() if (f.default, f.default_factory) != (MISSING, MISSING)}
        names.sort(key=optional.__contains__)
        listed = f"zoo list --axis {choice.axis} {choice.kind}" if _is_listed(choice) else ""
        hint = f" (it has: {list_options(names, listed, name)})"
    return _fault_at((name,), "{label}no such field{hint}", label=_label(choice), hint=hint)


def _label(choice: type[Spec]) -> str:
    return "" if _is_node(choice) else f"{_name(choice)} has "


def _name(choice: type[Spec]) -> str:
    return choice.axis if _is_node(choice) else f"{choice.axis} '{choice.kind}'"


def _is_node(choice: type[Spec]) -> bool:
    """Tell whether a Spec is a node (`zoo.spec.node`), which has a name and no kind."""
    return choice.kind == choice.axis != ""


def find_booleans_as_numbers(choice: type[Spec], fields: Mapping[str, Any]) -> list[InitErrorDetails]:
    """Find true and false in fields of numbers, also in lists of them: pydantic would read them as 1 and 0."""
    found = [(n.name, *each) for n in choice.fields() for each in _find_booleans(fields.get(n.name), (n.name,))]
    hints = get_type_hints(choice) if found else {}
    return [
        _fault_at(at, "must be a number, found {value}", value=str(each))
        for name, at, each in found
        if _takes_numbers(hints[name])
    ]


def _takes_numbers(hint: Any) -> bool:
    """Whether values of a type, or the values in a list of it, are numbers and never booleans."""
    types = set(_list_types(hint))
    return bool not in types and not types.isdisjoint((int, float))


def _list_types(hint: Any) -> Iterator[Any]:
    """Yield the plain types in a type hint, such as int and NoneType of `int | None`."""
    if get_origin(hint) is Literal:
        yield from map(type, get_args(hint))
    elif parts := get_args(hint):
        yield from (each for part in parts for each in _list_types(part))
    else:
        yield hint


def _find_booleans(value: object, path: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], bool]]:
    if isinstance(value, bool):
        yield path, value
    for at, each in enumerate(value) if isinstance(value, list | tuple) else ():
        yield from _find_booleans(each, (*path, at))


def find_large_numbers(choice: type[Spec], fields: Mapping[str, Any]) -> list[InitErrorDetails]:
    """Find fields set to a whole number above LARGEST or below -LARGEST. Figures are products of several such numbers,
    and must stay finite. In a field of whole numbers a float such as `1e17` counts too."""
    whole = {field.name for field in choice.fields() if re.search(r"Int\b|\bint\b", str(field.type))}
    return [
        _fault_at((name,), "is {value} (at most {most})", value=quote(each), most=f"{LARGEST:,}")
        for name, value in fields.items()
        for each in (value if isinstance(value, list | tuple) else (value,))
        if isinstance(each, int | float if name in whole else int) and not -LARGEST <= each <= LARGEST
    ]


def describe_item(choice: type[Spec], item: Any) -> InitErrorDetails:
    return _fault_at(item["loc"], "{text}", text=_message(choice, item))


def _message(choice: type[Spec], item: Any) -> str:
    if item["type"] == "zoo":
        return item["msg"]
    if item["type"].startswith("missing"):
        return f"is missing; {_name(choice)} needs it"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] == "finite_number":
        return f"must be a finite number, found {item['input']}{_would_do(choice, str(item['loc'][0]))}"
    said = WORDS.get(item["type"]) or f"{item['msg'][0].lower()}{item['msg'][1:]}".replace("input should", "must")
    hint = ""
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        hint = hint_choice(item["input"], re.findall("'([^']*)'", item["ctx"]["expected"]))
    if not hint and len(item["loc"]) == 1:
        hint = _would_do(choice, str(item["loc"][0]))
    return f"{said}, found {_show(item['input'])}{hint}"


def _would_do(choice: type[Spec], name: str) -> str:
    """Name a value that the field takes: null if allowed, else its default if that is a boolean or a number."""
    field = next((field for field in choice.fields() if field.name == name), None)
    if field is None or "None" in str(field.type):
        return " (null would do)" if field else ""
    if isinstance(field.default, bool):
        return f" ({str(field.default).lower()} would do)"
    return f" ({field.default:g} would do)" if isinstance(field.default, int | float) else ""
