"""What this machine can do at best: the rate of a matrix product, the speed of reading memory, the number of threads.

Products of several shapes in float32 and bfloat16, the best of each; and a float32 matrix-vector product over 400 MB,
which reads faster than a plain sum and is what decoding does, as a median. TFLOP/s and GB/s. Each takes a fraction of a
second, whatever the machine. Runs under zoo's own interpreter.
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


def gemm_tflops(dtype: torch.dtype) -> float:
    return measure_product_rate(CPU, dtype, (*SHAPES, LARGE), SPEND) / 1e12


def read_gb_s(megabytes: int, calls: int) -> float:
    columns = 4096
    matrix = torch.randn(megabytes * 2**20 // (4 * columns), columns)
    vector, out = torch.randn(columns), torch.empty(len(matrix))
    torch.mv(matrix, vector, out=out)
    times = harness.repeat(lambda: torch.mv(matrix, vector, out=out), calls, SPEND)
    return 4 * matrix.numel() / statistics.median(times) / 1e9


def limits(threads: int) -> dict[str, float]:
    """The machine's rates with so many threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rates = {"gemm_fp32_tflops": gemm_tflops(torch.float32), "gemm_bf16_tflops": gemm_tflops(torch.bfloat16)}
    return {**rates, "read_gb_s": read_gb_s(400, 21)}


def threads() -> dict[str, Any]:
    """How many threads compute fastest now, and why where they are not torch's own."""
    choice = use_fastest_threads(CPU)
    return {"threads": torch.get_num_threads(), "why": None if choice is None else str(choice)}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(threads() if job["workload"] == "threads" else limits(job["threads"])))
