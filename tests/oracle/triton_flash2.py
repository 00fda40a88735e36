# B batch, T queries, S keys, H heads, K kv heads, C head width
"""Runs flash-attn 2's own Triton code on a CPU and holds zoo's kernel, and the stand-in, to what it gives.

    FLASH_ATTN_2=FOLDER python tests/oracle/triton_flash2.py [WORD ...]

flash-attn 2 has a second backend, written in Triton for AMD's GPUs, behind the same public functions, and Triton has an
interpreter that runs kernels on the CPU: the only way to execute flash-attn without a GPU. FOLDER is where pip's
`install --target` put flash-attn 2, built with FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE. Each case goes through `attend`
three times: by eager in float32, by flash2 over flash-attn's code, by flash2 over the stand-in.

That backend does not know windows, softcap, pages or left padding, and says nothing: the last cases hold that it is
still so, as this is why zoo does not take it for flash-attn 2. With words only the cases whose names hold one of them.
Ends with 1 if anything is off.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
os.environ["FLASH_ATTENTION_TRITON_AMD_ENABLE"] = "TRUE"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from standins import flash_attn_2
from torch import Tensor
from watched_addresses import watch_addresses

from zoo import lazy
from zoo.kernels import KERNELS, Machine, attend
from zoo.kernels.found import MACHINES
from zoo.kernels.mask import Mask
from zoo.kernels.score_bias import Given

SCALE = 0.3
WIDTH, HEADS, KV_HEADS = 32, 4, 2
NEAR = 0.01  # float16 keeps 11 bits; scores and results are near 1
NEAR_GRADIENT = 0.03
FAR = 0.1  # a feature that was dropped is off by more


class Slopes(Given):
    """ALiBi: the slopes for the flash kernels, the tensor drawn from them for eager.

    They are [B, H], which flash-attn takes as well as [H]: its Triton backend takes nothing else.
    """

    def __init__(self, slopes: Tensor, rows: int, queries: int, keys: int) -> None:
        behind = (torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)).abs()
        super().__init__(-slopes[:, None, None] * behind)
        self.slopes = slopes.repeat(rows, 1)


class Case(NamedTuple):
    """A mask for so many queries and keys in so many rows, and what is asked besides."""

    name: str
    mask: Mask
    rows: int = 2
    softcap: float | None = None
    alibi: bool = False
    grad: bool = False
    pages: Tensor | None = None
    dropped: bool = False


def cases() -> list[Case]:
    numbers = torch.tensor([[0] * 9 + [1] * 14 + [2] * 17, [0] * 20 + [1] * 20])
    kept = torch.ones(2, 40, dtype=torch.bool)
    kept[0, :7] = False
    lengths, table = torch.tensor([33, 18]), torch.tensor([[1], [0]], dtype=torch.int32)
    return [
        Case("causal, grouped heads", Mask(40, 40), grad=True),
        Case("sees all", Mask(40, 40, causal=False), grad=True),
        Case("fewer queries than keys, with gradients", Mask(13, 40), grad=True),
        Case("more queries than keys", Mask(40, 13), grad=True),
        Case("ALiBi", Mask(40, 40), alibi=True, grad=True),
        Case("ALiBi, fewer queries than keys", Mask(13, 40), alibi=True, grad=True),
        Case("documents", Mask(40, 40, documents=(numbers, numbers)), grad=True),
        Case("padding", Mask(40, 40, causal=False, padding=kept), grad=True),
        Case("a cache", Mask(1, 40)),
        Case("a cache, several queries", Mask(5, 40)),
        Case("a cache, rows of their own length", Mask(1, 40, lengths=lengths)),
        Case("window", Mask(40, 40, window=5), dropped=True),
        Case("softcap", Mask(40, 40), softcap=0.3, dropped=True),
        Case("pages", Mask(1, 256, lengths=lengths), pages=table, dropped=True),
    ]


def flash_attn(folder: str) -> Any:
    """flash-attn 2 on its Triton backend, for CPU tensors."""
    sys.path.insert(0, folder)
    setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())  # noqa: B010 (a class, where torch has it)
    module = importlib.import_module("flash_attn")
    interface = importlib.import_module("flash_attn.flash_attn_interface")
    for name in ("forward", "varlen_forward", "backward", "varlen_backward"):
        operator = getattr(interface, f"_flash_attn_{name}")
        torch.library.register_kernel(f"flash_attn::_flash_attn_{name}", "cpu", operator._init_fn)
    metadata = importlib.import_module("flash_attn.flash_attn_triton_amd.utils").MetaData
    metadata.need_alibi = _need_alibi
    interface.flash_attn_varlen_func = _without_empty(interface.flash_attn_varlen_func)
    module.flash_attn_varlen_func = interface.flash_attn_varlen_func
    return module


def _without_empty(varlen: Callable[..., Any]) -> Callable[..., Any]:
    """Leave empty sequences at the end out: for one, this backend's early exit writes the logsumexp of `max_seqlen_q`
    tokens behind the last (fwd_prefill.py, `l_ptrs_mask`), beyond the tensor. On CUDA flash-attn returns before it."""

    def call(*qkv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **given: Any) -> Any:
        lengths = torch.stack((cu_seqlens_q, cu_seqlens_k)).diff().sum(0)
        kept = int(lengths.nonzero().max()) + 2
        return varlen(*qkv, cu_seqlens_q=cu_seqlens_q[:kept], cu_seqlens_k=cu_seqlens_k[:kept], **given)

    return call


def _need_alibi(self: Any, slopes: Tensor, batch: int, heads: int) -> None:
    """In place of a method that asserts CUDA."""
    assert slopes.shape == (batch, heads)
    self.alibi_slopes = slopes


def tensors(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """float16, of the mask's sizes; with pages, a pool of two of 256 tokens."""
    keys = 256 if case.pages is not None else case.mask.n_keys
    q = torch.randn(case.rows, case.mask.n_queries, HEADS, WIDTH)
    k, v = (torch.randn(case.rows, keys, KV_HEADS, WIDTH) for _ in range(2))
    return tuple(x.half() for x in (q, k, v))  # type: ignore[return-value]


def run(case: Case, qkv: tuple[Tensor, ...], aim: Tensor, kernel: str) -> list[Tensor]:
    """The result, and gradients of its product with `aim`."""
    dtype = torch.float32 if kernel == "eager" else torch.float16
    q, k, v = (x.detach().to(dtype).requires_grad_(case.grad) for x in qkv)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    bias = Slopes(slopes, case.rows, case.mask.n_queries, case.mask.n_keys) if case.alibi else None
    pages = case.pages
    case.mask.kept.clear()
    y = attend(q, k, v, case.mask, scale=SCALE, softcap=case.softcap, bias=bias, pages=pages, kernel=kernel)
    if case.mask.padding is not None:
        y = y * case.mask.padding[..., None, None]  # what a query that is padding gives is not specified
    if not case.grad:
        return [y]
    gradients = torch.autograd.grad((y.float() * aim).sum(), (q, k, v))
    return [y, *gradients]


def apart(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """The largest difference of each tensor, that of gradients against their largest number."""
    gaps = [(a.float() - b).abs().max().item() for a, b in zip(found, wanted, strict=True)]
    return gaps[:1] + [gap / wanted[i + 1].abs().max().item() for i, gap in enumerate(gaps[1:])]


def verdict(case: Case, real: Any) -> tuple[bool, str]:
    """Whether a case went as it should, and the differences."""
    torch.manual_seed(0)
    qkv = tensors(case)
    aim = torch.randn(case.rows, case.mask.n_queries, HEADS, WIDTH)
    wanted, gaps, start, took = run(case, qkv, aim, "eager"), {}, time.perf_counter(), 0.0
    for name, module in (("flash-attn", real), ("stand-in", flash_attn_2)):
        KERNELS["flash2"].loaded = module  # type: ignore[attr-defined]
        gaps[name] = apart(run(case, qkv, aim, "flash2"), wanted)
        if name == "flash-attn":
            took = time.perf_counter() - start
    told = ", ".join(f"{name} {' '.join(f'{gap:.0e}' for gap in each)}" for name, each in gaps.items())
    fine = {name: each[0] < NEAR and all(gap < NEAR_GRADIENT for gap in each[1:]) for name, each in gaps.items()}
    as_expected = gaps["flash-attn"][0] > FAR if case.dropped else fine["flash-attn"]
    return fine["stand-in"] and as_expected, f"{told} ({took:.1f} s){', dropped as ever' if case.dropped else ''}"


def main() -> int:
    """Runs all cases and prints a line for each: how far from eager results are, then gradients of q, k and v."""
    lazy.load()
    watch_addresses()
    MACHINES["cpu"] = Machine("cuda", (9, 0), frozenset({"flash-attn"}))
    real, failed = flash_attn(os.environ["FLASH_ATTN_2"]), 0
    for case in cases():
        if sys.argv[1:] and not any(word in case.name for word in sys.argv[1:]):
            continue
        fine, told = verdict(case, real)
        failed += not fine
        print(f"{'ok  ' if fine else 'FAIL'} {case.name}: {told}", flush=True)
    print(f"{failed} cases did not go as they should" if failed else "all cases went as they should")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
