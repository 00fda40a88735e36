"""Evaluate the expressions in a family's YAML that say what a config.json means.

On import, `=num_key_value_heads or num_attention_heads` is evaluated over the fields of a config. The inverse, finding
fields that give a value (export), is in binding.py. The language is a subset of Python's syntax: names, numbers,
arithmetic, comparisons, `a if b else c`, `x[layer]`, nodes such as `{"kind": "alibi"}`, and the functions in FUNCTIONS.
The syntax tree is interpreted; no code is executed.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from zoo.errors import ConfigError, did_you_mean
from zoo.untrusted.printable import quote, shorten

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: _join(a, b) if isinstance(a, str | list) else operator.add(*_numbers(a, b)),
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


class Misfit(ValueError):
    """Raised for values that an expression cannot take. The message says which values would do."""


LARGEST_POWER = 64
MOST_BITS = 1024
"""Maximum bits of an integer in arithmetic; integers of a config.json have 64."""
MANY = 100_000
"""Maximum entries of a list, and characters of a text."""
LONGEST, DEEPEST = 10_000, 50
"""Maximum characters of an expression, and levels of its syntax tree."""


def _numbers(*values: Any) -> tuple[Any, ...]:
    """Return the values. Raises Misfit unless all are numbers of limited size: the product of a text and a number could
    have any length, and repeated products could have any size."""
    for value in values:
        if not isinstance(value, int | float):
            raise Misfit(f"numbers, and {quote(value)} is none")
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise Misfit(f"whole numbers of at most {MOST_BITS} bits")
    return values


def _power(base: object, exponent: Any) -> Any:
    if abs(exponent) > LARGEST_POWER:
        raise Misfit(f"powers of at most {LARGEST_POWER}")
    if isinstance(result := base**exponent, complex):
        raise Misfit("roots of numbers that are not negative")
    return result


def _join(a: Any, b: Any) -> Any:
    """Concatenate two texts or two lists. Raises Misfit for other types, and for a result of more than MANY entries."""
    if type(a) is not type(b):
        raise Misfit(f"two texts or two lists, and {quote(b)} is to be joined to {quote(a)}")
    if len(a) + len(b) > MANY:
        raise Misfit(f"at most {MANY:,} entries")
    return a + b


def _range(*ends: int) -> list[int]:
    counted = range(*ends)
    if counted and (counted[-1] - counted[0]) // counted.step >= MANY:  # len() holds 64 bits
        raise Misfit(f"at most {MANY:,} entries")
    return list(counted)


Bindings = dict[str, Any]
"""Values of fields of a config.json: by name, `a.b` for a nested field, or `a[3]` for a list's entry."""


class Codec:
    """A function of the language. A `lazy` function takes its arguments as unevaluated syntax trees."""

    lazy = False

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        """Evaluate the function over the fields in `env`."""
        raise NotImplementedError

    def bind(self, value: object, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        """Find fields with which the function has this `value`; `args` are the unevaluated arguments."""
        return {}


class PlainFunction(Codec):
    """A function that reads only its arguments, not other fields, and has no inverse."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return self.function(*args)


FUNCTIONS: dict[str, Codec] = {
    "sqrt": PlainFunction(math.sqrt),
    "exp": PlainFunction(math.exp),
    "len": PlainFunction(len),
    "int": PlainFunction(lambda number: int(*_numbers(number))),
    "max": PlainFunction(max),
    "min": PlainFunction(min),
    "range": PlainFunction(_range),
}


@functools.lru_cache(4096)
def _parsed(text: str) -> ast.expr:
    """Parse an expression. Raises ConfigError, with the column, for syntax outside the language."""
    if len(text) > LONGEST:
        raise ConfigError(f"{quote(text)}: is an expression of {len(text):,} characters (at most {LONGEST:,})")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{quote(text)}: is no expression, {getattr(error, 'msg', None) or error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and (fault := _fault(node)):
            raise ConfigError(f"{quote(text)}: {fault} (column {node.col_offset + 1})")
    _check_depth(tree, text)
    return tree


def _check_depth(tree: ast.AST, text: str) -> None:
    """Raise ConfigError for a tree of more than DEEPEST levels."""
    level, depth = [tree], 0
    while level := [child for node in level for child in ast.iter_child_nodes(node)]:
        depth += 1
        if depth > DEEPEST:
            raise ConfigError(f"{quote(text)}: is nested more than {DEEPEST} deep")


def _fault(node: ast.expr) -> str | None:
    """Say why this node is not in the language; None if it is."""
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
    """A parsed expression. Raises ConfigError for syntax outside the language."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.tree = _parsed(self.text)

    def names(self) -> set[str]:
        """List the fields that the expression reads."""
        functions = {node.func.id for node in ast.walk(self.tree) if isinstance(node, ast.Call)}  # type: ignore[attr-defined]
        return {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)} - functions

    def value(self, env: Mapping[str, Any]) -> Any:
        """Evaluate the expression over the fields in `env`, which may have any types and values. Raises ConfigError for
        a missing field, and for values that the expression cannot take."""
        try:
            return evaluate(self.tree, env)
        except FAULTS as error:
            read = _Recorder(env)
            with suppress(ConfigError, *FAULTS):
                evaluate(self.tree, read)
            names = [name for name in read.asked if name in env][-4:]  # the last field read is usually at fault
            found = ", ".join(quote(env[name]) for name in names) or "no field"
            would = str(error) if isinstance(error, Misfit) else "values as transformers writes them"
            fields = ", ".join(names) or shorten(self.text)
            raise ConfigError(f"{fields}: give no {quote(self.text)}, found {found} ({would})") from error


class _Recorder(dict[str, Any]):
    """Fields that record which of them were read, in order."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.asked: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        self.asked[name] = None
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked[name] = None
        return super().get(name, default)


FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""Errors that an expression raises for values of unexpected types or sizes."""


def evaluate(node: ast.expr, env: Mapping[str, Any]) -> Any:
    """Evaluate a syntax tree over the fields in `env`. Raises ConfigError for a missing field, and one of FAULTS for
    values that the tree cannot take."""
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


def get_item(items: Any, index: Any, text: str) -> Any:
    """Return an entry of a list. Raises ConfigError, with the expression's text, if the list is too short."""
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
    """List the keys and values of a mapping, as syntax trees."""
    return [(key, item) for key, item in zip(node.keys, node.values, strict=True) if key is not None]


# ---------------------------------------------------------------- trees of expressions


def is_expression(value: object) -> bool:
    """Whether a YAML value is an expression: a text that starts with `=`."""
    return isinstance(value, str) and value.startswith("=")


def evaluate_tree(node: Any, env: Mapping[str, Any]) -> Any:
    """Replace each expression in a YAML tree by its value."""
    if is_expression(node):
        return _refuse_interpolations(Expression(node[1:]).value(env), node[1:])
    if isinstance(node, Mapping):
        return {key: evaluate_tree(value, env) for key, value in node.items()}
    return [evaluate_tree(value, env) for value in node] if isinstance(node, list | tuple) else node


def _refuse_interpolations(value: object, text: str) -> Any:
    """Return a value. Raises ConfigError if a text in it would be interpolated when the model is composed: by
    `${oc.env:HOME}`, a config.json could read the environment."""
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"{shorten(text)}: gives {quote(value)} (a text without ${{)")
    if isinstance(value, dict | list):
        for each in [*value, *(value.values() if isinstance(value, dict) else ())]:
            _refuse_interpolations(each, text)
    return value


def read_names(node: Any) -> set[str]:
    """List every field that the expressions in a YAML tree read."""
    if is_expression(node):
        return Expression(node[1:]).names()
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    return set().union(*(read_names(child) for child in children))
