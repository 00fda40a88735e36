"""Answer a request of the playground's page: price a model's YAML under a set-up, and compare it with the model that
the YAML starts from.

This runs in the browser. It calls the functions of `zoo stats`, without torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from zoo.analysis.compare import compare_fields, compare_values, flatten, merge_orders
from zoo.analysis.holding import LADDER
from zoo.analysis.solve.gpus import count_sequences
from zoo.compose.targets import compose_model, note_positions, spec_of_composed, to_plain_yaml
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.price import price
from zoo.costs.setup import Setup
from zoo.drawing.contents import plan_model
from zoo.drawing.model_figure import draw_model
from zoo.drawing.two_models import draw_beside
from zoo.drawing.vector import write_svg
from zoo.errors import ConfigError
from zoo.gallery.charts import draw_curves
from zoo.gallery.playground.yaml_edit import edit_text, parse_text
from zoo.report.glance import list_first_figures
from zoo.units import format_change, format_figure

FILE, PUBLISHED = Path("model.yaml"), Path("config.json")
"""File names for the page's text: a model's YAML, or the config.json of a published model."""

START = re.compile(r"^defaults:\s*\[?\s*(?:-\s*)?['\"]?/model/([\w.-]+)@_here_", re.MULTILINE)
"""Matches the packaged model that a YAML text starts from."""

POINTS = 10
"""Number of context lengths at which the curve of the cache is priced. Each is twice the one before."""

FIGURES = {
    "params.total": ("parameters", "params"),
    "params.active": ("active per token", "params"),
    "flops.forward": ("FLOPs per token, forward", "FLOP"),
    "flops.train": ("FLOPs per token, training", "FLOP"),
    "kv_cache.bytes_per_token": ("cache per token", "B"),
    "kv_cache.state_bytes": ("recurrent states", "B"),
    "kv_cache.bytes": ("cache at this context", "B"),
    "memory.generate_peak": ("memory to generate", "B"),
    "memory.train_peak": ("memory to train", "B"),
}
"""The page's headline figures: label and unit, by path in `zoo stats --json`."""


@dataclass(frozen=True)
class PricedModel:
    """A model with its price under a set-up, and its YAML in short form."""

    spec: Any
    setup: Setup
    figures: Mapping[str, Any]
    yaml: str
    notes: tuple[str, ...]

    @functools.cached_property
    def told(self) -> dict[str, str]:
        """The headline figures of `zoo stats`, by label."""
        return dict(list_first_figures(self.spec, self.setup, self.figures))

    @functools.cached_property
    def gpus(self) -> dict[str, tuple[int, int]]:
        """By name of GPU, the smallest number of GPUs that holds the weights and one sequence of the context, and the
        number of sequences that they hold. (0, 0) if no machine with this type suffices. Empty for a model that does
        not generate."""
        if "kv_cache" not in self.figures["memory"]:
            return {}
        found = count_sequences(self.spec, self.setup, LADDER, [self.setup.context])
        return {gpu.title: (count, sum(batches)) for gpu, count, batches in found}

    @property
    def longest(self) -> int:
        return self.setup.tokens(self.spec)

    def list_caches(self, contexts: Sequence[int]) -> list[int]:
        """List the bytes of the cache at several context lengths."""
        return [kv_cache(self.spec, replace(self.setup, context=each))["bytes"] for each in contexts]


def answer_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Price the `text` of a request under its `setup`. The answer has figures, drawing and YAML, or else `faults`, each
    with the `path` of the faulty key."""
    text = _edit(request["text"], request.get("edits", ()))
    found = START.search(text)
    answer = {"text": text, "start": found[1] if found else None}
    try:
        setup = _read_setup(request["setup"])
        now = _price_text(text, setup)
        start = _price_start(found[1], setup) if found else now
        shown = _compare_models(start, now, found[1] if found else "model")
    except ConfigError as error:
        return {**answer, "faults": [_locate(fault) for fault in error.faults]}
    return {**answer, "stated": parse_text(text), "notes": list(now.notes), **shown}


def _compare_models(start: PricedModel, now: PricedModel, name: str) -> dict[str, Any]:
    """Compare a model with the one that it starts from, as plain data."""
    return {
        "yaml": now.yaml,
        "values": yaml.safe_load(now.yaml),
        "figures": now.figures,
        "rows": list(_compare(start.figures, now.figures)),
        "components": _pair(start.figures["params"]["by_component"], now.figures["params"]["by_component"]),
        "told": now.told,
        "gpus": [(gpu, start.gpus.get(gpu, (0, 0)), each) for gpu, each in now.gpus.items()],
        "differs": compare_fields(start.spec, now.spec),
        **_draw_cache(start, now),
        **_draw_model(start, now, name),
    }


def _edit(text: str, edits: Sequence[Mapping[str, Any]]) -> str:
    """Set the values that the form changed. A config.json is first converted to a model's YAML. A text that cannot be
    read is returned unchanged: pricing will report its faults."""
    try:
        if edits and _is_published(text):
            text = _price_text(text, Setup()).yaml
        for each in edits:
            value = each["value"]
            text = edit_text(text, each["path"], None if value is None else parse_text(f"value: {value}")["value"])
    except (ConfigError, yaml.YAMLError):
        pass
    return text


def _is_published(text: str) -> bool:
    return text.lstrip().startswith("{") and '"model_type"' in text


def _read_setup(stated: Mapping[str, Any]) -> Setup:
    known = {field.name for field in fields(Setup)}
    if strange := stated.keys() - known:
        raise ConfigError(*(f"{name}: no field of a set-up" for name in sorted(strange)))
    return Setup(**stated)


def _price_text(text: str, setup: Setup) -> PricedModel:
    """Price a text: a model's YAML, or a config.json."""
    file = PUBLISHED if _is_published(text) else FILE
    file.write_text(text, encoding="utf-8")
    return _price_target(file, setup)


@functools.lru_cache(maxsize=8)
def _price_start(name: str, setup: Setup) -> PricedModel:
    return _price_target(name, setup)


def _price_target(target: str | Path, setup: Setup) -> PricedModel:
    composed = compose_model(target)
    spec = spec_of_composed(composed)
    notes = (*composed.notes, *note_positions(spec))
    return PricedModel(spec, setup, price(spec, setup), to_plain_yaml(composed.cfg, composed.inherited), notes)


def _locate(fault: str) -> dict[str, str]:
    """Split a fault into the path of its key ("" for the whole text) and its text."""
    place = re.match(rf"(?:{re.escape(str(FILE))}:)?(?:\d+:)*\s*(?:([\w.]+): )?", fault)
    return {"path": place[1] or "" if place else "", "text": fault}


def _compare(start: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the headline figures of both models. A figure that neither model has is left out."""
    one, other = flatten(start), flatten(now)
    for path, (label, unit) in FIGURES.items():
        found = compare_values(one.get(path), other.get(path))
        if not found["a"] and not found["b"]:
            continue
        shown = {key: format_figure(found[key], unit, short=True) for key in ("a", "b")}
        change = format_change(found["relative"]) if found.get("relative") else "new" if found["a"] == 0 else ""
        yield {"path": path, "label": label, "exact": found, "start": shown["a"], "now": shown["b"], "change": change}


def _pair(start: Mapping[str, int], now: Mapping[str, int]) -> list[tuple[str, int, int]]:
    return [(name, start.get(name, 0), now.get(name, 0)) for name in merge_orders([start, now])]


def _draw_model(start: PricedModel, now: PricedModel, name: str) -> dict[str, str]:
    """Draw the model. A changed model is drawn next to the one that it starts from, with differences highlighted."""
    plan = plan_model(now.spec, name, now.setup)
    if now.spec == start.spec:
        scene = draw_model(plan)
    else:
        scene = draw_beside(plan_model(start.spec, name, start.setup), replace(plan, title=f"{name}, changed"))
    return {"drawing": write_svg(scene), "drawing_text": scene.description}


def _draw_cache(start: PricedModel, now: PricedModel) -> dict[str, Any]:
    """Draw the bytes of cache by context length, and those of the weights as a line. Empty without a cache."""
    longest = min(start.longest, now.longest)  # learned positions may end there
    contexts = [at for step in range(POINTS) if (at := longest >> (POINTS - 1 - step))]
    caches = {"start": start.list_caches(contexts), "now": now.list_caches(contexts)}
    curves = {"now": caches["now"]} if caches["now"] == caches["start"] else caches
    if not all(any(values) for values in curves.values()):
        return {"chart": "", "curves": []}
    title = f"Cache by context, batch {now.setup.batch:,}, engine {now.setup.engine}"
    floor = ("weights", now.figures["memory"]["weights"])
    return {"chart": draw_curves(curves, contexts, floor, title), "curves": [*curves]}
