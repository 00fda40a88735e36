# B batch, T queries, S keys, H heads, K kv heads, C head width, N tokens of all rows together
"""Compiles what zoo asks of flash-attn 4, forward and backward, for a GPU that need not be here.

    python tests/oracle/compile_flash4.py [--arch 90|100] [WORD ...]

flash-attn 4 writes its kernels when they are first called, for the shapes and options of that call; with tensors that
are shapes alone (torch's FakeTensorMode) it compiles them and runs nothing. Each ask below is put to zoo's kernel and,
with the arguments that the kernel has for it, to the compiler. What zoo does not refuse must compile. With words only
the asks whose names hold one of them. Ends with 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo import lazy
from zoo.kernels import KERNELS, AttentionQuery, Machine
from zoo.kernels.flash import CACHED, VARLEN, way

PAGE = 64  # tokens
ALIKE = (8, 16, 24, 40, 80, 96, 112, 160, 192)
UNLIKE = ((32, 256), (48, 32), (64, 32), (64, 128), (128, 64), (128, 192))
TARGETS = {90: "sm_90a", 100: "sm_100a"}


class Case(NamedTuple):
    """An ask, and what is known of it: True where zoo must take it, False where the compiler must fail and zoo refuse,
    None where zoo may refuse what would compile."""

    name: str
    ask: AttentionQuery
    compiles: bool | None = True


def asks(arch: int) -> list[Case]:
    """What models ask: the shapes of conf/model's families, and those at the edge of what the kernels take."""
    return [*trained(arch), *widths(arch), *decoded(arch)]


def _both(width: int, of_values: int | None = None) -> dict[str, int]:
    return {"head_dim": width, "v_head_dim": of_values or width}


def trained(arch: int) -> list[Case]:
    def ask(width: int, **features: Any) -> AttentionQuery:
        kinds: dict[str, Any] = {"dtype": "bfloat16", "n_heads": 8, "n_kv_heads": 2, "needs_grad": True, "causal": True}
        return AttentionQuery(**{**kinds, **_both(width), **features})

    return [
        Case("causal, 64 wide", ask(64)),
        Case("causal, 128 wide", ask(128)),
        Case("float16", ask(128, dtype="float16")),
        Case("sees all", ask(128, causal=False)),
        Case("window", ask(128, window=1000)),
        Case("window on both sides", ask(64, window=64, causal=False)),
        Case("softcap", ask(128, softcap=50.0)),
        Case("softcap and window", ask(64, softcap=50.0, window=100)),
        Case("sinks and window", ask(64, sinks=True, window=128)),
        Case("documents", ask(128, documents=True)),
        Case("documents, window, sinks", ask(64, documents=True, window=128, sinks=True)),
        Case("padding", ask(64, n_kv_heads=8, padding=True, causal=False)),
        Case("256 wide", ask(256)),
        Case("256 wide, softcap", ask(256, softcap=50.0), arch == 90),
        Case("256 wide, sinks", ask(256, sinks=True), arch == 90),
    ]


def widths(arch: int) -> list[Case]:
    """Heads of other widths, alike and not."""

    def ask(width: int, of_values: int | None = None, **features: Any) -> AttentionQuery:
        kinds: dict[str, Any] = {"dtype": "bfloat16", "n_heads": 8, "n_kv_heads": 8, "needs_grad": True}
        return AttentionQuery(**{**kinds, **_both(width, of_values), **features})

    alike = [Case(f"{width} wide", ask(width), True if width <= 128 or arch == 90 else None) for width in ALIKE]
    kept = [Case(f"{a} and {b} wide", ask(a, b), None) for a, b in UNLIKE]
    read = [Case(f"{a} and {b} wide, no gradient", ask(a, b, needs_grad=False), None) for a, b in UNLIKE]
    return [
        *alike,
        *kept,
        *read,
        Case("MLA, 192 and 128 wide", ask(192, 128)),
        Case("grouped, 192 and 128 wide", ask(192, 128, n_kv_heads=2), False if arch == 90 else None),
        Case("20 wide", ask(20), False),
    ]


def decoded(arch: int) -> list[Case]:
    def ask(width: int, of_values: int | None = None, **features: Any) -> AttentionQuery:
        kinds: dict[str, Any] = {"dtype": "bfloat16", "n_heads": 8, "n_kv_heads": 2, "short_q": True}
        return AttentionQuery(**{**kinds, **_both(width, of_values), **features})

    return [
        Case("decoding", ask(128)),
        Case("decoding, lengths", ask(128, lengths=True)),
        Case("decoding, lengths, window, sinks", ask(64, lengths=True, window=128, sinks=True)),
        Case("decoding, lengths, softcap", ask(128, lengths=True, softcap=50.0)),
        Case("decoding, pages", ask(128, lengths=True, page=PAGE)),
        Case("decoding, pages, 80 wide", ask(80, lengths=True, page=PAGE)),
        # on Blackwell earlier betas that zoo takes assert that there are no lengths, 4.0.0b36 compiles
        Case("decoding, pages, 256 wide", ask(256, lengths=True, page=PAGE), True if arch == 90 else None),
        Case("decoding, pages, 24 wide", ask(24, lengths=True, page=PAGE), False),
        Case("decoding, 192 and 128 wide", ask(192, 128, n_kv_heads=8)),
    ]


def compile_one(ask: AttentionQuery) -> None:
    """Forward, and backward where the ask wants a gradient: what zoo's kernel would call, of shapes alone."""
    from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd

    given = _arguments(ask)
    with FakeTensorMode(), torch.no_grad():
        q, k, v, tensors = _tensors(ask)
        y, sums, *_ = _flash_attn_fwd(q, k, v, **given, **tensors, return_lse=ask.needs_grad)
        if ask.needs_grad:
            _flash_attn_bwd(q, k, v, y, torch.empty_like(y), sums, **given, **tensors)


def _arguments(ask: AttentionQuery) -> dict[str, Any]:
    """The kernel's own arguments, in the words of the functions behind the public ones."""
    given = KERNELS["flash4"].call(ask).arguments
    left, right = given.pop("window_size")
    return {"softmax_scale": 0.1, **given, "window_size_left": left, "window_size_right": right}


def _tensors(ask: AttentionQuery, batch: int = 2, long: int = 1024) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """q, k, v and the tensors beside them, as zoo's kernel lays them out."""
    dtype, short = getattr(torch, ask.dtype), 1 if way(ask) == CACHED else long
    lead, of_keys = (batch, short), (batch, long)
    beside: dict[str, Any] = {}
    if way(ask) == VARLEN:
        lead = of_keys = (batch * long,)
        ends = {"cu_seqlens_q": _ints(batch + 1), "cu_seqlens_k": _ints(batch + 1)}
        beside = {**ends, "max_seqlen_q": long, "max_seqlen_k": long}
    if ask.lengths:
        beside["seqused_k"] = _ints(batch)
    if ask.page:
        of_keys = (batch * long // ask.page, ask.page)
        beside["page_table"] = _ints(batch, long // ask.page)
    if ask.sinks:
        beside["learnable_sink"] = _empty(ask.n_heads, dtype=dtype)
    q = _empty(*lead, ask.n_heads, ask.head_dim, dtype=dtype)
    k = _empty(*of_keys, ask.n_kv_heads, ask.head_dim, dtype=dtype)
    return q, k, _empty(*of_keys, ask.n_kv_heads, ask.v_head_dim, dtype=dtype), beside


def _ints(*shape: int) -> Tensor:
    return _empty(*shape, dtype=torch.int32)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda")


def errors() -> tuple[type[Exception], ...]:
    """What flash-attn and its compiler raise for what they cannot do."""
    from cutlass._mlir.ir import MLIRError
    from cutlass.base_dsl.common import DSLBaseError

    return AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError, DSLBaseError, MLIRError


def first_line(error: Exception) -> str:
    """What it says, without colours."""
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines()
    return lines[0][:110] if lines else type(error).__name__


def verdict(case: Case, machine: Machine) -> tuple[bool, str]:
    """Whether an ask went as it should, and how it went."""
    from cuda.pathfinder import DynamicLibNotFoundError

    refusal = KERNELS["flash4"].refuses(case.ask, machine)
    start = time.perf_counter()
    try:
        compile_one(case.ask)
    except DynamicLibNotFoundError:
        return True, "not judged: before it compiles it asks a driver, and none is here"
    except errors() as error:
        failure = first_line(error)
    else:
        failure = None
    took = f"{time.perf_counter() - start:.1f} s"
    if refusal is None:
        return failure is None and case.compiles is not False, f"compiled in {took}" if failure is None else failure
    told = f"would compile ({took})" if failure is None else f"does not compile: {failure}"
    return case.compiles is None or (case.compiles is False and failure is not None), f"{told}; zoo refuses: {refusal}"


def main() -> int:
    """Compiles all asks and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1] if __doc__ else None)
    parser.add_argument("--arch", type=int, choices=TARGETS, default=90, help="compute capability times ten")
    parser.add_argument("words", nargs="*", help="compile only asks whose names hold one of these")
    chosen = parser.parse_args()
    os.environ["FLASH_ATTENTION_ARCH"] = f"sm_{chosen.arch}"
    os.environ["CUTE_DSL_ARCH"] = TARGETS[chosen.arch]
    os.environ.setdefault("FLASH_ATTENTION_NUM_SMS", "132")
    warnings.filterwarnings("ignore", message="Argument aux_data")
    lazy.load()
    machine = Machine("cuda", divmod(chosen.arch, 10), frozenset({"flash-attn-4"}))
    failed = 0
    for case in asks(chosen.arch):
        if chosen.words and not any(word in case.name for word in chosen.words):
            continue
        fine, told = verdict(case, machine)
        failed += not fine
        print(f"{'ok  ' if fine else 'FAIL'} {case.name}: {told}", flush=True)
    print(f"{failed} of the asks did not go as they should" if failed else "all asks went as they should")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
