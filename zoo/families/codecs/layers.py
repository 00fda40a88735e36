"""What config.json files say of each layer: lists, periods, and fields of nested configs."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families.expression import FUNCTIONS, MANY, Bindings, Codec, Plain, bind, evaluate, item_of, known


class Each(Codec):
    """`each(num_hidden_layers, x)`: a list of what x is for each `layer`, counted from 0."""

    lazy = True

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        count = evaluate(args[0], env)
        if count > MANY:
            raise ConfigError(f"each: has {count:,} entries (at most {MANY:,})")
        return [evaluate(args[1], {**env, "layer": layer}) for layer in range(count)]

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        found: Bindings = {}
        for layer, item in enumerate(value):
            found |= bind(args[1], item, {**env, "layer": layer})
        return found


class Choose(Codec):
    """`case(layer_types[layer], "full_attention", None, "sliding_attention", sliding_window)`: what stands behind the
    value of the first argument. Turned round by the place that is a constant and equals it, or the
    first that is none."""

    lazy = True

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        asked = evaluate(args[0], env)
        for name, result in zip(args[1::2], args[2::2], strict=True):
            if evaluate(name, env) == asked:
                return evaluate(result, env)
        choices = ", ".join(repr(evaluate(name, env)) for name in args[1::2])
        raise ConfigError(f"{ast.unparse(args[0])}: is {asked!r}, which is none of ours (one of: {choices})")

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        places = list(zip(args[1::2], args[2::2], strict=True))
        same = [name for name, each in places if isinstance(each, ast.Constant) and each.value == value]
        if same:
            return bind(args[0], evaluate(same[0], env), env)
        for name, each in places:
            found = {} if isinstance(each, ast.Constant) else bind(each, value, env)
            if found:
                return {**found, **bind(args[0], evaluate(name, env), env)}
        return {}


class Inner(Codec):
    """`inner(attn_config, "clip_qkv")`: a field of a nested config, None where either is left out."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return (args[0] or {}).get(args[1])

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return {f"{ast.unparse(args[0])}.{evaluate(args[1], env)}": value}


class At(Codec):
    """`at(attention_window, layer)`: a layer's entry of a list, or what stands for every layer."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        items, layer = args
        return item_of(items, layer, "the list") if isinstance(items, list) else items

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return {f"{ast.unparse(args[0])}[{layer}]": value for layer in known(args[1], env)}


def spread(groups: list[Any]) -> list[Any]:
    """`[[["global", "local"], 12]]` as the list of 24 that it stands for (GPT-Neo)."""
    return [kind for kinds, count in groups for kind in list(kinds) * count]


def places(items: list[Any], name: Any) -> list[int]:
    """Where in a list something stands."""
    return [index for index, each in enumerate(items) if each == name]


def run(items: list[Any], name: Any) -> list[int]:
    """Where something stands in a list: at every so many entries, from an entry, up to one (ERNIE 4.5)."""
    found = places(items, name) or [len(items)]
    return [found[1] - found[0] if len(found) > 1 else found[0] + 1, found[0], found[-1]]


def cycle(items: list[Any], name: Any) -> list[int]:
    """The period and the offset at which something stands in a list; both beyond its end where it does not (Jamba)."""
    found, count = places(items, name), len(items)
    if not found:
        return [count + 1, count]
    periods = (each for each in range(found[0] + 1, count + 1) if list(range(found[0], count, each)) == found)
    return [next(periods, count + 1), found[0]]


def stride(items: list[Any], name: Any) -> int:
    """The step at which something stands in a list from entry 1 on: 1 where it is everywhere, 0 nowhere (Switch)."""
    found = places(items, name)
    steps = (
        step
        for step in range(1, len(items) + 1)
        if [i for i in range(len(items)) if step == 1 or i % step == 1] == found
    )
    return next(steps, 0)


def of_tower(pattern: Any, tower: str) -> list[Any]:
    """A tower's part of `pattern`, which is the whole of it where a model is one tower."""
    return pattern[tower] if isinstance(pattern, Mapping) else pattern


FUNCTIONS |= {
    "each": Each(),
    "case": Choose(),
    "inner": Inner(),
    "at": At(),
    "spread": Plain(spread),
    "places": Plain(places),
    "run": Plain(run),
    "cycle": Plain(cycle),
    "stride": Plain(stride),
    "of_tower": Plain(of_tower),
}
