"""Format the report of `zoo bench kernels` as text, compare it with its goals, and write it as JSON."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from zoo.bench.kernels import decoding, mesh_runs, vllm
from zoo.bench.kernels.checking import KINDS, list_failures, name_state
from zoo.bench.kernels.processes import ReportRow
from zoo.bench.race_report import check_place as find_place
from zoo.bench.race_report import write_at
from zoo.errors import ConfigError
from zoo.report import align_columns, format_share, format_si, wrap_text

KEPT = ("docs", "gpu")
"""The folder of published results. Only complete runs on a GPU may be written there."""

MOST = 12
"""Maximum number of failures that the text lists by name."""

WIDTH = 120

MFU = {"Llama 1.2 B": 0.45}
"""Goal for the MFU of training on one H100, by model."""


# ---------------------------------------------------------------- the file


def check_place(out: str | None, device: str, quick: bool) -> Path | None:
    """Check the path of --out, a file or a folder. Raises ConfigError for a missing folder, and for a quick run in the
    folder of published results."""
    if out is None:
        return None
    path = find_place(out)
    if quick and KEPT in pairwise(path.absolute().parts):
        raise ConfigError(f"--out {out}: {_disclaimer(device)} ({'/'.join(KEPT)} holds whole runs on a GPU alone)")
    return path


def _disclaimer(device: str) -> str:
    return f"{device}, quick: not a {'GPU result' if device == 'cpu' else 'result to keep'}"


def write_report(report: Mapping[str, Any], path: Path) -> Path:
    """Write the report as JSON and return the file's path. Raises ConfigError if it cannot be written."""
    return write_at(path, name_file(report), format_report(report))


def name_file(report: Mapping[str, Any]) -> str:
    """Return a report's file name, from date and device: `2026-11-25-nvidia-h100-80gb-hbm3.json`."""
    card = re.sub(r"[^a-z0-9]+", "-", report["machine"]["name"].lower()).strip("-")
    return f"{report['date'][:10]}-{card}.json"


def format_report(report: Mapping[str, Any]) -> str:
    """Format the report as strict JSON. NaN and infinity become strings, because JSON has neither."""
    return json.dumps(_finite(report), indent=1, allow_nan=False)


def _finite(node: object) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _finite(each) for key, each in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(each) for each in node]
    return str(node) if isinstance(node, float) and not math.isfinite(node) else node


# ---------------------------------------------------------------- the table


def format_table(report: Mapping[str, Any]) -> str:
    parts = (_head, _goals, _runs, _errors, _speed, _page_reads, _models, _pieces, _left_out, _failures)
    blocks = [list(part(report)) for part in parts]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _head(report: Mapping[str, Any]) -> list[str]:
    machine, limits, versions = report["machine"], report["limits"], report["machine"]["versions"]
    title = ", ".join(
        [
            machine["name"],
            *([f"driver {machine['driver']}"] if machine.get("driver") else []),
            *(f"{name} {version}" for name, version in versions.items() if version),
        ]
    )
    lines = [wrap_text(f"{report['date'][:10]}, {report['seconds']:.0f} s: {title}", 0, 2, WIDTH)]
    if report["quick"]:
        lines += [_disclaimer(machine["device"])]
    rates = ", ".join(f"{format_si(rate, 'FLOP/s')} in {dtype}" for dtype, rate in limits["flops"].items())
    return [*lines, f"measured: products {rates}; copy {format_si(limits['copy'], 'B/s')}"]


def _goals(report: Mapping[str, Any]) -> list[str]:
    """List the goals with the measured figures, and say which were missed."""
    rows = [("goals", "measured", "goal", "")]
    for goal in list_goals(report):
        measured = "-" if goal.figure is None else _format_goal(goal, goal.figure)
        rows.append((f"  {goal.name}", measured, _format_goal(goal, goal.least), goal.state))
    return align_columns(rows, right=(1, 2)).splitlines() if rows[1:] else []


def _format_goal(goal: Goal, figure: float) -> str:
    return format_share(figure, 1) if goal.share else f"{figure:.2f} ×"


def _runs(report: Mapping[str, Any]) -> list[str]:
    """List training runs and generated tokens, a line each."""
    rows = []
    for row in (*report["runs"], *report["tokens"], *report["meshes"]):
        told = [f"loss {row['first']:.2f} to {row['last']:.2f}"] if "first" in row else []
        told += [f"losses within {row['apart']:.0e} of one run's"] if "apart" in row else []
        told += [f"MFU {format_share(row['mfu'], 1)}"] if isinstance(row.get("mfu"), float) else []
        told += [f"{row['tokens_per_second']:,.0f} tok/s"] if "tokens_per_second" in row else []
        told += [f"{row['allocated'] / row['priced']:.2f} × the priced memory"] if row.get("priced") else []
        told += [f"{way}: {row[way]['worst']:.2f} errors" for way in row.get("ways", ())]
        told += [row[key] for key in ("fault", "refused", "raised", "left_out") if key in row]
        rows += [(row["name"], name_state(row), ", ".join(told))]
    return align_columns(rows).splitlines() if rows else []


def _errors(report: Mapping[str, Any]) -> list[str]:
    """List one line per kernel: cases by state, and each pass' largest error as a multiple of the allowed error."""
    by_kernel: dict[str, list[ReportRow]] = {}
    for row in report["errors"]:
        by_kernel.setdefault(row.get("kernel", row["name"].partition(":")[0].removeprefix("errors ")), []).append(row)
    states = ("passed", "failed", "raised", "left out", "refused")
    rows = [("errors", *states, "worst forward", "worst backward")]
    for kernel, found in by_kernel.items():
        counts = [sum(name_state(row) == each for row in found) for each in states]
        reasons = {row.get("refused", "") for row in found}
        told = (_worst(found, way) for way in WAYS) if len(reasons) > 1 or "" in reasons else (*reasons, "")
        rows += [(kernel, *(f"{count or '-'}" for count in counts), *told)]
    return align_columns(rows, right=range(1, 1 + len(states))).splitlines()


WAYS = ("forward", "backward")


def _worst(rows: list[ReportRow], way: str) -> str:
    """Format the largest error as a multiple of the allowed error: `0.71 q, bfloat16, long rows`."""
    found = [row for row in rows if "excess" in row.get(way, {})]
    if not found:
        return "-"
    row = max(found, key=lambda row: row[way]["excess"])
    return f"{row[way]['excess']:.2f} {row[way]['worst']}, {row['dtype']}, {row['case']}"


def _speed(report: Mapping[str, Any]) -> list[str]:
    """List FLOP/s by sequence length at the widest heads, forward and in both passes, then the speedup by a window."""
    rates = [row for row in report["speed"] if "flops_per_second" in row.get("forward", {})]
    if not rates:
        return []
    width = max(row["head_dim"] for row in rates)
    lengths = sorted({row["length"] for row in rates})
    rows = [(f"TFLOP/s, heads of {width}", *(f"{length:,}" for length in lengths))]
    for kernel in dict.fromkeys(row["kernel"] for row in rates):
        cells = {row["length"]: row for row in rates if row["kernel"] == kernel and row["head_dim"] == width}
        rows += [(f"{kernel}", *(_rates(cells.get(length, {})) for length in lengths))]
    return [*align_columns(rows, right=range(1, 1 + len(lengths))).splitlines(), *_window(report["window"])]


def _rates(row: ReportRow) -> str:
    """Format TFLOP/s of the forward pass and of both: `620 / 480`."""
    found = [row[way]["flops_per_second"] / 1e12 for way in ("forward", "both") if way in row]
    return " / ".join(f"{rate:.3g}" for rate in found) or "-"


def _window(gain: Mapping[str, Any] | None) -> Iterator[str]:
    if gain is None:
        return
    told = [f"{gain[way]['kernel']} {gain[way]['ratio']:.2f} × {name}" for way, name in PASSES.items() if way in gain]
    what = f"window of {gain['window']:,} in {gain['length']:,} tokens, against SDPA with a mask"
    yield f"{what}: {', '.join(told) or 'no other kernel'} (at least {gain['least']})"


PASSES = {"forward": "forward", "both": "forward and backward"}


def _page_reads(report: Mapping[str, Any]) -> list[str]:
    """List, by kernel and layer, the microseconds of a decoding step's attention from a paged cache and the fraction of
    copy bandwidth."""
    found = {(row["kernel"], row["layer"]): row for row in report["speed"] if "seconds" in row and "layer" in row}
    layers = list(dict.fromkeys(layer for _, layer in found))
    rows = [("paged decoding, µs (fraction of copy bandwidth)", *layers)]
    for kernel in dict.fromkeys(kernel for kernel, _ in found):
        rows += [(kernel, *(_read_pages(found.get((kernel, layer))) for layer in layers))]
    return align_columns(rows, right=range(1, 1 + len(layers))).splitlines() if layers else []


def _read_pages(row: ReportRow | None) -> str:
    if row is None:
        return "-"
    share = row["share_of_copy"]
    return f"{row['seconds'] * 1e6:,.0f}" + ("" if share is None else f" ({format_share(share, 1)})")


def _models(report: Mapping[str, Any]) -> list[str]:
    """List one line per model that was trained or decoded."""
    lines = []
    for row in report["training"]:
        if "mfu" in row:
            mfu = [
                f"{', '.join(f'{format_share(each, 1)} {name}' for name, each in found.items())} of {peak}"
                for peak, found in row["mfu"].items()
            ]
            size = f"{row['rows']} × {row['length']:,} tokens, {row['kernel']}"
            predicted = row.get("predicted_seconds")
            mfu += [] if predicted is None else [f"predicted {predicted / row['step_seconds']:.2f} × the measured time"]
            lines += [f"train {row['model']}, {size}: {row['tokens_per_second']:,.0f} tok/s; MFU {'; '.join(mfu)}"]
    lines += [line for row in report["decoding"] for line in _decoding(row, report["decoding"])]
    return [wrap_text(line, 0, 2, WIDTH) for line in lines]


def _decoding(row: ReportRow, rows: list[ReportRow]) -> Iterator[str]:
    """Format one row of decoding: the comparison of tokens, a timed model, or vLLM's rate."""
    if "ways" in row and row["passed"]:
        yield f"decode in float32, {' and '.join(row['ways'])}: the tokens are those of a CPU"
    if "tokens_per_second" not in row:
        return
    name, rate = f"decode {row['model']}, {decoding.count_rows(row['rows'])}", f"{row['tokens_per_second']:,.1f} tok/s"
    if "peer" in row:
        alike = (each for each in rows if (each.get("model"), each.get("rows")) == (row["model"], row["rows"]))
        ours = next((each["tokens_per_second"] for each in alike if each is not row and "kernel" in each), None)
        ratio = "" if ours is None else f"; ours {ours / row['tokens_per_second']:.2f} × that (goal {vllm.LEAST})"
        yield f"{name}, {row['peer']}: {rate}{ratio}"
        return
    goal = "" if row["goal"] is None else f" (goal {format_share(row['goal'], 1)})"
    read = f"{format_si(row['bytes_per_step'], 'B')} per step, {format_share(row['share_of_copy'], 1)}"
    read += f" of copy bandwidth{goal}"
    plain = f"; without graphs {row['plain']['tokens_per_second']:,.1f} tok/s" if "plain" in row else ""
    refusal = row["graphs"]["refusal"]
    refused = "" if refusal is None else f"; no graphs: {refusal}"
    yield f"{name}, {row['kernel']}, pages of {row['page']}: {rate}; {read}{plain}{refused}"


def _pieces(report: Mapping[str, Any]) -> list[str]:
    """List one line per operation, with the microseconds of each implementation."""
    found = [row for row in report["pieces"] if "both" in row]
    if not found:
        return []
    names = list(dict.fromkeys(row["piece"] for row in found))
    lines = []
    for name in names:
        told = [f"{row['way']} {_micro(row)}" for row in found if row["piece"] == name]
        lines += [(f"  {name}", ", ".join(told))]
    return ["µs, forward / forward and backward (fraction of copy bandwidth)", *align_columns(lines).splitlines()]


def _micro(row: ReportRow) -> str:
    times = " / ".join(f"{row[way]['seconds'] * 1e6:,.0f}" for way in ("forward", "both") if way in row)
    part = row["both"].get("share_of_copy")
    return times if part is None else f"{times} ({format_share(part, 1)})"


def _left_out(report: Mapping[str, Any]) -> Iterator[str]:
    """List why measurements were left out, one line per reason."""
    rows = [(kind, row) for kind in KINDS for row in report[kind] if "left_out" in row]
    for reason in dict.fromkeys(row["left_out"] for _, row in rows):
        names = [f"{kind} {row['name']}" for kind, row in rows if row["left_out"] == reason]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield wrap_text(f"left out: {names[0]}{more}: {reason}", 0, 2, WIDTH)


def _failures(report: Mapping[str, Any]) -> list[str]:
    found = list_failures(report)
    if not found:
        states = Counter(goal.state for goal in list_goals(report))
        return [f"no failures{'; goals: ' if states else ''}{', '.join(f'{n} {state}' for state, n in states.items())}"]
    more = [f"and {len(found) - MOST} more"] if len(found) > MOST else []
    return [f"{len(found)} failures", *(wrap_text(line, 2, 6, WIDTH) for line in found[:MOST]), *more]


# ---------------------------------------------------------------- the goals


class Goal(NamedTuple):
    """A goal: name, measured figure (None: not measured), least figure that meets it, and whether both are
    fractions."""

    name: str
    figure: float | None
    least: float
    share: bool = True

    @property
    def state(self) -> str:
        """The outcome: met, missed, or not measured."""
        return "not measured" if self.figure is None else "met" if self.figure >= self.least else "missed"


def list_goals(report: Mapping[str, Any]) -> Iterator[Goal]:
    """Yield the goals of a report. A quick report has none: the goals are for the full sizes."""
    if report["quick"]:
        return
    for model, least in MFU.items():
        found = _find(report["training"], model=model).get("mfu", {}).get("sheet", {})
        yield Goal(f"train {model}: MFU of the data sheet's bf16", found.get("exact"), least)
    large = _find(report["meshes"], model="Llama 3 8B")
    yield Goal("train Llama 3 8B over all GPUs: MFU", large.get("mfu"), mesh_runs.GOAL)
    for model in decoding.MODELS:
        found = _find(report["decoding"], model=model.name, rows=1)
        yield Goal(f"decode {model.name}, 1 row: share of the bandwidth", found.get("share_of_copy"), decoding.GOAL)
    name, many = decoding.MODELS[-1].name, max(decoding.ROWS)
    rows = [row for row in report["decoding"] if (row.get("model"), row.get("rows")) == (name, many)]
    ours, theirs = (
        next((row for row in rows if key in row), {}).get("tokens_per_second") for key in ("kernel", "peer")
    )
    ratio = ours / theirs if ours and theirs else None
    yield Goal(f"decode {name}, {decoding.count_rows(many)}: of vLLM's tokens/s", ratio, vllm.LEAST, share=False)


def _find(found: list[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    return next((row for row in found if all(row.get(name) == value for name, value in wanted.items())), {})
