# B rows, T queries, S keys, P pages of a row, H heads, K kv heads, C head width
"""Runs zoo's split-KV kernel by Triton's interpreter on a CPU, and compiles it for GPUs that are not here.

    python tests/oracle/triton_split.py [--drawn COUNT]
    python tests/oracle/triton_split.py --compile --arch 80|86|89|90|100|120

The first holds it to eager in float64, under the rule of `zoo bench kernels`: in every case of that command, in COUNT
attentions drawn at random (page tables, lengths, windows, sinks, softcap, ALiBi, latents whose first channels are the
values, dtypes, numbers of parts), and in models that decode from a paged cache; no address may lie outside the tensors
that the kernel was given. The second compiles it for the shapes of real models down to machine code, prints registers
and shared memory, and holds that it fits and that next to nothing is spilled. Ends with 1 if anything is off.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "0" if "--compile" in sys.argv else "1"  # before triton is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import triton
import triton.language as tl
from absent_gpu import Driver
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.driver import driver
from watched_addresses import watch_addresses

from support.tiny_models import model_of
from zoo import lazy
from zoo.bench.kernels.accuracy import FACTOR, SLACK, compare_errors, list_refusals, run_kernel
from zoo.bench.kernels.cases import list_cases, make_inputs
from zoo.cache.cache import Cache
from zoo.kernels import Machine, attend, triton_code, triton_split
from zoo.kernels.base import Scores
from zoo.kernels.blocks import SHARED
from zoo.kernels.found import MACHINES
from zoo.kernels.mask import Mask
from zoo.kernels.score_bias import Given

ARCHS = (80, 86, 89, 90, 100, 120)
"""Compute capabilities times ten."""

SPILLED = 32
"""Bytes of registers that a thread may spill to memory: a few numbers. The most was 24, in November 2026 in float32."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# ---------------------------------------------------------------- interpreted


def mend_bfloat16() -> None:
    """Make the interpreter multiply bfloat16, which it keeps in 16-bit integers, as float32; and round to it, which it
    does towards 0, to the nearest, as a GPU does."""
    builder = interpreter.InterpreterBuilder
    given, cast = builder.create_dot, builder.cast_impl

    def widen(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return given(self, widen(a), widen(b), *others)

    def cast_impl(self: Any, source: Any, kind: Any) -> Any:
        if source.dtype.scalar != tl.float32 or kind.scalar != tl.bfloat16:
            return cast(self, source, kind)
        bits = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16).numpy()
        return interpreter.TensorHandle(bits.view(np.uint16), tl.bfloat16)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl


def compare_cases() -> Iterator[tuple[str, bool, str]]:
    """Compare every case of `zoo bench kernels` that the kernel does not refuse."""
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for case in list_cases():
            if list_refusals("triton", case, name, "cpu")["forward"] is None:
                inputs = make_inputs(case, "cpu", dtype)
                wanted, eager = (run_kernel(each, "eager", "forward") for each in (inputs.to(torch.float64), inputs))
                yield f"{case.name}, {name}", *judge(run_kernel(inputs, "triton", "forward"), wanted, eager, name)


def judge(found: Any, wanted: Any, eager: Any, dtype: str) -> tuple[bool, str]:
    row = compare_errors(found, wanted, eager, dtype)
    return row["passed"], f"{row['excess']:.2f} of what passes"


class Slopes(Given):
    """ALiBi: the slopes for the kernel, the tensor drawn from them for eager, of rows that differ in length."""

    def __init__(self, slopes: Tensor, lengths: Tensor, queries: int, keys: int) -> None:
        token = torch.arange(queries)[None] + (lengths[:, None] - queries)  # B T
        behind = (token[:, :, None] - torch.arange(keys)).abs()  # B T S
        super().__init__(-slopes[:, None, None] * behind[:, None])
        self.slopes = slopes


def draw(
    numbers: random.Random, generator: torch.Generator
) -> tuple[str, torch.dtype, tuple[Any, ...], dict[str, Any]]:
    """Draw an attention: its name, dtype, the arguments q, k, v and mask of `attend` in float32, and its options."""
    latent = numbers.random() < 0.25
    width, v_width = (48, 32) if latent else (numbers.choice((8, 32, 64, 80, 96, 128, 192, 256)),) * 2
    n_kv_heads = 1 if latent else numbers.choice((1, 2, 3))
    n_heads, queries = n_kv_heads * numbers.choice((1, 2, 4, 7, 16)), numbers.choice((1, 1, 2, 5, 16, 33))
    rows, page = numbers.choice((1, 2, 3)), numbers.choice((4, 16, 256))
    table = numbers.randint(1, 2 if page > 16 else 9)
    keys = page * table
    lengths = torch.tensor([numbers.randint(0, keys) for _ in range(rows)])
    causal, window = numbers.random() < 0.8, numbers.choice((None, None, 1, 3, 40))
    pools = torch.randn(rows * table + 2, page, n_kv_heads, width, generator=generator)
    values = torch.randn(*pools.shape[:3], v_width, generator=generator)
    pages = torch.randperm(len(pools), generator=generator)[: rows * table].view(rows, table)
    for row, length in enumerate(lengths.tolist()):  # what no query may read is NaN
        for place in range(length, keys):
            at = pages[row, place // page], place % page
            pools[at], values[at] = float("nan"), float("nan")
    q = torch.randn(rows, queries, n_heads, width, generator=generator) * 2
    sink = numbers.choice((None, None, (n_heads,), (rows, queries, n_heads)))
    mask = {"causal": causal, "window": window, "lengths": lengths}
    if numbers.random() < 0.3:  # rows end to end, each of its own number of queries
        counts = [numbers.randint(1, queries) for _ in range(rows - 1)] + [queries]
        mask["cu_seqlens_q"] = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
        q, sink = q.flatten(0, 1)[None, : sum(counts)], sink and sink[-1:]
    options: dict[str, Any] = {
        "scale": width**-0.5,
        "softcap": numbers.choice((None, None, 3.0)),
        "sinks": None if sink is None else torch.randn(sink, generator=generator) * 2,
        "pages": pages if numbers.random() < 0.5 else pages.int(),
    }
    if causal and numbers.random() < 0.3:
        options["bias"] = Slopes(torch.rand(n_heads, generator=generator), lengths, queries, keys)
    dtype = numbers.choice(DTYPES)
    told = {**mask, **{name: each for name, each in options.items() if name in ("softcap",)}}
    told |= {
        "lengths": lengths.tolist(),
        "cu_seqlens_q": "cu_seqlens_q" in mask,
        "sinks": sink,
        "bias": "bias" in options,
        "latent": latent,
        "page": page,
    }
    name = f"{dtype} {tuple(q.shape)} over {n_kv_heads} kv heads, {told}"
    return name, dtype, (q, pools, values, (queries, keys, mask)), options


def compare_drawn(count: int) -> Iterator[tuple[str, bool, str]]:
    """Compare attentions drawn at random, with a device of few or of many multiprocessors, which makes more parts."""
    for seed in range(count):
        numbers, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        name, dtype, (q, k, v, (queries, keys, mask)), options = draw(numbers, generator)
        latent, rounded = k.shape[3] != v.shape[3], [each.to(dtype) for each in (q, k, v)]
        sinks = options.pop("sinks")

        def run(kernel: str, kind: torch.dtype) -> dict[str, Tensor]:
            q, k, v = (each.to(kind) for each in rounded)  # noqa: B023 (called before the next turn)
            v = k[..., : v.shape[3]] if latent else v  # noqa: B023
            if kernel == "eager":  # which multiplies by 0 what the kernel does not read
                k, v = k.nan_to_num(0), v.nan_to_num(0)
            sunk = None if sinks is None else sinks.to(dtype).to(kind)  # noqa: B023
            with torch.no_grad():
                made = Mask(queries, keys, **mask)  # noqa: B023
                return {"y": attend(q, k, v, made, sinks=sunk, kernel=kernel, **options)}  # noqa: B023

        with (
            patch.object(triton_split, "EMULATED", numbers.choice((1, 8, 500))),
            patch.object(triton_split, "LEAST", numbers.choice((1, 16, 256))),
        ):
            found = run("triton", dtype)
        passed = judge(found, run("eager", torch.float64), run("eager", dtype), str(dtype).removeprefix("torch."))
        yield f"{seed}: {name}", *passed


MODELS = {
    "gqa": [],
    "window": ["attention=sliding", "window=20"],
    "mixed": ["pattern=[near,layer]", "layers={near:{attention:{window:20}}}"],
    "alibi": ["position=alibi"],
    "softcap": ["+attention.softcap=20"],
    "sinks": ["+attention.sinks=true"],
    "chunk": ["+attention={window:16,window_kind:chunked}"],
    "mla": ["attention=mla"],
    "wide heads": ["n_heads=2", "n_kv_heads=1", "head_dim=80"],
}


def compare_models() -> Iterator[tuple[str, bool, str]]:
    """Compare the logits of models that decode rows of unequal length from a paged cache, by one and by four tokens."""
    for name, overrides in MODELS.items():
        model = model_of(["max_seq_len=600", *overrides])
        wanted, found = (read_logits(model, kernel) for kernel in ("eager", "triton"))
        gap = (found - wanted).norm() / wanted.norm()
        yield f"{name}, decoding", bool(gap < 1e-5), f"apart by {gap:.0e}"


def read_logits(model: Any, kernel: str) -> Tensor:
    """Return the logits of four tokens each, and of four at once, after prompts of unequal length."""
    prompts, cache = [[3, 5, 9] * 12, [5] * 9, list(range(60, 0, -1)) * 5], None
    cache, found = Cache.allocate(model, len(prompts), 320, paged=True, page=16), []
    cache.store.new = 1 if any(each.window or each.chunk for each in cache.store.groups) else 4
    model.kernel = "eager"
    with torch.inference_mode():
        for row, ids in zip(cache.rows, prompts, strict=True):
            model(torch.tensor([ids]), cache=Cache(cache.store, [row]))
        model.kernel = kernel
        for new in (1, 1, 1, 1, cache.store.new):
            found.append(model(torch.full((len(prompts), new), 7), cache=cache).logits)
            assert cache.tensors is not None  # read by page table
    return torch.cat(found, 1).double()


# ---------------------------------------------------------------- compiled


class Shape(NamedTuple):
    """An attention of a model: rows, queries, heads, kv heads, widths, and features. Pages of 16 tokens unless 0."""

    name: str
    rows: int
    queries: int
    heads: int
    kv_heads: int
    width: int
    v_width: int
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    alibi: bool = False
    page: int = 16

    @property
    def latent(self) -> bool:
        return self.width == 576 and self.name != "latents copied"


SHAPES = (
    Shape("Llama 3 8B, 1 row", 1, 1, 32, 8, 128, 128),
    Shape("Llama 3 8B, 32 rows", 32, 1, 32, 8, 128, 128, page=256),
    Shape("Llama 3 8B, 8 drafts", 8, 8, 32, 8, 128, 128),
    Shape("Llama 3 8B, a prompt", 1, 512, 32, 8, 128, 128, page=0),
    Shape("gpt-oss", 1, 1, 64, 8, 64, 64, window=128, sinks=True),
    Shape("gpt-oss, 16 drafts", 4, 16, 64, 8, 64, 64, sinks=True),
    Shape("Gemma 2 9B", 4, 1, 16, 8, 256, 256, window=4096, softcap=50.0),
    Shape("Gemma 2 9B, 16 drafts", 4, 16, 16, 8, 256, 256, softcap=50.0),
    Shape("BLOOM 7B", 4, 1, 32, 32, 128, 128, alibi=True),
    Shape("Phi-2", 4, 1, 32, 32, 80, 80),
    Shape("heads of 96", 4, 8, 32, 32, 96, 96),
    Shape("heads of 192 and 128", 1, 300, 16, 16, 192, 128, page=0),
    Shape("DeepSeek-V3", 4, 1, 128, 1, 576, 512),
    Shape("DeepSeek-V3, 4 drafts", 4, 4, 128, 1, 576, 512),
    Shape("DeepSeek-V3, not in pages", 4, 1, 128, 1, 576, 512, page=0),
    Shape("latents copied", 4, 1, 128, 1, 576, 512),
    Shape("heads of 512", 1, 1, 8, 2, 512, 512),
)


def compile_shapes(arch: int) -> Iterator[tuple[str, bool, str]]:
    """Compile each shape in each dtype for a compute capability times ten."""
    driver.set_active(Driver(arch))
    room = SHARED[divmod(arch, 10)]
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            start, launch, tensors = time.perf_counter(), *lay(shape, dtype)
            grid, options = launch.grid, launch.options
            kernel = triton_code.attend_part.warmup(grid=grid, **tensors, **launch.arguments, **options)
            registers, stack = read_usage(kernel.asm["cubin"])
            shared, tile = kernel.metadata.shared / 1024, launch.arguments["TILE"]
            told = f"{grid[0]} programs × {grid[1]}, tile {tile}, blocks of {launch.arguments['KEYS']}, "
            told += f"{options['num_warps']} warps: {registers} registers, {stack} bytes spilled, {shared:.0f} KiB"
            fits = stack <= SPILLED and shared <= room
            if launch.grid[1] > 1:
                y = torch.empty(1, dtype=dtype)
                join = triton_code.join_parts.warmup(tensors["y"], tensors["y"], y, grid=(1,), **launch.join)
                more, spilled = read_usage(join.asm["cubin"])
                told, fits = f"{told}; join {more} registers", fits and spilled == 0
            name = str(dtype).removeprefix("torch.")
            yield f"{shape.name}, {name}", fits, f"{told} ({time.perf_counter() - start:.0f} s)"


def lay(shape: Shape, dtype: torch.dtype) -> tuple[triton_split.KernelLaunch, dict[str, Any]]:
    """Lay out the launch for rows of up to 4,096 tokens on an H100's 132 multiprocessors, and the tensors for it."""
    rows, queries, heads, kv_heads, width, v_width, keys = *shape[1:7], 4096
    pools = (rows * keys // shape.page, shape.page) if shape.page else (rows, keys)
    k = torch.empty(*pools, kv_heads, width, dtype=dtype)
    v = k[..., :v_width] if shape.latent else torch.empty(*pools, kv_heads, v_width, dtype=dtype)
    q, lengths = torch.empty(rows, queries, heads, width, dtype=dtype), torch.zeros(rows, dtype=torch.long)
    table = torch.zeros(rows, keys // shape.page, dtype=torch.long) if shape.page else None
    bias = Slopes(torch.zeros(heads), lengths[:1], 1, 1) if shape.alibi else None
    mask = Mask(queries, keys, window=shape.window, lengths=lengths)
    sinks = torch.empty(heads, dtype=dtype) if shape.sinks else None
    launch = triton_split.lay_launch(q, k, v, Scores(mask, 0.1, shape.softcap, sinks, bias, table), 132)
    y = torch.empty(1, dtype=torch.float32 if launch.grid[1] > 1 else dtype)
    return launch, {"q": q, "k": k, "v": v, "y": y, "lse": y if launch.grid[1] > 1 else None}


def read_usage(cubin: bytes) -> tuple[int, int]:
    """Read the registers of a thread and the bytes that it spills from machine code."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    return int(found[1]), int(found[2])


def main() -> int:
    """Goes through all, prints a line for each attention that is off or was compiled, and counts them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--drawn", type=int, default=200, help="the number of attentions that are drawn at random")
    parser.add_argument("--compile", action="store_true", help="for a GPU, and run nothing")
    parser.add_argument("--arch", type=int, choices=ARCHS, default=90, help="its compute capability times ten")
    chosen = parser.parse_args()
    lazy.load()
    MACHINES["cpu"] = Machine("cuda", divmod(chosen.arch, 10), frozenset({"compiler"}))
    if chosen.compile:
        parts = [compile_shapes(chosen.arch)]
    else:
        mend_bfloat16()
        watch_addresses()
        np.seterr(all="ignore")  # the logarithm of 0 is meant
        parts = [compare_models(), compare_cases(), compare_drawn(chosen.drawn)]
        print(f"an error may be {FACTOR} × that of eager in its dtype + {SLACK}")
    count = failed = 0
    for name, fine, told in (each for part in parts for each in part):
        count, failed = count + 1, failed + (not fine)
        if chosen.compile or not fine:
            print(f"{'ok  ' if fine else 'FAIL'} {name}: {told}", flush=True)
    print(f"{failed} of {count} did not go as they should" if failed else f"all {count} went as they should")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
