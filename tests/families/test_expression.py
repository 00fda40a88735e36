"""The language of families against Python itself: what it knows it works out as Python does, the rest it refuses."""

import ast

import pytest

from zoo.errors import ConfigError
from zoo.families import family  # noqa: F401  (registers the language's functions)
from zoo.families.expression import Expression

FIELDS = {"x": 2, "y": 7.5, "flag": True, "none": None, "names": ["a", "b"], "node": {"kind": "rope", "theta": 3}}

KNOWN = [
    *(
        "1",
        "1.5",
        "'text'",
        "True",
        "None",
        "x",
        "[x, y]",
        "[]",
        '{"kind": x}',
        "names[0]",
        "names[-1]",
        "node['theta']",
    ),
    *("x + 1", "x - 1", "x * y", "y / x", "y // x", "7 % x", "x ** 3", "x ** -0.5", "-x", "not x", "'a' + 'b'"),
    *("[1] + [2]", "x == 2", "x != 2", "x < 3", "x <= 2", "x > 3", "x >= 2", "'a' in names", "'c' not in names"),
    *("none is None", "x is not None", "1 < x < 3", "1 < x < 2", "3 > x > 1 != 4", "1 < 1 < undefined"),
    *("x and y", "none and y", "x or y", "none or y", "none or 0 or y", "x if flag else y", "x if none else y"),
    *("len(names)", "int(y)", "max(x, y)", "min(x, y)", "range(x)", "range(1, 4)", "sqrt(4)", "flag + 1"),
]
REFUSED = [
    *("~x", "+x", "x @ y", "x << 2", "x >> 1", "x | 1", "x & 1", "x ^ 1", "lambda: x", "(x, y)", "{x, y}", "x.real()"),
    *("[i for i in names]", "{i for i in names}", "{i: i for i in names}", "(i for i in names)", "(z := x)", "f'{x}'"),
    *(
        "[*names]",
        "{**node}",
        "names[0:1]",
        "names[::2]",
        "names[0, 1]",
        "max(*names)",
        "max(x, key=y)",
        "b'x'",
        "1j",
        "...",
    ),
    *(
        "await x",
        "(yield)",
        "(yield from names)",
        "open('x')",
        "__import__('os')",
        "x(1)",
        "names[0](1)",
        "x +",
        "",
        "x = 1",
    ),
    *(
        "9 ** 9 ** 9",
        "(0 - 2) ** (0 - 0.5)",
        "'a' * 3",
        "names * 3",
        "'%s' % x",
        "int('12')",
        "range(10 ** 9)",
        "none + 1",
    ),
]


@pytest.mark.parametrize("text", KNOWN)
def test_what_is_known_gives_what_python_gives(text):
    from math import sqrt

    names = {"__builtins__": {"len": len, "int": int, "max": max, "min": min, "sqrt": sqrt}}
    expected = eval(text, {**names, **FIELDS, "range": lambda *ends: list(range(*ends))})
    got = Expression(text).value(FIELDS)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize("text", REFUSED)
def test_everything_else_is_refused_in_one_line(text):
    with pytest.raises(ConfigError) as refused:
        Expression(text).value(FIELDS)
    (fault,) = refused.value.faults
    assert "\n" not in fault


def test_every_kind_of_node_that_python_has_is_among_these():
    """A node that a later Python adds is to be known or refused, too."""
    tried = {type(node) for text in [*KNOWN, *REFUSED] for node in _nodes(text)}
    kinds = [each for each in vars(ast).values() if isinstance(each, type) and issubclass(each, ast.expr)]
    old = {"Num", "Str", "Bytes", "NameConstant", "Ellipsis", "ExtSlice", "Index"}  # names that ast keeps for Constant
    unseen = {each.__name__ for each in kinds if each is not ast.expr and each not in tried} - old
    assert unseen <= {"TemplateStr", "Interpolation"}  # Python 3.14's t-strings, which 3.11 cannot read


def _nodes(text):
    try:
        return list(ast.walk(ast.parse(text, mode="eval")))
    except SyntaxError:
        return []
