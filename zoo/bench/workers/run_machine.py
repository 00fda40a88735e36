"""Measure this machine's limits: FLOP/s of matrix products, memory read bandwidth, and the fastest number of threads.

FLOP/s are the best over several shapes, in float32 and in bfloat16. Bandwidth is the median of a float32 matrix-vector
product over 400 MB, which is what decoding does and reads faster than a plain sum. Each takes a fraction of a second on
any machine. Runs under zoo's own Python.
"""

import json
import statistics
import sys
from typing import Any

import harness
import torch

from zoo.run.threads import use_fastest_threads
from zoo.training.speed import SHAPES, measure_product_rate

LARGE = (2048, 2048, 2048)
SPEND = 0.5  # seconds for the products of one dtype, and for reading
CPU = torch.device("cpu")


def measure_matrix_rate(dtype: torch.dtype) -> float:
    return measure_product_rate(CPU, dtype, (*SHAPES, LARGE), SPEND) / 1e12


def measure_read_rate(megabytes: int, calls: int) -> float:
    columns = 4096
    matrix = torch.randn(megabytes * 2**20 // (4 * columns), columns)
    vector, out = torch.randn(columns), torch.empty(len(matrix))
    torch.mv(matrix, vector, out=out)
    times = harness.time_calls(lambda: torch.mv(matrix, vector, out=out), calls, SPEND)
    return 4 * matrix.numel() / statistics.median(times) / 1e9


def measure_limits(threads: int) -> dict[str, float]:
    """Measure the machine's rates with the given number of threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rates = {
        "gemm_fp32_tflops": measure_matrix_rate(torch.float32),
        "gemm_bf16_tflops": measure_matrix_rate(torch.bfloat16),
    }
    return {**rates, "read_gb_s": measure_read_rate(400, 21)}


def choose_threads() -> dict[str, Any]:
    """Choose the fastest number of threads now; `why` is None if it is torch's default."""
    choice = use_fastest_threads(CPU)
    return {"threads": torch.get_num_threads(), "why": None if choice is None else str(choice)}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(choose_threads() if job["workload"] == "threads" else measure_limits(job["threads"])))
