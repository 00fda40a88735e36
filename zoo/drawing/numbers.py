"""Compute the numbers that a drawing states outside its boxes."""

from __future__ import annotations

from zoo.drawing.contents import ModelPlan
from zoo.units import format_change, format_count, format_si


def list_tiles(plan: ModelPlan) -> list[tuple[str, str]]:
    """List a model's headline figures, each as (number, label)."""
    params, cache = plan.figures["params"], plan.figures["kv_cache"]
    found = [(format_count(params["total"]), "parameters")]
    if params["active"] != params["total"]:
        found.append((format_count(params["active"]), "active a token"))
    found.append((" + ".join(str(len(tower.pattern)) for tower in plan.towers), "layers"))
    found.append((f"{plan.width:,}", "width"))
    found.append((f"{plan.vocabulary:,}", "vocabulary"))
    if plan.generates:
        found.append((format_si(cache["bytes"], "B"), f"cache at {cache['tokens']:,} tokens"))
    return found


def say_change(before: float, after: float) -> str:
    """Format a change from `before` to `after`: `−12.5 %`, `×25.0`, `=`."""
    if before == after:
        return "="
    return format_change(after / before - 1).replace("-", "−") if before else "new"
