"""The little language in which a family's YAML says what a config.json means, read forwards and backwards.

`=num_key_value_heads or num_attention_heads` is worked out over the fields of a config (import), and turned round to
say which fields a value of it would take (export). Names, numbers, arithmetic, comparisons, `a if b else c`,
`x[layer]`, nodes such as `{"kind": "alibi"}` and a few functions: a syntax tree is walked, nothing is executed.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
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
"""Entries of a list above which a config is taken to be at fault."""


def _numbers(*values: Any) -> tuple[Any, ...]:
    """The values, all of which must be numbers: a text times a number would be a long text."""
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


UNDO: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.sub,
    ast.Sub: operator.add,
    ast.Mult: lambda value, factor: (
        value // factor if isinstance(value, int) and value % factor == 0 else value / factor
    ),
    ast.Div: operator.mul,
    ast.FloorDiv: operator.mul,
    ast.Pow: lambda value, power: _whole(value ** (1 / power)),
}
"""What gives the left side back, from the value and the right side."""


def _whole(value: float) -> float | int:
    """A number that is whole but for rounding, as such."""
    return round(value) if abs(value - round(value)) <= 1e-12 * abs(value) else value


Bindings = dict[str, Any]
"""What fields of a config.json must be: by name, `a.b` within another, or `a[3]` in a list."""


class Codec:
    """A function of the language: how it is worked out, and which fields a value of it would take. A `lazy` one is
    given its arguments unread."""

    lazy = False

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        raise NotImplementedError

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        """Fields by which it would give `value`; `args` are the unread arguments."""
        return {}


class Plain(Codec):
    """A function of its arguments alone, which is not turned round."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return self.function(*args)


FUNCTIONS: dict[str, Codec] = {
    "sqrt": Plain(math.sqrt),
    "len": Plain(len),
    "int": Plain(lambda number: int(*_numbers(number))),
    "max": Plain(max),
    "min": Plain(min),
    "range": Plain(_range),
}


@functools.lru_cache(4096)
def _parsed(text: str) -> ast.expr:
    """The syntax tree of an expression. Raises ConfigError, with the place, for what the language does not have."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{text}: is no expression, {getattr(error, 'msg', None) or error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and (fault := _fault(node)):
            raise ConfigError(f"{text}: {fault} (column {node.col_offset + 1})")
    return tree


def _fault(node: ast.expr) -> str | None:
    """Why the language does not have this node, or None where it has."""
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
    """One expression. `where` names it in messages. Raises ConfigError for what the language does not have."""

    def __init__(self, text: str, where: str = "") -> None:
        self.text, self.where = text.strip(), where
        self.tree = _parsed(self.text)

    def names(self) -> set[str]:
        """The fields it reads; a function is none."""
        functions = {node.func.id for node in ast.walk(self.tree) if isinstance(node, ast.Call)}  # type: ignore[attr-defined]
        return {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)} - functions

    def value(self, env: Mapping[str, Any]) -> Any:
        """Its value over the fields in `env`. Raises ConfigError for a field that is not there."""
        return evaluate(self.tree, env)

    def bind(self, value: Any, env: Mapping[str, Any]) -> Bindings:
        """The fields by which it would be `value`, as far as it can be turned round; the caller holds them against
        it."""
        return bind(self.tree, value, env)


def evaluate(node: ast.expr, env: Mapping[str, Any]) -> Any:
    """The value of a tree over the fields in `env`."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return _field(env, node.id)
        case ast.Attribute():
            return _field(evaluate(node.value, env), node.attr)
        case ast.Subscript():
            return item_of(evaluate(node.value, env), evaluate(node.slice, env), ast.unparse(node))
        case ast.List():
            return [evaluate(item, env) for item in node.elts]
        case ast.Dict():
            return {evaluate(key, env): evaluate(item, env) for key, item in _items(node)}
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
    """Each neighbour with the next, as far as they hold: 1 < x < 3."""
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


def item_of(items: Any, index: int, text: str) -> Any:
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


def known(node: ast.expr, env: Mapping[str, Any]) -> Iterator[Any]:
    """The value of a tree, if the fields at hand give it one."""
    try:
        yield evaluate(node, env)
    except (ConfigError, TypeError, KeyError, IndexError, ZeroDivisionError):
        return


def bind(node: ast.expr, value: Any, env: Mapping[str, Any]) -> Bindings:
    """The fields by which a tree would be `value`. What cannot be turned round binds nothing."""
    match node:
        case ast.Name() | ast.Attribute():
            return {ast.unparse(node): value}
        case ast.Subscript():
            return {f"{ast.unparse(node.value)}[{index}]": value for index in known(node.slice, env)}
        case ast.Dict() if isinstance(value, Mapping):
            pairs = [(evaluate(key, env), item) for key, item in _items(node)]
            return {name: found for key, item in pairs for name, found in bind(item, value.get(key), env).items()}
        case ast.BoolOp(op=ast.Or()):
            return bind(node.values[0], value, env)
        case ast.BoolOp() | ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return _bind_truth(node, bool(value), env)
        case ast.BinOp():
            return _bind_arithmetic(node, value, env)
        case ast.IfExp():
            return _bind_choice(node, value, env)
        case ast.Call(func=ast.Name(id=name)):
            return FUNCTIONS[name].bind(value, env, *node.args)
    return {}


def _bind_choice(node: ast.IfExp, value: Any, env: Mapping[str, Any]) -> Bindings:
    """By the branch that is a constant and equals the value, if one does; otherwise by the one that is none."""
    branches = ((node.body, True), (node.orelse, False))
    for branch, truth in branches:
        if isinstance(branch, ast.Constant) and branch.value == value and type(branch.value) is type(value):
            return _bind_truth(node.test, truth, env)
    open_ = [each for each in branches if not isinstance(each[0], ast.Constant)]
    fitting = [each for each in open_ if _fits(each[0], value, env)]
    branch, truth = next(iter([*fitting, *open_, branches[0]]))
    return {**bind(branch, value, env), **_bind_truth(node.test, truth, env)}


def _items(node: ast.Dict) -> list[tuple[ast.expr, ast.expr]]:
    return [(key, item) for key, item in zip(node.keys, node.values, strict=True) if key is not None]


def _fits(node: ast.expr, value: Any, env: Mapping[str, Any]) -> bool:
    """Whether a branch may give this value, as far as the kind of node that it makes tells."""
    if isinstance(node, ast.Dict):
        stated = {ast.unparse(key): item for key, item in _items(node)}.get("'kind'")
        kind = stated.value if isinstance(stated, ast.Constant) else None
        return isinstance(value, Mapping) and kind in (None, value.get("kind"))
    return not isinstance(node, ast.Call) or not isinstance(value, Mapping) or bool(bind(node, value, env))


def _bind_truth(node: ast.expr, truth: bool, env: Mapping[str, Any]) -> Bindings:
    match node:
        case ast.Name() | ast.Attribute():
            return {ast.unparse(node): truth}
        case ast.Subscript():
            return bind(node, truth, env)
        case ast.UnaryOp(op=ast.Not()):
            return _bind_truth(node.operand, not truth, env)
        case ast.BoolOp(op=ast.And()) if truth:
            return {key: found for item in node.values for key, found in _bind_truth(item, True, env).items()}
        case ast.BoolOp(op=ast.Or()) if not truth:
            return {key: found for item in node.values for key, found in _bind_truth(item, False, env).items()}
        case ast.Compare(ops=[ast.Eq() | ast.NotEq() as test]) if truth is isinstance(test, ast.Eq):
            return {k: v for right in known(node.comparators[0], env) for k, v in bind(node.left, right, env).items()}
    return {}


def _bind_arithmetic(node: ast.BinOp, value: Any, env: Mapping[str, Any]) -> Bindings:
    """One side is known, the other takes what is left."""
    if value is None or isinstance(value, bool | str):
        return {}
    back = UNDO.get(type(node.op))
    for right in known(node.right, env) if _has_fields(node.left) else ():
        if back is not None and isinstance(right, int | float) and (right or isinstance(node.op, ast.Add | ast.Sub)):
            return bind(node.left, back(value, right), env)
    for left in known(node.left, env):
        if isinstance(node.op, ast.Div) and value:
            return bind(node.right, left / value, env)
        if isinstance(node.op, ast.Mult) and left:
            return bind(node.right, value / left, env)
    return {}


def _has_fields(node: ast.expr) -> bool:
    """Whether a tree reads anything, so that there is something to bind in it."""
    return any(isinstance(each, ast.Name) for each in ast.walk(node))


# ---------------------------------------------------------------- trees of expressions


def is_expression(value: Any) -> bool:
    """Whether a YAML value is an expression rather than itself."""
    return isinstance(value, str) and value.startswith("=")


def resolved(node: Any, env: Mapping[str, Any]) -> Any:
    """A YAML tree with each expression in it worked out."""
    if is_expression(node):
        return Expression(node[1:]).value(env)
    if isinstance(node, Mapping):
        return {key: resolved(value, env) for key, value in node.items()}
    return [resolved(value, env) for value in node] if isinstance(node, list | tuple) else node


def read_names(node: Any) -> set[str]:
    """Every field that the expressions in a YAML tree read."""
    if is_expression(node):
        return Expression(node[1:]).names()
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    return set().union(*(read_names(child) for child in children))


def assembled(bindings: Bindings) -> dict[str, Any]:
    """Bindings as fields: `a.b` into a mapping, `a[3]` into a list."""
    fields: dict[str, Any] = {}
    for name, value in bindings.items():
        if name.endswith("]"):
            base, _, index = name[:-1].partition("[")
            items = fields.setdefault(base, [])
            items.extend([None] * (int(index) + 1 - len(items)))
            items[int(index)] = value
        elif "." in name:
            outer, _, inner = name.partition(".")
            fields.setdefault(outer, {})[inner] = value
        else:
            fields[name] = value
    return fields
