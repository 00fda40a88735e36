"""Define the options of a verb once, as the fields of a dataclass. Typer's parameters, the panel in the help and the
object passed to the verb follow from these fields. A verb with few options states them as defaults of its own
parameters."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from inspect import Parameter
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import typer

T = TypeVar("T")
Describe = Callable[["Field[Any]", Any], Any]
"""A function that makes the Typer option of a field, from the field and its type."""


def option(text: str, *flags: str, default: object = None, **settings: Any) -> Any:
    """Define an option with a help text, by default named after its field. The default `...` makes it required."""
    info = typer.Option(help=text, **settings)
    info.param_decls = flags
    return _state(info, default)


def flag(text: str, *flags: str) -> Any:
    """Define an option that is false unless it is given."""
    return option(text, *flags, default=False)


def argument(text: str, *, default: object = None, **settings: Any) -> Any:
    """Define an argument with a help text; the default `...` makes it required. `settings` are Typer's."""
    return _state(typer.Argument(help=text, **settings), default)


def _state(info: Any, default: object) -> Any:
    return field(default=MISSING if default is ... else default, metadata={"typer": info})


@dataclass_transform(kw_only_default=True, frozen_default=True)
def options(panel: str | None = None) -> Callable[[type[T]], type[T]]:
    """Make a class a group of options, shown under the name `panel` in the help. A field is an `option`, an `argument`,
    or has a type annotated for Typer."""

    def make(cls: type[T]) -> type[T]:
        made = dataclass(frozen=True, kw_only=True)(cls)
        made.__panel__ = panel  # type: ignore[attr-defined]
        return made

    return make


def read_options(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a verb for Typer: the wrapper takes the fields of the verb's groups and the verb's other parameters, makes
    the groups, and calls the verb.

    A group is a parameter whose type is a dataclass. With the type `Annotated[Group, describe]`, `describe` makes the
    options of the group's fields. The wrapper raises ConfigError if making a group does.
    """
    own: list[Parameter] = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for each in inspect.signature(run, eval_str=True).parameters.values():
        hint, describe = _split_hint(each.annotation)
        if is_dataclass(hint):
            made = _list_parameters(hint, describe or _describe)
            groups[each.name] = hint, [parameter.name for parameter in made]
            own += made
        elif isinstance(each.default, Field):
            each.default.name = each.name
            own.append(_make_parameter(each.default, hint, _describe(each.default, hint)))
        else:
            own.append(each.replace(kind=Parameter.KEYWORD_ONLY))

    def called(**given: Any) -> Any:
        made = {name: kind(**{key: given.pop(key) for key in keys}) for name, (kind, keys) in groups.items()}
        return run(**made, **given)

    called.__name__, called.__doc__ = run.__name__, run.__doc__
    called.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in own}
    return called


def _split_hint(hint: Any) -> tuple[Any, Any]:
    """Split `Annotated[type, what]` into both; `what` is None for any other type."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint, None)


def _list_parameters(group: Any, describe: Describe) -> list[Parameter]:
    """Make a Typer parameter for each field of a group."""
    hints, made = get_type_hints(group, include_extras=True), []
    for each in fields(group):
        hint, info = _split_hint(hints[each.name])
        info = copy.copy(info or describe(each, hint))
        info.rich_help_panel = getattr(group, "__panel__", None)
        made.append(_make_parameter(each, hint, info))
    return made


def _make_parameter(each: Field[Any], hint: Any, info: Any) -> Parameter:
    default = Parameter.empty if each.default is MISSING else each.default
    return Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, info])


def _describe(each: Field[Any], hint: Any) -> Any:
    """Return a field's own Typer option. A `bool` that is false by default gets no `--no-` form."""
    info = each.metadata["typer"]
    if hint is bool and each.default is False and not info.param_decls:
        info.param_decls = ("--" + each.name.replace("_", "-"),)
    return info
