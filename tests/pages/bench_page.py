"""Write the races' reports as sections of a Markdown page: one for each instruction set, which alone is replaced."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.bench.race_plan import OURS, name_isa
from zoo.bench.show import describe_crowd, format_ratio, format_tokens, list_scenario_cells, name_race
from zoo.errors import ConfigError

PLACE = "<!-- bench: sections -->"
"""Where a section goes that the page does not have yet."""
WORKLOADS = ("decode", "prefill", "batch", "load", "train", "mlm", "engine")
Report = Mapping[str, Any]


def read_reports(folder: Path) -> dict[str, list[Report]]:
    """Read the reports of a folder by instruction set, in the page's order. Raises ConfigError for a file that holds
    no report."""
    found: dict[str, list[Report]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(report["processor"]["isa"], []).append(report)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: no report of a race, found {error!r} (one that zoo bench --out wrote)"
            ) from error
    return {isa: sorted(reports, key=_order) for isa, reports in found.items()}


def _order(report: Report) -> tuple[Any, ...]:
    race = report["race"]
    return WORKLOADS.index(race["workload"]), race["dtype"], race["compile"], race["weights"], race["batch"]


def replace_section(page: str, isa: str, reports: Sequence[Report]) -> str:
    """Replace the section of one instruction set; a new one goes before the mark `PLACE`. Raises ConfigError for a page
    that has neither."""
    begin, end = f"<!-- bench: {isa} -->", f"<!-- bench: end of {isa} -->"
    section = f"{begin}\n{write_section(isa, reports)}\n{end}"
    if begin in page:
        return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda match: section, page, flags=re.DOTALL)
    if PLACE not in page:
        raise ConfigError(f"page: no section of {isa}, and no line '{PLACE}' to put it before (such a line)")
    return page.replace(PLACE, f"{section}\n\n{PLACE}")


def write_section(isa: str, reports: Sequence[Report]) -> str:
    """Write a section: where it was measured, the table of races, what the bare linears took, and the engine beside
    itself."""
    alone = [report for report in reports if report["race"]["workload"] == "engine"]
    reports = [report for report in reports if report["race"]["workload"] != "engine"]
    names = list(dict.fromkeys(name for report in reports for name in [*report["contenders"], *report["absent"]]))
    names.sort(key=lambda name: (not name.startswith(OURS), name != OURS))  # stable: ours first
    table = [["what", *names, "of linears alone"], ["---"] * (len(names) + 2)]
    table += [[name_race(report["race"]), *_write_cells(report, names), _write_share(report)] for report in reports]
    lines = [f"### {name_isa(isa)}", ""]
    if reports:
        lines += [_describe_place(reports), "", *_write_table(table), "", *_list_notes(reports)]
    for report in alone:
        race, processor = report["race"], report["processor"]
        where = f"{report['date'][:10]}, {processor['name']}, {race['threads']} threads, torch {report['torch']}"
        head = ["the engine beside itself", "value", "baseline", "ratio", "goal"]
        lines += ["", f"{where}:", "", *_write_table([head, ["---"] * 5, *list_scenario_cells(report)])]
    return "\n".join(lines)


def _write_table(rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]


def _write_cells(report: Report, names: Iterable[str]) -> list[str]:
    return [_write_cell(report, name) for name in names]


def _write_cell(report: Report, name: str) -> str:
    """Write a contender's figure, and in brackets our rate ÷ its own."""
    row = report["contenders"].get(name)
    if row is None:
        return "not yet" if report["absent"].get(name, "").startswith("not yet") else "-"
    load = report["race"]["workload"] == "load"
    figure = f"{row['seconds']:.2f} s" if load else f"{row['rate']:,.1f}"
    return figure if name == OURS or not row["ratios"] else f"{figure} ({format_ratio(row['ratios'])})"


def _write_share(report: Report) -> str:
    share = report["contenders"].get(OURS, {}).get("of_linears")
    return "" if share is None else f"{share:.0%}"


def _describe_place(reports: Sequence[Report]) -> str:
    """Describe where and when: for each processor, date and number of threads one paragraph, with all versions."""
    found: dict[str, dict[str, None]] = {}
    for report in reports:
        race, processor = report["race"], report["processor"]
        held = f", held to {name_isa(race['isa'])}" if race["isa"] else ""
        memory = f", {processor['memory_bytes'] / 2**30:.0f} GiB" if processor["memory_bytes"] else ""
        threads = f"{race['threads']} thread{'s' if race['threads'] != 1 else ''}"
        place = f"{report['date'][:10]}, {processor['name']}, {processor['cores']} cores{memory}{held}, {threads}"
        found.setdefault(place, {}).update(dict.fromkeys(_list_versions(report)))
    return "\n\n".join(f"{place}: {', '.join(versions)}." for place, versions in found.items())


def _list_versions(report: Report) -> Iterable[str]:
    """List the versions. Rows with other weights, and zoo's requests one by one, have those of their own worker."""
    for name, row in report["contenders"].items():
        torch = f" on torch {row['torch']}" if row["torch"] else ""
        yield f"{name.split(' ')[0].rstrip(',')} {row['version']}{torch}"


def _list_notes(reports: Sequence[Report]) -> list[str]:
    """List, a race a line: rounds, equal tokens, start-up where compiled, the bare linears, who was absent and why."""
    lines = []
    for report in reports:
        race, rows = report["race"], report["contenders"]
        said = [f"{race['rounds']} rounds" if race["rounds"] != 1 else "1 round"]
        others = [(name, row) for name, row in list(rows.items())[1:] if "tokens" in row]
        if others:
            said.append("greedy tokens " + ", ".join(f"{name} {format_tokens(row)}" for name, row in others))
        if race["compile"]:
            said.append("start-up " + ", ".join(f"{name} {row['startup']:.0f} s" for name, row in rows.items()))
        if ways := {way: ms for of in report["machine"].get("linears", {}).values() for way, ms in of.items()}:
            said.append("linears alone, ms per step: " + ", ".join(f"{way} {ms:.1f}" for way, ms in ways.items()))
        said += [f"{name} multiplies: {row['ways']}" for name, row in rows.items() if row.get("ways")]
        said += [f"{name}: {why}" for name, why in report["absent"].items() if not why.startswith("not raced")]
        if line := describe_crowd(rows):
            said.append(line)
        lines.append(f"- {name_race(race)}: {'; '.join(said)}.")
    return lines
