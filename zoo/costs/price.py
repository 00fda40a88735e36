"""Price an architecture: one call for every figure of `zoo stats`."""

from collections.abc import Collection
from typing import Any

from zoo.costs import flops, params
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.rows import CostTable, Priced, tabulate
from zoo.costs.setup import Setup
from zoo.costs.update_flops import optimizer_flops

COMBINED = {"traffic", "roofline", "rules_of_thumb"}
"""Figures that are computed from other figures: if one of them is asked for, everything is priced."""


def price(
    spec: Priced, setup: Setup | None = None, parts: Collection[str] | None = None, **changes: Any
) -> dict[str, Any]:
    """Price a Spec under a Setup, or under `Setup(**changes)`: every figure, as plain data.

    `parts` are dotted paths of the figures wanted (None: all). They save time: "params", "flops" and "kv_cache" are
    always priced; "memory" needs a traced pass, and is priced if a path names it or a figure of COMBINED. Some
    figures are present only in some set-ups: `trained` if the run does not train all weights, `traffic` for more than
    one rank, `roofline` with a GPU, `flops.optimizer_step` (per step, not per token) if the optimizer multiplies
    matrices (Muon, SOAP). Raises ConfigError for an invalid set-up.
    """
    setup = Setup(**changes) if setup is None else setup
    asked = COMBINED if parts is None else {path.partition(".")[0] for path in parts}
    whole = bool(asked & COMBINED)
    table = tabulate(spec)
    documents = setup.documents(spec)
    counted = flops.count_flops(table, setup.tokens(spec), setup.convention, setup.recompute, documents=documents)
    tuned = setup.tune(spec)
    if step := optimizer_flops(spec, setup.optimizer, tuned):
        counted["optimizer_step"] = step
    figures = {"params": params.count_parameters(table), "flops": counted, "kv_cache": kv_cache(spec, setup)}
    if tuned is not None:
        from zoo.costs.partial_training import count_partial
        from zoo.costs.states import count_trained

        if tuned.partly and setup.convention in flops.MEASURED:
            counted |= count_partial(tuned, setup.tokens(spec), setup.convention, setup.recompute, documents)
        figures = {"params": figures["params"], "trained": count_trained(spec, setup, tuned), **figures}
    if whole or "memory" in asked:
        from zoo.costs.memory import KEPT, memory
        from zoo.costs.states import states

        inner = {path.removeprefix("memory.") for path in parts or () if path.startswith("memory")}
        held = states(spec, setup) if not whole and inner <= set(KEPT) else None
        figures["memory"] = {name: round(held[name]) for name in KEPT} if held else memory(spec, setup)
    return figures | _combine(table, setup, figures) if whole else figures


def _combine(table: CostTable, setup: Setup, figures: dict[str, Any]) -> dict[str, Any]:
    from zoo.costs.rules_of_thumb import rules_of_thumb

    found = {}
    if setup.ranks > 1:
        from zoo.costs.traffic import traffic

        found["traffic"] = traffic(table.spec, setup)
    if setup.gpu is not None:
        from zoo.costs.roofline import roofline

        found["roofline"] = roofline(table, setup, figures)
    return {**found, "rules_of_thumb": rules_of_thumb(table.spec, setup, figures)}
