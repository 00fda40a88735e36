"""Measure this machine: FLOP/s of matrix products, memory read bandwidth, a model's bare linears, and the fastest
number of threads; and describe the processor and its instruction set.

FLOP/s are the best over several shapes, in float32 and in bfloat16. Bandwidth is the median of a float32 matrix-vector
product over 400 MB, as in decoding; it reads faster than a plain sum. Each measurement takes a fraction of a second on
any machine. Runs under zoo's own Python.
"""

import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import linears
import timing
import torch

from zoo.run.threads import use_fastest_threads
from zoo.training.speed import SHAPES, measure_product_rate

LARGE = (2048, 2048, 2048)
SPEND = 0.5  # seconds for the products of one dtype, and for reading
CPU = torch.device("cpu")


def measure_matrix_rate(dtype: torch.dtype) -> float:
    return measure_product_rate(CPU, dtype, (*SHAPES, LARGE), SPEND) / 1e12


def measure_read_rate(megabytes: int) -> float:
    columns = 4096
    matrix = torch.randn(megabytes * 2**20 // (4 * columns), columns)
    vector, out = torch.randn(columns), torch.empty(len(matrix))
    torch.mv(matrix, vector, out=out)
    times = timing.time_calls(lambda: torch.mv(matrix, vector, out=out), SPEND)
    return 4 * matrix.numel() / statistics.median(times) / 1e9


def measure_limits(job: dict[str, Any]) -> dict[str, Any]:
    """Measure the machine's rates with the job's threads, and for decoding the bare linears of its precisions."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    rates: dict[str, Any] = {
        "gemm_fp32_tflops": measure_matrix_rate(torch.float32),
        "gemm_bf16_tflops": measure_matrix_rate(torch.bfloat16),
        "read_gb_s": measure_read_rate(400),
    }
    return rates | {"linears": linears.time_linears(job, job["precisions"])}


def choose_threads() -> dict[str, Any]:
    """Choose the number of threads that is fastest now; `why` is None if torch's default stays."""
    choice = use_fastest_threads(CPU)
    return {"threads": torch.get_num_threads(), "why": None if choice is None else str(choice)}


def describe_machine() -> dict[str, Any]:
    """Describe the processor, and the instruction set that torch uses: `isa` is "amx", "avx512", "avx2" or torch's own
    word. AMX does not count if oneDNN's variable forbids it."""
    isa = torch.backends.cpu.get_cpu_capability().lower()
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    if isa == "avx512" and has_amx and "AMX" in os.environ.get("ONEDNN_MAX_CPU_ISA", "AMX"):
        isa = "amx"
    return {"name": read_processor(), "cores": os.cpu_count(), "memory_bytes": count_memory(), "isa": isa}


def read_processor() -> str:
    """Read the processor's name and family, or its architecture if the system reports neither."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    parts = [found.get("model name", platform.machine()).strip()]
    parts += [f"{key} {found[key].strip()}" for key in ("cpu family", "model") if key in found]
    return ", ".join(parts)


def count_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if job["workload"] == "threads":
        print(json.dumps(choose_threads() | describe_machine()))
    else:
        print(json.dumps(measure_limits(job)))
