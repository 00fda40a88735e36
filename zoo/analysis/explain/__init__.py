"""Every figure of `zoo stats`, as the formula it comes of with the values put in, and its source.

The formulas are not written here a second time: a component's are its own `parts`, `cache` and `core_flops`, run on
traced numbers (`zoo.analysis.explain.terms`). What adds them up is checked against what `price` gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.analysis.explain.cache import kv_cache
from zoo.analysis.explain.flops import flops
from zoo.analysis.explain.line import Line, explained
from zoo.analysis.explain.memory import memory
from zoo.analysis.explain.parameters import parameters
from zoo.analysis.explain.roofline import roofline
from zoo.analysis.explain.terms import trace
from zoo.costs.price import price
from zoo.costs.rows import tabulate
from zoo.costs.setup import Setup

__all__ = ["explain", "explained"]


def explain(spec: Any, setup: Setup | None = None, figures: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """A row for each figure and what it is made of: `section`, `name`, `formula`, `values` (the formula with the
    numbers put in), `result`, `unit`, `source`, and `figure`, its dotted path in what `price` gives.

    `figures` are of the same `setup` (all defaults unless given), priced unless given.
    """
    setup = Setup() if setup is None else setup
    figures = price(spec, setup) if figures is None else figures
    model = trace(spec)
    table = tabulate(model)
    lines = [*parameters(table), *flops(table, setup), *kv_cache(model, setup)]
    lines += [*memory(spec, model, setup, figures), *roofline(spec, setup, figures)]
    for line in lines:
        _check(line, figures)
    return [line.row() for line in lines]


def _check(line: Line, figures: Mapping[str, Any]) -> None:
    """A formula that does not give the figure is a bug of ours, and must not be shown. (1e-12: of floats that add up in
    another order.)"""
    if line.figure:
        found, explained = figure(figures, line.figure), line.term.value
        assert math.isclose(found, explained, rel_tol=1e-12), f"{line.figure}: {found} is explained as {explained}"


def figure(figures: Any, path: str) -> Any:
    """What `price` gives at a dotted path, of which a key may itself hold dots (`encoder.layer`). Raises KeyError."""
    if path in figures:
        return figures[path]
    for key, inner in figures.items():
        if path.startswith(f"{key}.") and isinstance(inner, Mapping):
            try:
                return figure(inner, path[len(key) + 1 :])
            except KeyError:
                continue  # another key may begin the same
    raise KeyError(path)
