"""No field of any component, and no setting of training, takes NaN or an infinite number."""

import inspect
import math
import typing

import pytest
from pydantic import ValidationError

import zoo.training.settings  # noqa: F401  (its settings are Specs too)
from support import field_trials
from zoo.compose import load
from zoo.costs import Setup
from zoo.errors import ConfigError
from zoo.spec import Node, Spec

ODD = (math.nan, math.inf, -math.inf)


def list_fields():
    for axis in field_trials._axes().values():
        for kind in filter(field_trials.is_ours, axis.kinds.values()):
            yield from ((axis, kind, field) for field in kind.fields())


def hint_of(kind: type[Spec], name: str) -> typing.Any:
    return typing.get_type_hints(kind, include_extras=True)[name]


def takes_float(hint: typing.Any) -> bool:
    """Whether a type takes a float by itself, not only as an item."""
    if typing.get_origin(hint) is tuple:
        return False
    return hint is float or any(takes_float(each) for each in typing.get_args(hint))


def takes_floats(hint: typing.Any) -> bool:
    """Whether a type takes a tuple of floats."""
    if typing.get_origin(hint) is tuple:
        return any(takes_float(each) for each in typing.get_args(hint))
    return any(takes_floats(each) for each in typing.get_args(hint))


def count_items(hint: typing.Any) -> int:
    """How many floats a tuple takes; 2 where it takes any number."""
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        return 2 if ... in items else len(items)
    return max((count_items(each) for each in typing.get_args(hint)), default=2)


def lines_of(axis: type[Spec], kind: type[Spec], name: str, value: typing.Any) -> list[str]:
    """The refusals of one field's value."""
    with pytest.raises(ValidationError) as raised:
        axis.parse({**({} if issubclass(kind, Node) else {"kind": kind.kind}), name: value})
    return [item["msg"] for item in raised.value.errors(include_url=False) if item["loc"][0] == name]


def test_every_field_refuses_a_number_that_is_not_finite_in_one_line():
    floats = 0
    for axis, kind, field in list_fields():
        for value in ODD:
            (line,) = lines_of(axis, kind, field.name, value)
            if takes_float(hint_of(kind, field.name)):
                floats += 1
                assert "finite number" in line and f"found {value}" in line, (kind, field.name, line)
    assert floats > 3 * 50


def test_every_list_of_numbers_refuses_one_that_is_not_finite():
    lists = [each for each in list_fields() if takes_floats(hint_of(each[1], each[2].name))]
    assert {field.name for _, _, field in lists} >= {"short_factor", "long_factor", "betas"}
    for axis, kind, field in lists:
        for value in ODD:
            hint = hint_of(kind, field.name)
            numbers = [0.5] * (count_items(hint) - 1) + [value]
            would = " (null would do)" if type(None) in typing.get_args(hint) else ""
            assert lines_of(axis, kind, field.name, numbers)[0] == f"must be a finite number, found {value}{would}"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("norm.eps=nan", "norm.eps: must be a finite number, found nan (1e-06 would do)"),
        ("rope_theta=inf", "rope_theta: must be a finite number, found inf (10000 would do)"),
        ("head.softcap=-inf", "head.softcap: must be a finite number, found -inf (null would do)"),
        ("head.scale=inf", "head.scale: must be a finite number above 0, or rsqrt_d_model, found inf"),
        ("embedding.scale=nan", "embedding.scale: must be a finite number or sqrt_d_model, found nan (null would do)"),
        ("attention.scale=inf", "attention.scale: must be a finite number, found inf (null would do)"),
    ],
)
def test_the_line_says_what_would_do(override, line):
    with pytest.raises(ConfigError) as raised:
        load("llama-tiny", [override])
    assert list(raised.value.faults) == [line]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("name", [name for name, hint in inspect.get_annotations(Setup).items() if "float" in hint])
def test_a_set_up_refuses_them_too(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}: .*found {value}"):
        Setup(**{name: value})


def test_python_code_is_refused_like_a_file():
    kind = field_trials.BY_AXIS["norm"].kinds["rmsnorm"]
    with pytest.raises(ValidationError, match="finite"):
        kind(eps=math.nan)
