"""Write the gallery into a folder: one page per model, one per axis, and the pages that link to them."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import zoo
from zoo.analysis.compare import flatten
from zoo.compose.catalogue import read_models
from zoo.drawing.vector import write_page_style
from zoo.errors import ConfigError
from zoo.gallery.axis_facts import AxisFacts, collect_axis
from zoo.gallery.charts import YearMark, draw_curves, draw_effects, draw_years
from zoo.gallery.family_facts import list_children, read_families, read_measured, read_notes
from zoo.gallery.finding_facts import FindingFacts, list_card_rows, list_effects, list_findings, read_kept
from zoo.gallery.model_facts import ModelFacts, collect_model
from zoo.gallery.pictures import draw_choices, draw_figure, draw_strips
from zoo.gallery.playground.assembling import write_page
from zoo.gallery.rendering import ASSETS, mark_safe, render_template
from zoo.grammar.vocabulary import list_axes
from zoo.report.price_plot import join_equal

FIGURES = "figures.js"
"""File of the figures for sorting and comparison. A folder with this file is recognised as a gallery."""

DOCS = "docs"
"""Folder of Zoo's docs. `make site` writes it before the gallery."""

COLUMNS = (
    ("params.total", "parameters", "params"),
    ("params.active", "active parameters", "params"),
    ("params.embedding", "of embedding and head", "params"),
    ("flops.forward", "FLOPs per token, forward", "FLOP"),
    ("flops.train", "FLOPs per token, training", "FLOP"),
    ("flops.prefill", "FLOPs of prefill", "FLOP"),
    ("kv_cache.bytes_per_token", "cache per token", "B"),
    ("kv_cache.bytes", "cache of the context", "B"),
    ("kv_cache.state_bytes", "states in it", "B"),
    ("memory.weights", "weights in bf16", "B"),
    ("memory.generate_peak", "memory to generate", "B"),
    ("memory.train_peak", "memory to train", "B"),
    ("shape.max_seq_len", "context", ""),
    ("shape.depth", "layers", ""),
    ("shape.d_model", "width", ""),
    ("shape.vocab_size", "vocabulary", ""),
    ("shape.year", "year", "year"),
)
"""Figures for sorting and comparison: dotted path, label and unit."""

GROUPS = ("decoder", "mixture of experts", "recurrent or hybrid", "encoder", "encoder-decoder")
"""Groups of models, by which the timeline is coloured."""


def write_site(folder: Path, targets: Sequence[str] = ()) -> int:
    """Write the site of the packaged models, and of the models in `targets`, into a folder. Return the number of files.
    Raises ConfigError for a folder that holds something else, and for a model that cannot be read."""
    there = {each.name for each in folder.iterdir()} if folder.is_dir() else {folder.name} if folder.exists() else set()
    if FIGURES not in there and there - {DOCS}:
        raise ConfigError(
            f"gallery: {folder} exists and is not a gallery (a new folder, or one that zoo gallery wrote)"
        )
    docs = (folder / DOCS / "index.html").is_file()
    count = 0
    for place, text in _list_files(_collect_models(targets), docs):
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        count += 1
    for asset in ASSETS.iterdir():
        shutil.copy(asset, folder)
        count += 1
    return count + write_page(folder, version=zoo.__version__)


def _collect_models(targets: Sequence[str]) -> list[ModelFacts]:
    """Collect the packaged models without aliases, smallest first, then the user's models."""
    packaged = [each for each in read_models() if not each["note"].startswith("another name")]
    found = [collect_model(each["name"], each) for each in packaged]
    names = {each.name for each in found}
    for target in targets:
        found.append(collect_model(target, {}))
        if found[-1].name in names:
            raise ConfigError(f"gallery: there is a model {found[-1].name} already (a file of another name)")
        names.add(found[-1].name)
    return found


def _list_files(models: list[ModelFacts], docs: bool) -> Iterator[tuple[str, str]]:
    """Yield the files of the site: path and text."""
    kept, findings, names = read_kept(), list_findings(), {each.name for each in models}
    axes = [collect_axis(name, names) for name in list_axes()]
    render = partial(render_template, version=zoo.__version__, measured=read_measured()["by"], docs=docs)
    yield FIGURES, f"const FIGURES = {json.dumps(list_figures(models), separators=(',', ':'))};\n"
    yield "drawing.css", write_page_style()
    strips = {each.name: draw_strips(each.plan) for each in models}
    newest = sorted(models, key=lambda each: (-(each.year or 0), -each.figures["params"]["total"]))
    yield "index.html", render("index.html", "index.html", models=newest, strips=strips)
    for each in models:
        yield each.place, render("model.html", each.place, **show_model(each, models))
    yield "axes.html", render("axes.html", "axes.html", axes=axes)
    for axis in axes:
        yield axis.place, render("axis.html", axis.place, **_show_axis(axis, findings))
    yield "compare.html", render("compare.html", "compare.html")
    yield "timeline.html", render("timeline.html", "timeline.html", **_show_timeline(models))
    forests = [(title, mark_safe(draw_effects(effects, title))) for title, effects in list_effects(kept)]
    shown = {"findings": findings, "forests": forests, "cards": list_card_rows()}
    yield "findings.html", render("findings.html", "findings.html", **shown)
    rows = [(each.name, row) for each in models for row in each.published]
    rows.sort(key=lambda row: -abs(math.log(row[1]["theirs"] / row[1]["ours"])))
    sources = read_notes()["sources"]
    yield "published.html", render("published.html", "published.html", rows=rows, sources=sources)


def list_figures(models: Sequence[ModelFacts]) -> dict[str, Any]:
    """Return the data for sorting, searching and comparing models: the columns, and each model's figures, cache and
    architecture."""
    return {
        "columns": [{"path": path, "label": label, "unit": unit} for path, label, unit in COLUMNS],
        "models": [_list_figures(each) for each in models],
    }


def _list_figures(facts: ModelFacts) -> dict[str, Any]:
    spec = next(iter(facts.spec.towers().values()))
    shape = {"max_seq_len": facts.spec.max_seq_len, "depth": facts.depth, "d_model": spec.d_model}
    shape |= {"vocab_size": spec.vocab_size, "year": facts.year}
    known = flatten({**facts.figures, "shape": shape})
    told = {"name": facts.name, "title": facts.title, "kind": facts.kind, "note": facts.note, "source": facts.source}
    caches = facts.list_caches()["ideal"] if facts.generates else []
    return {
        **told,
        "parts": " ".join(facts.about.get("parts", ())),
        "figures": [known.get(path) for path, _, _ in COLUMNS],
        "cache": [list(pair) for pair in zip(facts.list_contexts(), caches, strict=True)] if caches else [],
        "shape": facts.describe_shape(),
    }


def show_model(facts: ModelFacts, models: Sequence[ModelFacts]) -> dict[str, Any]:
    """Return the values for the template of a model's page."""
    near = min((each for each in models if each is not facts), key=partial(_measure_gap, facts))
    caches = facts.list_caches() if facts.generates else {}
    curves = join_equal(caches)
    contexts, weights = facts.list_contexts(), facts.figures["memory"]["weights"]
    drawn = any(value for each in curves.values() for value in each)
    chart = draw_curves(curves, contexts, ("weights", weights), f"Cache of {facts.title} by context and engine")
    return {
        "facts": facts,
        "picture": draw_figure(facts.plan),
        "strips": draw_strips(facts.plan),
        "biggest": max(facts.figures["params"]["by_component"].values()),
        "caches": caches,
        "curves": list(curves),
        "contexts": contexts,
        "chart": mark_safe(chart) if drawn else None,
        "holders": facts.list_holders() if facts.generates else [],
        "pairs": [(facts.name, row) for row in facts.published],
        "commands": list_commands(facts, near),
        "near": near,
    }


def list_commands(facts: ModelFacts, near: ModelFacts) -> list[str]:
    """List useful commands for a model: the command that prints the page's figures, and next steps."""
    name = shlex.quote(facts.target)
    lines = [f"zoo stats {name} --explain", f"zoo diff {name} {shlex.quote(near.target)}"]
    lines += [f"zoo draw {name} --card --out card.png"]
    lines += [f"zoo solve batch {name} --gpu h100 --cache-only"] if facts.generates else []
    return [*lines, f"zoo new mine.yaml --like {name}", "zoo stats mine.yaml", "zoo train mine.yaml"]


def _measure_gap(facts: ModelFacts, other: ModelFacts) -> tuple[bool, bool, int]:
    one, two = (each.figures["params"]["total"] for each in (facts, other))
    return facts.kind != other.kind, facts.family == other.family, abs(one - two)


def _show_axis(axis: AxisFacts, findings: Sequence[FindingFacts]) -> dict[str, Any]:
    told = [each for each in findings if axis.name in each.axes and not each.recipe.withdrawn]
    return {"axis": axis, "findings": told, "pictures": draw_choices(axis.name)}


def _show_timeline(models: Sequence[ModelFacts]) -> dict[str, Any]:
    members: dict[str, list[ModelFacts]] = {name: [] for name in read_families()}
    for each in models:
        if each.family is not None:
            members[each.family.name].append(each)
    marks = [
        YearMark(each.place, each.title, each.year, each.figures["params"]["total"], GROUPS.index(group_model(each)))
        for each in models
        if each.year is not None
    ]
    chart = mark_safe(draw_years(marks, "Models by year and parameters"))
    return {"chart": chart, "colors": GROUPS, "children": list_children, "members": members, "families": len(members)}


def group_model(facts: ModelFacts) -> str:
    """Return the model's group in GROUPS. A decoder is recurrent or hybrid if a mixer updates a recurrent state (a
    convolution's last tokens do not count), else a mixture of experts if it has experts."""
    if facts.kind != "decoder":
        return facts.kind
    if any(each.attention.state_flops() for tower in facts.spec.towers().values() for each in tower.blocks.values()):
        return "recurrent or hybrid"
    return "mixture of experts" if facts.figures["params"]["active"] != facts.figures["params"]["total"] else "decoder"
