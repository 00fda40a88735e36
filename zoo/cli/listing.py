"""`zoo list`: the packaged models, from the `about` of each file. Nothing is composed."""

from __future__ import annotations

from typing import Annotated

import typer


def run(
    as_json: Annotated[bool, typer.Option("--json", help="Names, exact counts, sources and notes.")] = False,
) -> None:
    """Every packaged model, one line each: its name, kind, parameters, and what is special about it."""
    from zoo import report
    from zoo.compose.catalogue import models

    found = models()
    if as_json:
        print(report.as_json(found))
        return
    rows = [(m["name"], m["kind"], report.params(m["params"]), m["note"]) for m in found]
    head, *lines = report.columns([("name", "kind", "params", "what is special"), *rows], right=(2,)).splitlines()
    print("\n".join([report.bold(head), *lines]))
