"""Format a race's report as a table: rates, paired ratios, fractions of the machine's limit, peak memory."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.bench.race_plan import OURS, name_isa

if TYPE_CHECKING:
    from rich.table import Table

CROWDED = 0.97  # if the measuring thread had less of a core than this, other programs were running
Row = Mapping[str, Any]


def make_table(report: Mapping[str, Any]) -> "Table":
    """Make a table with one row per racer. A ratio above 1 means that zoo is faster."""
    from rich.table import Table

    rows = report["contenders"]
    columns = list_columns(report)
    grid = Table(title=f"{name_race(report['race'])}, {_describe_terms(report)}", title_justify="left")
    grid.add_column("")
    for name in columns:
        grid.add_column(name, justify="right")
    for name, row in rows.items():
        grid.add_row(name, *(cell(name, row) for cell in columns.values()))
    for name, reason in report["absent"].items():
        grid.add_row(name, "not yet" if reason.startswith("not yet") else "-", *[""] * (len(columns) - 1))
    return grid


def make_scenario_table(report: Mapping[str, Any]) -> "Table":
    from rich.table import Table

    grid = Table(title=f"engine, {_describe_terms(report)}", title_justify="left")
    for name in ("scenario", "value", "baseline", "ratio", "goal"):
        grid.add_column(name, justify="left" if name in ("scenario", "value") else "right")
    for row in list_scenario_cells(report):
        grid.add_row(*row)
    return grid


def list_scenario_cells(report: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of each scenario: name, figure, baseline's figure, ratio, goal."""
    for row in report["scenarios"]:
        own, base = (f"{row[key]:,.1f} {row['unit']}" for key in ("own", "base"))
        goal = f"{'≥' if row['least'] else '≤'} {row['goal']:.2f}{'' if row['met'] else ' missed'}"
        yield [row["name"], own, f"{base} ({row['against']})", format_ratio(row["ratios"]), goal]


def name_race(race: Mapping[str, Any]) -> str:
    """Describe a race by workload, dtype and sizes: `decode fp32, 1 x 32 + 128 tokens`."""
    if race["workload"] == "load":
        return f"load {race['dtype']}"
    least = "up to " if race["workload"] == "batch" else ""
    what = f"{race['batch']} x {least}{race['length']}"
    what += f" + {least}{race['new_tokens']}" if race["new_tokens"] > 1 else ""
    return f"{race['workload']} {race['dtype']}{', compiled' if race['compile'] else ''}, {what} tokens"


def _describe_terms(report: Mapping[str, Any]) -> str:
    race = report["race"]
    isa = name_isa(report["processor"]["isa"])
    return f"{_count(race['threads'], 'thread')}, {isa}, medians of {_count(race['rounds'], 'round')}"


def list_columns(report: Mapping[str, Any]) -> dict[str, Callable[[str, Row], str]]:
    """List the columns that have data in this report, each with the function that formats its cells."""
    rows, race = report["contenders"].values(), report["race"]

    def some(key: str) -> bool:
        return any(row.get(key) is not None for row in rows)

    if race["workload"] == "load":
        columns: dict[str, Callable[[str, Row], str]] = {"seconds": lambda name, row: f"{row['seconds']:.2f}"}
    else:
        columns = {"tok/s": lambda name, row: f"{row['rate']:,.1f}"}
    for key, ours in (("ratios", OURS), ("ratios_weights", f"{OURS} {race['weights']}")):
        if any(row[key] for row in rows):
            columns[f"{ours} speedup"] = _write_ratio(key, ours)
    if some("share"):
        columns["of the limit"] = lambda name, row: f"{row['share']:.0%}"
    if some("of_linears"):
        columns["of linears alone"] = _write("of_linears", lambda value: f"{value:.0%}")
    if some("first_token_seconds"):
        columns["first token"] = _write("first_token_seconds", lambda value: f"{value * 1e3:,.0f} ms")
    if race["compile"]:
        columns["start-up"] = _write("startup", lambda value: f"{value:.1f} s")
    if some("peak_bytes"):
        columns["peak memory"] = _write("peak_bytes", lambda value: f"{value / 2**30:.2f} GiB")
    return columns


def _write(key: str, spell: Callable[[Any], str]) -> Callable[[str, Row], str]:
    return lambda name, row: "" if row.get(key) is None else spell(row[key])


def _write_ratio(key: str, ours: str) -> Callable[[str, Row], str]:
    return lambda name, row: "" if name == ours or not row[key] else format_ratio(row[key])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def format_ratio(ratios: Sequence[float]) -> str:
    """Format the median and the range of ratios: `1.06x (1.02-1.12)`."""
    spread = f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}x{spread}"


def list_notes(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the notes below the table, from the processor and its limits to the versions, absent racers and other
    programs."""
    machine, rows, processor = report["machine"], report["contenders"], report["processor"]
    held = f", held to {name_isa(report['race']['isa'])}" if report["race"]["isa"] else ""
    yield f"processor: {processor['name']}; {_count(processor['cores'], 'core')}, {name_isa(processor['isa'])}{held}"
    if machine:
        yield (
            f"machine: matrix rate {machine['gemm_fp32_tflops']:.2f} TFLOP/s fp32, "
            f"{machine['gemm_bf16_tflops']:.2f} bf16; reads {machine['read_gb_s']:.1f} GB/s"
        )
    yield report["accounting"]
    if line := describe_linears(report):
        yield line
    yield from (f"{name} multiplies: {row['ways']}" for name, row in rows.items() if row["ways"])
    yield "; ".join(
        f"{name} {row['version']}" + (f" on torch {row['torch']}" if row["torch"] else "") for name, row in rows.items()
    )
    if line := describe_tokens(rows):
        yield line
    yield from (f"{name}: {reason}" for name, reason in report["absent"].items())
    if machine:
        fp32, bf16 = machine["gemm_fp32_tflops"], machine["gemm_bf16_tflops"]
        if report["race"]["dtype"] == "bf16" and bf16 < fp32:
            yield f"bf16 products are {fp32 / bf16:.1f} times slower than fp32 on this CPU (--dtype fp32 would do)"
    if line := describe_crowd(rows):
        yield line


def describe_crowd(rows: Mapping[str, Row]) -> str:
    """Return a note if other programs ran: the rows whose measuring thread had less than CROWDED of a core. Empty if
    none."""
    busy = {name: row["busy"] for name, row in rows.items() if row["busy"] is not None}
    crowded = [f"{name} {share:.0%}" for name, share in busy.items() if share < CROWDED]
    return (
        f"not a quiet machine: share of a core that the measuring threads had: {', '.join(crowded)}" if crowded else ""
    )


def describe_linears(report: Mapping[str, Any]) -> str:
    """Format the milliseconds of the bare linears by way to multiply; a decoding step cannot take less. A star marks
    the fastest way of each precision, the basis of the rows' fractions."""
    times = []
    for ways in report["machine"].get("linears", {}).values():
        best = min(ways.values(), default=0)
        times += [f"{way} {time:.1f}{'*' if time == best else ''}" for way, time in ways.items()]
    return f"linears alone, ms per step (*: the fastest of a precision): {', '.join(times)}" if times else ""


def describe_tokens(rows: Mapping[str, Row]) -> str:
    """Return a note on whether the other rows generated the same greedy tokens as the first; "" without other rows."""
    (first, own), *others = rows.items()
    if "tokens" not in own or not others:
        return ""
    return f"greedy tokens beside those of {first}: " + ", ".join(
        f"{name} {format_tokens(row)}" for name, row in others
    )


def format_tokens(row: Row) -> str:
    """Format the number of equal tokens: `equal`, or `310 of 1024 before the first that differs`."""
    if row["same_tokens"] == row["tokens"]:
        return "equal"
    return f"{row['same_tokens']} of {row['tokens']} before the first that differs"
