"""Test a machine's NVIDIA GPUs in about a minute (`zoo doctor --gpu`): whether the attention packages run, whether
copies and matrix products are as fast as the data sheet says, and whether the GPUs reach one another.

Each kernel and each group of rates has its own process: a broken package costs only its own row of the report.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from zoo.bench.kernels.accuracy import check_case
from zoo.bench.kernels.cases import find_case
from zoo.bench.kernels.device_timing import (
    describe_machine,
    measure_copy,
    measure_products,
    name_device,
    synchronize,
    time_call,
)
from zoo.bench.kernels.processes import CheckPart, Measurement, ReportRow, Settings, run_together
from zoo.costs.hardware import Hardware, of_device
from zoo.errors import ConfigError
from zoo.kernels.found import OLDEST, PACKAGES
from zoo.lazy import torch
from zoo.report import align_columns, format_si, wrap_text
from zoo.run.cuda_start import refuse_unusable_gpu
from zoo.run.environment import find_version

MINUTE = 60.0
"""Default time limit in seconds. After it no part begins, and a running part is stopped."""

KERNELS = {
    "sdpa": None,
    "flash_torch": None,
    "flash2": "flash-attn",
    "flash3": "flash-attn-3",
    "flash4": "flash-attn-4",
    "flex": "triton",
    "triton": "triton",
}
"""The attention kernels that are tried, each with its package; None for those in torch."""

READS_PAGES = "triton"
"""The kernel that is tried on a paged cache. `zoo generate` uses it for paged caches if flash-attn is missing."""

DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8")

SIZES, QUICK_SIZES = (1 << 20, 1 << 24, 1 << 28), (1 << 12, 1 << 16)
"""Sizes of the all-reduced tensors, in bytes."""

LEAST = 0.6
"""Least fraction of the data sheet's rate. Below it the report says what to look at."""

WIDTH = 120


def look(
    device: str = "cuda", *, gpus: int | None = None, quick: bool = False, seconds: float = MINUTE
) -> dict[str, Any]:
    """Test the GPUs and return the findings as plain data. The device `cpu`, with `quick` and a number of processes as
    `gpus`, runs a small version without a GPU. Raises ConfigError if there is no NVIDIA device that torch can use."""
    if device == "cuda":
        require_gpu()
    count = gpus or torch.cuda.device_count()
    measure = partial(run_together, settings=Settings(device, quick), until=time.monotonic() + seconds)
    rates = measure([CheckPart("rates", list_rates, seconds)])
    links = measure([CheckPart("links", partial(list_links, count=count), seconds)]) if count > 1 else []
    trials = [CheckPart(name, partial(list_trials, kernel=name), seconds, beside=True) for name in KERNELS]
    nccl = read_nccl_version() if device == "cuda" and count > 1 else None
    found = {"machine": describe_machine(device), "gpus": count, "nccl": nccl, "rates": rates, "links": links}
    return {**found, "kernels": measure(trials), "sheet": read_sheet(device)}


def read_nccl_version() -> str:
    """Return the version of NCCL that torch is linked with."""
    from torch.cuda import nccl

    return ".".join(map(str, nccl.version()))


def require_gpu() -> None:
    """Raise ConfigError if this machine has no NVIDIA device that torch can use."""
    if not torch.cuda.is_available():
        refuse_unusable_gpu()
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        found = f"no NVIDIA device, and torch {torch.__version__} {built}"
        raise ConfigError(f"--gpu: needs a GPU, found {found} (`zoo doctor` describes this machine)")


def read_sheet(device: str) -> dict[str, float]:
    """Return the data sheet's rates: FLOP/s by dtype, `copy` and `link` in bytes per second; {} for an unknown card."""
    card: Hardware | None = of_device(name_device(device))
    if card is None:
        return {}
    link = {} if card.link is None else {"link": card.link}
    return {**{dtype: card.flops(dtype) for dtype in DTYPES if dtype in card.tflops}, "copy": card.bandwidth, **link}


# ---------------------------------------------------------------- what is measured


def list_rates(settings: Settings) -> list[Measurement]:
    """List the measurements of a copy and of products in each dtype."""
    device, quick = settings.device, settings.quick
    copy = Measurement("copy", lambda: {"rate": measure_copy(device, quick=quick)})
    return [copy, *(Measurement(each, partial(_measure_rate, each, device, quick)) for each in DTYPES)]


def _measure_rate(dtype: str, device: str, quick: bool) -> ReportRow:
    if dtype == "fp8" and device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        return {"refused": "needs compute capability 8.9"}
    return {"rate": measure_products(dtype, device, quick=quick)}


def list_trials(settings: Settings, *, kernel: str) -> list[Measurement]:
    """List the single call of a kernel that is compared with eager attention, forward and (if it has one) backward."""
    case = find_case("pages of 16" if kernel == READS_PAGES else "causal")
    return [Measurement(kernel, partial(check_case, kernel, case, "bfloat16", settings))]


def list_links(settings: Settings, *, count: int) -> list[Measurement]:
    """List the copy to another GPU, and the all-reduce over all GPUs."""
    reduce = Measurement("all-reduce", partial(time_all_reduce, settings, count))
    return [reduce] if settings.device == "cpu" else [Measurement("copy to GPU 1", partial(time_peer_copy)), reduce]


def time_peer_copy() -> ReportRow:
    """Time a copy from GPU 0 to GPU 1, in bytes per second, and say whether the GPUs can access each other's memory."""
    a = torch.ones(SIZES[-1], dtype=torch.uint8, device="cuda:0")
    b = torch.empty_like(a, device="cuda:1")
    rate = len(a) / time_call(lambda: b.copy_(a), "cuda")
    return {"rate": rate, "peer": torch.cuda.can_device_access_peer(0, 1)}


def time_all_reduce(settings: Settings, count: int) -> ReportRow:
    """Time an all-reduce over `count` processes, one per GPU, with NCCL (gloo on a CPU). `rate`, by size in bytes, is
    the bus bandwidth as in nccl-tests, 2·(n − 1)/n × bytes ÷ seconds. It cannot exceed the link's rate."""
    from torch.multiprocessing.spawn import spawn

    sizes = QUICK_SIZES if settings.quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        spawn(_reduce, (count, settings.device, sizes, folder), nprocs=count)
        seconds = map(float, Path(folder, "seconds").read_text().split())
    share = 2 * (count - 1) / count
    return {"ranks": count, "rates": {size: share * size / each for size, each in zip(sizes, seconds, strict=True)}}


def _reduce(rank: int, count: int, device: str, sizes: tuple[int, ...], folder: str) -> None:
    from torch import distributed

    os.environ.setdefault("NCCL_DEBUG", "WARN")
    if device == "cuda":
        torch.cuda.set_device(rank)
    store = distributed.FileStore(f"{folder}/store", count)  # type: ignore[reportPrivateImportUsage]
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    taken = []
    for size in sizes:
        value = torch.ones(size // 4, device=device)
        for calls in (3, 10):  # the first are not timed
            synchronize(device)
            start = time.perf_counter()
            for _ in range(calls):
                distributed.all_reduce(value)
            synchronize(device)
        taken.append((time.perf_counter() - start) / calls)
    if rank == 0:
        Path(folder, "seconds").write_text(" ".join(map(str, taken)))
    distributed.destroy_process_group()


# ---------------------------------------------------------------- the page


def format_findings(found: Mapping[str, Any]) -> str:
    """Format the findings as text: the machine, kernels, rates, links, and advice."""
    blocks = [_describe(found), _list_kernels(found), _list_rates(found), _list_links(found)]
    todo = list(advise(found))
    blocks += [["To do", *(wrap_text(each, 2, 4, WIDTH) for each in todo)] if todo else ["Nothing to do."]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _describe(found: Mapping[str, Any]) -> list[str]:
    machine, versions = found["machine"], found["machine"]["versions"]
    about = [machine["name"] if found["gpus"] == 1 else f"{found['gpus']} × {machine['name']}"]
    if "memory" in machine:
        about += [f"{machine['memory'] / 2**30:.0f} GiB", "compute capability {}.{}".format(*machine["capability"])]
    torch_built = f"torch {versions['torch']}" + (f" for CUDA {versions['cuda']}" if versions["cuda"] else "")
    nccl = [f"NCCL {found['nccl']}"] if found["nccl"] else []
    return [", ".join(about), ", ".join([f"driver {machine.get('driver') or 'unknown'}", torch_built, *nccl])]


def _list_kernels(found: Mapping[str, Any]) -> list[str]:
    rows = [("Attention in bfloat16", "", "", "")]
    for row in found["kernels"]:
        package = KERNELS[row["name"]]
        version = "torch" if package is None else f"{package} {find_version(package) or ''}".strip()
        state = "runs" if row.get("passed") else "no"
        rows.append((f"  {row['name']}", version, state, "" if row.get("passed") else _explain(row)))
    return align_columns(rows).splitlines()


def _explain(row: Mapping[str, Any]) -> str:
    if row.get("passed") is False:
        return "its result is wrong: " + ", ".join(way for way in ("forward", "backward") if way in row)
    return next((str(row[key]) for key in ("refused", "raised", "left_out") if key in row), "")


def _list_rates(found: Mapping[str, Any]) -> list[str]:
    rows = [("Rates", "measured", "data sheet", "share")]
    for row in found["rates"]:
        unit, sheet = "B/s" if row["name"] == "copy" else "FLOP/s", found["sheet"].get(row["name"])
        share = f"{row['rate'] / sheet:.0%}" if sheet and "rate" in row else ""
        told = format_si(row["rate"], unit) if "rate" in row else "-"
        rows.append((f"  {row['name']}", told, format_si(sheet, unit) if sheet else "-", share or _explain(row)))
    return align_columns(rows, right=(1, 2)).splitlines()


def _list_links(found: Mapping[str, Any]) -> list[str]:
    if not found["links"]:
        return []
    link, lines = found["sheet"].get("link"), []
    for row in found["links"]:
        if "rates" in row:
            told = ", ".join(
                f"{format_si(rate, 'B/s')} at {size / 2**20:.3g} MiB" for size, rate in row["rates"].items()
            )
            lines.append(f"  all-reduce over {row['ranks']}: {told}")
        elif "rate" in row:
            way = "direct" if row["peer"] else "through the host"
            lines.append(f"  {row['name']}: {format_si(row['rate'], 'B/s')}, {way}")
        else:
            lines.append(f"  {row['name']}: {_explain(row)}")
    return ["Links" + (f" (data sheet: {format_si(link, 'B/s')} in each direction)" if link else ""), *lines]


def advise(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield advice on what to install and what to look at, one line each."""
    for row in found["kernels"]:
        package = KERNELS[row["name"]]
        refusal = row.get("refused", "")
        if package in PACKAGES and ("not installed" in refusal or "is older than" in refusal):
            yield f"{row['name']}: {OLDEST[package][2] if 'is older than' in refusal else PACKAGES[package]}"
        elif "raised" in row or row.get("passed") is False:
            again = PACKAGES.get(package or "", "another version of torch")
            yield f"{row['name']} does not work here, and kernel=auto may take it: {again}, or uninstall it"
    if found["machine"]["device"] == "cuda" and find_version("triton") is None:
        yield "torch.compile: pip install triton"
    slow = [row["name"] for row in found["rates"] if "rate" in row and _share(row, found["sheet"]) < LEAST]
    if slow:
        why = "another program, or capped clocks? (nvidia-smi -q -d CLOCK,POWER)"
        yield f"{', '.join(slow)} below {LEAST:.0%} of the data sheet: {why}"
    for row in found["links"]:
        if row.get("peer") is False:
            yield "GPUs copy through the host: is there a link? (nvidia-smi topo -m)"
        elif "raised" in row:
            yield f"{row['name']} fails: NCCL_DEBUG=INFO zoo doctor --gpu says more"


def _share(row: Mapping[str, Any], sheet: Mapping[str, float]) -> float:
    return row["rate"] / sheet[row["name"]] if row["name"] in sheet else 1.0
