"""Describe probes for `zoo explain`: all of them (`probe`), or one (`mqar`, `probe.mqar`)."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from zoo.probes.all_probes import EVERY, make_probe
from zoo.probes.base import Probe, format_setting
from zoo.probes.card import LEGEND
from zoo.spec.fields import first_sentence
from zoo.training.setting_pages import make_page

ABOUT = (
    "A synthetic task whose answers are known. `zoo probe MODEL` trains small models of the same kinds of layer on it, "
    "and tells the hardest of its levels that they reach."
)


def explain_probe(name: str) -> dict[str, Any] | None:
    """Make the page of a probe, or of all probes for the name `probe` or a column of a card. None for other names.
    Raises ConfigError for an unknown probe after `probe.`."""
    if name in {"probe", "card", *(line.partition(":")[0] for line in LEGEND)}:
        values = [f"{each.name}: {first_sentence(inspect.getdoc(each) or '')}" for each in EVERY]
        values += ["The columns of a card:", *LEGEND]
        return make_page("probe", ABOUT, "zoo probe MODEL --probe mqar,parity", values)
    bare = name.removeprefix("probe.")
    if bare == name and name not in Probe.kinds:
        return None
    sizes = {size: make_probe(bare, size) for size in ("card", "small", "paper")}
    kind, settings = type(sizes["card"]), {size: each.settings() for size, each in sizes.items()}
    values = [f"level: {kind.level_is}; reached if 90 % of the {'rows' if kind.exact else 'answers'} are right"]
    for field in fields(kind):
        shown = {size: format_setting(own[field.name]) for size, own in settings.items()}
        usual = shown.pop("card")
        others = "; ".join(f"--size {size}: {value}" for size, value in shown.items() if value != usual)
        values.append(f"{field.name}: {usual}{f' ({others})' if others else ''}")
    return make_page(bare, inspect.getdoc(kind), f"zoo probe MODEL --probe {bare}", values)
