"""What this machine can do at best: the rate of a matrix product and the speed of reading memory.

Square products of 2048 in float32 and bfloat16, and a float32 matrix-vector product over 400 MB, which reads faster
than a plain sum and is what decoding does. Medians of repeated calls; TFLOP/s and GB/s.
"""

import json
import statistics
import sys

import harness
import torch


def gemm_tflops(dtype: torch.dtype, size: int, calls: int) -> float:
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    out = torch.empty(size, size, dtype=dtype)
    torch.mm(a, b, out=out)
    times = [harness.seconds(lambda: torch.mm(a, b, out=out)) for _ in range(calls)]
    return 2 * size**3 / statistics.median(times) / 1e12


def read_gb_s(megabytes: int, calls: int) -> float:
    columns = 4096
    matrix = torch.randn(megabytes * 2**20 // (4 * columns), columns)
    vector, out = torch.randn(columns), torch.empty(len(matrix))
    torch.mv(matrix, vector, out=out)
    times = [harness.seconds(lambda: torch.mv(matrix, vector, out=out)) for _ in range(calls)]
    return 4 * matrix.numel() / statistics.median(times) / 1e9


if __name__ == "__main__":
    torch.set_num_threads(json.loads(sys.argv[1])["threads"])
    torch.manual_seed(0)
    print(
        json.dumps(
            {
                "gemm_fp32_tflops": gemm_tflops(torch.float32, 2048, 11),
                "gemm_bf16_tflops": gemm_tflops(torch.bfloat16, 2048, 21),
                "read_gb_s": read_gb_s(400, 21),
            }
        )
    )
