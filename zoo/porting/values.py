"""List other legal values of a config's fields, to find out what each field changes."""

from __future__ import annotations

import zlib
from typing import Any

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
