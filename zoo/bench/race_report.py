"""Make a race's report: medians, paired ratios, fractions of the machine's limits and bare linears, peak memory."""

import dataclasses
import datetime
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.bench.race_plan import OURS, Race, Racer
from zoo.disk import write_text
from zoo.errors import ConfigError

Answers = list[dict[str, Any]]
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int4": 0.5}
ACCOUNTING = {
    "train": "share: 6 N tok/s over the matrix rate; N = {n:,} weights in a product, attention's own not counted",
    "mlm": "tok/s: tokens read, of which 15% are predicted; forward, backward and AdamW",
    "decode": "share: N x weight bytes x steps/s over the read rate; N = {n:,}, cache and activations not counted",
    "prefill": "share: 2 N tok/s over the matrix rate; N = {n:,}, of which the head, {head:,}, at the last token only",
    "batch": "tok/s: new tokens over the seconds from the first prompt to the last token",
    "load": "seconds of a whole process that opens the folder and writes one token; its files were read before",
}


def compute_share(plan: Race, rate: float, machine: Mapping[str, float], weights: str = "") -> float | None:
    """Compute the fraction of the machine's limit (see ACCOUNTING) that `rate` tokens/s achieve; None if it has
    none."""
    if plan.workload in ("batch", "load", "mlm"):
        return None
    n, head = plan.shape.matrix_params, plan.shape.head_params
    if plan.workload == "decode":
        return n * BYTES[weights or plan.dtype] * rate / plan.batch / (machine["read_gb_s"] * 1e9)
    peak = max(machine["gemm_fp32_tflops"], machine[f"gemm_{plan.dtype}_tflops"]) * 1e12  # bf16 may be slower
    if plan.workload == "train":
        return 6 * n * rate / peak
    return 2 * (n - head + head / plan.length) * rate / peak


def compute_linears_share(plan: Race, rate: float, machine: Mapping[str, Any], weights: str = "") -> float | None:
    """Compute the fraction of the bare linears' step rate that `rate` achieves, with the fastest way to multiply at the
    precision `weights` ("": the race's dtype). With linears of 20 ms a step, 40 tok/s at batch 1 achieve 0.8. None if
    the workload is not decoding or no linears were measured."""
    ways = machine.get("linears", {}).get(weights or plan.dtype) if plan.workload == "decode" else None
    return rate / plan.batch * min(ways.values()) / 1e3 if ways else None


def count_same(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> int:
    """Count the equal tokens before the first difference in each sequence, summed over sequences."""
    return sum(_count_prefix(a, b) for a, b in zip(ours, theirs, strict=True))


def _count_prefix(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = list(zip(ours, theirs, strict=True))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))


def make_report(
    plan: Race, racers: Sequence[Racer], runs: Mapping[str, Answers], rounds: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Make the report as plain data. `ratios` are zoo's rate ÷ the row's rate in each round; `ratios_weights` the same
    for zoo with weights of another precision."""
    rows = {racer.name: _make_row(plan, racer, runs, rounds) for racer in racers}
    accounting = ACCOUNTING[plan.workload].format(n=plan.shape.matrix_params, head=plan.shape.head_params)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    race = dataclasses.asdict(plan) | {"rounds": max(map(len, runs.values()), default=0)}
    return {"date": date, "race": race, "machine": take_medians(rounds), "accounting": accounting, "contenders": rows}


def take_medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Take the median of each figure over rounds, recursively in nested mappings."""
    found: dict[str, Any] = {}
    for key, first in rounds[0].items() if rounds else ():
        values = [one[key] for one in rounds if key in one]
        found[key] = take_medians(values) if isinstance(first, Mapping) else statistics.median(values)
    return found


def _make_row(
    plan: Race, racer: Racer, runs: Mapping[str, Answers], rounds: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    answers, weights = runs[racer.name], racer.changes.get("weights", "")
    rates = [answer["rate"] for answer in answers]
    beside = [(rate, one) for rate, one in zip(rates, rounds, strict=False)]
    shares = [compute_linears_share(plan, rate, one, weights) for rate, one in beside]
    linears = [share for share in shares if share is not None]
    row = {
        "version": answers[0]["version"],
        "torch": answers[0]["torch"],
        "rate": statistics.median(rates),
        "rates": rates,
        "share": compute_share(plan, statistics.median(rates), take_medians(rounds), weights),
        "of_linears": statistics.median(linears) if linears else None,
        "peak_bytes": max((a["peak_bytes"] for a in answers if a["peak_bytes"] is not None), default=None),
        "busy": _find_median(answers, "busy"),
        "ways": answers[0].get("ways"),
        "startup": _find_median(answers, "startup"),
        "seconds": _find_median(answers, "seconds") if plan.workload == "load" else None,
    }
    row |= _compare_rates(rates, runs.get(OURS), "ratio")
    row |= _compare_rates(rates, runs.get(f"{OURS} {plan.weights}") if plan.weights else None, "ratio_weights")
    if answers[0].get("first"):
        row["first_token_seconds"] = statistics.median(time for answer in answers for time in answer["first"])
    return row | _compare_made(answers, next(iter(runs.values())))


def _find_median(answers: Answers, key: str) -> float | None:
    values = [answer[key] for answer in answers if answer.get(key) is not None]
    return statistics.median(values) if values else None


def _compare_rates(rates: Sequence[float], ours: Answers | None, name: str) -> dict[str, Any]:
    """Divide zoo's rates by a row's rates in the same rounds. Return the median ratio as `name`, and all ratios."""
    ratios = [mine["rate"] / theirs for mine, theirs in zip(ours or [], rates, strict=False)]
    plural = name.replace("ratio", "ratios")
    return {name: statistics.median(ratios) if ratios else None, plural: ratios}


def _compare_made(answers: Answers, ours: Answers) -> dict[str, Any]:
    """Count the generated tokens that equal the first row's. For `load`, compare the text."""
    if "text" in answers[0]:
        return {"same_tokens": int(answers[0]["text"] == ours[0]["text"]), "tokens": 1}
    if "tokens" not in answers[0]:
        return {}
    made = answers[0]["tokens"]
    return {"same_tokens": count_same(ours[0]["tokens"], made), "tokens": sum(map(len, made))}


def check_place(out: str) -> Path:
    """Check the path of --out, a file or a folder. Raises ConfigError if its folder is missing."""
    path = Path(out).expanduser()
    if not (path.is_dir() or path.parent.is_dir()):
        raise ConfigError(f"--out {out}: there is no folder {path.parent} (one that is there)")
    return path


def name_file(report: Mapping[str, Any]) -> str:
    """Return a report's file name, from instruction set, race and batch: `amx-mlm-fp32-8.json`. A repetition replaces
    it."""
    race = report["race"]
    parts = [report["processor"]["isa"], race["workload"], race["dtype"], str(race["batch"]), race["weights"]]
    parts += ["compiled"] if race["compile"] else []
    return re.sub(r"[^a-z0-9-]+", "-", "-".join(filter(None, parts)).lower()) + ".json"


def write_report(report: Mapping[str, Any], path: Path) -> Path:
    """Write the report as JSON and return the file's path. Raises ConfigError if it cannot be written."""
    return write_at(path, name_file(report), json.dumps(report, indent=1))


def write_at(path: Path, name: str, text: str) -> Path:
    """Write a report's text to the file `path`, or to `name` in the folder `path`. Return the file's path. Raises
    ConfigError if it cannot be written."""
    file = path / name if path.is_dir() else path
    try:
        write_text(file, text + "\n")
    except OSError as error:
        raise ConfigError(f"--out {file}: cannot be written, found {error.strerror} (another place)") from error
    return file
