"""Name the classes that a family's file need not list. These are the first class, if it is named after the family; the
base model without a head; and classes with a head for a task, from the family's `tasks` or conf/tasks.yaml."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from zoo.families.body import lay_over
from zoo.paths import read_conf

Classes = dict[str, dict[str, Any]]

BARE = {"prefix": "", "model": {"head": {"kind": "none"}}}
"""The changes that make a family's base model: no prefix, and no head."""


HEADED = re.compile(r"(For[A-Z]\w*|(With)?LMHeadModel)$")
"""Matches the end of a class's name that names its head, such as `ForCausalLM`."""


def name_first_class(family: str, base: Mapping[str, Any]) -> Classes:
    """Name the first class of a family that states none: the family's name in capitalised words, with the ending and
    the changes of the first class of `base`. `qwen3_5_text`, like Llama (`LlamaForCausalLM: {prefix: model.}`), has
    `Qwen3_5ForCausalLM: {prefix: model.}`."""
    first, changes = next(iter(base.items()))
    stem = re.sub(r"(^|[_-])([a-z])", lambda word: word[2].upper(), family.removesuffix("_text"))
    return {stem + first.removeprefix(HEADED.sub("", first)): changes}


def name_classes(
    family: str, stated: Mapping[str, Any], bare: Mapping[str, Any] | None, tasks: Mapping[str, Any]
) -> Classes:
    """List every class of a family with its changes to the family: the classes in `stated`, and those named after the
    first one (BertModel and BertForTokenClassification after BertForMaskedLM). `bare` has further changes for the class
    without a head (None: there is no such class); `tasks` are the classes with a head for a task in the family's
    file."""
    first, *others = stated
    stem, prefix = HEADED.sub("", first), stated[first].get("prefix")
    made: Classes = {first: stated[first]}
    base = stem.removesuffix("Text") + ("TextModel" if family.endswith("_text") else "Model")
    if bare is not None and stem != first and base not in stated:
        made[base] = lay_over(BARE, bare)
    made |= {name: stated[name] for name in others}
    for group in _read_tasks():
        if family in group["families"]:
            given = {**(group["families"][family] or {})}
            name = given.pop("class", stem + group["suffix"])
            change = {key: group[key] for key in ("model", "keys", "requires", "alone") if key in group}
            made[name] = {"prefix": group.get("prefix", prefix), **change, "defaults": given}
    return {**made, **{stem + suffix: {"prefix": prefix, **task} for suffix, task in tasks.items()}}


@functools.cache
def _read_tasks() -> list[dict[str, Any]]:
    return read_conf("tasks")
