"""Format the results of `zoo.evaluate`: losses, scores of tasks, similarities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.report.tables import drop_empty
from zoo.report.wrapping import align_columns


def format_evaluation(found: Mapping[str, Any], files: Sequence[Path] = ()) -> str:
    """Format the results of `zoo.evaluate`; `files` are the evaluated files, as the user named them."""
    if "tasks" in found:
        return format_tasks(found)
    return format_losses(found, files) if "results" in found else format_vectors(found, files[0])


def format_losses(found: Mapping[str, Any], files: Sequence[Path] = ()) -> str:
    """Format the losses on a text: the data, how it was scored, and a row for each precision and source."""
    text = ", ".join(map(str, files)) or found["data"]
    amount = f"{found['tokens']:,} {found['targets']}"
    amount += "" if found["bytes"] is None else f", {found['bytes']:,} bytes"
    lines = [f"{found['model']} on {text}: {amount}", _describe_reading(found), ""]
    rows = found["results"]
    beside = len(rows) > 1
    measures = list(rows[0].get("measures", ()))
    figures = ("loss", "perplexity", "bits per byte", *measures)
    table = [line for row in rows for line in _list_rows(row, measures)]
    header, table = drop_empty(("weights", "computes in", "source", *figures, "Δ loss vs exact"), table)
    lines.append(align_columns([header, *table], right=range(header.index("loss"), len(header))))
    lines += ["", *(row["made"] for row in rows if "made" in row)] if beside else []
    return "\n".join(lines)


def _describe_reading(found: Mapping[str, Any]) -> str:
    """Describe the context from which each target is predicted."""
    context, stride = found["context"], found["stride"]
    if stride is None and "measures" in found["results"][0]:
        target = found["targets"].split()[0].removesuffix("s")  # "records of two answers": record
        return f"loss per {target} of {found['objective']}, in rows of at most {context:,} tokens"
    if stride is None:
        what = f"loss per target of {found['objective']}, in rows of {context:,} tokens, corrupted the same way"
        return f"{what} every time; no bits per byte, because not every byte is a target"
    least = context - stride + 1
    before = f"{least:,} to {context:,}" if least < context else f"{context:,}"
    windows = f"windows of {context:,} tokens, one every {stride:,}"
    return f"{windows}: each token is predicted from the {before} tokens before it, or from all if there are fewer"


def _list_rows(row: Mapping[str, Any], measures: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the table's rows for one precision: all sources together, then each source if there are several."""
    more = f"{row['loss_difference']:+.4f}" if "loss_difference" in row else ""
    sources = row.get("sources", {})
    own = row.get("measures", {})
    more_figures = (f"{own[name]:.4f}" if name in own else "" for name in measures)
    yield (row["weights"], row["dtype"], "all" if sources else "", *_list_figures(row), *more_figures, more)
    for name, each in sources.items():
        yield ("", "", name, *_list_figures(each), "")


def _list_figures(row: Mapping[str, Any]) -> tuple[str, str, str]:
    perplexity, bits = row["perplexity"], row["bits_per_byte"]
    shown = "" if row.get("measures") else "above 1e304" if perplexity is None else f"{perplexity:,.4f}"
    return f"{row['loss']:.4f}", shown, _show(bits, ".4f")


def format_vectors(found: Mapping[str, Any], file: Path) -> str:
    """Format the metrics of an evaluation on a similarity or retrieval file."""
    amounts = [f"{found[name]:,} {name}" for name in ("pairs", "queries", "documents") if name in found]
    figures = [(name, f"{value:.4f}") for name, value in found.items() if isinstance(value, float)]
    lines = [f"{found['model']} on {file}: {', '.join(amounts)}, vectors compared by their cosine", ""]
    return "\n".join([*lines, align_columns(figures, right=(1,))])


def format_tasks(found: Mapping[str, Any]) -> str:
    """Format the metrics of tasks, with their standard errors."""
    limit = "" if found["limit"] is None else f", at most {found['limit']:,} examples of each task"
    how = f"{found['weights']} weights, computes in {found['dtype']}{limit}"
    lines = [f"{found['model']} by lm-evaluation-harness {found['lm_eval']}: {how}", ""]
    table: list[tuple[str, ...]] = [("task", "examples", "solved before", "metric", "value", "± standard error")]
    for name, task in found["tasks"].items():
        about = [name, *(_show(task[key], ",") for key in ("examples", "num_fewshot"))]
        for metric, each in task["metrics"].items():
            table.append((*about, metric, *(_show(each[key], ".4f") for key in ("value", "stderr"))))
            about = ["", "", ""]
    return "\n".join([*lines, align_columns(table, right=(1, 2, 4, 5))])


def _show(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
