"""The figures that a drawing states beside the boxes, and how they are written."""

from __future__ import annotations

from zoo.drawing.contents import ModelPlan


def say_count(count: float) -> str:
    """Say a count in short: 8030261248 as `8.03 B`, 14336 as `14.3 K`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(count) >= 0.9995 * size:
            return f"{_digits(count / size)} {unit}"
    return f"{count:,.0f}"


def say_bytes(count: float) -> str:
    """Say bytes in powers of 1024: 1073741824 as `1.00 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1023.5:
            return f"{count:.0f} B" if unit == "B" else f"{_digits(count)} {unit}"
        count /= 1024
    return f"{_digits(count)} TiB"


def say_share(part: float) -> str:
    """Say a share: 0.702 as `70 %`, 0.0123 as `1.2 %`."""
    return f"{100 * part:.0f} %" if part >= 0.0995 else f"{100 * part:.1f} %"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def list_tiles(plan: ModelPlan) -> list[tuple[str, str]]:
    """List what a figure says first of a model: numbers, and what each is."""
    params, cache = plan.figures["params"], plan.figures["kv_cache"]
    found = [(say_count(params["total"]), "parameters")]
    if params["active"] != params["total"]:
        found.append((say_count(params["active"]), "active a token"))
    found.append((" + ".join(str(len(tower.pattern)) for tower in plan.towers), "layers"))
    found.append((f"{plan.width:,}", "width"))
    found.append((f"{plan.vocabulary:,}", "vocabulary"))
    if plan.generates:
        found.append((say_bytes(cache["bytes"]), f"cache at {cache['tokens']:,} tokens"))
    return found


def say_change(before: float, after: float) -> str:
    """Say how a number changed: `−12.5 %`, `× 25.0`, `=`."""
    if before == after:
        return "="
    if not before:
        return "new"
    part = after / before - 1
    return f"× {after / before:.1f}" if part >= 9 else f"{100 * part:+.1f} %".replace("-", "−")
