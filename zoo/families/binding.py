"""Find the fields of a config.json by which an expression gives a value: the inverse of `evaluate`.

    =num_key_value_heads or num_attention_heads     8      num_key_value_heads: 8
    =hidden_size // num_attention_heads             64     hidden_size: 512, where num_attention_heads is known to be 8
    ="lm" if has_head else "none"                   "lm"   has_head: true

An inverse is a guess: where several fields would do, the first is bound, and what has no inverse binds nothing. So the
caller imports the config that was found, and compares what it describes.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from zoo.errors import ConfigError
from zoo.families.expression import FAULTS, FUNCTIONS, Bindings, Codec, dict_items, evaluate

UNDO: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.sub,
    ast.Sub: operator.add,
    ast.Mult: lambda value, factor: (
        value // factor if isinstance(value, int) and value % factor == 0 else value / factor
    ),
    ast.Div: operator.mul,
    ast.FloorDiv: operator.mul,
    ast.Pow: lambda value, power: _round_if_whole(value ** (1 / power)),
}
"""The left operand, from the value and the right operand."""

UNSAID = object()
"""What the inverse of a function gives for an argument that the value does not determine."""


class TwoWay(Codec):
    """A function and its inverse. `read(*arguments)` gives the value; `write(value)` gives what each argument must be,
    or None for a value that the function never gives."""

    def __init__(self, read: Callable[..., Any], write: Callable[[Any], Sequence[Any] | None]) -> None:
        self.read, self.write = read, write

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return self.read(*args)

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        found: Bindings = {}
        for tree, argument in zip(args, self.write(value) or (), strict=False):  # optional arguments may be left out
            found |= {} if argument is UNSAID else bind(tree, argument, env)
        return found


def try_evaluate(node: ast.expr, env: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the value of a tree, or nothing where the fields in `env` do not give one."""
    try:
        yield evaluate(node, env)
    except (ConfigError, *FAULTS):
        return


def bind(node: ast.expr, value: Any, env: Mapping[str, Any]) -> Bindings:
    """Find the fields by which a tree gives `value`, where those in `env` are known."""
    match node:
        case ast.Name() | ast.Attribute():
            return {ast.unparse(node): value}
        case ast.Subscript() if not isinstance(node.value, ast.Call):  # what a function lists is no field
            return {f"{ast.unparse(node.value)}[{index}]": value for index in try_evaluate(node.slice, env)}
        case ast.Dict() if isinstance(value, Mapping):
            pairs = [(evaluate(key, env), item) for key, item in dict_items(node)]
            return {name: found for key, item in pairs for name, found in bind(item, value.get(key), env).items()}
        case ast.BoolOp(op=ast.Or()):
            return bind(node.values[0], value, env)
        case ast.BoolOp() | ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return _bind_truth(node, bool(value), env)
        case ast.BinOp(op=ast.Add()) if isinstance(value, str):
            return _bind_words(node, value, env)
        case ast.BinOp():
            return _bind_arithmetic(node, value, env)
        case ast.IfExp():
            return _bind_choice(node, value, env)
        case ast.Call(func=ast.Name(id=name)):
            return FUNCTIONS[name].bind(value, env, *node.args)
    return {}


def _bind_choice(node: ast.IfExp, value: Any, env: Mapping[str, Any]) -> Bindings:
    """Take the branch that is a constant equal to the value, or else the first other one that can give such a value."""
    branches = ((node.body, True), (node.orelse, False))
    for branch, truth in branches:
        if isinstance(branch, ast.Constant) and branch.value == value and type(branch.value) is type(value):
            return _bind_truth(node.test, truth, env)
    others = [each for each in branches if not isinstance(each[0], ast.Constant)]
    fitting = [each for each in others if _may_give(each[0], value, env)]
    branch, truth = next(iter([*fitting, *others, branches[0]]))
    return {**_bind_truth(node.test, truth, env), **bind(branch, value, env)}  # a number says more than that it holds


def _may_give(node: ast.expr, value: Any, env: Mapping[str, Any]) -> bool:
    """Whether a branch may give this value: a mapping must be of the same kind, and a function must bind it."""
    if isinstance(node, ast.Dict):
        stated = {ast.unparse(key): item for key, item in dict_items(node)}.get("'kind'")
        kind = stated.value if isinstance(stated, ast.Constant) else None
        return isinstance(value, Mapping) and kind in (None, value.get("kind"))
    return not isinstance(node, ast.Call) or not isinstance(value, Mapping) or bool(bind(node, value, env))


def _bind_truth(node: ast.expr, truth: bool, env: Mapping[str, Any]) -> Bindings:
    """Find the fields by which a condition holds, or does not. `a or b` that holds does not say which one does."""
    match node:
        case ast.Name() | ast.Attribute():
            return {ast.unparse(node): truth}
        case ast.Subscript():
            return bind(node, truth, env)
        case ast.UnaryOp(op=ast.Not()):
            return _bind_truth(node.operand, not truth, env)
        case ast.BoolOp(op=op) if truth is isinstance(op, ast.And):
            return {key: found for item in node.values for key, found in _bind_truth(item, truth, env).items()}
        case ast.Compare(ops=[ast.Eq() | ast.NotEq() as test]) if truth is isinstance(test, ast.Eq):
            right = list(try_evaluate(node.comparators[0], env))
            return bind(node.left, right[0], env) if right else {}
    return {}


def _bind_words(node: ast.BinOp, text: str, env: Mapping[str, Any]) -> Bindings:
    """Bind both parts of a text, "sparse" + "_sliding", where it is cut so that the right one is the longest. Entries
    of lists alone: a whole field has a row that says more of it than that it holds."""
    cut = next(_list_cuts(node, text), None)
    found = {} if cut is None else {**bind(node.left, text[:cut], env), **bind(node.right, text[cut:], env)}
    return {name: value for name, value in found.items() if name.endswith("]")}


def _list_cuts(node: ast.BinOp, text: str) -> Iterator[int]:
    """Where a text may be cut into those of the two sides of a sum, the longest right one first."""
    return (cut for cut in range(len(text) + 1) if _may_say(node.left, text[:cut]) and _may_say(node.right, text[cut:]))


def _may_say(node: ast.expr, text: str) -> bool:
    """Whether a tree may give this text: a constant, a choice among several, or the sum of two; a field gives any."""
    match node:
        case ast.Constant():
            return node.value == text
        case ast.IfExp():
            return _may_say(node.body, text) or _may_say(node.orelse, text)
        case ast.Call(func=ast.Name(id="case")):
            return any(_may_say(each, text) for each in node.args[2::2])
        case ast.BinOp():
            return next(_list_cuts(node, text), None) is not None
    return True


def _bind_arithmetic(node: ast.BinOp, value: Any, env: Mapping[str, Any]) -> Bindings:
    """Bind one operand where the other is known."""
    if value is None or isinstance(value, bool | str):
        return {}
    back = UNDO.get(type(node.op))
    for right in try_evaluate(node.right, env) if _reads_fields(node.left) else ():
        if back is not None and isinstance(right, int | float) and (right or isinstance(node.op, ast.Add | ast.Sub)):
            return bind(node.left, back(value, right), env)
    for left in try_evaluate(node.left, env):
        if isinstance(node.op, ast.Div) and value:
            return bind(node.right, left / value, env)
        if isinstance(node.op, ast.Sub) and not _reads_fields(node.left):
            return bind(node.right, round(left - value, 12), env)  # as short as a file states it
        if isinstance(node.op, ast.Mult) and left:
            return bind(node.right, value / left, env)
    return {}


def _reads_fields(node: ast.expr) -> bool:
    return any(isinstance(each, ast.Name) for each in ast.walk(node))


def _round_if_whole(value: float) -> float | int:
    """The nearest integer, if rounding errors alone are between it and the value."""
    return round(value) if abs(value - round(value)) <= 1e-12 * abs(value) else value


def assemble_fields(bindings: Bindings) -> dict[str, Any]:
    """The fields of a config.json: `a.b` becomes a mapping, `a.b.c` a mapping in it, `a[3]` a list."""
    fields: dict[str, Any] = {}
    for name, value in bindings.items():
        if name.endswith("]"):
            base, _, index = name[:-1].partition("[")
            items = fields.setdefault(base, [])
            items.extend([None] * (int(index) + 1 - len(items)))
            items[int(index)] = value
        elif "." in name:
            *outer, last = name.split(".")
            functools.reduce(lambda found, each: found.setdefault(each, {}), outer, fields)[last] = value
        else:
            fields[name] = value
    return fields
