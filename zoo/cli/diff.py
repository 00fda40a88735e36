"""`zoo diff`: compare two models: the fields of the architecture that differ, then the figures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from zoo.cli.common import Overrides, Target
from zoo.cli.setup import setup_options
from zoo.cli.showing import Csv, Json, Markdown, Plot, Shown, choose_format, load_specs, shorten_labels, split_words


@setup_options
def run(
    first: Target,
    second: Target,
    overrides: Overrides = None,
    everything: Annotated[bool, typer.Option("--all", help="Show the figures that are equal too.")] = False,
    as_json: Json = False,
    as_csv: Csv = False,
    as_md: Markdown = False,
    plot: Plot = None,
    setup: Any = None,
) -> None:
    """Compare two models: the fields that differ, then parameters, FLOPs, KV cache and memory by component.

    Overrides apply to both models. The exit code is 0 whether they differ or not.
    """
    from zoo import costs, report
    from zoo.analysis.compare import compare_specs
    from zoo.errors import ConfigError

    targets, overrides = split_words([first, second, *(overrides or [])])
    if len(targets) != 2:
        raise ConfigError(f"diff: compares two models, {len(targets)} were named (`zoo stats` takes any number)")
    shown, labels = choose_format(as_json, as_csv, as_md), shorten_labels(targets)
    if plot is not None:
        from zoo.report.plot import check_picture

        check_picture(plot, 2)
    both = load_specs(targets, overrides)
    priced = [costs.price(spec, setup) for spec in both]
    found = {"a": labels[0], "b": labels[1], **compare_specs(both[0], both[1], priced)}
    if shown is Shown.json:
        print(report.format_json(found))
    elif shown is Shown.text:
        from zoo.report.models import make_diff_tables

        tables = make_diff_tables(labels, found, priced, everything=everything)
        report.print_tables(*tables or ["the same in every field and figure"])
    else:
        _print(labels, found, priced, everything, shown)
    if plot is not None:
        from zoo.report.plot import draw_models

        draw_models(dict(zip(labels, both, strict=True)), setup, plot)


def _print(labels: list[str], found: dict[str, Any], priced: list[Any], everything: bool, shown: Shown) -> None:
    from zoo import report
    from zoo.report.models import list_field_rows, list_model_rows

    if shown is Shown.csv:
        rows = [[f"architecture.{path}", row["a"], row["b"], "", ""] for path, row in found["architecture"].items()]
        rows += [
            [path, row["a"], row["b"], row.get("delta"), row.get("relative")]
            for path, row in found["figures"].items()
            if everything or row["a"] != row["b"]
        ]
        print(report.format_csv(["figure", *labels, "delta", "relative"], rows))
        return
    print(report.format_markdown(["architecture", *labels], list_field_rows(found)))
    print()
    header, rows = list_model_rows(labels, priced, differing=not everything)
    print(report.format_markdown(header, rows, right=(1, 2, 3, 4)))
