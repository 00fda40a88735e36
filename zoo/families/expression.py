"""Evaluate the expressions in which a family's YAML says what a config.json means.

`=num_key_value_heads or num_attention_heads` is evaluated over the fields of a config (import). The inverse, which
fields a value would need (export), is in binding.py. The language: names, numbers, arithmetic, comparisons,
`a if b else c`, `x[layer]`, nodes such as `{"kind": "alibi"}` and a few functions. It has Python's syntax; a syntax
tree is walked, nothing is executed.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import ConfigError, did_you_mean

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: operator.add(a, b) if type(a) is type(b) else operator.add(*_numbers(a, b)),
    ast.Sub: lambda a, b: operator.sub(*_numbers(a, b)),
    ast.Mult: lambda a, b: operator.mul(*_numbers(a, b)),
    ast.Div: lambda a, b: operator.truediv(*_numbers(a, b)),
    ast.FloorDiv: lambda a, b: operator.floordiv(*_numbers(a, b)),
    ast.Mod: lambda a, b: operator.mod(*_numbers(a, b)),
    ast.Pow: lambda a, b: _power(*_numbers(a, b)),
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}

LARGEST_POWER = 64
MANY = 100_000
"""Most entries of a list: a config with more is refused as faulty."""


def _numbers(*values: Any) -> tuple[Any, ...]:
    """Give back the values. Raises ConfigError unless all are numbers: a text times a number would be a long text."""
    for value in values:
        if not isinstance(value, int | float):
            raise ConfigError(f"{value!r}: is no number, and arithmetic is asked of it")
    return values


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > LARGEST_POWER:
        raise ConfigError(f"** {exponent}: is too large a power (at most {LARGEST_POWER})")
    return base**exponent


def _range(*ends: int) -> list[int]:
    counted = range(*ends)
    if len(counted) > MANY:
        raise ConfigError(f"range: has {len(counted):,} entries (at most {MANY:,})")
    return list(counted)


Bindings = dict[str, Any]
"""What fields of a config.json must be: by name, `a.b` within another, or `a[3]` in a list."""


class Codec:
    """A function of the language. A `lazy` one takes its arguments as unevaluated trees."""

    lazy = False

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        """Evaluate the function over the fields in `env`."""
        raise NotImplementedError

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        """Find fields by which the function gives `value`; `args` are the unevaluated arguments."""
        return {}


class Plain(Codec):
    """A function of its arguments alone, without an inverse."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return self.function(*args)


FUNCTIONS: dict[str, Codec] = {
    "sqrt": Plain(math.sqrt),
    "exp": Plain(math.exp),
    "len": Plain(len),
    "int": Plain(lambda number: int(*_numbers(number))),
    "max": Plain(max),
    "min": Plain(min),
    "range": Plain(_range),
}


@functools.lru_cache(4096)
def _parsed(text: str) -> ast.expr:
    """Parse an expression. Raises ConfigError, with the column, for what the language does not have."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{text}: is no expression, {getattr(error, 'msg', None) or error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and (fault := _fault(node)):
            raise ConfigError(f"{text}: {fault} (column {node.col_offset + 1})")
    return tree


def _fault(node: ast.expr) -> str | None:
    """Why this node is not in the language, or None if it is."""
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, bool | int | float | str):
            return None
        case ast.Name() | ast.Attribute() | ast.List() | ast.IfExp() | ast.BoolOp():
            return None
        case ast.Subscript(slice=index):
            return "a slice is not known here, x[index] is" if isinstance(index, ast.Slice | ast.Tuple) else None
        case ast.Dict(keys=keys):
            return "** in a mapping is not known here" if None in keys else None
        case ast.UnaryOp(op=op):
            return None if isinstance(op, ast.Not | ast.USub) else f"{type(op).__name__} is not known here"
        case ast.BinOp(op=op):
            return None if type(op) in OPERATORS else f"{type(op).__name__} is not known here"
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            hint = did_you_mean(name, FUNCTIONS) or f" (there are: {', '.join(sorted(FUNCTIONS))})"
            return None if name in FUNCTIONS else f"{name}() is no function here{hint}"
        case ast.Call():
            return "only name(values) can be called here"
        case ast.Compare(ops=ops):
            strange = [type(op).__name__ for op in ops if type(op) not in OPERATORS]
            return f"{strange[0]} is not known here" if strange else None
        case ast.Slice() | ast.Tuple():
            return "x[index] is known here, nothing else in brackets"
    return f"{type(node).__name__} is not known here"


class Expression:
    """A parsed expression. Raises ConfigError for what the language does not have."""

    def __init__(self, text: str) -> None:
        self.tree = _parsed(text.strip())

    def names(self) -> set[str]:
        """The fields that it reads."""
        functions = {node.func.id for node in ast.walk(self.tree) if isinstance(node, ast.Call)}  # type: ignore[attr-defined]
        return {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)} - functions

    def value(self, env: Mapping[str, Any]) -> Any:
        """Evaluate it over the fields in `env`. Raises ConfigError for a field that is not there."""
        return evaluate(self.tree, env)


def evaluate(node: ast.expr, env: Mapping[str, Any]) -> Any:
    """Evaluate a syntax tree over the fields in `env`."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return _field(env, node.id)
        case ast.Attribute():
            return _field(evaluate(node.value, env), node.attr)
        case ast.Subscript():
            return get_item(evaluate(node.value, env), evaluate(node.slice, env), ast.unparse(node))
        case ast.List():
            return [evaluate(item, env) for item in node.elts]
        case ast.Dict():
            return {evaluate(key, env): evaluate(item, env) for key, item in dict_items(node)}
        case ast.BinOp():
            return OPERATORS[type(node.op)](evaluate(node.left, env), evaluate(node.right, env))
        case ast.UnaryOp():
            value = evaluate(node.operand, env)
            return not value if isinstance(node.op, ast.Not) else -value
        case ast.BoolOp():
            return _either(node, env)
        case ast.Compare():
            return _compare(node, env)
        case ast.IfExp():
            return evaluate(node.body if evaluate(node.test, env) else node.orelse, env)
        case ast.Call(func=ast.Name(id=name)):
            codec = FUNCTIONS[name]
            return codec.value(env, *(node.args if codec.lazy else (evaluate(arg, env) for arg in node.args)))
    raise TypeError(f"the language has no {type(node).__name__}: {ast.unparse(node)}")


def _compare(node: ast.Compare, env: Mapping[str, Any]) -> bool:
    """Compare each value with the next until one comparison fails: 1 < x < 3."""
    left = evaluate(node.left, env)
    for test, comparator in zip(node.ops, node.comparators, strict=True):
        right = evaluate(comparator, env)
        if not OPERATORS[type(test)](left, right):
            return False
        left = right
    return True


def _field(env: Mapping[str, Any], name: str) -> Any:
    if name not in env:
        raise ConfigError(f"{name}: is missing (a config.json of this kind states it)")
    return env[name]


def get_item(items: Any, index: int, text: str) -> Any:
    """An entry of a list. Raises ConfigError, with the expression's text, where the list is too short."""
    if isinstance(items, list) and not -len(items) <= index < len(items):
        raise ConfigError(f"{text.partition('[')[0]}: has {len(items)} entries, and entry {index} is asked for")
    return items[index]


def _either(node: ast.BoolOp, env: Mapping[str, Any]) -> Any:
    value = None
    for item in node.values:
        value = evaluate(item, env)
        if bool(value) is isinstance(node.op, ast.Or):
            return value
    return value


def dict_items(node: ast.Dict) -> list[tuple[ast.expr, ast.expr]]:
    """The keys and values of a mapping, as trees."""
    return [(key, item) for key, item in zip(node.keys, node.values, strict=True) if key is not None]


# ---------------------------------------------------------------- trees of expressions


def is_expression(value: Any) -> bool:
    """Whether a YAML value is an expression: a text that starts with `=`."""
    return isinstance(value, str) and value.startswith("=")


def evaluate_tree(node: Any, env: Mapping[str, Any]) -> Any:
    """Replace each expression in a YAML tree by its value."""
    if is_expression(node):
        return Expression(node[1:]).value(env)
    if isinstance(node, Mapping):
        return {key: evaluate_tree(value, env) for key, value in node.items()}
    return [evaluate_tree(value, env) for value in node] if isinstance(node, list | tuple) else node


def read_names(node: Any) -> set[str]:
    """List every field that the expressions in a YAML tree read."""
    if is_expression(node):
        return Expression(node[1:]).names()
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    return set().union(*(read_names(child) for child in children))
