"""`zoo diff`: compare two models or two runs: the fields that differ, then the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo import report
from zoo.analysis.compare import compare_specs, pair_figures
from zoo.cli.common import Overrides, Target
from zoo.cli.options import flag
from zoo.cli.setup import SetupOptions
from zoo.cli.showing import OutputOptions, Plot, Shown, load_specs, shorten_labels, split_words
from zoo.errors import ConfigError
from zoo.report.models import list_field_rows, list_model_rows, make_diff_tables
from zoo.report.price_plot import check_picture, draw_models


def run(
    first: Target,
    second: Target = "",
    overrides: Overrides = None,
    everything: bool = flag("Also show values that do not differ.", "--all"),
    plot: Plot = None,
    *,
    output: OutputOptions,
    setup: SetupOptions,
) -> None:
    """Compare two models: the fields that differ, then parameters, FLOPs, KV cache and memory by component.

    For two runs, training configs and results are compared first. Overrides change both models; then only the models
    are compared, not the runs. The exit code is 0 whether they differ or not.
    """
    from zoo import costs

    targets, overrides = split_words([first, *filter(None, [second]), *(overrides or [])])
    if len(targets) != 2:
        found = ", ".join(targets) or "none"
        raise ConfigError(f"diff: compares two models, found {found} (`zoo stats` takes any number)")
    shown, labels = output.shown, shorten_labels(targets)
    if plot is not None:
        check_picture(plot, 2)
    both = load_specs(targets, overrides)
    priced = pair_figures(both[0], both[1], [costs.price(spec, setup) for spec in both])
    found = {"a": labels[0], "b": labels[1], **compare_specs(both[0], both[1], priced)}
    trained = compare_if_runs(targets) if not overrides else {}
    found |= trained
    if shown is Shown.json:
        print(report.format_json(found))
    elif shown is Shown.text:
        tables = make_diff_tables(labels, found, priced, everything=everything)
        tables = [*make_run_tables(labels, trained, everything), *tables]
        report.print_tables(*tables or ["the same in every field and figure"])
    else:
        _print(labels, found, priced, everything, shown)
    if plot is not None:
        draw_models(dict(zip(labels, both, strict=True)), setup, plot)


def compare_if_runs(targets: list[str]) -> dict[str, Any]:
    """Compare the training of two runs; empty if a target is not a run's folder."""
    from zoo.report.history import RunRecord, compare_runs
    from zoo.runs import CONFIG, METRICS

    folders = [Path(each).expanduser() for each in targets]
    if not all((each / name).is_file() for each in folders for name in (CONFIG, METRICS)):
        return {}
    first, second = map(RunRecord, folders)
    return compare_runs(first, second)


def make_run_tables(labels: list[str], found: dict[str, Any], everything: bool) -> list[Any]:
    """Make a table of the keys in which two training configs differ, and one of their results."""
    tables = []
    if rows := [[path, *_cells(row)] for path, row in found.get("config", {}).items()]:
        tables.append(report.make_table("", ["training config", *labels], rows))
    results = found.get("results", {}).items()
    if rows := [
        [_title(name, row), *_cells(row), _change(row)] for name, row in results if everything or row["a"] != row["b"]
    ]:
        tables.append(report.make_table("", ["result", *labels, "difference"], rows, right=(1, 2, 3)))
    return tables


def _title(name: str, row: dict[str, Any]) -> str:
    title = name.replace("_", " ")
    return title.replace("equal tokens", f"{row['tokens']:,} tokens") if "tokens" in row else title


def _cells(row: dict[str, Any]) -> list[str]:
    return [f"{row[side]:,.6g}" if isinstance(row[side], float) else _plain(row[side]) for side in "ab"]


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).lower()


def _change(row: dict[str, Any]) -> str:
    delta = row.get("delta")
    return "" if not delta else f"{delta:+,.4g}" if isinstance(delta, float) else f"{delta:+,}"


def _print(labels: list[str], found: dict[str, Any], priced: list[Any], everything: bool, shown: Shown) -> None:
    if shown is Shown.csv:
        rows = [
            [f"{part}.{path}", row["a"], row["b"], "", ""]
            for part in ("config", "architecture")
            for path, row in found.get(part, {}).items()
        ]
        results = {f"results.{name}": row for name, row in found.get("results", {}).items()}
        rows += [
            [path, row["a"], row["b"], row.get("delta"), row.get("relative")]
            for path, row in (results | found["figures"]).items()
            if everything or row["a"] != row["b"]
        ]
        print(report.format_csv(["figure", *labels, "delta", "relative"], rows))
        return
    for title in ("config", "results"):
        if title in found:
            rows = [[path, *_cells(row)] for path, row in found[title].items()]
            print(report.format_markdown([title, *labels], rows), end="\n\n")
    print(report.format_markdown(["architecture", *labels], list_field_rows(found)))
    print()
    header, rows = list_model_rows(labels, priced, differing=not everything)
    print(report.format_markdown(header, rows, right=(1, 2, 3, 4)))
