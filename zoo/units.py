"""Format numbers for people: with SI prefixes, parameters in M and B, bytes in powers of 1000 and 1024."""

from __future__ import annotations

from typing import Any


def format_si(value: float, unit: str = "") -> str:
    """Format a number with an SI prefix: 1234567 as `1.23 M`."""
    for prefix in ("", "K", "M", "G", "T", "P", "E", "Z"):
        if abs(value) < 999.5 or prefix == "Z":
            return f"{_digits(value) if prefix else f'{value:.4g}'} {prefix}{unit}".rstrip()
        value /= 1000
    raise AssertionError(value)


def _digits(value: float) -> str:
    if 999.5 <= abs(value) < 1024:  # only in units of 1024
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def format_count(count: float) -> str:
    """Format a count with the suffixes M, B and T of the literature: 8030261248 as `8.03 B`."""
    return format_si(count).replace("G", "B")


def format_size(count: float) -> str:
    """Format bytes in powers of 1000 and of 1024: `16.1 GB (15.0 GiB)`."""
    binary = count
    for prefix in ("", "Ki", "Mi", "Gi", "Ti", "Pi"):
        if abs(binary) < 1023.5 or prefix == "Pi":
            return f"{format_si(count, 'B')} ({_digits(binary)} {prefix}B)" if prefix else f"{count:.0f} B"
        binary /= 1024
    raise AssertionError(count)


def format_share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def format_number(value: float, form: str) -> str:
    """Format a number with a minus sign (−), not a hyphen."""
    return f"{value:{form}}".replace("-", "\N{MINUS SIGN}")


def format_p(p: float | None, level: float) -> str:
    """Format a p-value with three decimals, or more if needed to show whether it is below the `level` (0.0497). `<
    0.001` if it is below both 0.001 and the level; "" for None."""
    if p is None or p < min(0.001, level):
        return "" if p is None else "< 0.001"
    digits = 3
    while (float(f"{p:.{digits}f}") < level) != (p < level):
        digits += 1
    return f"{p:.{digits}f}"


def say_p(p: float | None, level: float) -> str:
    """Format a p-value (`format_p`) for a sentence: `p = 0.012` or `p < 0.001`; "" for None."""
    said = format_p(p, level)
    return said and f"p {'' if said.startswith('<') else '= '}{said}"


def format_seconds(value: float) -> str:
    """Format seconds: 0.0123 as `12.3 ms`, 7200 as `2.00 h`; two days and more in days."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if abs(value) >= 2 * length:
            return f"{value / length:,.0f} {unit}" if value >= 1000 * length else f"{_digits(value / length)} {unit}"
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= length:
            return f"{_digits(value / length)} {unit}"
    return f"{value * 1e9:.3g} ns"


def format_figure(value: Any, unit: str, *, short: bool = False) -> str:
    """Format a figure in its unit; with `short`, bytes are given in powers of 1000 only."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if unit == "params":
        return format_count(value)
    if unit == "B":
        return format_si(value, "B") if short else format_size(value)
    if unit == "s":
        return format_seconds(value)
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit:
        return format_si(value, unit)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def format_change(value: float) -> str:
    """Format a relative difference: `+12.3 %`, or `×25.0` from tenfold on."""
    return f"×{1 + value:.1f}" if value >= 9 else f"{100 * value:+.1f} %"
