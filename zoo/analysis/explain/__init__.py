"""Explain every figure of `zoo stats`: its formula, the formula with numbers put in, and its source.

No formula is written a second time. A model's dimensions become traced numbers (`zoo.analysis.explain.terms`), so that
the rows of the traced model (`zoo.costs.rows`, `zoo.costs.cache_sizes`) remember their formulas. The functions that sum
up memory and the roofline are called with terms in place of numbers (`zoo.costs.sums`). Each figure is checked against
`price`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.analysis.compare import flatten
from zoo.analysis.explain.cache import list_cache_lines
from zoo.analysis.explain.flops import Flops
from zoo.analysis.explain.line import format_explanation
from zoo.analysis.explain.memory import Memory
from zoo.analysis.explain.parameters import list_parameter_lines
from zoo.analysis.explain.roofline import Roofline
from zoo.analysis.explain.terms import trace_spec
from zoo.analysis.explain.tuned import list_tuned_lines, trace_tuned
from zoo.costs.price import price
from zoo.costs.rows import Priced, tabulate, trains_more
from zoo.costs.setup import Setup
from zoo.errors import ConfigError


def explain(spec: Priced, setup: Setup | None = None, figures: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """List a row for each figure and each of its parts: `section`, `name`, `formula`, `values` (the formula with the
    numbers put in), `result`, `unit`, `source`, and `figure`, the dotted path in the result of `price`.

    `figures` are the result of `price` for the same `setup` (None: they are priced). Raises ConfigError for a model
    with modules that training alone runs (MTP).
    """
    if trains_more(spec):
        raise ConfigError("explain: has no formulas for modules that training alone runs (mtp=null)")
    setup = Setup() if setup is None else setup
    figures = price(spec, setup) if figures is None else figures
    model = trace_spec(spec)
    table = tabulate(model)
    tuned = trace_tuned(model, setup)
    lines = list_parameter_lines(table)
    lines += [] if tuned is None else list_tuned_lines(tuned, figures)
    lines += [*Flops(table, setup, tuned).lines(), *list_cache_lines(model, setup)]
    lines += Memory(spec, model, setup, figures, tuned).lines()
    lines += Roofline(spec, setup, figures).lines() if "roofline" in figures else []
    priced = flatten(figures)
    for line in (each for each in lines if each.figure):  # a wrong formula must not be shown
        found, explained = priced[line.figure], line.term.value
        close = math.isclose(found, explained, rel_tol=1e-12)  # floats are added in another order
        assert close, f"{line.figure}: {found} is explained as {explained}"
    return [line.row() for line in lines]
