"""`zoo list`: list the packaged models, all or those that match, from the `about` of each file. Nothing is composed."""

from __future__ import annotations

from typing import Annotated

import typer


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Only models that have every one of these words in name, title, note or source."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only decoder, encoder or encoder_decoder models.")
    ] = None,
    axis: Annotated[
        str | None,
        typer.Option(metavar="AXIS", help="The choices of an axis instead: attention, position, norm, block, ffn …"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Names, exact counts, sources and notes.")] = False,
) -> None:
    """List the packaged models, one a line, smallest first: name, kind, parameters, and what is special about it.

    \b
    Examples:
      zoo list llama --kind decoder
      zoo list experts window
      zoo list --axis attention        every choice: its paper, how it grows with the tokens, who has it
    """
    from zoo import report
    from zoo.compose.catalogue import read_models, select_models
    from zoo.errors import ConfigError

    if axis is not None:
        if words or kind:
            raise ConfigError(f"axis: lists the choices of {axis}, not models (leave words and --kind out)")
        return _list_axis(axis, as_json)
    found = select_models(read_models(), words or (), kind)
    if as_json:
        print(report.format_json(found))
        return
    rows = [(m["name"], m["kind"], report.format_count(m["params"]), m["note"]) for m in found]
    head, *lines = report.align_columns([("name", "kind", "params", "what is special"), *rows], right=(2,)).splitlines()
    print("\n".join([report.make_bold(head), *lines]))


def _list_axis(axis: str, as_json: bool) -> None:
    from zoo import report
    from zoo.analysis.axes import describe_axis
    from zoo.report.axes import format_axis

    found = describe_axis(axis)
    print(report.format_json(found) if as_json else format_axis(found))
