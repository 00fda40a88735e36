"""Format a race's report as a table: rates, paired ratios, fractions of the machine's limit, peak memory."""

import statistics
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zoo.bench.plan import OURS

if TYPE_CHECKING:
    from rich.table import Table

CROWDED = 0.97  # below this share of a core for the measuring thread, something else was running


def make_table(report: Mapping[str, Any]) -> "Table":
    """Make a table with one row per contender; a ratio above 1 means that zoo is faster."""
    from rich.table import Table

    race = report["race"]
    what = f"{race['batch']} x {race['length']}" + (f" + {race['new_tokens']}" if race["new_tokens"] > 1 else "")
    terms = f"{_count(race['threads'], 'thread')}, medians of {_count(race['rounds'], 'round')}"
    title = f"{race['workload']} {race['dtype']}, {what} tokens, {terms}"
    grid = Table(title=title, title_justify="left")
    grid.add_column("")
    timed = "first_token_seconds" in report["contenders"][OURS]
    for name in ("tok/s", "zoo is", "of the limit", *(["first token"] if timed else []), "peak memory"):
        grid.add_column(name, justify="right")
    for name, row in report["contenders"].items():
        cells = [
            name,
            f"{row['rate']:,.1f}",
            "" if name == OURS else _format_ratio(row["ratios"]),
            f"{row['share']:.0%}",
        ]
        if timed:
            cells.append(f"{row['first_token_seconds'] * 1e3:,.0f} ms")
        peak = row["peak_bytes"]
        grid.add_row(*cells, "" if peak is None else f"{peak / 2**30:.2f} GiB")
    return grid


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _format_ratio(ratios: list[float]) -> str:
    spread = f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}x{spread}"


def list_notes(report: Mapping[str, Any]) -> Iterator[str]:
    """List the lines below the table: the machine's limits, what a share counts, and whether other programs ran."""
    machine = report["machine"]
    yield (
        f"machine: matrix rate {machine['gemm_fp32_tflops']:.2f} TFLOP/s fp32, {machine['gemm_bf16_tflops']:.2f} bf16; "
        f"reads {machine['read_gb_s']:.1f} GB/s"
    )
    yield report["accounting"]
    yield "; ".join(f"{name} {row['version']} on torch {row['torch']}" for name, row in report["contenders"].items())
    fp32, bf16 = machine["gemm_fp32_tflops"], machine["gemm_bf16_tflops"]
    if report["race"]["dtype"] == "bf16" and bf16 < fp32:
        yield f"bf16 products are {fp32 / bf16:.1f} times slower than fp32 on this CPU (--dtype fp32 would do)"
    crowded = [f"{name} {row['busy']:.0%}" for name, row in report["contenders"].items() if row["busy"] < CROWDED]
    if crowded:
        yield f"not a quiet machine: share of a core that the measuring threads had: {', '.join(crowded)}"
