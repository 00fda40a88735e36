"""Compare contenders' speed with the same weights and threads, each in fresh processes, by medians and paired ratios.

A machine's speed drifts, so each round runs every contender once, and a ratio is the median over rounds of two rates
of the same round. Before any ratio is given, the contenders' float32 logits must be equal, and so must the logits or
losses of the timed runs.
"""

import dataclasses
import json
import math
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.bench.plan import INSTALL, OURS, Race
from zoo.errors import ConfigError, ZooError

MACHINE = "machine"
"""The worker that measures the machine itself, under zoo's interpreter."""
WORKERS = Path(__file__).parent / "workers"
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest difference between contenders, as a share of the largest value: rounding, not another function."""
BYTES = {"fp32": 4, "bf16": 2}
ACCOUNTING = {
    "train": "share: 6 N tok/s over the matrix rate; N = {n:,} weights in a product, attention's own not counted",
    "decode": "share: N x weight bytes x steps/s over the read rate; N = {n:,}, cache and activations not counted",
    "prefill": "share: 2 N tok/s over the matrix rate; N = {n:,}, of which the head, {head:,}, at the last token only",
}


def run_worker(name: str, python: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a worker in a fresh process and parse its last line as JSON. Raises ConfigError for a missing peer, and
    ZooError if the worker fails."""
    command = [python, str(WORKERS / f"run_{name}.py"), json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=_make_environment(name, job), check=False)
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(f"--peer-python {name}={python}: {error.strerror} (a Python that has {name})") from error
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if last.startswith("missing: "):
        found = f"{python} says: {last.removeprefix('missing: ')}"
        cure = f"{INSTALL[name]}; or --peer-python {name}=PATH, the Python of an environment that has it"
        raise ConfigError(f"--against {name}: {found} ({cure})")
    if done.returncode < 0:
        raise ZooError(f"{name} {job['workload']}: ended by signal {-done.returncode} (9 is often a lack of memory)")
    if done.returncode:
        raise ZooError(f"{name} {job['workload']}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _make_environment(name: str, job: Mapping[str, Any]) -> dict[str, str]:
    env = dict(os.environ)
    if threads := job["threads"]:
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if name in (OURS, MACHINE):
        # A script run by path finds only its own folder: this is how it finds a checkout that is not installed.
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return env


def measure_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Measure the largest absolute difference relative to the largest value; infinite if a value is NaN."""
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return math.inf if any(map(math.isnan, gaps)) else max(gaps) / max(map(abs, theirs))


def require_equal(what: str, values: Mapping[str, Sequence[float]], tolerance: float) -> dict[str, float]:
    """Measure each peer's difference from ours. Raises ZooError above `tolerance`, because the ratio would compare two
    different functions."""
    gaps = {name: measure_difference(values[OURS], theirs) for name, theirs in values.items() if name != OURS}
    for name, gap in gaps.items():
        if gap > tolerance:
            found = f"differ from ours by {gap:.2g} of the largest"
            raise ZooError(f"{name}: its {what} {found}, at most {tolerance:g} is rounding; nothing is compared")
    return gaps


def run_race(plan: Race, pythons: Mapping[str, str], tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the whole comparison and return its report as plain data. `tell` is called with lines of progress."""
    plan = choose_threads(plan, pythons[OURS], tell)
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
        weights = str(Path(folder) / "weights.safetensors")
        run_worker(OURS, pythons[OURS], plan.job(weights, workload="export"))
        check = plan.job(weights, workload="check")
        checks = {name: run_worker(name, python, check) for name, python in pythons.items()}
        gaps = {"fp32 logits": require_equal("fp32 logits", _pick_values(checks, "logits"), TOLERANCE["fp32"])}
        if len(pythons) > 1:
            tell(
                "same function: fp32 logits differ by "
                + ", ".join(f"{n} {g:.1g}" for n, g in gaps["fp32 logits"].items())
            )
        runs, machine = _run_rounds(plan, pythons, weights, tell)
    computed = "losses" if plan.workload == "train" else "logits"
    first = _cut_to_shortest(_pick_values({name: answers[0] for name, answers in runs.items()}, computed))
    gaps[f"{plan.dtype} {computed}"] = require_equal(f"{plan.dtype} {computed}", first, TOLERANCE[plan.dtype])
    return make_report(plan, runs, machine) | {"differences": gaps}


def _pick_values(answers: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    return {name: answer[key] for name, answer in answers.items()}


def _cut_to_shortest(values: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Cut each contender's values to the length that all have, because a slow one takes fewer steps in its time."""
    length = min(map(len, values.values()))
    return {name: each[:length] for name, each in values.items()}


def choose_threads(plan: Race, python: str, tell: Callable[[str], None]) -> Race:
    """Set the number of threads: the one given, or the one that a probe finds fastest now."""
    if plan.threads is not None:
        return plan
    found = run_worker(MACHINE, python, plan.job("", workload="threads"))
    if found["why"]:
        tell(f"every contender computes with {found['why']}")
    return dataclasses.replace(plan, threads=found["threads"])


def _run_rounds(
    plan: Race, pythons: Mapping[str, str], weights: str, tell: Callable[[str], None]
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, float]]]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    machine = []
    for number in range(1, plan.rounds + 1):
        machine.append(run_worker(MACHINE, pythons[OURS], plan.job(weights, workload="machine")))
        for name, python in pythons.items():
            runs[name].append(run_worker(name, python, plan.job(weights)))
        rates = ", ".join(f"{name} {answers[-1]['rate']:,.1f}" for name, answers in runs.items())
        tell(f"round {number} of {plan.rounds}: {rates} tok/s")
    return runs, machine


def compute_share(plan: Race, rate: float, machine: Mapping[str, float]) -> float:
    """Compute the achieved fraction of the machine's limit from tokens per second; ACCOUNTING says what is counted."""
    n, head = plan.shape.matrix_params, plan.shape.head_params
    peak = max(machine["gemm_fp32_tflops"], machine[f"gemm_{plan.dtype}_tflops"]) * 1e12  # bf16 may be the slower
    if plan.workload == "train":
        return 6 * n * rate / peak
    if plan.workload == "prefill":
        return 2 * (n - head + head / plan.length) * rate / peak
    return n * BYTES[plan.dtype] * rate / plan.batch / (machine["read_gb_s"] * 1e9)


def make_report(plan: Race, runs: Mapping[str, list[dict[str, Any]]], rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Make the report: medians, ratios (our rate ÷ theirs), fractions of the machine's limit and peak memory."""
    machine = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    accounting = ACCOUNTING[plan.workload].format(n=plan.shape.matrix_params, head=plan.shape.head_params)
    contenders = {name: _make_row(plan, answers, runs[OURS], machine) for name, answers in runs.items()}
    return {"race": dataclasses.asdict(plan), "machine": machine, "accounting": accounting, "contenders": contenders}


def _make_row(
    plan: Race, answers: list[dict[str, Any]], ours: list[dict[str, Any]], machine: Mapping[str, float]
) -> dict[str, Any]:
    rates = [answer["rate"] for answer in answers]
    ratios = [mine["rate"] / theirs for mine, theirs in zip(ours, rates, strict=True)]
    row = {
        "version": answers[0]["version"],
        "torch": answers[0]["torch"],
        "rate": statistics.median(rates),
        "rates": rates,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "share": compute_share(plan, statistics.median(rates), machine),
        "peak_bytes": max((a["peak_bytes"] for a in answers if a["peak_bytes"] is not None), default=None),
        "busy": statistics.median(answer["busy"] for answer in answers),
    }
    if plan.workload != "train":
        row["first_token_seconds"] = statistics.median(time for answer in answers for time in answer["first"])
    return row
