"""Fields that differ by layer: lists and periods. Also fields of nested configs."""

from __future__ import annotations

import ast
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families.binding import bind, try_evaluate
from zoo.families.expression import FUNCTIONS, MANY, Bindings, Codec, Plain, evaluate, get_item
from zoo.untrusted.text import quote


class Each(Codec):
    """`each(num_hidden_layers, x)`: a list with the value of x for each `layer`, counted from 0."""

    lazy = True

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        count = evaluate(args[0], env)
        if count > MANY:
            raise ConfigError(f"each: has {count:,} entries (at most {MANY:,})")
        return [evaluate(args[1], ChainMap({"layer": layer}, env)) for layer in range(count)]  # type: ignore[arg-type]

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        found: Bindings = {}
        for layer, item in enumerate(value):
            found |= bind(args[1], item, {**env, "layer": layer})
        return found


class Choose(Codec):
    """`case(layer_types[layer], "full_attention", None, "sliding_attention", sliding_window)`: choose the result that
    follows the first argument's value. The inverse takes the constant that equals the value, or the first result that
    is no constant."""

    lazy = True

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        asked = evaluate(args[0], env)
        for name, result in zip(args[1::2], args[2::2], strict=True):
            if evaluate(name, env) == asked:
                return evaluate(result, env)
        choices = ", ".join(repr(evaluate(name, env)) for name in args[1::2])
        raise ConfigError(f"{ast.unparse(args[0])}: is {quote(asked)}, which is not supported (one of: {choices})")

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        choices = list(zip(args[1::2], args[2::2], strict=True))
        same = [name for name, each in choices if isinstance(each, ast.Constant) and each.value == value]
        if same:
            return bind(args[0], evaluate(same[0], env), env)
        for name, each in choices:
            found = {} if isinstance(each, ast.Constant) else bind(each, value, env)
            if found:
                return {**found, **bind(args[0], evaluate(name, env), env)}
        return {}


class Inner(Codec):
    """`inner(attn_config, "clip_qkv")`: a field of a nested config, None where either is missing. More names lead
    further in: `inner(ffn_config, "ffn_act_fn", "name")`."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        found = args[0]
        for name in args[1:]:
            found = (found or {}).get(name)
        return found

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return {".".join((ast.unparse(args[0]), *(evaluate(name, env) for name in args[1:]))): value}


class InnerOr(Inner):
    """`inner_or(ffn_config, "moe_normalize_expert_weights", 1.0)`: a field of a nested config, null where it says so,
    and the third argument where it does not say."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return (args[0] or {}).get(args[1], args[2])

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return super().bind(value, env, *args[:2])


class At(Codec):
    """`at(attention_window, layer)`: a layer's entry of a list, or the one value that holds for every layer."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        items, layer = args
        return get_item(items, layer, "the list") if isinstance(items, list) else items

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return {f"{ast.unparse(args[0])}[{layer}]": value for layer in try_evaluate(args[1], env)}


class First(Codec):
    """`first(eos_token_id)`: the first entry of a list, or the one value there is."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return get_item(args[0], 0, "the list") if isinstance(args[0], list) else args[0]

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        kept = (each for each in try_evaluate(args[0], env) if isinstance(each, list) and each[:1] == [value])
        return bind(args[0], next(kept, value), env)


class HalvedIf(Codec):
    """`halved_if(use_bidirectional_attention, sliding_window)`: the number, or half of it rounded down where the first
    argument holds: a window to either side, of a config that states both sides together."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        is_halved, number = args
        return number // 2 if is_halved and number is not None else number

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        for is_halved in try_evaluate(args[0], env):
            return bind(args[1], 2 * value if is_halved and value is not None else value, env)
        return {}


def repeat_groups(groups: list[Any]) -> list[Any]:
    """`spread`: repeat each group of kinds; `[[["global", "local"], 12]]` gives a list of 24 (GPT-Neo)."""
    return [kind for kinds, count in groups for kind in list(kinds) * count]


def find_places(items: list[Any], name: Any) -> list[int]:
    """`places`: the indices at which a name is in a list."""
    return [index for index, each in enumerate(items) if each == name]


def count_earlier(items: list[Any]) -> list[int]:
    """`earlier`: for each entry of a list how many equal ones stand before it; `["a", "b", "a"]` gives [0, 0, 1]."""
    seen: dict[Any, int] = {}
    found = []
    for each in items:
        found.append(seen.get(each, 0))
        seen[each] = found[-1] + 1
    return found


def find_run(items: list[Any], name: Any) -> list[int]:
    """`run`: the step, the first and the last index at which a name is in a list (ERNIE 4.5)."""
    found = find_places(items, name) or [len(items)]
    return [found[1] - found[0] if len(found) > 1 else found[0] + 1, found[0], found[-1]]


def find_cycle(items: list[Any], name: Any) -> list[int]:
    """`cycle`: the period and offset at which a name is in a list; both beyond its end if it is not there (Jamba)."""
    found, count = find_places(items, name), len(items)
    if not found:
        return [count + 1, count]
    periods = (each for each in range(found[0] + 1, count + 1) if list(range(found[0], count, each)) == found)
    return [next(periods, count + 1), found[0]]


def find_stride(items: list[Any], name: Any) -> int:
    """`stride`: the step at which a name is in a list from entry 1 on; 1 if everywhere, 0 if nowhere (Switch)."""
    found = find_places(items, name)
    steps = (
        step
        for step in range(1, len(items) + 1)
        if [i for i in range(len(items)) if step == 1 or i % step == 1] == found
    )
    return next(steps, 0)


def is_marked(every: int | list[int], layer: int) -> bool:
    """`marked(moe_layer_freq, layer)`: whether a layer is one of every so many, or one that a list marks."""
    return bool(get_item(every, layer, "moe_layer_freq")) if isinstance(every, list) else layer % every == 0


def take_tower(pattern: Any, tower: str) -> list[Any]:
    """`of_tower`: a tower's part of `pattern`; all of it in a model of one tower."""
    return pattern[tower] if isinstance(pattern, Mapping) else pattern


FUNCTIONS |= {
    "each": Each(),
    "case": Choose(),
    "inner": Inner(),
    "inner_or": InnerOr(),
    "at": At(),
    "first": First(),
    "halved_if": HalvedIf(),
    "spread": Plain(repeat_groups),
    "places": Plain(find_places),
    "earlier": Plain(count_earlier),
    "run": Plain(find_run),
    "cycle": Plain(find_cycle),
    "stride": Plain(find_stride),
    "of_tower": Plain(take_tower),
    "marked": Plain(is_marked),
}
