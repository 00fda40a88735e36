"""`zoo list`: list the packaged models, all or those that match, from each file's `about`, without composing."""

from __future__ import annotations

import math
import re
from typing import Any

from zoo import report
from zoo.cli.options import argument, flag, option
from zoo.errors import ConfigError
from zoo.report.grammar_pages import format_axis, format_page


def run(
    words: list[str] | None = argument(
        "Only models with every one of these words in name, title, note, source or parts."
    ),
    kind: str | None = option("Only decoder, encoder or encoder_decoder models.", metavar="KIND"),
    parts: str | None = option("Only models with all of these parts: moe,mla.", "--with", metavar="PARTS"),
    params: str | None = option("Only models of this size: 1B..10B, ..500M, 70B..", metavar="FROM..TO"),
    axis: str | None = option(
        "List the choices of one axis instead of models. AXIS is attention, position, norm, block, ffn, router, "
        "activation or cross. If a choice follows it, list that choice's fields.",
        metavar="AXIS",
    ),
    as_json: bool = flag("Print names, exact counts, sources and notes as JSON.", "--json"),
) -> None:
    """List the packaged models, smallest first: name, kind, parameters, and what is special.

    \b
    Examples:
      zoo list llama --kind decoder
      zoo list --with moe,mla          those that have both, wherever in the model
      zoo list --params 1B..10B window
      zoo list --axis attention        every choice: its paper, how its cost scales with sequence length, who has it
      zoo list --axis attention gqa    one of them: its fields, their types, defaults and meaning
    """
    from zoo.compose.catalogue import Selection, read_models, select_models

    if axis is not None:
        if kind or parts or params or len(words or ()) > 1:
            raise ConfigError(f"axis: lists the choices of {axis}, not models (one choice, and no other option)")
        return _list_axis(axis, *(words or ()), as_json=as_json)
    least, most = read_range(params) if params is not None else (0.0, math.inf)
    asked = Selection(words or (), kind, [each.strip() for each in parts.split(",")] if parts else (), least, most)
    found = select_models(read_models(), asked)
    if as_json:
        print(report.format_json(found))
        return
    rows = [(m["name"], m["kind"], report.format_count(m["params"]), m["note"]) for m in found]
    head, *lines = report.align_columns([("name", "kind", "params", "what is special"), *rows], right=(2,)).splitlines()
    print("\n".join([report.make_bold(head), *lines]))


def read_range(text: str) -> tuple[float, float]:
    """Read `1B..10B` as two numbers; either may be left out. Raises ConfigError for other texts."""
    number = r"(\d+(?:\.\d+)?)([KMBT]?)"
    match = re.fullmatch(rf"(?:{number})?\.\.(?:{number})?", text.strip())
    if match is None:
        raise ConfigError(f"params: cannot read {text!r} (FROM..TO, as 1B..10B or ..500M)")
    scale = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    low = float(match[1]) * scale.get(match[2], 1) if match[1] else 0.0
    high = float(match[3]) * scale.get(match[4], 1) if match[3] else math.inf
    if low > high:
        raise ConfigError(f"params: FROM is larger than TO, found {text!r} ({'..'.join(reversed(text.split('..')))})")
    return low, high


def _list_axis(axis: str, choice: str | None = None, *, as_json: bool) -> None:
    from zoo.analysis.axes import describe_axis, find_axis
    from zoo.analysis.grammar_names import describe_named

    found: Any = describe_axis(axis) if choice is None else describe_named(find_axis(axis), choice)
    print(report.format_json(found) if as_json else format_axis(found) if choice is None else format_page(found))
