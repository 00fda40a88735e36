"""Price an architecture: one call for every figure of `zoo stats`."""

from collections.abc import Collection
from typing import Any

from zoo.costs import flops, params
from zoo.costs.cache import kv_cache
from zoo.costs.rows import CostTable, Priced, tabulate
from zoo.costs.setup import Setup


def price(
    spec: Priced, setup: Setup | None = None, parts: Collection[str] | None = None, **changes: Any
) -> dict[str, Any]:
    """Price a Spec under a Setup, or under `Setup(**changes)`: every figure, as plain data.

    `parts` are dotted paths of the figures wanted (None: all). Most of the time goes to tracing a pass for its
    activations, which "memory" needs. `traffic` is present for more than one rank, `roofline` where the set-up names a
    GPU, `flops.optimizer_step` (of a whole step, not a token) where the optimizer multiplies matrices (Muon). Raises
    ConfigError for an invalid set-up.
    """
    setup = Setup(**changes) if setup is None else setup
    asked = None if parts is None else {path.partition(".")[0] for path in parts}
    if asked is None or asked & {"traffic", "roofline", "rules_of_thumb"}:
        return _whole(spec, setup)
    figures = _counted(spec, setup, tabulate(spec))
    if "memory" in asked:
        from zoo.costs.memory import KEPT, memory, without_passes

        cheap = all(path.removeprefix("memory.") in KEPT for path in parts or () if path.startswith("memory"))
        figures["memory"] = without_passes(spec, setup) if cheap else memory(spec, setup)
    return figures


def _counted(spec: Priced, setup: Setup, table: CostTable) -> dict[str, Any]:
    counted = flops.count_flops(
        table, setup.tokens(spec), setup.convention, setup.recompute, documents=setup.documents(spec)
    )
    if step := flops.optimizer_flops(table, setup.optimizer):
        counted["optimizer_step"] = step
    return {"params": params.count_parameters(table), "flops": counted, "kv_cache": kv_cache(spec, setup)}


def _whole(spec: Priced, setup: Setup) -> dict[str, Any]:
    from zoo.costs.memory import memory
    from zoo.costs.rules import rules_of_thumb

    table = tabulate(spec)
    figures = {**_counted(spec, setup, table), "memory": memory(spec, setup)}
    if setup.ranks > 1:
        from zoo.costs.traffic import traffic

        figures["traffic"] = traffic(spec, setup)
    if setup.gpu is not None:
        from zoo.costs.roofline import roofline

        figures["roofline"] = roofline(table, setup, figures)
    return {**figures, "rules_of_thumb": rules_of_thumb(spec, setup, figures)}
