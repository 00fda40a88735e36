"""Format the figures of `zoo.costs.price` as lines with labels and units, in sections.

A figure without a label in LABELS is labelled by its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from zoo.costs.advice import CHUNKED, list_addends
from zoo.report.glance import PARTS, format_first_figures, format_sequences
from zoo.report.roofline_text import list_speed_rows
from zoo.report.wrapping import TextRow, align_columns, make_bold, wrap_text
from zoo.units import format_figure, format_share

WIDTH = 80

LABELS = {
    "stored.as": "in the files",
    "params.active": "active per token",
    "params.active_without_input_table": "active, less the input embedding",
    "params.buffers": "buffers, not trained",
    "params.by_component": "",
    "params.by_component.shared_expert_gate": "gate of the shared expert",
    "params.embedding": "embedding and head",
    "params.by_layer_kind": "by kind of layer",
    "trained.parameters": "parameters that train",
    "trained.adapters": "  of which adapters'",
    "trained.share": "  of all parameters",
    "trained.checkpoint": "checkpoint, with optimizer states",
    "flops.forward": "forward, per token",
    "flops.train": "forward and backward, per token",
    "flops.prefill": "prefill of the context",
    "flops.decode": "decoding per token after context",
    "flops.decode_expanded": "decoding if latents are expanded",
    "flops.train_hardware": "training per token, with recomputation",
    "flops.optimizer_step": "optimizer step",
    "kv_cache.bytes_per_token": "per token",
    "kv_cache.block_size": "page size (tokens)",
    "kv_cache.cross_bytes": "of which cross-attention's",
    "kv_cache.state_bytes": "of which recurrent states",
    "kv_cache.padding_bytes": "of which padding",
    "memory.optimizer": "optimizer states",
    "memory.offloaded": "optimizer states in the host's memory",
    "memory.master": "  of which fp32 master weights",
    "memory.step": "temporaries of the update",
    "memory.activations": "activations for backward",
    "memory.activations_by_layer": "activations of one layer",
    "memory.peak_at": "  reached in",
    "memory.bottleneck": "  its largest part",
    "memory.loss_head": "logits and their gradients",
    "memory.rest": PARTS["rest"],
    "memory.train_peak": "peak",
    "memory.kv_cache": "KV cache",
    "memory.generate_activations": "prefill activations",
    "memory.generate_peak": "peak",
}
"""A figure's label by its dotted path. A breakdown with the label "" has no line of its own; its figures follow
directly."""

SECTIONS = {
    "params": "Parameters",
    "trained": "Trained",
    "stored": "As stored",
    "flops": "FLOPs",
    "kv_cache": "KV cache",
    "memory": "Memory",
    "traffic": "Communication per training step and rank",
    "roofline": "Roofline",
    "rules_of_thumb": "Rules of thumb",
}

SAID = frozenset(
    {
        *("roofline.gpu", "roofline.title", "roofline.dtype"),
        *("flops.convention", "flops.context", "memory.on", "params.embedding", "params.non_embedding"),
        *("kv_cache.tokens", "kv_cache.batch", "kv_cache.dtype", "kv_cache.engine", "kv_cache.bytes"),
    }
)
"""Figures without a line of their own, because the section's title or another line shows them."""

WORDS = {
    "memory.peak_at": {
        "loss": "the backward pass of the loss",
        "head": "the backward pass of the head",
        "layer": "the backward pass of a layer",
        "embedding": "the backward pass of the embedding",
        "step": "the optimizer's step",
    },
    "memory.bottleneck": PARTS,
}
"""Maps the path of a figure, whose value is a word, to the text shown for each word."""

UNITS = {"params": "params", "trained": "params", "flops": "FLOP", "memory": "B"}
HOLDING = (
    ("flops_per_second", "FLOP/s"),
    ("bytes_per_second", "B/s"),
    ("tokens_per_second", "tok/s"),
    ("intensity", "FLOP/B"),
    ("ridge", "FLOP/B"),
    ("seconds", "s"),
    ("bytes", "B"),
    ("error", "share"),
    ("mfu", "share"),
    ("share", "share"),
    ("checkpoint", "B"),
    ("flops", "FLOP"),
)
"""Pairs of a substring of a figure's name and its unit; the first match counts."""

COUNTS = ("layers", "context", "batch", "tokens", "experts", "gpus", "ranks", "stored", "used", "ratio", "per_token")


BRIEF = {
    "flops.train": "train, per token",
    "flops.train_hardware": "train with recomputation",
    "flops.optimizer_step": "optimizer step",
    "flops.prefill": "prefill",
    "flops.decode": "decode, per token",
    "flops.decode_expanded": "decode, latents expanded",
    "kv_cache.bytes": "all tokens",
    "memory.activations": "activations",
    "memory.step": "step's temporaries",
    "memory.peak_at": "reached in",
    "memory.bottleneck": "largest part",
    "memory.generate_activations": "prefill activations",
    "memory.loss_head": "logits and their gradients",
    "memory.train_peak": "training peak",
    "memory.generate_peak": "generating peak",
}
"""Short labels for tables of several models."""


class Figure(NamedTuple):
    """One figure: dotted path, label, value, unit, and depth of nesting in its section."""

    path: str
    label: str
    value: Any
    unit: str
    depth: int


def find_unit(path: str) -> str:
    """Return a figure's unit, from its dotted path."""
    section, _, rest = path.partition(".")
    leaf = rest.rpartition(".")[2]
    if rest.startswith("by_component."):
        return UNITS[section]
    for part, unit in HOLDING:
        if part in leaf:
            return unit
    if leaf.endswith(COUNTS) or section not in UNITS:
        return ""
    return UNITS[section]


def list_figures(priced: Mapping[str, Any]) -> Iterator[Figure]:
    """List all figures in order, except those that are None or in LEFT_OUT. A breakdown starts with a figure that has a
    label and no value."""
    for section, node in priced.items():
        if isinstance(node, Mapping):
            yield from _below(section, node, 0)


LEFT_OUT = frozenset({"operators", "sum_of_operators"})
"""Breakdowns that are too long to print; `--json` has them."""


def is_hidden(figure: Figure) -> bool:
    """Tell whether a figure needs no line, because it is shown elsewhere, or because it is in ZEROS and zero."""
    return figure.path in SAID or (figure.value == 0 and figure.path in ZEROS)


ZEROS = frozenset(
    {"params.buffers", "kv_cache.cross_bytes", "kv_cache.state_bytes", "memory.master", "memory.step", "memory.rest"}
)


def _below(path: str, node: Mapping[str, Any], depth: int) -> Iterator[Figure]:
    for key, value in node.items():
        place = f"{path}.{key}"
        label = LABELS.get(place, str(key).replace("_", " "))
        if value is None or key in LEFT_OUT:
            continue
        if path == "params.by_layer_kind":
            yield Figure(f"{place}.total", str(key), value["total"], "params", depth)
            if value["active"] != value["total"]:
                yield Figure(f"{place}.active", f"{key}, active", value["active"], "params", depth)
        elif isinstance(value, Mapping):
            if label:
                yield Figure(place, label, None, "", depth)
            yield from _below(place, value, depth + 1)
        elif not isinstance(value, list | tuple):
            yield Figure(place, label, value, find_unit(place), depth)


def format_heading(section: str, priced: Mapping[str, Any]) -> str:
    """Format a section's title with the settings that its figures share: `FLOPs (context 8,192 tokens)`."""
    cache, flops = priced.get("kv_cache", {}), priced.get("flops", {})
    engine = cache.get("engine", "ideal")
    on = priced.get("memory", {}).get("on")
    convention = str(flops.get("convention", "exact")).partition(":")[0]
    said = {
        "flops": [f"context {cache.get('tokens', 0):,} tokens", *([convention] if convention != "exact" else [])],
        "kv_cache": [cache.get("dtype", ""), *([f"engine {engine}"] if engine != "ideal" else [])],
        "roofline": [str(priced.get("roofline", {}).get(name, "")) for name in ("title", "dtype")],
        "memory": [
            cache.get("dtype", ""),
            format_sequences(cache),
            *([on] if on else []),
        ],
    }
    title = SECTIONS.get(section, section.replace("_", " ").capitalize())
    return f"{title} ({', '.join(said[section])})" if section in said else title


def list_cost_rows(priced: Mapping[str, Any]) -> list[tuple[str, list[TextRow]]]:
    """List the sections of `zoo stats`: each a title, and rows of label, exact figure and readable figure."""
    sections: list[tuple[str, list[TextRow]]] = []
    for section, node in priced.items():
        if section == "kv_cache" and not node["bytes"]:
            continue  # a model that does not generate has no cache
        if section == "rules_of_thumb":
            continue  # `--explain` shows them
        if section == "memory":
            sections += _memory_sections(priced)
        elif isinstance(node, Mapping) and (rows := _rows(section, priced)):
            sections.append((format_heading(section, priced), rows))
    return sections


HELD = ("kv_cache", "generate_activations", "generate_peak")
"""The memory figures of generating: the parts except weights, then the peak."""
GENERATING = (*HELD, "generate_note")


def _memory_sections(priced: Mapping[str, Any]) -> Iterator[tuple[str, list[TextRow]]]:
    """Split the memory section into a section on training and one on generating. In each section, + marks the rows that
    add up to the peak, and = the peak."""
    memory, heading = priced["memory"], format_heading("memory", priced)
    addends, training = list_addends(memory), {}
    for name, value in memory.items():
        if name == "train_peak":
            training["rest"] = value - sum(memory[each] for each in addends)
        if name not in GENERATING:
            training[name] = value
    rows = _rows("memory", {**priced, "memory": training})
    yield heading.replace("Memory", "Memory to train", 1), _mark_sum(rows, [*addends, "rest"], "train_peak")
    if "generate_peak" in memory:
        weights = memory["generate_peak"] - memory["kv_cache"] - memory["generate_activations"]
        parts = {"weights": weights, **{name: memory[name] for name in HELD}}
        rows = [(_label(name), "", format_figure(size, "B")) for name, size in parts.items()]
        note = _wrapped(f"note: {memory['generate_note']}") if "generate_note" in memory else []
        marked = _mark_sum(rows, ["weights", *HELD[:2]], HELD[-1])
        yield heading.replace("Memory", "Memory to generate", 1), marked + note


def _label(name: str) -> str:
    return LABELS.get(f"memory.{name}", name)


def _mark_sum(rows: list[TextRow], addends: Sequence[str], peak: str) -> list[TextRow]:
    signs = {**{_label(name): "+ " for name in addends}, _label(peak): "= "}
    return [(signs.get(label, "  ") + label, *figures) for label, *figures in rows]


def _rows(section: str, priced: Mapping[str, Any]) -> list[TextRow]:
    if section == "traffic":
        sent = priced[section].items()
        return [(f"{name}: {each['collective']}", "", format_figure(each["bytes"], "B")) for name, each in sent]
    if section == "roofline":
        return list_speed_rows(priced[section], WIDTH - 2)
    rows: list[TextRow] = []
    for figure in list_figures({section: priced[section]}):
        if not is_hidden(figure) and not is_repeated(figure, priced):
            rows += _figure_rows(figure, priced)
        if figure.path == "memory.bottleneck":
            rows += _list_changes(priced[section]["change_first"])
    if section == "kv_cache":
        cache = priced[section]
        rows.insert(1, (format_sequences(cache), f"{cache['bytes']:,} B", format_figure(cache["bytes"], "B")))
    return rows


def _list_changes(found: Sequence[Mapping[str, Any]]) -> list[TextRow]:
    """List rows for the options that lower a training peak, with notes on `zoo train`'s own option and on equal
    savings."""
    rows: list[TextRow] = []
    for each in found:
        saved = format_figure(each["saves"], "B", short=True)
        rows.append((f"    with {each['change']}", f"saves {saved}", format_figure(each["train_peak"], "B")))
        if each["change"] == CHUNKED:
            rows.append(("      as zoo train computes the loss", "", ""))
    same = [each for each in found if sum(other["saves"] == each["saves"] for other in found) > 1]
    if same:
        where = WORDS["memory.peak_at"][same[0]["peak_at"]]
        rows.append((f"    equal savings: the peak is then in {where}", "", ""))
    return rows


def is_repeated(figure: Figure, priced: Mapping[str, Any]) -> bool:
    """Tell whether a figure repeats another of the same model: active parameters of a dense model, hardware FLOPs
    without recomputation, the KV cache under memory, or a breakdown by kind of layer if there is one kind."""
    counted, flops = priced["params"], priced.get("flops", {})
    if figure.path.startswith("params.active"):
        return counted["active"] == counted["total"]
    if figure.path.startswith("params.by_layer_kind"):
        return len(counted["by_layer_kind"]) == 1
    if figure.path == "memory.kv_cache":
        return figure.value == priced["kv_cache"]["bytes"]
    return figure.path == "flops.train_hardware" and figure.value == flops.get("train")


def _figure_rows(figure: Figure, priced: Mapping[str, Any]) -> list[TextRow]:
    label = "  " * figure.depth + figure.label
    if figure.path == "memory.activations_by_layer" and "(part " in str(priced["memory"]["activations_by_layer"]):
        label += " (part: layers of a kind that cost alike)"
    value, unit = figure.value, figure.unit
    if figure.path in WORDS:
        return _wrapped(f"{label}: {WORDS[figure.path].get(value, value)}")
    if isinstance(value, str) and len(value) > 24:
        return _wrapped(f"{label}: {value}")
    if figure.path.startswith("params.by_layer_kind.") and figure.path.endswith(".total"):
        layers = priced["params"]["by_layer_kind"][figure.label]["layers"]
        label += f", {layers} layers" if layers != 1 else ", 1 layer"
    if value is None:  # a breakdown, whose figures follow
        return [(label, "", "")]
    cached = figure.path.startswith("kv_cache.") and unit == "B"
    exact = f"{value:,}" if unit == "params" else f"{value:,} B" if cached else ""
    if figure.path.startswith("params.by_component."):
        return [(label, exact, format_share(figure.value, priced["params"]["total"]))]
    return [(label, exact, format_figure(value, unit))]


def _wrapped(text: str) -> list[TextRow]:
    return [(line, "", "") for line in wrap_text(text, 0, 4, WIDTH - 2).splitlines()]


def format_cost_table(priced: Mapping[str, Any], title: str, first: Sequence[tuple[str, str]] = ()) -> str:
    """Format the figures of `zoo.costs.price` as text: the sentences of `first`, then all figures in sections."""
    rows: list[TextRow] = []
    for name, lines in list_cost_rows(priced):
        rows += [("", "", ""), (name, "", ""), *((f"  {label}", exact, short) for label, exact, short in lines)]
    lines = align_columns(rows, right=(1, 2)).splitlines()
    told = [make_bold(title), *([format_first_figures(first)] if first else [])]
    return "\n".join([*told, *(line if line.startswith(" ") or not line else make_bold(line) for line in lines)])


def list_exact_rows(flats: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """List one row per dotted path that any model has: the path, and each model's value as in the JSON."""
    paths = dict.fromkeys(path for flat in flats for path in flat)
    return [[path, *(flat.get(path) for flat in flats)] for path in paths]
