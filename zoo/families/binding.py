"""Find fields of a config.json with which an expression has a given value: the inverse of `evaluate`.

    =num_key_value_heads or num_attention_heads     8      num_key_value_heads: 8
    =hidden_size // num_attention_heads             64     hidden_size: 512, where num_attention_heads is known to be 8
    ="lm" if has_head else "none"                   "lm"   has_head: true

An inverse is a guess: if several fields could give the value, the first is bound; an expression without an inverse
binds nothing. Callers therefore import the config that was found, and compare the model that it describes.
"""

from __future__ import annotations

import ast
import copy
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
"""For each operator, the function that gives the left operand from the value and the right operand."""

UNSAID = object()
"""Marks an argument that the inverse of a function cannot determine from the value."""


class TwoWay(Codec):
    """A function and its inverse: `read(*arguments)` returns the value; `write(value)` returns the arguments, or None
    for a value that the function never has."""

    def __init__(self, read: Callable[..., Any], write: Callable[[Any], Sequence[Any] | None]) -> None:
        self.read, self.write = read, write

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return self.read(*args)

    def bind(self, value: object, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        found: Bindings = {}
        for tree, argument in zip(args, self.write(value) or (), strict=False):  # optional arguments may be left out
            found |= {} if argument is UNSAID else bind(tree, argument, env)
        return found


def try_evaluate(node: ast.expr, env: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the value of an expression's tree, or nothing if it cannot be evaluated over the fields in `env`."""
    try:
        yield evaluate(node, env)
    except (ConfigError, *FAULTS):
        return


def bind(node: ast.expr, value: object, env: Mapping[str, Any]) -> Bindings:
    """Find fields with which an expression's tree has this `value`, given the fields known in `env`."""
    match node:
        case ast.Name() | ast.Attribute():
            return {ast.unparse(node): value}
        case ast.Subscript() if not isinstance(node.value, ast.Call):  # an entry of a function's list is no field
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


def _bind_choice(node: ast.IfExp, value: object, env: Mapping[str, Any]) -> Bindings:
    """Bind the condition so that it selects the branch that is a constant equal to the value. Without such a branch,
    bind the condition and the first other branch that may give the value."""
    branches = ((node.body, True), (node.orelse, False))
    for branch, truth in branches:
        if isinstance(branch, ast.Constant) and branch.value == value and type(branch.value) is type(value):
            return _bind_truth(node.test, truth, env)
    others = [each for each in branches if not isinstance(each[0], ast.Constant)]
    fitting = [each for each in others if _may_give(each[0], value, env)]
    branch, truth = next(iter([*fitting, *others, branches[0]]))
    return {**_bind_truth(node.test, truth, env), **bind(branch, value, env)}  # a field's value wins over its truth


def _may_give(node: ast.expr, value: object, env: Mapping[str, Any]) -> bool:
    """Whether a branch may have this value. A literal mapping has only mappings, of its `kind` if that is constant. A
    function has a mapping only if `bind` can invert it. All other branches may have any value."""
    if isinstance(node, ast.Dict):
        stated = {ast.unparse(key): item for key, item in dict_items(node)}.get("'kind'")
        kind = stated.value if isinstance(stated, ast.Constant) else None
        return isinstance(value, Mapping) and kind in (None, value.get("kind"))
    return not isinstance(node, ast.Call) or not isinstance(value, Mapping) or bool(bind(node, value, env))


def _bind_truth(node: ast.expr, truth: bool, env: Mapping[str, Any]) -> Bindings:
    """Find fields with which a condition has this `truth`, true or false. Nothing follows from a true `a or b`, or from
    a false `a and b`."""
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
    """Bind both operands of a concatenation of texts, such as "sparse" + "_sliding"; the right operand gets the longest
    possible text. Only list entries are bound: of a whole field, only the truth is known here."""
    cut = next(_list_cuts(node, text), None)
    found = {} if cut is None else {**bind(node.left, text[:cut], env), **bind(node.right, text[cut:], env)}
    return {name: value for name, value in found.items() if name.endswith("]")}


def _list_cuts(node: ast.BinOp, text: str) -> Iterator[int]:
    """Yield the positions that may cut a concatenation's text in two, the longest right operand first."""
    return (cut for cut in range(len(text) + 1) if _may_say(node.left, text[:cut]) and _may_say(node.right, text[cut:]))


def _may_say(node: ast.expr, text: str) -> bool:
    """Whether a tree may have this text as its value. A field may have any text."""
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


def _bind_arithmetic(node: ast.BinOp, value: object, env: Mapping[str, Any]) -> Bindings:
    """Bind one operand if the other can be evaluated."""
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
            return bind(node.right, round(left - value, 12), env)  # files state few digits
        if isinstance(node.op, ast.Mult) and left:
            return bind(node.right, value / left, env)
    return {}


def _reads_fields(node: ast.expr) -> bool:
    return any(isinstance(each, ast.Name) for each in ast.walk(node))


def _round_if_whole(value: float) -> float | int:
    """Round to the nearest integer if the value differs from it by at most a relative 1e-12."""
    return round(value) if abs(value - round(value)) <= 1e-12 * abs(value) else value


def assemble_fields(bindings: Mapping[str, Any], absent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make the fields of a config.json from bindings: `a.b` is a key of a mapping, `a[3]` an entry of a list. Fields of
    `absent` without a binding keep their values."""
    fields = copy.deepcopy(dict(absent or {}))
    for name, value in bindings.items():
        if name.endswith("]"):
            base, _, index = name[:-1].partition("[")
            items = fields.setdefault(base, [])
            items.extend([None] * (int(index) + 1 - len(items)))
            items[int(index)] = value
        else:
            *outer, last = name.split(".")
            functools.reduce(lambda found, each: found.setdefault(each, {}), outer, fields)[last] = value
    return fields
