"""Run all parts of `zoo bench kernels`, one after another within a time limit, and return the report as plain data."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from zoo.bench.kernels import (
    accuracy,
    attention_speed,
    between_products,
    decoding,
    generated_tokens,
    mesh_runs,
    training_mfu,
    vllm,
    whole_runs,
)
from zoo.bench.kernels.device_timing import Limits, describe_machine, measure_limits
from zoo.bench.kernels.processes import CheckPart, Measurement, ReportRow, Settings, run_together
from zoo.errors import ConfigError
from zoo.kernels import KERNELS
from zoo.lazy import torch

ORDER = ("eager", "sdpa", "flash_torch", "flash2", "flash3", "triton", "flash4", "flex")
"""Attention kernels in the order of their checks. Those that compile come last."""

ON_REQUEST = "it is downloaded, so only when asked for (--hub)"

KINDS = ("runs", "tokens", "meshes", "errors", "speed", "training", "decoding", "pieces")
"""Kinds of results in the report. A part's name begins with its kind."""

ALLOWED = {
    **{"device": 60.0, "runs": 240.0, "tokens": 120.0, "meshes": 900.0},
    "meshes 8B": 20.0 + mesh_runs.LARGE_SECONDS,
    **{"errors": 40.0, "errors triton": 90.0, "errors flash4": 60.0, "errors flex": 120.0},
    **{"speed": 25.0, "speed flash4": 40.0, "speed flex": 70.0},
    **{"training": 120.0, "decoding": 100.0, "decoding vllm": 150.0, "pieces": 100.0},
}
"""Time limit in seconds by a part's name, or else by its kind."""

BESIDE = 6
"""Number of processes that share the check of a kernel, if compilation takes most of its time."""


def check_kernels(
    device: str = "cuda",
    *,
    quick: bool = False,
    seed: int = 0,
    fetched: bool = False,
    gpus: int = 1,
    minutes: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
    keep: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Check training runs and generated tokens, then measure kernels' errors and speed, training, decoding and single
    operations on a device; return plain data.

    `minutes` limits all parts together (default: `count_minutes`); parts that have not run by then are left out.
    `quick` uses tiny sizes, which suit a CPU. `fetched` adds the kernels that are downloaded from the hub. `gpus` above
    1 adds runs on that number of GPUs. After each part, `tell` is called with a line, and `keep` with the report so
    far. Raises ConfigError if the device does not exist or does not answer, and for a CPU without `quick`.
    """
    require_device(device, quick, gpus)
    minutes = count_minutes(fetched, gpus) if minutes is None else minutes
    begun, start = datetime.datetime.now(datetime.UTC), time.monotonic()
    settings = Settings(device, quick, seed)
    measured = _run_group([_make_part("device", list_device_jobs)], settings, start, minutes)
    if "limits" not in measured[0]:
        raise ConfigError(f"device: {device} does not answer, found {measured[0]} (another one would do)")
    settings = replace(settings, limits=Limits(**measured[0]["limits"]))
    about = {
        "date": begun.isoformat(timespec="seconds"),
        "seed": seed,
        "quick": quick,
        "minutes": minutes,
        "gpus": gpus,
    }
    about |= {"machine": measured[0]["machine"], "limits": measured[0]["limits"]}
    found: dict[str, list[ReportRow]] = {kind: [] for kind in KINDS}
    if not fetched:
        found["errors"] += [
            {"name": f"{name}: all", "kernel": name, "left_out": ON_REQUEST} for name in list_on_request()
        ]
    report = make_report(about, found, start)
    for group in list_parts(quick, fetched, gpus):
        rows = _run_group(group, settings, start, minutes)
        found[group[0].name.split()[0]] += rows
        tell(f"{group[0].name}: {summarize_rows(rows)}, {time.monotonic() - start:.0f} s")
        report = make_report(about, found, start)
        if keep is not None:
            keep(report)
    return report


def make_report(about: Mapping[str, Any], found: Mapping[str, list[ReportRow]], start: float) -> dict[str, Any]:
    """Make the report of the rows `found` so far, as plain data. `start` is the beginning by time.monotonic()."""
    return {
        **about,
        "seconds": round(time.monotonic() - start, 1),
        "accounting": {
            "runs": whole_runs.ACCOUNTING,
            "tokens": generated_tokens.ACCOUNTING,
            "meshes": mesh_runs.ACCOUNTING,
            "errors": accuracy.RULE,
            "slack": accuracy.SLACK,
            "speed": attention_speed.ACCOUNTING,
            "training": training_mfu.ACCOUNTING,
            "decoding": decoding.ACCOUNTING,
            "pieces": between_products.ACCOUNTING,
        },
        **found,
        "window": attention_speed.find_window_gain(found["speed"]),
    }


def require_device(device: str, quick: bool, gpus: int = 1) -> None:
    """Raise ConfigError for an unavailable device, for more `gpus` than exist, and for a CPU without `quick`."""
    if device not in ("cuda", "cpu"):
        raise ConfigError(f"device: is {device!r} (one of: cuda, cpu)")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: there is no CUDA device that torch can use (--device cpu --quick runs it in small)")
    if device == "cuda" and gpus > (there := torch.cuda.device_count()):
        raise ConfigError(f"gpus: is {gpus}, and there are {there} (--gpus {there})")
    if device == "cpu" and not quick:
        raise ConfigError("device: cpu would take hours (--device cpu --quick runs it in small)")


def list_parts(quick: bool = False, fetched: bool = False, gpus: int = 1) -> Iterator[list[CheckPart]]:
    """Yield lists of parts: training runs, generated tokens, meshes of several GPUs, each kernel's errors, then speed.
    The parts of one list run at the same time."""
    yield [_make_part("runs", whole_runs.list_jobs)]
    yield [_make_part("tokens", generated_tokens.list_jobs)]
    if gpus > 1:
        yield [_make_part("meshes", partial(mesh_runs.list_jobs, gpus=gpus))]
    if gpus >= mesh_runs.LARGE_GPUS and not quick:
        yield [_make_part("meshes 8B", partial(mesh_runs.list_large_jobs, gpus=gpus))]
    kernels = (*ORDER, *(list_on_request() if fetched else ()))
    for kernel in kernels:
        count = BESIDE if kernel in accuracy.COMPILED and not quick else 1
        shares = [partial(accuracy.list_jobs, kernel=kernel, first=first, every=count) for first in range(count)]
        yield [_make_part(f"errors {kernel}", jobs, beside=count > 1) for jobs in shares]
    for kernel in kernels:
        yield [_make_part(f"speed {kernel}", partial(attention_speed.list_jobs, kernel=kernel))]
    for kind, jobs in (
        ("training", training_mfu.list_jobs),
        ("decoding", decoding.list_jobs),
        ("pieces", between_products.list_jobs),
        ("decoding vllm", vllm.list_jobs),
    ):
        yield [_make_part(kind, jobs)]


def count_minutes(fetched: bool = False, gpus: int = 1) -> float:
    """Add the time limits of all parts, in minutes. With this limit no part is left out because others were slow."""
    return (ALLOWED["device"] + sum(group[0].seconds for group in list_parts(False, fetched, gpus))) / 60


def list_on_request() -> list[str]:
    """List the kernels that are downloaded. They run only on request (--hub)."""
    return [name for name, kernel in KERNELS.items() if kernel.on_request]


def _make_part(name: str, jobs: Callable[[Settings], list[Measurement]], *, beside: bool = False) -> CheckPart:
    return CheckPart(name, jobs, ALLOWED.get(name) or ALLOWED[name.split()[0]], beside)


def list_device_jobs(settings: Settings) -> list[Measurement]:
    """List the single job that describes the device and measures its limits."""
    return [Measurement("device", partial(_measure_device, settings))]


def _measure_device(settings: Settings) -> ReportRow:
    return {
        "machine": describe_machine(settings.device),
        "limits": asdict(measure_limits(settings.device, quick=settings.quick)),
    }


def _run_group(group: list[CheckPart], settings: Settings, start: float, minutes: float) -> list[ReportRow]:
    return run_together(group, settings, min(time.monotonic() + group[0].seconds, start + 60 * minutes))


def summarize_rows(rows: list[ReportRow]) -> str:
    """Count the report's rows by state: `40 passed, 3 refused`."""
    states = Counter(map(name_state, rows))
    return ", ".join(f"{count} {name}" for name, count in states.items()) or "nothing"


def name_state(row: Mapping[str, Any]) -> str:
    """Return a row's state: passed, failed, refused, left out, raised, or measured (nothing was required)."""
    for key in ("refused", "left_out", "raised"):
        if key in row:
            return key.replace("_", " ")
    return "measured" if "passed" not in row else "passed" if row["passed"] else "failed"


def list_failures(report: Mapping[str, Any]) -> list[str]:
    """List the failures, a line each. Too small a speedup by a window is a failure too, except in a `quick` run. Jobs
    left out (for lack of time, say) are not failures: the report lists them separately."""
    found = []
    for kind in KINDS:
        for row in report[kind]:
            if "raised" in row:
                found.append(f"{row['name']}: {row['raised']}")
            elif row.get("passed") is False:
                found.append(f"{row['name']}: {row.get('fault') or '; '.join(_too_far(row))}")
    window = report["window"]
    if not report["quick"] and window is not None and not window["passed"]:
        found.append(f"window: gains less than {attention_speed.LEAST_GAIN} over a masked SDPA, found {window}")
    return found


def _too_far(row: ReportRow) -> Iterator[str]:
    for way in ("forward", "backward"):
        if row.get(way, {}).get("passed") is False:
            worst = row[way]["worst"]
            error = row[way]["tensors"][worst]
            size = f"norm {error['norm']:.1e}, largest {error['largest']:.1e}"
            yield f"{way}, {worst}: {row[way]['excess']:.1f} × what is allowed ({size})"
