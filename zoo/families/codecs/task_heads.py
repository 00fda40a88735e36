"""Read and write heads for a task: their labels in config.json (`id2label`, `num_labels`, `problem_type`)."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families.binding import TwoWay, bind
from zoo.families.expression import FUNCTIONS, MANY, Bindings, Codec
from zoo.untrusted.printable import quote

DEFAULT_LABELS = 2
"""Number of labels of a config that states none."""

COMMON = ("activation", "pooling", "bias", "norm", "transform_bias", "skip_id")
"""The fields of a head that reads rows, in the order of `row_head`'s arguments."""


def read_labels(config: Mapping[str, Any]) -> list[str]:
    """Read the names of a config's labels in order: "LABEL_0", "LABEL_1" … if it states only a number or nothing.
    Raises ConfigError for faulty label ids, and for a faulty number."""
    stated, count = config.get("id2label"), config.get("num_labels")
    if isinstance(stated, Mapping) and count in (None, len(stated)):
        try:
            names = {int(index): str(name) for index, name in stated.items()}
        except ValueError:
            raise ConfigError(f"id2label: has the key {quote(next(iter(stated)))} (whole numbers from 0 up)") from None
        if sorted(names) != list(range(len(names))):
            raise ConfigError(f"id2label: has the numbers {quote(sorted(names))} (0 to {len(names) - 1}, each once)")
        return [names[index] for index in range(len(names))]
    count = DEFAULT_LABELS if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= MANY:
        raise ConfigError(f"num_labels: is {quote(count)} (a whole number from 1 to {MANY:,})")
    return [f"LABEL_{index}" for index in range(count)]


def write_labels(names: list[str]) -> Bindings:
    """Make the fields of a config with these labels."""
    found = {str(index): name for index, name in enumerate(names)}
    return {"id2label": found, "label2id": {name: index for index, name in enumerate(names)}}


class Labels(Codec):
    """`labels()`: the names of a config's labels."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return read_labels(env)

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return write_labels(list(value))


class RowHeadCodec(Codec):
    """`row_head({"kind": "tanh"})`: a head for whole rows, for regression if the config says so or has one label, else
    for classification. The arguments are the fields in COMMON: the activation is between the head's two linear layers
    (None: one linear layer).

    With `skip_id` (the padding's id) a decoder's row is read at its last token with another id, as in transformers. A
    reward model that pads with its end-of-text token thus reads the last token before that one. A negative id (Llama
    1's padding) counts as none.
    """

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        names, common = read_labels(env), dict(zip(COMMON, args, strict=False))
        if isinstance(skipped := common.get("skip_id"), int) and skipped < 0:
            common["skip_id"] = None
        if len(names) == 1 or env.get("problem_type") == "regression":
            return {"kind": "regression", "n_outputs": len(names), **common}
        return {"kind": "sequence", "labels": names, **common}

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if kind not in ("sequence", "regression"):
            return {}
        inner = zip(args, (value[name] for name in COMMON), strict=False)
        found = {key: each for tree, own in inner for key, each in bind(tree, own, env).items()}
        if kind == "sequence":
            return {**found, **write_labels(list(value["labels"])), "problem_type": None}
        names = [f"LABEL_{index}" for index in range(value["n_outputs"])]
        return {**found, **write_labels(names), "problem_type": "regression"}


NUMBERED = TwoWay(lambda names: write_labels(names)["id2label"], lambda found: [list(found.values())])
"""`numbered(names)`: a list of labels as a config's `id2label`."""

FUNCTIONS |= {"labels": Labels(), "row_head": RowHeadCodec(), "numbered": NUMBERED}
