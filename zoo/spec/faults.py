"""Word what pydantic finds wrong with a YAML node: one line a fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from zoo.errors import did_you_mean
from zoo.untrusted.text import quote, shorten

if TYPE_CHECKING:
    from zoo.spec.spec import Spec

LARGEST = 10**15
"""The largest whole number of a field."""


def _fault(template: str, /, **values: Any) -> PydanticCustomError:
    return PydanticCustomError("zoo", template, values)  # type: ignore[arg-type]


def _show(value: Any) -> str:
    """Show a value that a YAML states: the beginning of what it looks like."""
    return quote(value) if isinstance(value, int) else shorten(repr(value))


def make_refusal(axis: type[Spec], fault: PydanticCustomError) -> ValidationError:
    """Make the error for a node as a whole. Within another node's validation it takes its place among that one's
    faults."""
    return ValidationError.from_exception_data(axis.axis, [{"type": fault, "loc": (), "input": None}])


def make_refusals(axis: type[Spec], found: Iterable[tuple[tuple[str, ...], str]]) -> ValidationError:
    """Make the error for fields within a node, each with its path and a line about it."""
    lines = [InitErrorDetails(type=_fault("{text}", text=text), loc=path, input=None) for path, text in found]
    return ValidationError.from_exception_data(axis.axis, lines)


def describe_no_node(axis: type[Spec], node: Any) -> PydanticCustomError:
    if _is_node(axis):
        fields = ", ".join(field.name for field in axis.fields())
        return _fault("is {found}, not a mapping (its fields: {fields})", found=_show(node), fields=fields)
    options = ", ".join(sorted(axis.kinds))
    if node is None:
        return _fault("is missing (one of: {options})", options=options)
    if isinstance(node, str):
        hint = did_you_mean(node, axis.kinds)
        text = "is {found}, no choice of {axis}{hint} (one of: {options})"
        return _fault(text, found=_show(node), axis=axis.axis, hint=hint, options=options)
    text = "is {found}, neither the name of a choice nor a mapping (one of: {options})"
    return _fault(text, found=_show(node), options=options)


def describe_unknown_kind(axis: type[Spec], kind: Any) -> PydanticCustomError:
    options = ", ".join(sorted(axis.kinds))
    if kind is None:
        return _fault("has no 'kind' (one of: {options})", options=options)
    hint = did_you_mean(str(kind), axis.kinds)
    text = "kind {kind} is not a choice of {axis}{hint} (one of: {options})"
    return _fault(text, kind=_show(kind), axis=axis.axis, hint=hint, options=options)


def describe_unknown_field(choice: type[Spec], name: str, names: set[str]) -> InitErrorDetails:
    if name in choice.moved:
        text = "{label} has no such field any more ({now})"
        return {"type": _fault(text, label=_label(choice), now=choice.moved[name]), "loc": (name,), "input": None}
    hint = did_you_mean(name, names) or f" (it has: {', '.join(sorted(names)) or 'none'})"
    text = "{label} has no such field{hint}"
    return {"type": _fault(text, label=_label(choice), hint=hint), "loc": (name,), "input": None}


def _label(choice: type[Spec]) -> str:
    return choice.axis if _is_node(choice) else f"{choice.axis} '{choice.kind}'"


def _is_node(choice: type[Spec]) -> bool:
    """Tell whether a Spec is a node (`zoo.spec.node`), which is known by its name alone."""
    return choice.kind == choice.axis != ""


def find_booleans_as_numbers(
    choice: type[Spec], fields: Mapping[str, Any], error: ValidationError
) -> list[InitErrorDetails]:
    """Find the fields given true or false that pydantic read as 1 or 0, where the component then refused itself.

    `n_heads: true` beside `n_kv_heads: 2` is no multiple, but that is not what has to be mended.
    """
    if any(item["loc"] for item in error.errors(include_url=False)):  # faults of fields: the component never reckoned
        return []
    takes_bool = {field.name for field in choice.fields() if "bool" in str(field.type)}
    names = {field.name for field in choice.fields()} - takes_bool
    return [
        {"type": _fault("must be a number, found {value}", value=str(value)), "loc": (name,), "input": None}
        for name, value in fields.items()
        if isinstance(value, bool) and name in names
    ]


def find_large_numbers(fields: Mapping[str, Any]) -> list[InitErrorDetails]:
    """Find the fields given a whole number that is larger than any dimension: figures are products of several, and have
    to stay finite."""
    return [
        {
            "type": _fault("is {value} (at most {most})", value=quote(each), most=f"{LARGEST:,}"),
            "loc": (name,),
            "input": None,
        }
        for name, value in fields.items()
        for each in (value if isinstance(value, list | tuple) else (value,))
        if isinstance(each, int) and not -LARGEST <= each <= LARGEST
    ]


def describe_item(choice: type[Spec], item: Any) -> InitErrorDetails:
    return {"type": _fault("{text}", text=_message(choice, item)), "loc": item["loc"], "input": None}


def _message(choice: type[Spec], item: Any) -> str:
    if item["type"] == "zoo":
        return item["msg"]
    if item["type"].startswith("missing"):
        return f"is missing; {_label(choice)} needs it"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] == "finite_number":
        return f"must be a finite number, found {item['input']}{_would_do(choice, str(item['loc'][0]))}"
    return f"{item['msg'][0].lower()}{item['msg'][1:]}, found {_show(item['input'])}"


def _would_do(choice: type[Spec], name: str) -> str:
    """Name what a field can be given instead of no number: null, where it may have none, or its default."""
    (field,) = (field for field in choice.fields() if field.name == name)
    if "None" in str(field.type):
        return " (null would do)"
    return f" ({field.default:g} would do)" if isinstance(field.default, int | float) else ""
