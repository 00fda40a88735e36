"""Find which fields of a config change the reference's outputs, by setting each to other values."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.families.family import HARMLESS
from zoo.porting.reference_model import NO_FIELDS, Illegal, Maker, Reference
from zoo.porting.trial import measure_gap

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NOTHING = 1e-6
"""Largest difference of outputs, as `measure_gap` has it, that counts as unchanged."""

SCALINGS = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
]
WORDS: dict[str, list[Any]] = {
    "position_embedding_type": ["absolute", "relative_key", "relative_key_query", "rotary"],
    "feed_forward_proj": ["relu", "gelu", "silu", "gated-gelu", "gated-relu"],
    "dense_act_fn": ["relu", "gelu_new"],
    "pos_att_type": ["c2p", "p2c|c2p", ["p2c"], []],
    "norm_rel_ebd": ["none", "layer_norm"],
    "scoring_func": ["softmax", "sigmoid"],
    "topk_method": ["greedy", "group_limited_greedy", "noaux_tc"],
    "classifier_pooling": ["cls", "mean"],
    "rope_scaling": SCALINGS,
    "rope_theta": [300.0],
    "partial_rotary_factor": [0.5],
    "sliding_window": [5, None],
    "id2label": [{"0": "a", "1": "b", "2": "c"}],
    "label2id": [{"a": 0, "b": 1, "c": 2}],
    "num_labels": [3],
    "time_step_limit": [[0.6, 0.8]],
    "problem_type": ["regression"],
}
"""Other values of fields whose legal values depend on the field's name rather than its type."""

ACTIVATIONS_TRIED = 4
"""Number of activations tried for a field. They are chosen by a hash of the field's name and value."""


@dataclass(frozen=True, eq=False)
class Effect:
    """Another value of a field, and the reference with this value. `changes` says whether outputs or shapes differ."""

    value: Any
    reference: Reference
    changes: bool


def find_effects(maker: Maker, reference: Reference, names: Iterable[str]) -> dict[str, Effect | None]:
    """Set each field to another value that the reference accepts. None for a field of which it accepts no other."""
    return {name: next(_try_values(maker, reference, name), None) for name in names}


def list_fields(reference: Reference) -> list[str]:
    """List the fields of a config except those known not to change any output."""
    return sorted(name for name in reference.config if name not in HARMLESS | NO_FIELDS)


@functools.cache
def _types(config_class: type[PreTrainedConfig]) -> dict[str, str]:
    return {each.name: str(each.type) for each in dataclasses.fields(config_class)}


def _try_values(maker: Maker, reference: Reference, name: str) -> Iterator[Effect]:
    now = reference.config[name]
    for value in list_other_values(name, now, _types(maker.config_class).get(name, "")):
        if value == now and type(value) is type(now):
            continue
        try:
            made = maker.make({**reference.config, name: value})
            yield Effect(value, made, not _is_same(made.stages, reference.stages) or made.shapes != reference.shapes)
        except Illegal:
            continue


def _is_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(name in b and measure_gap(each, b[name]) <= NOTHING for name, each in a.items())


# ---------------------------------------------------------------- other legal values


def list_other_values(name: str, now: object, hint: str) -> list[Any]:
    """List other values of a field, by its name and its present value or, without a value, by its type `hint`."""
    from transformers.activations import ACT2FN

    if isinstance(now, str) and now in ACT2FN:
        words = sorted(ACT2FN, key=lambda word: zlib.crc32(f"{name}{now}{word}".encode()))
        return [word for word in words if word != now][:ACTIVATIONS_TRIED]
    if name in WORDS:
        return WORDS[name]
    unset: list[Any] = [None] if now is not None and "None" in hint else []
    match now:
        case bool():
            found: list[Any] = [not now]
        case int():
            found = list(dict.fromkeys(each for each in (2 * now, now + 1, now // 2) if each != now))
        case float():
            found = [0.3] if not now else [1e4 * now] if abs(now) < 1e-3 else [2 * now, now / 2]
        case list():
            found = _lists(now)
        case dict():
            found = _mappings(now)
        case str():
            found = ["other"]
        case _:
            samples: dict[str, list[Any]] = {"bool": [True], "int": [3, 8], "float": [0.5], "list": [[0]]}
            found = [value for word, values in samples.items() if word in hint for value in values] or [True]
    return found + unset


def _lists(now: list[Any]) -> list[Any]:
    if not now:
        return [[0], [1, 2]]
    turned = now[1:] + now[:1]
    if all(isinstance(each, str) for each in now):
        return [turned, now[::-1], *([each] * len(now) for each in dict.fromkeys(now))]
    if all(isinstance(each, int | float) for each in now):
        return [turned, [each + 1 for each in now], now[:-1], []]
    return [turned]


def _mappings(now: dict[str, Any]) -> list[Any]:
    """List mappings with one entry changed each and, for rotary parameters, other kinds of scaling."""
    kept = [key for key in now if key != "rope_type"]
    found = [{**now, key: other} for key in kept for other in list_other_values(key, now[key], "")]
    if "rope_theta" in now:
        found += [{"rope_theta": now["rope_theta"], **scaling} for scaling in SCALINGS]
        found += [{**now, "partial_rotary_factor": 0.5}]
    return found
