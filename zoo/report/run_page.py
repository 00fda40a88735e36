"""Write a run's page: one HTML file with its curves, figures, samples, config and environment. It needs no network."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import runs
from zoo.disk import write_text
from zoo.drawing.contents import plan_model
from zoo.drawing.model_figure import draw_model
from zoo.drawing.palette import COLOURS, write_style
from zoo.drawing.vector import CLASS, write_svg
from zoo.report.history import MEASURES, RunRecord, read_curve, smooth
from zoo.report.svg import Curve, clean_value, draw_panel
from zoo.units import format_count, format_figure, format_seconds, format_si, format_size
from zoo.untrusted.json_file import read_bytes
from zoo.untrusted.printable import escape_controls

MOST_POINTS = 1500  # maximum points of a curve: about the columns of a screen, and the page stays small
MOST_SAMPLES = 20  # maximum samples shown, the newest

FORMS = {
    "params": format_count,
    "flops": format_si,
    "seconds": format_seconds,
    "tokens_per_second": lambda value: f"{value:,.0f}",
    "mfu": lambda value: f"{value:.1%}",
    "free_memory": format_size,
}
NAMES = {"mfu": "MFU", "flops": "training FLOPs", "params": "parameters", "gpu": "GPU", "cuda": "CUDA", **MEASURES}


def write_page(record: RunRecord, status: str | None = None) -> Path:
    """Write a run's page from the files in its folder, and return the page's file. `status` is the present status, if
    the folder does not have it yet. Raises OSError if the page cannot be written, and CheckpointError for unreadable
    files."""
    file = record.folder / runs.PAGE
    write_text(file, make_page(record, status))
    return file


def make_page(record: RunRecord, status: str | None = None) -> str:
    outcome = {**record.outcome, "status": status or record.status}
    name = escape_controls(outcome.pop("model") or record.folder.resolve().name)
    environments = runs.read_environments(record.folder)
    return render_page(
        TEMPLATE,
        title=f"{name} · {record.folder.resolve().name}",
        name=name,
        folder=record.folder.resolve().name,
        error=escape_controls(record.result.get("error") or "") if outcome["status"] != "running" else None,
        figures=_show(outcome),
        classes=list_classes(record.result.get("by_class", {})),
        curves=draw_curves(record.points()),
        samples=read_samples(record.folder / runs.SAMPLES)[-MOST_SAMPLES:][::-1],
        drawing=draw_run(record) if runs.is_file(record.folder / runs.MODEL) else "",
        overrides=[escape_controls(each) for each in record.result.get("overrides", [])],
        config=_read(record.folder / runs.CONFIG),
        model=_read(record.folder / runs.MODEL),
        environments=[_show(each) for each in reversed(environments)],
    )


def render_page(body: str, **values: Any) -> str:
    """Fill a page: HTML around a template, which may call `table(rows, header, right)`; `values` has a `title`.
    All values are escaped, including control characters, except SVG that is marked safe."""
    return _compile_page(body).render(**values)


@functools.cache
def _compile_page(body: str) -> Any:
    """Compile a page, once in a process: a run writes its own page at every evaluation."""
    import jinja2

    settings = {"trim_blocks": True, "lstrip_blocks": True, "finalize": clean_value}
    return jinja2.Environment(autoescape=True, **settings).from_string(HEAD + body + TAIL)


def draw_run(record: RunRecord) -> str:
    """Draw a run's model, with its price, as an SVG element and its style. It is drawn once in a process."""
    file = record.folder / runs.MODEL
    return _draw_model(file, file.stat().st_mtime_ns, record)


@functools.lru_cache(maxsize=4)
def _draw_model(file: Path, changed: int, record: RunRecord) -> str:
    name = escape_controls(str(record.result.get("model") or file.parent.resolve().name))
    scene = draw_model(plan_model(record.spec, name))
    return f"<style>{write_style(f'.{CLASS}', set(COLOURS))}</style>{write_svg(scene, scheme='light', inline=True)}"


def _show(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = {name: value for name, value in values.items() if value is not None}
    return [(NAMES.get(name, name.replace("_", " ")), _format(name, value)) for name, value in known.items()]


def _format(name: str, value: object) -> str:
    if name in FORMS and isinstance(value, int | float):
        return FORMS[name](value)
    return escape_controls(format_figure(value, ""))


def list_classes(by_class: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """List a header, and per class a row of precision, recall, F1 and count; empty without classes."""
    rows = [
        (name, *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), f"{row['count']:,}")
        for name, row in by_class.items()
    ]
    return [("class", "precision", "recall", "F1", "count"), *rows] if rows else []


def _read(file: Path) -> str:
    return escape_controls(read_bytes(file).decode("utf-8", "replace")) if runs.is_file(file) else ""


def read_samples(file: Path) -> list[tuple[str, str]]:
    """Read the samples of a run, oldest first: the step of each, and its text."""
    parts = re.split(r"^──── step (\d+) ────\n", _read(file), flags=re.MULTILINE)
    return [(step, text.removesuffix("\n\n")) for step, text in zip(parts[1::2], parts[2::2], strict=True)]


# ---------------------------------------------------------------- curves

X_LABEL = "tokens seen"
PLACES = ("step", "steps", "tokens", "trained_tokens", "seconds", "flops")
LOSSES = ("loss", "val_loss")
TITLES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
    "mfu": "MFU",
    "memory": "memory (bytes)",
    "skipped": "skipped updates",
    "bits_per_byte": "validation bits per byte",
    **{name: f"validation {label}" for name, label in MEASURES.items()},
}


def draw_curves(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw the losses, then every other metric, as SVG panels.

    Metrics with the same name before a slash (`val_loss/code`) share a panel. Skipped updates have a panel if there are
    any.
    """
    panels = group_metrics(points)
    if not any(line.get("skipped") for line in points):
        panels.pop("skipped", None)
    drawn = [_draw_losses(points)] if panels.pop("loss", None) else []
    return drawn + [_draw_metrics(points, panel, names) for panel, names in panels.items()]


def group_metrics(points: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Group the metrics that have a number into panels, in order of first appearance."""
    panels: dict[str, list[str]] = {}
    for line in points:
        for name, value in line.items():
            if name in PLACES or not isinstance(value, int | float):
                continue
            panel = "loss" if name in LOSSES else name.partition("/")[0]
            names = panels.setdefault(panel if panel not in LOSSES or name in LOSSES else "val_loss by source", [])
            if name not in names:
                names.append(name)
    return panels


def thin(at: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Thin a curve to at most MOST_POINTS points, evenly spaced and including the last."""
    every = max(1, -(-len(at) // MOST_POINTS))
    first = (len(at) - 1) % every if at else 0
    return at[first::every], values[first::every]


def _draw_losses(points: Sequence[Mapping[str, Any]]) -> str:
    at, values = read_curve(points, "loss")
    curves = [
        Curve(*thin(at, values), faint=True),
        Curve(*thin(at, smooth(values)), "training"),
        Curve(*read_curve(points, "val_loss"), "validation", color=1, marks=True),
    ]
    return draw_panel("loss (nats per target)", curves, X_LABEL, width=984, height=400)


def _draw_metrics(points: Sequence[Mapping[str, Any]], panel: str, names: Sequence[str]) -> str:
    curves = []
    for color, name in enumerate(names):
        at, values = thin(*read_curve(points, name))
        marks = len(at) < 3 or name.startswith(("val_", "bits_per_byte"))
        label = name.partition("/")[2] or name.replace("_", " ")
        curves.append(Curve(at, values, label if len(names) > 1 else "", color, marks))
    return draw_panel(TITLES.get(panel, panel.replace("_", " ")), curves, X_LABEL)


HEAD = """{% macro table(rows, header=(), right=()) %}
<table>
{% if header %}
<tr>{% for cell in header %}<th{% if loop.index0 in right %} class="number"{% endif %}>{{ cell }}</th>{% endfor %}</tr>
{% endif %}
{% for row in rows %}
<tr>{% for cell in row %}<td{% if loop.index0 in right %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { margin: 0; } h2 { margin: 2em 0 .5em; border-bottom: 1px solid #ddd; }
.folder { color: #777; margin: 0 0 1em; } .error { color: #b00; white-space: pre-wrap; }
table { border-collapse: collapse; } td { padding: .15em 1.5em .15em 0; vertical-align: top; }
td:first-child { color: #777; white-space: nowrap; }
th { text-align: left; font-weight: 600; padding: .15em 1.5em .15em 0; }
pre { background: #f6f6f6; padding: .8em; white-space: pre-wrap; font: 13px/1.4 ui-monospace, monospace; }
summary { cursor: pointer; } img, svg { max-width: 100%; height: auto; } img { display: block; margin: .6em 0; }
.number { text-align: right; white-space: nowrap; }
.better { color: #2ca02c; } .worse { color: #d62728; } .no { color: #777; }
.halves svg { width: 49%; } .halves svg:first-child { width: 100%; }
.drawing svg { display: block; max-width: 800px; margin: auto; }
</style>
</head>
<body>
"""
"""The start of all pages."""

TAIL = """
</body>
</html>
"""

TEMPLATE = """<h1>{{ name }}</h1>
<p class="folder">{{ folder }}</p>
{% if error %}
<p class="error">{{ error }}</p>
{% endif %}
{{ table(figures) }}
{% if classes %}
<h2>Classes</h2>
{{ table(classes) }}
{% endif %}
{% if curves %}
<h2>Curves</h2>
<div class="halves">
{% for each in curves %}
{{ each | safe }}
{% endfor %}
</div>
{% endif %}
{% if drawing %}
<h2>Model</h2>
<div class="drawing">{{ drawing | safe }}</div>
{% endif %}
{% if samples %}
<h2>Samples</h2>
{% for step, text in samples %}
<details{{ " open" if loop.first }}><summary>step {{ step }}</summary>
<pre>{{ text }}</pre></details>
{% endfor %}
{% endif %}
<h2>Config</h2>
{% if overrides %}
<pre>{{ overrides | join("\\n") }}</pre>
{% endif %}
<details><summary>the whole training config</summary>
<pre>{{ config }}</pre></details>
<details><summary>the model</summary>
<pre>{{ model }}</pre></details>
{% if environments %}
<h2>Environment</h2>
{% for each in environments %}
{% if loop.index == 2 %}
<p>Before, when the run was started or resumed:</p>
{% endif %}
{{ table(each) }}
{% endfor %}
{% endif %}"""
