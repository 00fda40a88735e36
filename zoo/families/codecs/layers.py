"""Read and write fields that differ by layer (lists, periods, loops), and fields of nested configs."""

from __future__ import annotations

import ast
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families.binding import bind, try_evaluate
from zoo.families.expression import FUNCTIONS, MANY, Bindings, Codec, PlainFunction, evaluate, get_item
from zoo.untrusted.printable import quote


class Each(Codec):
    """`each(num_hidden_layers, x)`: the list of x evaluated for each `layer`, counted from 0."""

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
    """`case(layer_types[layer], "full_attention", None, "sliding_attention", sliding_window)`: choose a result by the
    first argument; cases and results alternate. The inverse takes a constant result equal to the value, or else the
    first result that is no constant."""

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
    """`inner(attn_config, "clip_qkv")`: a field of a nested config; None if the config or the field is missing. Further
    names go deeper: `inner(ffn_config, "ffn_act_fn", "name")`."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        found = args[0]
        for name in args[1:]:
            found = (found or {}).get(name)
        return found

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return {".".join((ast.unparse(args[0]), *(evaluate(name, env) for name in args[1:]))): value}


class InnerOr(Inner):
    """`inner_or(ffn_config, "moe_normalize_expert_weights", 1.0)`: a field of a nested config, or the third argument if
    the field is missing (a stated null is kept)."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return (args[0] or {}).get(args[1], args[2])

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return super().bind(value, env, *args[:2])


class At(Codec):
    """`at(attention_window, layer)`: a layer's entry of a list, or the value itself if it is no list."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        items, layer = args
        return get_item(items, layer, "the list") if isinstance(items, list) else items

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return {f"{ast.unparse(args[0])}[{layer}]": value for layer in try_evaluate(args[1], env)}


class First(Codec):
    """`first(eos_token_id)`: the first entry of a list, or the value itself if it is no list."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return get_item(args[0], 0, "the list") if isinstance(args[0], list) else args[0]

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        kept = (each for each in try_evaluate(args[0], env) if isinstance(each, list) and each[:1] == [value])
        return bind(args[0], next(kept, value), env)


class HalvedIf(Codec):
    """`halved_if(use_bidirectional_attention, sliding_window)`: the number, halved and rounded down if the first
    argument is true. The config then states the window's width on both sides; the result is the width on one side."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        is_halved, number = args
        return number // 2 if is_halved and number is not None else number

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        for is_halved in try_evaluate(args[0], env):
            return bind(args[1], 2 * value if is_halved and value is not None else value, env)
        return {}


def repeat_groups(groups: list[Any]) -> list[Any]:
    """`spread`: repeat each group of kinds; `[[["global", "local"], 12]]` gives a list of 24 kinds (GPT-Neo)."""
    return [kind for kinds, count in groups for kind in list(kinds) * count]


def find_places(items: list[Any], name: object) -> list[int]:
    """`places`: the indices of a name in a list."""
    return [index for index, each in enumerate(items) if each == name]


def count_earlier(items: list[Any]) -> list[int]:
    """`earlier`: for each entry of a list, the number of equal entries before it; `["a", "b", "a"]` gives [0, 0, 1]."""
    seen: dict[Any, int] = {}
    found = []
    for each in items:
        found.append(seen.get(each, 0))
        seen[each] = found[-1] + 1
    return found


def find_run(items: list[Any], name: object) -> list[int]:
    """`run`: the step, the first and the last of a name's indices in a list (ERNIE 4.5)."""
    found = find_places(items, name) or [len(items)]
    return [found[1] - found[0] if len(found) > 1 else found[0] + 1, found[0], found[-1]]


def find_cycle(items: list[Any], name: object) -> list[int]:
    """`cycle`: the period and offset of a name's indices in a list; values beyond the list's end if the name is not in
    it (Jamba)."""
    found, count = find_places(items, name), len(items)
    if not found:
        return [count + 1, count]
    periods = (each for each in range(found[0] + 1, count + 1) if list(range(found[0], count, each)) == found)
    return [next(periods, count + 1), found[0]]


def find_stride(items: list[Any], name: object) -> int:
    """`stride`: the step of a name's indices in a list, from index 1 on; 1 if all entries have the name, 0 if no step
    gives these indices (Switch)."""
    found = find_places(items, name)
    steps = (
        step
        for step in range(1, len(items) + 1)
        if [i for i in range(len(items)) if step == 1 or i % step == 1] == found
    )
    return next(steps, 0)


def is_marked(every: int | list[int], layer: int) -> bool:
    """`marked(moe_layer_freq, layer)`: whether the layer's index is a multiple of the first argument or, if the
    argument is a list, whether the layer's entry is true."""
    return bool(get_item(every, layer, "moe_layer_freq")) if isinstance(every, list) else layer % every == 0


def take_tower(pattern: list[Any] | Mapping[str, list[Any]], tower: str) -> list[Any]:
    """`of_tower`: a tower's part of `pattern`; all of it for a model with one tower."""
    return pattern[tower] if isinstance(pattern, Mapping) else pattern


def find_looped(layer: int, start: int, end: int, passes: int) -> int:
    """`looped(layer, start, end, passes)`: the index of a layer's weights in a model that runs layers `start` to `end`
    - 1 `passes` times. With start 1, end 3 and 2 passes, seven layers have the indices 0, 1, 2, 1, 2, 3, 4."""
    again = (passes - 1) * (end - start)
    if layer < end:
        return layer
    return start + (layer - start) % (end - start) if layer < end + again else layer - again


def find_pass(layer: int, start: int, end: int, passes: int) -> int | None:
    """`pass_of(layer, start, end, passes)`: the pass of the loop to which a layer belongs, from 0; None for a layer
    outside the loop."""
    inside = start <= layer < start + passes * (end - start)
    return (layer - start) // (end - start) if inside else None


FUNCTIONS |= {
    "each": Each(),
    "case": Choose(),
    "inner": Inner(),
    "inner_or": InnerOr(),
    "at": At(),
    "first": First(),
    "halved_if": HalvedIf(),
    "spread": PlainFunction(repeat_groups),
    "places": PlainFunction(find_places),
    "earlier": PlainFunction(count_earlier),
    "run": PlainFunction(find_run),
    "cycle": PlainFunction(find_cycle),
    "stride": PlainFunction(find_stride),
    "of_tower": PlainFunction(take_tower),
    "marked": PlainFunction(is_marked),
    "looped": PlainFunction(find_looped),
    "pass_of": PlainFunction(find_pass),
}
