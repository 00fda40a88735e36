"""Try other legal values for the fields of a model's YAML, and say what each does: refused, bites, idle or breaks."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from support.field_trial_models import BASES
from support.loud_outputs import INPUTS, VOCAB, apart, loud, outcome
from support.tiny_models import readable
from zoo import grammar
from zoo.compose.targets import compose_model
from zoo.costs import price
from zoo.errors import ConfigError
from zoo.grammar.towers import is_task_head
from zoo.run.builder import build
from zoo.spec import Node, Spec

SAMPLES = {
    **{"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 48, "window": 6, "d_model": 32, "max_seq_len": 64},
    **{"n_k_heads": 2, "n_v_heads": 8, "head_k_dim": 8, "head_v_dim": 8, "kv_lora_rank": 12, "qk_nope_head_dim": 6},
    **{"qk_rope_head_dim": 4, "v_head_dim": 6, "conv_width": 5, "n_experts": 4, "top_k": 2, "vocab_size": VOCAB},
    **{"norm_groups": 2, "rotary_dim": 4, "spacing": 7, "conv_groups": 2, "ssm_groups": 2, "n_buckets": 16},
    **{"max_distance": 64, "n_groups": 2, "d_state": 8, "expand": 1, "dt_rank": 3},
    **{"factor": 4.0, "wider": 4.0, "original_max_seq_len": 16, "max_relative_positions": 24},
    **{"width": 6, "labels": 3, "n_outputs": 2, "mask_id": 7, "lower_bound": -2.0},
    **{"short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.0, 1.5, 2.0, 4.0]},
}
"""What a field that a kind cannot do without is given."""

KINDS = {"activation": "gelu", "norm": "layernorm", "position": "none", "ffn": "mlp", "attention": "gqa"}
"""The kind of a node within a node that is made up here; elsewhere the first that the axis has."""


@dataclasses.dataclass(frozen=True, eq=False)
class Change:
    """One key of a base model set to another value; `owner` says whose field it is."""

    owner: str
    key: str
    value: Any
    inner: str = ""  # where in `value`, a whole node, the other value stands

    def __str__(self) -> str:
        return f"{self.inner or self.key}={_at(self.value, self.inner[len(self.key) + 1 :])}"


# ---------------------------------------------------------------- other values


def others(hint: Any, now: Any, name: str) -> list[Any]:
    """List other values than `now` that a field of this type may take, a few of each kind."""
    found = [value for value in _samples(hint, now, name) if value != now or type(value) is not type(now)]
    return [value for index, value in enumerate(found) if value not in found[:index]]


def name_kind(kind: type[Spec]) -> str:
    """Name a kind, or a node by its class: several owners have one of the same name."""
    return kind.__name__ if issubclass(kind, Node) else f"{kind.axis} '{kind.kind}'"


def is_ours(kind: type[Spec]) -> bool:
    """Tell whether a choice is the program's rather than one that another test has registered."""
    return kind.__module__.startswith("zoo.")


def _samples(hint: Any, now: Any, name: str) -> list[Any]:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _samples(typing.get_args(hint)[0], now, name)
    if origin in (typing.Union, types.UnionType):
        return [value for each in typing.get_args(hint) for value in _samples(each, now, name)]
    if origin is typing.Literal:
        return list(typing.get_args(hint))
    if origin is tuple:
        return _sequences(typing.get_args(hint)[0], (0.6,) * len(typing.get_args(hint)) if now is None else now)
    if hint is type(None):
        return [None]
    if hint is bool:
        return [True, False]
    if hint is str:
        return ["sqrt_d_model", "rsqrt_d_model", "encoder.embedding.tokens", "foo"]
    if hint is int:
        return _numbers(now, SAMPLES.get(name, 3), int)
    if hint is float:
        return _numbers(now, SAMPLES.get(name, 0.6), float)
    if isinstance(hint, type) and issubclass(hint, Spec):
        if issubclass(hint, Node):
            return [sample(hint)] if now is None and hint.word else []
        kept = now.get("kind") if isinstance(now, dict) else None
        return [sample(kind) for kind in hint.kinds.values() if kind.kind != kept and is_ours(kind)]
    raise TypeError(f"{name}: no values are known for {hint}")


def _numbers(now: Any, sample: float, kind: type) -> list[Any]:
    if isinstance(now, bool) or not isinstance(now, int | float):
        return [kind(sample)]
    if not now:
        return [kind(1), kind(2)]
    if kind is int:
        return [2 * now, 3 * now + 1, max(now // 2, 1)]
    return [1e4 * now] if abs(now) < 1e-3 else [4.0 * now, now / 4]  # an eps shows when it is no longer small


def _sequences(hint: Any, now: Any) -> list[Any]:
    if typing.get_origin(hint) is typing.Literal:
        first, second = typing.get_args(hint)[:2]
        return [(), (first,), (second,), (first, second)]
    return [tuple(2 * value for value in now), now[:-1]]


def sample(kind: type[Spec]) -> dict[str, Any]:
    """Make a node of this kind with no more than it needs."""
    hints = typing.get_type_hints(kind, include_extras=True)
    node: dict[str, Any] = {} if issubclass(kind, Node) else {"kind": kind.kind}
    for field in kind.fields():
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            node[field.name] = SAMPLES[field.name] if field.name in SAMPLES else _inner(hints[field.name])
    return node


def _inner(axis: Any) -> Any:
    if typing.get_origin(axis) is typing.Annotated:
        axis = typing.get_args(axis)[0]
    if axis in (int, float):
        return 3
    return sample(axis.kinds[KINDS.get(axis.axis, next(iter(axis.kinds)))])


# ---------------------------------------------------------------- changes of a base model


class Base:
    """A small model: its composed YAML, its Spec, and what it gives for every input."""

    def __init__(self, overrides: list[str], model: str = "llama-tiny") -> None:
        size = readable(overrides) if model == "llama-tiny" else []
        composed = compose_model(model, [*size, *overrides])
        composed.refuse_faults()
        self.config = composed.cfg
        self.spec = grammar.to_spec(self.config)
        self.figures = price(self.spec)
        self.model = loud(self.spec)
        self.asked: dict[str, Any] = {}

    def outcome(self, name: str) -> Any:
        """Run the model on an input of INPUTS."""
        if name not in self.asked:
            self.asked[name] = outcome(self.model, name)
        return self.asked[name]

    def node(self, key: str) -> tuple[type[Spec], Any]:
        """The kind of the component that stands at a key of the YAML, and the Spec itself, without its context."""
        axis = spec_axis(key.split(".")[-1])
        data: Any = grammar.resolve(typing.cast("dict", OmegaConf.to_container(self.config, resolve=False)))
        for step in key.split("."):
            data = data.get(step) or {}
        if axis.axis in ("embedding", "head") and not is_task_head(axis.axis, data):
            data.setdefault("vocab_size", VOCAB)
        spec = axis.parse(grammar_tuples(data))
        return type(spec), spec

    def fields(self, key: str) -> Iterator[Change]:
        """List other values of each field of the component at a key, and of the components in it that stand there
        too."""
        kind, spec = self.node(key)
        raw = OmegaConf.select(self.config, key)
        yield from self._fields(key, kind, spec, raw)

    def _fields(self, key: str, kind: type[Spec], spec: Any, raw: Any) -> Iterator[Change]:
        hints, owner = typing.get_type_hints(kind, include_extras=True), name_kind(kind)
        for field in kind.fields():
            now = getattr(spec, field.name)
            plain = grammar.to_dict(now)
            for value in others(hints[field.name], tuple(plain) if isinstance(plain, list) else plain, field.name):
                yield Change(f"{owner}.{field.name}", f"{key}.{field.name}", value)
            there = raw is not None and field.name in raw and not raw._get_node(field.name)._is_interpolation()
            if isinstance(now, Spec) and (there or raw is None or field.name not in raw):
                inner = raw._get_node(field.name) if there else None
                inner = inner if isinstance(inner, DictConfig) else None  # a word
                for change in self._fields(field.name, type(now), now, inner):
                    path = change.key.split(".")[1:]
                    yield Change(
                        change.owner,
                        f"{key}.{field.name}",
                        _with(plain, path, change.value),
                        f"{key}.{change.inner or change.key}",
                    )

    def keys(self, names: list[str]) -> Iterator[Change]:
        """List other values of keys at the model's top level, or under one of its towers."""
        for name in names:
            now = OmegaConf.select(self.config, name)
            values = _of_key(name.split(".")[-1], now)
            for value in values:
                yield Change(self.owner(name), name, value)

    def owner(self, key: str) -> str:
        """Say whose field a key is: the model's own, its embedding's, or only an interpolation's."""
        if ".embedding." in key:
            return f"embedding 'tokens'.{key.split('.')[-1]}"
        own = any(field.name == key for field in type(self.spec).fields())
        towers = [tower for tower in self.spec.towers().values() if any(each.name == key for each in tower.fields())]
        return f"topology '{(self.spec if own else towers[-1]).kind}'.{key}" if own or towers else f"key {key}"

    def stated(self, text: str) -> Change:
        """A key set to a value, as `key=value`."""
        key, _, value = text.partition("=")
        parent, _, name = key.rpartition(".")
        if parent not in BY_AXIS:
            return Change(self.owner(key), key, yaml.safe_load(value))
        kind, _ = self.node(parent)
        return Change(f"{kind.axis} '{kind.kind}'.{name}", key, yaml.safe_load(value))

    def verdict(self, change: Change) -> str:
        """Say what a change does: 'refused: …', 'bites: …', 'idle', 'breaks: …', or 'same' where the Spec does not
        change."""
        node = copy.deepcopy(self.config)
        OmegaConf.update(node, change.key, _listed(change.value), merge=False, force_add=True)
        try:
            spec = grammar.to_spec(node, [change.key])
        except ConfigError as error:
            odd = [fault for fault in error.faults if len(fault.splitlines()) != 1 or ": " not in fault]
            return f"breaks: {odd[0]!r} is no fault of a key" if odd else f"refused: {error.faults[0]}"
        except FAILURES as error:
            return f"breaks: {type(error).__name__}: {error}"
        if spec == self.spec:
            return "same"
        try:
            figures = price(spec)
            model = loud(spec)
            found = self._differs(model, figures)
        except FAILURES as error:
            return f"breaks: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if not found and (change.inner or change.key).endswith((*NULL_IS_ONE_OF, *NAMES)):
            return "same"
        return f"bites: {found}" if found else "idle"

    def _differs(self, model: Any, figures: Any) -> str:
        """Name the first thing that differs from the base, the cheapest tried first. At least one pass is run."""
        differing = "price" if any(figures[part] != self.figures[part] for part in PRICED) else ""
        for name in INPUTS:
            if apart(outcome(model, name), self.outcome(name)):
                return differing or name
            if differing:
                return differing
        fresh, before = (build(spec, device="cpu").state_dict() for spec in (model.spec, self.spec))
        return "initial values" if any(not torch.equal(fresh[name], before[name]) for name in before) else ""


NULL_IS_ONE_OF = ("final_norm", "o_bias", "gate.bias", "down_bias", "out_bias", "transform_bias")
"""Flags whose null is what the blocks or `bias` say: one of true and false states outright what is there already."""

NAMES = ("labels",)
"""Names of what a model gives: another name changes nothing of it, another number of names does."""

FAILURES = (RuntimeError, ValueError, AssertionError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What a config that was let through, and should not have been, ends in."""

PRICED = ("params", "flops", "kv_cache", "memory")


def spec_axis(axis: str) -> type[Spec]:
    return BY_AXIS["attention" if axis == "cross" else axis]


def _axes() -> dict[str, type[Spec]]:
    found: dict[str, type[Spec]] = {}
    pending = list(Spec.__subclasses__())
    while pending:
        each = pending.pop()
        pending += each.__subclasses__()
        if "axis" in each.__dict__ and each.axis:
            found[each.__name__ if issubclass(each, Node) else each.axis] = each
    return found


BY_AXIS = _axes()


def grammar_tuples(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: grammar_tuples(value) for key, value in node.items()}
    return tuple(map(grammar_tuples, node)) if isinstance(node, list) else node


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _at(node: Any, path: str) -> Any:
    for step in path.split(".") if path else ():
        node = node[step]
    return node


def _with(node: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    return {**node, path[0]: _with(node.get(path[0]), path[1:], value)}


def _of_key(name: str, now: Any) -> list[Any]:
    """Other values of a key of which only the present value, or none, tells the type."""
    if isinstance(now, bool):
        return [not now]
    if isinstance(now, int):
        return _numbers(now, now, int)
    if isinstance(now, float):
        return _numbers(now, now, float)
    flags = {"bias", "norm_bias", "normalize_top_k", "router_bias", "selection_bias", "scale_input"}
    if name in flags | {"final_norm", "out_bias", "shared_layers", "prefix_lm"}:
        return [True, False]
    return [{"shared_expert": sample(BY_AXIS["ffn"].kinds["gated"]), **SAMPLES}.get(name, 3)]


# ---------------------------------------------------------------- what a model gives


@functools.cache
def base(name: str) -> Base:
    """Make the base of that name in BASES."""
    model, overrides, _ = BASES[name]
    return Base(list(overrides), model)


def changes(name: str) -> list[Change]:
    """List every change of a base that BASES names."""
    made = base(name)
    found: list[Change] = []
    for what in BASES[name][2]:
        if "=" in what:
            found.append(made.stated(what))
        else:
            found += made.keys(what.split()[1:]) if what.split()[0] == "keys" else made.fields(what)
    return list({str(change): change for change in found}.values())
