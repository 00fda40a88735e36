"""Compare two models: the fields of the architecture that differ, and the figures with their differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from zoo.errors import did_you_mean, refuse
from zoo.spec import Spec

TOWERS = ("encoder", "decoder")


def flatten(node: object, path: str = "") -> dict[str, Any]:
    """Flatten nested plain data into one mapping of dotted paths. Items of a list are named by their index."""
    if isinstance(node, Mapping):
        items = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple):
        items = [(str(index), value) for index, value in enumerate(node)]
    else:
        return {path: node}
    return {at: leaf for key, value in items for at, leaf in flatten(value, f"{path}.{key}" if path else key).items()}


def merge_orders(orders: Iterable[Iterable[str]]) -> list[str]:
    """Merge several lists of names into one order. A new name is put after its predecessor in its own list: a, b, d
    and a, c, d, e give a, c, b, d, e."""
    found: list[str] = []
    for order in orders:
        at = 0
        for name in order:
            if name in found:
                at = found.index(name) + 1
            else:
                found.insert(at, name)
                at += 1
    return found


def compare_specs(first: Spec, second: Spec, priced: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare two Specs: the fields that differ ("architecture"), and all figures ("figures"), by dotted path.

    `priced` are the figures of each Spec, with kinds of layer paired by `pair_figures`.
    """
    a, b = (flatten(figures) for figures in priced)
    rows = {path: compare_values(a.get(path), b.get(path)) for path in merge_orders([a, b])}
    return {"architecture": compare_fields(first, second), "figures": rows}


def compare_values(a: Any, b: Any) -> dict[str, Any]:
    """Compare two figures: give both (`a`, `b`), and for numbers the difference (`delta`) and its share of `a`
    (`relative`, None if `a` is zero or None). A number that one model lacks (None) counts as zero."""
    numbers = [value for value in (a, b) if _is_number(value)]
    if not numbers or len(numbers) + (a is None) + (b is None) < 2:
        return {"a": a, "b": b}
    change = (b or 0) - (a or 0)
    return {"a": a, "b": b, "delta": change, "relative": change / a if a else None}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def compare_fields(first: Spec, second: Spec) -> dict[str, dict[str, Any]]:
    """List the fields in which two Specs differ, by dotted path, with the value of each Spec (None for a missing
    field).

    A kind of layer that only one model has is compared with the other model's most similar kind, under both names. For
    example, `near/global` compares `near` of the first model with `global` of the second. A decoder is compared with
    the decoder of an encoder-decoder, an encoder with its encoder.
    """
    from zoo.grammar import to_dict

    one, other = (_drop_usual_scale(to_dict(spec)) for spec in (first, second))
    a, b = (flatten(node) for node in _paired(_facing(one, other), _facing(other, one)))
    paths = [path for path in merge_orders([a, b]) if a.get(path) != b.get(path)]
    return {path: {"a": a.get(path), "b": b.get(path)} for path in paths}


def _drop_usual_scale(node: Any) -> Any:
    """Write an attention's `scale` that is 1/√(width of a head) as unset, which means the same."""
    if isinstance(node, Mapping):
        found = {key: _drop_usual_scale(value) for key, value in node.items()}
        width = node.get("head_dim") or node.get("qk_nope_head_dim", 0) + node.get("qk_rope_head_dim", 0)
        return found | {"scale": None} if width and node.get("scale") == width**-0.5 else found
    return [_drop_usual_scale(each) for each in node] if isinstance(node, list | tuple) else node


def _facing(node: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reduce an encoder-decoder to one tower and the depth of the other, for comparison with a model of one tower."""
    if "blocks" in node or "blocks" not in other:
        return node
    own = _find_own(other["kind"])
    rest = {key: value for key, value in node.items() if key not in TOWERS}
    beside = {name: f"{len(node[name]['pattern'])} layers" for name in TOWERS if name != own}
    return {**node[own], **rest, **beside}


def _find_own(kind: str) -> str:
    """Name the tower of an encoder-decoder that a model of this kind is compared with."""
    return kind if kind in TOWERS else "decoder"


def pair_figures(first: Spec, second: Spec, priced: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures of two models with kinds of layer under common names: `near/global` for two kinds that
    `compare_fields` pairs. A kind that is in several pairs has its figure under each of their names. A sum over a
    kind's layers must not count twice: it keeps the kind's own name if a kind of the pair is in several."""
    from zoo.grammar import to_dict

    one, other = to_dict(first), to_dict(second)
    single = [node["kind"] for node in (one, other) if "blocks" in node]
    pairs = []
    for tower in [_find_own(single[0])] if single else TOWERS:  # only one tower if a model has only one
        names = ["" if "blocks" in node else f"{tower}." for node in (one, other)]
        kinds = _kinds(*(node if "blocks" in node else node[tower] for node in (one, other)))
        pairs += [(names[0] + a, names[1] + b) for a, b in kinds]
    found = []
    for side, figures in enumerate(priced):
        renamed = {part: dict(each) if isinstance(each, Mapping) else each for part, each in figures.items()}
        for part, name, whole in (("params", "by_layer_kind", True), ("memory", "activations_by_layer", False)):
            if name in renamed.get(part, {}):
                renamed[part][name] = _rename_kinds(figures[part][name], pairs, side, whole)
        found.append(renamed)
    return found


def _rename_kinds(figures: Mapping[str, Any], pairs: list[tuple[str, str]], side: int, whole: bool) -> dict[str, Any]:
    """Rename one model's figures, given by kind of layer, after the pairs that each kind is in."""
    found: dict[str, Any] = {}
    for kind, figure in figures.items():
        own = [pair for pair in pairs if pair[side] == kind]
        alone = all(sum(pair[at] == each[at] for pair in pairs) == 1 for each in own for at in (0, 1))
        names = [a if a == b else f"{a}/{b}" for a, b in own]
        found |= dict.fromkeys(names if names and (alone or not whole) else [kind], figure)
    return found


def _paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prepare the plain data of two Specs: patterns written as in a model's file, kinds of layer under common names."""
    found = []
    for node in (a, b):
        stated = {key: value for key, value in node.items() if key not in ("pattern", "blocks", *TOWERS)}
        if "pattern" in node:
            layers = {"n_layers": len(node["pattern"]), "pattern": pattern_text(node["pattern"])}
            stated = {"kind": stated.pop("kind"), **layers, **stated}
        found.append(stated)
    for tower in TOWERS:
        if isinstance(a.get(tower), Mapping) and isinstance(b.get(tower), Mapping):
            found[0][tower], found[1][tower] = _paired(a[tower], b[tower])
        else:
            for node, given in zip(found, (a, b), strict=True):
                node |= {tower: given[tower]} if tower in given else {}
    for one, other in _kinds(a, b) if "blocks" in a and "blocks" in b else ():
        name = one if one == other else f"{one}/{other}"
        found[0].setdefault("blocks", {})[name] = a["blocks"][one]
        found[1].setdefault("blocks", {})[name] = b["blocks"][other]
    return found[0], found[1]


def _kinds(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pair the kinds of layer of two towers: equal names first, then the most similar. Each kind left over in the
    longer list is paired with the kind most similar to it."""
    one, other = a["blocks"], b["blocks"]
    pairs = [(name, name) for name in one if name in other]
    left, right = ([name for name in kinds if (name, name) not in pairs] for kinds in (one, other))

    def alike(pair: tuple[str, str]) -> tuple[Any, ...]:
        return _likeness(one[pair[0]], other[pair[1]])

    while left and right:
        best = max(((name, each) for name in left for each in right), key=alike)
        pairs.append(best)
        left.remove(best[0])
        right.remove(best[1])
    pairs += [max(((name, each) for each in other), key=alike) for name in left]
    pairs += [max(((each, name) for each in one), key=alike) for name in right]
    places = [list(one), list(other)]
    return sorted(pairs, key=lambda pair: [kinds.index(name) for kinds, name in zip(places, pair, strict=True)])


def _likeness(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Any, ...]:
    """Rate the similarity of two kinds of layer: same kind of mixer, both local or both global, same kind of
    feed-forward, then the share of equal fields."""

    def is_local(attention: Mapping[str, Any]) -> bool:
        return any(attention.get(name) is not None for name in ("window", "chunk"))

    mixers = [node.get("attention") or {} for node in (a, b)]
    feeds = [node.get("ffn") or {} for node in (a, b)]
    one, other = flatten(a), flatten(b)
    equal = sum(path in other and other[path] == value for path, value in one.items())
    return (
        mixers[0].get("kind") == mixers[1].get("kind"),
        is_local(mixers[0]) == is_local(mixers[1]),
        feeds[0].get("kind") == feeds[1].get("kind"),
        equal / max(len(one), len(other), 1),
    )


def pattern_text(names: Sequence[str]) -> str:
    """Write the shortest period of a pattern, equal neighbours together: `near*5, layer`."""
    length = next(n for n in range(1, len(names) + 1) if all(names[i] == names[i % n] for i in range(len(names))))
    runs = ((name, len([*run])) for name, run in groupby(names[:length]))
    return ", ".join(name if count == 1 else f"{name}*{count}" for name, count in runs)


# ---------------------------------------------------------------- the columns of a sweep

COLUMNS = {
    "params": "params.total",
    "active": "params.active",
    "train/token": "flops.train",
    "KV/token": "kv_cache.bytes_per_token",
    "cache": "kv_cache.bytes",
    "weights": "memory.weights",
}
"""The default columns of a sweep's table."""

SHORT = {
    **{name.lower(): path for name, path in COLUMNS.items()},
    "flops": "flops.train",
    "forward": "flops.forward",
    "train": "flops.train",
    "prefill": "flops.prefill",
    "decode": "flops.decode",
    "kv": "kv_cache.bytes",
    "train_peak": "memory.train_peak",
    "generate_peak": "memory.generate_peak",
}
"""Short names of columns, each with its dotted path."""


def choose_columns(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Choose a sweep table's columns by name (no names: those of COLUMNS), each with its figure's dotted path. Raises
    ConfigError for unknown names."""
    if not names:
        return {name: path for name, path in COLUMNS.items() if path in known}
    found, faults = {}, []
    for name in names:
        path = SHORT.get(name.lower(), name)
        if path in known:
            found[name] = path
        else:
            hint = did_you_mean(name, [*SHORT, *known]) or f" (one of: {', '.join(SHORT)}, or a dotted path of --json)"
            faults.append(f"columns: no figure is called {name!r}{hint}")
    refuse(faults)
    return found
