"""Format the results of `zoo inspect`: tables, plots, and a page that opens without a network."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.disk import replace_file, write_text
from zoo.lazy import Tensor
from zoo.report.price_plot import write_figure
from zoo.report.run_page import render_page
from zoo.report.svg import Curve, draw_panel
from zoo.report.tables import make_table

if TYPE_CHECKING:
    from rich.table import Table

FIGURES, PAGE, MAPS = "inspect.json", "index.html", "maps.safetensors"

ACROSS = 8
"""Maximum number of heads side by side in a plot."""


# ---------------------------------------------------------------- text


def make_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Make the tables of activations, heads and routers."""
    tables = [_list_activations(figures["activations"])]
    if figures["attentions"]:
        tables.append(_list_heads(figures["attentions"]))
    if figures["routers"]:
        tables.append(_list_routers(figures["routers"]))
    return tables


def _list_activations(found: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[name_call(each), each["kind"], f"{each['rms']:.4g}", f"{each['largest']:.4g}"] for each in found]
    return make_table("Activations", ("output of", "kind", "RMS", "max |x|"), rows, right=(2, 3))


def _list_heads(attentions: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for each in attentions:
        shares = [divide(head["entropy"], head["uniform"]) for head in each["heads"]]
        ranks = [head["rank"] for head in each["heads"]]
        sinks = max(head["sink"] for head in each["heads"])
        rows.append(
            [
                name_call(each),
                each["kind"],
                f"{len(shares)}",
                *(f"{value:.0%}" for value in (min(shares), max(shares))),
                *(f"{value:.1f}" for value in (min(ranks), max(ranks))),
                f"{sinks:.0%}" if sinks > 1e-4 else "",
            ]
        )
    header = ("attention", "kind", "heads", "min entropy", "max entropy", "min rank", "max rank", "max sink")
    return make_table(
        "Heads: entropy relative to uniform attention, and effective rank of the map", header, rows, right=range(2, 8)
    )


def _list_routers(routers: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            name_call(each),
            each["kind"],
            f"{len(each['shares'])}",
            f"{len(each['dead'])}",
            f"{each['evenness']:.1%}",
            f"{each['busiest']:.2f}",
        ]
        for each in routers
    ]
    header = ("router", "kind", "experts", "dead", "entropy", "busiest ÷ mean")
    return make_table("Routing: entropy relative to uniform load", header, rows, right=range(2, 6))


def format_lines(figures: Mapping[str, Any]) -> list[str]:
    """Describe in lines what has no table: attentions without a map, and the gradient noise scale."""
    kinds = Counter(each["kind"] for each in figures["without_maps"])
    lines = [f"No map: {count} × {kind}, which takes no softmax over keys" for kind, count in kinds.items()]
    if (noise := figures["noise"]) is not None:
        lines.append(_say_noise(noise))
    return lines


def _say_noise(noise: Mapping[str, Any]) -> str:
    if noise["rows"] is None:
        return f"Gradient noise scale: {noise['measured_on']} rows are too few to show the gradient (more --noise-rows)"
    error = "" if noise["error"] is None else f" ± {noise['error']:.2g}"
    return (
        f"Gradient noise scale: {noise['rows']:.3g}{error} rows, {noise['tokens']:,.0f} targets: much larger batches "
        f"gain little (measured on {noise['measured_on']} rows)"
    )


def name_call(each: Mapping[str, Any]) -> str:
    """Name a module's call: the module, with the call's number if there are several in a pass."""
    return each["path"] + (f", call {each['call'] + 1}" if each["call"] else "")


def divide(part: float, whole: float) -> float:
    """Divide part by whole; 0 if the whole is 0."""
    return part / whole if whole else 0.0


# ---------------------------------------------------------------- pictures


ADDED = {"attention": "attention adds", "cross": "cross-attention adds", "ffn": "feed-forward adds"}
"""Labels of the curves of a sub-layer's addition to the residual stream."""


def draw_activations(found: Sequence[Mapping[str, Any]]) -> str:
    """Draw an SVG panel by layer: the RMS of the residual stream, and of each sub-layer's addition to it (after its
    norm and factor)."""
    points: dict[str, list[tuple[int, float]]] = {}
    layer = 1
    for each in found:
        if each["axis"] == "block":
            points.setdefault("block", []).append((layer, each["rms"]))
            layer += 1
        elif "joins" in each:
            points.setdefault(each["joins"], []).append((layer, each["added"]))
    labels = {"block": "residual stream after the layer", **ADDED}
    drawn = [
        Curve([at for at, _ in points[name]], [rms for _, rms in points[name]], label, color, marks=True)
        for color, (name, label) in enumerate(labels.items())
        if name in points
    ]
    return draw_panel("RMS of the residual stream, and of each addition to it", drawn, "layer", width=984, height=320)


def draw_heads(attentions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw two SVG panels by layer, with a marker for each head: the entropy relative to uniform attention, and the
    effective rank."""
    shares = [[divide(head["entropy"], head["uniform"]) for head in each["heads"]] for each in attentions]
    ranks = [[head["rank"] for head in each["heads"]] for each in attentions]
    relative = "attention entropy per head / entropy of uniform attention"
    titles = ((relative, shares), ("effective rank of attention maps", ranks))
    return [draw_panel(title, _spread(values), "attention layer") for title, values in titles]


def _spread(values: Sequence[Sequence[float]]) -> list[Curve]:
    """Make a marker for each head, and a line through the means."""
    means = [sum(each) / len(each) for each in values]
    dots = [Curve([at], [value], color=7, marks=True) for at, each in enumerate(values, 1) for value in each]
    return [*dots, Curve([*range(1, len(means) + 1)], means, "mean", 0, marks=len(means) == 1)]


def draw_maps(maps: Tensor, title: str, file: Path) -> None:
    """Draw the mean maps [H, T, S] of one attention's heads to a PNG file."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(maps)
    columns = min(ACROSS, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(1.5 * columns + 0.2, 1.65 * lines + 0.3), dpi=110, layout="constrained")
    figure.suptitle(f"{title}: queries down, keys across", fontsize=9)
    for head, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axes.set_axis_off()
        if head < count:
            axes.imshow(maps[head].numpy(), norm=PowerNorm(0.4, 0, 1), cmap="viridis")
            axes.set_title(f"head {head}", fontsize=8, pad=2)
    write_figure(figure, file)


def draw_routing(routers: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw each expert's load ÷ the mean to a PNG file, a row for each router. Unused experts have a cross."""
    from matplotlib.figure import Figure

    most = max(len(each["shares"]) for each in routers)
    grid = [[share * len(each["shares"]) for share in each["shares"]] for each in routers]
    wide = [[*line, *[math.nan] * (most - len(line))] for line in grid]
    figure = Figure(figsize=(max(5.0, 0.28 * most + 2), 1.3 + 0.3 * len(routers)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(wide, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest")
    for line, each in enumerate(routers):
        axes.plot(each["dead"], [line] * len(each["dead"]), "kx", markersize=6)
    axes.set_yticks(range(len(routers)), [name_call(each) for each in routers], fontsize=7)
    axes.set_xlabel("expert")
    axes.set_title("Expert load relative to uniform (×: dead expert)", fontsize=9)
    figure.colorbar(drawn, ax=axes, extend="max", label="load / uniform load")
    write_figure(figure, file)


# ---------------------------------------------------------------- files


def write_inspection(figures: Mapping[str, Any], maps: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """Write figures, maps, plots and the page to a folder. Return the paths of all files except the plots. Raises
    ConfigError or OSError if a file cannot be written."""
    from zoo.checkpoint.tensor_files import write_tensors

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("attention-*.png"):
        old.unlink()
    pictures = []
    for each in figures["attentions"]:
        file = folder / f"{each['map']}.png"
        draw_maps(maps[each["map"]], f"{name_call(each)} ({each['kind']})", file)
        pictures.append(file)
    routing = folder / "routing.png"
    routing.unlink(missing_ok=True)
    if figures["routers"]:
        draw_routing(figures["routers"], routing)
    panels = [draw_activations(figures["activations"]), *(draw_heads(figures["attentions"]) if pictures else [])]
    for name, panel in zip(("activations", "entropy", "rank"), panels, strict=False):
        write_text(folder / f"{name}.svg", panel + "\n")
    if maps:
        with replace_file(folder / MAPS) as draft:
            write_tensors(maps, draft)
    write_text(folder / FIGURES, json.dumps(figures, indent=2) + "\n")
    images = [routing] if figures["routers"] else []
    write_text(folder / PAGE, make_page(figures, panels, [*images, *pictures]))
    return [folder / PAGE, folder / FIGURES, *([folder / MAPS] if maps else [])]


def make_page(figures: Mapping[str, Any], panels: Sequence[str], pictures: Sequence[Path]) -> str:
    """Return the page's HTML, with its plots embedded."""
    images = [(each.stem, base64.b64encode(each.read_bytes()).decode()) for each in pictures]
    names = ("model", "data", "objective", "rows", "context")
    return render_page(
        TEMPLATE,
        title=f"inspect · {figures['model']}",
        model=figures["model"],
        about=[(name, figures[name]) for name in names],
        lines=format_lines(figures),
        panels=panels,
        images=images,
        tables=[_read_table(each) for each in make_tables(figures)],
    )


def _read_table(table: Table) -> tuple[str, list[str], list[tuple[str, ...]]]:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    header = [str(column.header) for column in table.columns]
    return str(table.title or ""), header, list(zip(*columns, strict=True))


TEMPLATE = """<h1>Inspection of {{ model }}</h1>
{{ table(about) }}
{% for line in lines %}
<p>{{ line }}</p>
{% endfor %}
<div>
{% for each in panels %}
{{ each | safe }}
{% endfor %}
</div>
{% for name, data in images %}
<img alt="{{ name }}" src="data:image/png;base64,{{ data }}">
{% endfor %}
{% for title, header, rows in tables %}
<h2>{{ title }}</h2>
{{ table(rows, header) }}
{% endfor %}"""
