# B batch, T queries, H heads, K kv heads, C head width
"""Runs what torch would run for flex on CUDA, on a CPU, forward and backward; and compiles it for a GPU not here.

    python tests/oracle/triton_flex.py [--dtype float32|float16] [--arch ARCH] [WORD ...]
    python tests/oracle/triton_flex.py --compile [--arch 75|80|86|90|100|120] [--dtype DTYPE] [WORD ...]

For CUDA Inductor writes flex_attention in Triton, for a CPU in C++ and without gradients. Here it is told to write for
CPU tensors what it writes for CUDA, and Triton's interpreter runs that: every case of `zoo bench kernels`, small, is
held to eager as there, gradients included. With --compile nothing is run: what it writes for the large cases is
compiled by Triton for the GPU, down to machine code, and must fit its shared memory just where zoo does not refuse the
case. With words only the cases whose names hold one of them. Ends with 1 if anything is off.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "0" if "--compile" in sys.argv else "1"  # before triton is imported
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # what is kept was not written for CUDA

import numpy as np
import torch
import triton.language as tl
from absent_gpu import Driver
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.choices import InductorChoices
from torch._inductor.graph import GraphLowering
from torch._inductor.kernel.flex import flex_attention as lowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.runtime.triton_compat import libdevice
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic
from torch.nn.attention import flex_attention as public
from triton.compiler.errors import CompilationError
from triton.runtime.driver import driver
from triton.runtime.interpreter import TensorHandle

from zoo import lazy
from zoo.bench.kernels.accuracy import compare_errors, run_kernel
from zoo.bench.kernels.cases import AttentionCase, list_cases, make_ask, make_inputs
from zoo.kernels import KERNELS, Machine, flex
from zoo.kernels.blocks import SHARED
from zoo.kernels.flex import Flex
from zoo.kernels.found import MACHINES

ARCHS = (75, 80, 86, 90, 100, 120)
"""Compute capabilities times ten."""

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    **{name: getattr(np, name) for name in ("exp", "exp2", "log", "log1p", "log2", "sqrt", "tanh")},
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
"""Those of CUDA's libdevice that code calls and that Triton's interpreter has not."""

FAILURES = (AssertionError, NotImplementedError, RuntimeError, CompilationError)
"""What Inductor and Triton raise for what they cannot compile."""


# ---------------------------------------------------------------- CPU tensors, taken for CUDA's


def gpu(arch: int) -> Machine:
    """One of this compute capability times ten, with triton and no flash-attn."""
    return Machine("cuda", divmod(arch, 10), frozenset({"compiler"}))


def as_cuda(arch: int) -> None:
    """Inductor writes for CPU tensors what it writes for those of a GPU of this compute capability times ten."""
    config.cpu_backend = "triton"
    driver.set_active(Driver(arch))
    setattr(triton_helpers, "set_driver_to_gpu", lambda: None)  # noqa: B010
    device = DeviceProperties("cuda", 0, 132, arch, arch // 10, 65536, 2048, 1024, 32)
    setattr(DeviceProperties, "create", staticmethod(lambda _: device))  # noqa: B010
    setattr(torch.cuda, "get_device_properties", lambda *_: device)  # noqa: B010
    setattr(torch.cuda, "get_device_capability", lambda *_: divmod(arch, 10))  # noqa: B010
    setattr(InductorChoices, "get_config_heuristics", lambda *_: CUDAConfigHeuristic())  # noqa: B010
    setattr(GraphLowering, "is_unspec_arg", lambda *_: False)  # noqa: B010 (numbers of a CPU are taken as numbers)
    MACHINES["cpu"] = gpu(arch)
    _flex_too()


def _flex_too() -> None:
    """The same of what flex_attention itself does by device: its lowering, its refusal of gradients, its logsumexp."""
    source, branch = inspect.getsource(lowering.flex_attention), 'query.get_device().type == "cpu"'
    assert source.count(branch) == 1
    exec(source.replace(branch, "False"), vars(lowering))
    given = public._apply_kernel_options

    def options(query: Any, key: Any, value: Any, sums: bool, chosen: Any, aux: Any = None) -> dict[str, Any]:
        made = given(query, key, value, sums, chosen, aux)
        return {**made, "OUTPUT_LOGSUMEXP": sums or aux is not None or torch.is_grad_enabled()}

    public._apply_kernel_options = options
    public._validate_device = lambda *_: None
    flex._gives_sums = lambda device: True


def with_libdevice() -> None:
    """FUNCTIONS for Triton's interpreter, which gives None for them."""

    def interpreted(function: Callable[[Any], Any]) -> Callable[..., Any]:
        def run(x: Any, _semantic: Any = None) -> Any:
            held = x.handle
            return tl.core.tensor(TensorHandle(function(held.data).astype(held.data.dtype), held.dtype), x.type)

        return run

    for name, function in FUNCTIONS.items():
        setattr(libdevice, name, interpreted(function))


# ---------------------------------------------------------------- run


def run(case: AttentionCase, dtype: str) -> tuple[bool, str]:
    """Whether flex gives what eager does in a case, and how far it is from it."""
    torch._dynamo.reset()
    start, way = time.perf_counter(), "backward" if case.trains else "forward"
    inputs = make_inputs(case, "cpu", getattr(torch, dtype))
    wanted, eager = (run_kernel(each, "eager", way) for each in (inputs.to(torch.float64), inputs))
    row = compare_errors(run_kernel(inputs, "flex", way), wanted, eager, dtype)
    largest = " ".join(f"{name} {each['largest']:.0e}" for name, each in row["tensors"].items())
    return row["passed"], f"{largest}; {row['excess']:.2f} of what passes ({time.perf_counter() - start:.0f} s)"


# ---------------------------------------------------------------- compile


def compiled(case: AttentionCase, dtype: str, arch: int) -> tuple[bool, str]:
    """Whether zoo refuses a case just where a GPU cannot hold, as machine code, what Inductor writes for it."""
    torch._dynamo.reset()
    start, way = time.perf_counter(), "backward" if case.trains else "forward"
    refusal = KERNELS["flex"].refuses(make_ask(case, getattr(torch, dtype), grad=case.trains), gpu(arch))
    try:
        with written() as kernels, patch.object(Flex, "refuses", lambda *_: None):  # what zoo refuses is tried too
            run_kernel(make_inputs(case, "cpu", getattr(torch, dtype)), "flex", way)
        sizes = {name: _shared(kernel) for name, kernel in kernels.items()}
    except FAILURES as error:
        fits, told = False, f"does not compile: {str(error).strip().splitlines()[0][:110]}"
    else:
        fits = bool(sizes) and max(sizes.values()) <= SHARED[divmod(arch, 10)]
        told = ", ".join(f"{'backward' if 'backward' in name else 'forward'} {n:.0f} KiB" for name, n in sizes.items())
    told += f" ({time.perf_counter() - start:.0f} s)" + (f"; zoo refuses: {refusal}" if refusal else "")
    return fits == (refusal is None), told


def _shared(kernel: CachingAutotuner) -> float:
    """KiB of shared memory that a kernel takes, as Triton compiles it."""
    return kernel._precompile_config(kernel.configs[0]).kernel.metadata.shared / 1024


@contextmanager
def written() -> Iterator[dict[str, CachingAutotuner]]:
    """flex's kernels as Inductor writes them; in the place of each stands one that does nothing."""
    kernels: dict[str, CachingAutotuner] = {}
    given = AsyncCompile.triton

    def triton(self: AsyncCompile, name: str, source: str, device_str: str = "cuda") -> Any:
        from torch._inductor.codecache import PyCodeCache

        kernel = getattr(PyCodeCache.load(source), name)
        if name.startswith("triton_tem"):  # of a template: what is fused around it is as for any model
            kernels[name] = kernel
        return Nothing()

    AsyncCompile.triton = triton
    try:
        yield kernels
    finally:
        AsyncCompile.triton = given


class Nothing:
    """In the place of a kernel."""

    def run(self, *tensors: Any, **options: Any) -> None:
        """What a kernel would write stays what it was."""


def cases(*, large: bool) -> list[AttentionCase]:
    """Those of `zoo bench kernels`; those of a cache for one row too, for which torch has a kernel of its own; and
    heads that are wider still."""
    found = list_cases(large=large)
    alone = [replace(each, name=f"{each.name}, one row", batch=1) for each in found if not each.trains]
    (wide,) = (each for each in found if each.name == "heads of 256")
    return [*found, *alone, replace(wide, name="heads of 512", head_dim=512, v_head_dim=512)]


def main() -> int:
    """Goes through all cases and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="float32 unless it is compiled")
    parser.add_argument("--compile", action="store_true", help="for a GPU, and run nothing")
    parser.add_argument("--arch", type=int, choices=ARCHS, default=90, help="its compute capability times ten")
    parser.add_argument("words", nargs="*", help="only cases whose names hold one of these")
    chosen = parser.parse_args()
    if chosen.dtype == "bfloat16" and not chosen.compile:
        parser.error("Triton's interpreter multiplies bfloat16 as integers (--dtype float16 would do)")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # Inductor tells at length of what does not compile
    lazy.load()
    as_cuda(chosen.arch)
    if not chosen.compile:
        with_libdevice()
    dtype = chosen.dtype or ("bfloat16" if chosen.compile else "float32")
    judge = functools.partial(compiled, arch=chosen.arch) if chosen.compile else run
    failed = 0
    for case in cases(large=chosen.compile):
        if chosen.words and not any(word in case.name for word in chosen.words):
            continue
        fine, told = judge(case, dtype)
        failed += not fine
        print(f"{'ok  ' if fine else 'FAIL'} {case.name}: {told}", flush=True)
    print(f"{failed} cases did not go as they should" if failed else "all cases went as they should")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
