"""Name the classes with a head for a task: those of a family's own file, and those that many families have alike
(conf/tasks.yaml)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

Classes = dict[str, dict[str, Any]]


def name_task_classes(family: str, architectures: Mapping[str, Any], own: Mapping[str, Any]) -> Classes:
    """Name the classes with a head for a task, and what each changes of the family's `model`. `own` are the `tasks` of
    the family's file. Example: BertForTokenClassification beside BertForMaskedLM, with its prefix."""
    first = next(iter(architectures))
    stem, prefix = re.sub(r"(For[A-Z]\w*|LMHeadModel)$", "", first), architectures[first].get("prefix")
    made: Classes = {}
    for group in _read_groups():
        if family in group["families"]:
            given = {**(group["families"][family] or {})}
            name = given.pop("class", stem + group["suffix"])
            change = {key: group[key] for key in ("model", "keys", "requires") if key in group}
            made[name] = {"prefix": group.get("prefix", prefix), **change, "defaults": given}
    return {**made, **{stem + suffix: {"prefix": prefix, **task} for suffix, task in own.items()}}


@functools.cache
def _read_groups() -> list[dict[str, Any]]:
    import yaml

    from zoo.paths import conf_dir

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((conf_dir() / "tasks.yaml").read_text(encoding="utf-8"), loader)
