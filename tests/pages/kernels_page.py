"""Writes docs/kernels.md: which attention kernels there are, what is asked of them, how they are proved, and how far
each was from the reference when this was run. `python tests/pages kernels` measures and writes (some minutes: flex is
compiled for every case); test_kernels_page.py holds all but the measurements against the code."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from support import kernel_asks
from zoo.bench.kernels.accuracy import FACTOR, SLACK, check_case
from zoo.bench.kernels.cases import list_cases
from zoo.bench.kernels.processes import Settings
from zoo.errors import KernelError
from zoo.kernels import AttentionQuery, Machine, order, pick
from zoo.kernels.base import Kernel
from zoo.kernels.found import EVERYTHING, MACHINES
from zoo.kernels.table import FEATURES, tabulate

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"
H100 = Machine("cuda", (9, 0), EVERYTHING)
HERE = ("sdpa", "flex", "eager")
DTYPES = ("float32", "bfloat16", "float16")

HEAD = """\
# Attention kernels

Written by `python tests/pages kernels`; a test holds everything but the measurements against the code.

`attend(q, k, v, mask, …)` has one meaning (zoo/kernels/eager.py): scores are scaled, softcapped, biased, masked; their
softmax is taken in float32; causal masks and windows are aligned at the bottom right; a causal window of W shows W
keys, the query's own included; a query that sees nothing gives 0. Every other kernel gives the same or refuses with a
reason.

```sh
zoo doctor                                        # what each kernel can do, here and elsewhere, and why not
zoo build llama3-8b --device meta --kernel sdpa   # force one, or be told why it will not do
zoo stats gemma2-9b --kernels --gpu h100          # what each layer would use there, and the call
zoo train model=llama-tiny kernel=eager steps=5   # any command that runs a model takes one
```
"""

GPU = """
## Pages

The engine decodes on a GPU from a paged cache: `attend(pages=…)`, with a length for each row. Which kernels read pages
where they lie, and of what size:

| kernel | pages | else |
| --- | --- | --- |
| flash2 | multiples of 256 tokens | refuses |
| flash3 | any | |
| flash4 | any, heads in multiples of 16 channels | refuses |
| flash_torch | none | refuses |
| triton | any | |
| sdpa, flex, eager | any | a row's keys are copied out of the pages first |

The size is chosen when an engine is made, 16 or 256: the one at which the kernels that come first read more of the
model's kinds of layer in place. Learned biases are copied.

**triton** is Zoo's own kernel (zoo/kernels/triton_split.py, its code in triton_code.py). It needs no package: torch
brings Triton on Linux with CUDA. Under `auto` it reads pages where flash-attn is missing or refuses: sinks, ALiBi, a
softcap, float32, heads of any width up to 512 channels, MLA's latents (512 + 64 channels, of which the first 512 are
the values and are read once). It splits a row's keys into parts, so that one row occupies a GPU too (Flash-Decoding),
and packs the query heads of a kv head into one tile, also several new tokens of each (drafts to verify). A window costs
only its keys. On GPUs older than Ampere it refuses.

```
$ zoo stats deepseek-v3 --kernels --gpu h100
...
With flash-attn 2, 3 and 4
  dense × 3, sparse × 58
    train, prefill: flash3: flash_attn_func(causal=True, window_size=(-1, -1))
    decode: triton: attend_part(sides=(None, 0))
```

Kernels that read pages where they lie also take prompts and decoding rows in one pass (varlen):
`Mask(lengths=…, cu_seqlens_q=…)` states where the queries of each row begin. The engine computes a step so if the
kernels of all layers do; otherwise decoding rows share a pass, and prompts share one only with prompts of their
length. Recurrent layers multiply all tokens at once, and lay rows of like length under one another for the recurrence
itself. A window takes pages for a whole chunk of a prompt during the pass, if there are any, and gives back those that
no later token sees. Of MLA, whose latents are then read absorbed, chunks of
prompts that cost no more so take part (DeepSeek-V3: of 170 tokens at most); longer ones are expanded in passes of their
own. What is called was read in the packages' source of August 2026, and has run over stand-ins alone, Zoo's own kernel
by Triton's interpreter too:

| kernel | call |
| --- | --- |
| flash2 | `flash_attn_varlen_func(cu_seqlens_q=…, cu_seqlens_k=…, block_table=…)` |
| flash3 | `flash_attn_with_kvcache(cu_seqlens_q=…, cache_seqlens=…, page_table=…)` |
| flash4 | `flash_attn_varlen_func(cu_seqlens_q=…, seqused_k=…, page_table=…)` |
| triton | `attend_part(ends=…, lengths=…, table=…)`, Zoo's own |

## On a GPU

Nothing on this page is from one. `make gpu-check` (27 minutes at most; `MINUTES=5`) takes the Python and the packages
that are on the path, and needs no network. It trains with the defaults (dense, experts, MLA, hybrid, encoder-decoder),
in every precision, with offloaded states and recomputation, and goes on from a checkpoint; compares the memory that is
priced with what is allocated; holds the tokens of the engine in bfloat16 (pages, graphs, speculation) against one full
pass; runs the cases above at a GPU's sizes under the same rule; and measures TFLOP/s, training MFU, decoding of 1 row
and of 64 against the card's own bandwidth (with CUDA graphs and without, and beside vLLM where that is installed), and
windows against a masked scaled_dot_product_attention. What it writes, part by part, is kept in
[docs/gpu](gpu/README.md), only ever from a real run.

Tensor parallelism overlaps its exchanges with products if `parallel.async_tp=true` (CUDA, NVLink, compiled layers): a
pass of Inductor, `_micro_pipeline_tp`, then fuses gathers with the products that read them, and products with the
reduce-scatters that sum them. In a compiled layer of Llama it fuses all four exchanges forward, and the two gathers
backward (tests/distributed/test_async_tp.py, on a graph of 2 ranks). It is no default: no card has run it, and which is
faster a card must say (`make gpu-check GPUS=2` compares its losses with those of one process).

Until there is one, the CUDA kernels are checked by contract, and where their code is Triton's by running it on a CPU:

- stand-ins with the signatures of flash-attn 2, 3 and 4 and of torch's own operator, which refuse what the real ones
  refuse (dtypes, widths, int32 lengths, page sizes, strides, spellings of an open window) and compute by arithmetic of
  their own: every case above, forward and backward, and whole models under them (tests/kernels/test_flash.py);
- the stand-ins' signatures against the packages' own source, where it is at hand
  (tests/kernels/test_flash_signatures.py);
- the launches of Zoo's own kernel over a stand-in that reads its arguments as the Triton code does
  (tests/kernels/test_triton_split.py);
- the order of launches, pinned copies and events around recorded steps, over fakes: a recorder that replays what
  torch's tracer wrote (tests/generation/test_graphs.py), and a device that works only when the host waits for it
  (tests/generation/test_overlap.py);
- `make kernels-oracle` (not in CI): Zoo's own kernel run by Triton's interpreter in every case above that it does not
  refuse, in attentions drawn at random (page tables with NaN where nothing may be read, lengths, windows, sinks,
  softcap, ALiBi, latents, three dtypes) and in models that decode, and compiled for sm_80, 86, 90, 100 and 120 in the
  shapes of Llama 3, gpt-oss, Gemma 2, BLOOM, Phi-2 and DeepSeek-V3, where it must fit shared memory and spill next to
  nothing; flash-attn 2's Triton backend run by Triton's interpreter on a CPU; flash-attn 4 compiled for sm_90 and
  sm_100 without a GPU; and what torch writes for flex on CUDA, run by the interpreter in every case above, forward
  and backward, and compiled for sm_90 and sm_86, where it must fit the GPU's shared memory. On 25 November 2026
  (torch 2.13 and triton 3.7; 2.11 and 3.6) none of 57 cases of flash-attn 2 and flex failed: in float32 errors of at
  most 7e-7 forward and 2e-6 backward. Zoo's own kernel is younger: on 1 December 2026 (torch 2.13, triton 3.7) none of
  314 comparisons failed, no address lay outside its tensors, and all 34 shapes compiled for each of the five.

What no test can show without a card stands by reading alone, of Zoo's code and of torch's at the version installed:

- all of NCCL: its collectives on every mesh, in CUDA graphs too, and how ranks end when one of them fails in a kernel
  (gloo ran them, and fakes);
- the capture of CUDA graphs, the sampling of tokens inside them included (the sort, the sums, the search), and what
  torch.compile writes for CUDA, flex apart;
- the real flash-attn packages and float8's matrix products on a GPU;
- memory: pinning by cudaHostRegister, and the 10 % of free memory that a cache leaves to the rest;
- speed: every goal of [docs/gpu](gpu/README.md), and that nothing but the metrics makes the host wait. Three
  still do: expert parallelism (each pass of a mixture), `optim=soap` (when its bases may follow) and, where rows have
  positions without a target, context parallelism (each pass) and `mtp` (each further token; packed rows too). Every
  objective's gradient is computed on torch's meta device, which has no values to wait for
  (tests/training/objective/test_host_reads.py).

Known and not done:

- **Expert parallelism waits** to learn how many rows come, as `all_to_all_single` takes numbers of rows from the host:
  it sizes its result by them. torchtitan and DeepEP wait for the same numbers. Exchanges of a fixed
  size (`symm_mem.all_to_all_vdev`, over NVSHMEM; DeepEP's `num_worst_tokens`) need room for the rows of all ranks: with
  8 ranks 8 times the memory of the experts' inputs and of what they save. A smaller
  capacity drops tokens, and no mixture of Zoo does.
- **Q, K and V, and gate and up, are products of their own in training** (`zoo generate` joins them). Joined by
  `torch.cat` in each pass they would cost more than they gain. Of Llama 3 8B a layer has 285 MB of these weights: the
  copy, and that of their gradient, take 0.34 ms at 3.35 TB/s, 2.9 % of the 11.7 ms that the products themselves take
  for 8,192 tokens (600 TFLOP/s), and the joined weight is saved for the backward pass, compiled too (9.1 GB for 32
  layers). The gain: 67 waves of 128 × 256 tiles on 132 SMs in place of 68 (of 2,048 tokens 17 for 18), and three sums
  of gradients. Weights that are stored joined gain that for nothing (Megatron-Core's `linear_qkv` and `linear_fc1`,
  LitGPT's `qkv`, torchtitan's `FusedQKVLinear`), some 3 % by this arithmetic; here names in checkpoints, adapters,
  Muon's matrices, cuts of tensor parallelism and prices are those of the parts. A card must show that it is worth that.
- **The engine compiles no layers** before it captures a step, so RMSNorm with the residual, rotation with the cache
  write and SwiGLU are kernels of their own: compiling takes seconds for each number of rows, and what it gains a card
  must say. Layers that you compile, `block.compile()`, are compiled in the warm-up before each capture, never inside it
  (tests/generation/test_graphs.py).
- **`zoo generate --tp`** reduces by NCCL, not by symmetric memory.

[The table](gpu/README.md#what-a-reading-found) has all findings of a reading for GPUs, and the test that holds each.
"""


def page(measured: str) -> str:
    """Write the whole page around what was measured."""
    slack = ", ".join(f"{size:.0e} in {dtype}" for dtype, size in SLACK.items())
    return "\n".join(
        [
            HEAD,
            *_capabilities(),
            *_picks(),
            *_misuses(),
            "\n## Errors against the reference\n",
            f"{len(list_cases())} cases (zoo/bench/kernels/cases.py): features × shapes, tensors from a seed, scores",
            "spread so that a feature left out is seen. An error is a tensor's largest difference over its largest",
            f"value, from eager in float64 on the same rounded inputs. A case passes with at most {FACTOR} × the error",
            f"of eager in the same dtype and a slack of {slack}.",
            "The columns give the largest error that a kernel had of any tensor, and eager's own of that tensor.\n",
            "The packaged tiny models train to the same losses under sdpa as under eager, and write the same tokens",
            "under both and under flex (tests/kernels/test_kernel_models.py).\n",
            BEGIN,
            measured,
            END,
            GPU,
        ]
    )


def _row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _capabilities() -> Iterator[str]:
    """List what each kernel can do on a Hopper card with every package, by asking it."""
    rows = [row for row in tabulate(H100) if not row.kernel.on_request]
    yield "\n## Features of each kernel, on a Hopper GPU with every package\n"
    yield _row(["", *(row.kernel.name for row in rows)])
    yield _row(["---"] * (1 + len(rows)))
    for feature in FEATURES:
        yield _row([feature.name, *(str(row.cells[feature.name]) for row in rows)])
    yield "\nf forward, b backward, in brackets what another machine can. bfloat16, heads 128 wide where not said.\n"
    for row in rows:
        yield f"- **{row.kernel.name}**: {row.kernel.about}"


def _picks() -> Iterator[str]:
    plain, masked = (AttentionQuery("bfloat16", 128, 128, padding=padding) for padding in (False, True))
    paged = AttentionQuery("bfloat16", 128, 128, page=256)
    machines, asks = len(kernel_asks.MACHINES), len(kernel_asks.GRID)
    yield "\n## Which kernel is chosen\n"
    yield "`auto` takes the first that does not refuse:\n"
    for what, ask, machine in (
        ("on CUDA", plain, H100),
        ("on CUDA where a mask would be read", masked, H100),
        ("on CUDA where keys lie in pages (decoding)", paged, H100),
        ("on a CPU", plain, Machine("cpu", None, EVERYTHING)),
    ):
        yield f"- {what}: {', '.join(_able(order(ask, machine), machine))}"
    yield "\nThe pick is a pure function. tests/kernels/test_pick.py asks for a sample of"
    yield f"{asks:,} attentions on {machines}"
    yield f"machines, {asks * machines:,} picks, and holds each against rules stated in words of their own.\n"
    yield _row(["on an H100 with every package", "kernel", "call"])
    yield _row(["---"] * 3)
    for name, (fields, _) in kernel_asks.NOTABLE.items():
        ask = AttentionQuery(**{"dtype": "bfloat16", "head_dim": 128, "v_head_dim": 128, "needs_grad": True, **fields})
        choice = pick(ask, H100)
        yield _row([name, choice.kernel.name, f"`{choice.call}`"])


def _able(kernels: Iterable[Kernel], machine: Machine) -> list[str]:
    plain = AttentionQuery("bfloat16", 128, 128)
    return [kernel.name for kernel in kernels if kernel.refuses(plain, machine) is None]


def _misuses() -> Iterator[str]:
    yield "\n## A named kernel without the feature\n"
    yield "One line, exit code 2, nothing built or written:\n"
    yield "```"
    for name, (fields, _) in kernel_asks.MISUSES.items():
        ask = AttentionQuery(**{"dtype": "bfloat16", "head_dim": 64, "v_head_dim": 64, **fields})
        try:
            pick(ask, H100, name)
        except KernelError as error:
            yield str(error)
    yield "```"


# ---------------------------------------------------------------- measurements


def measured() -> str:
    """Measure errors on this machine, as text."""
    rows = [each for kernel in HERE for dtype in DTYPES for each in _checked(kernel, dtype)]
    today = datetime.datetime.now(datetime.UTC).date()
    where = f"{platform.machine()} with {os.cpu_count()} CPUs, torch {torch.__version__}, {today}"
    lines = [f"Measured on {where}, seed 0.\n"]
    head = ["kernel", "dtype", "cases", "refused", "failed", "forward", "eager's there", "backward", "eager's there"]
    lines += [_row(head), _row(["---"] * len(head))]
    for kernel in HERE:
        for dtype in DTYPES:
            mine = [row for row in rows if (row["kernel"], row["dtype"]) == (kernel, dtype)]
            lines.append(_row([kernel, dtype, *_summary(mine)]))
    lines += ["", *_contracts()]
    return "\n".join(lines)


def _checked(kernel: str, dtype: str) -> Iterator[dict[str, Any]]:
    for case in list_cases():
        print(f"{kernel} {dtype} {case.name}", file=sys.stderr)
        yield check_case(kernel, case, dtype, Settings("cpu"))


def _summary(rows: list[dict[str, Any]]) -> Iterator[Any]:
    """Count the cases that ran and that were refused, list those that failed, and give the largest error forward and
    backward, with eager's on the same tensor."""
    done = [row for row in rows if "refused" not in row]
    yield len(done)
    yield len(rows) - len(done)
    yield sum(not row["passed"] for row in done)
    for way in ("forward", "backward"):
        found = [each for row in done for each in row.get(way, {}).get("tensors", {}).values()]
        worst = max(found, key=lambda each: each["largest"], default=None)
        yield "none" if worst is None else f"{worst['largest']:.1e}"
        yield "none" if worst is None else f"{worst['eager']['largest']:.1e}"


def _contracts() -> Iterator[str]:
    """Run the flash kernels over their stand-ins: how many cases, and whether all passed."""
    import pytest
    import standins

    yield "Over stand-ins, on the same machine, in bfloat16 and float16:\n"
    yield _row(["kernel", "cases", "refused", "failed"])
    yield _row(["---"] * 4)
    for kernel, packages in kernel_asks.PACKAGE.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MACHINES, "cpu", Machine("cuda", kernel_asks.HOPPER, frozenset(packages)))
            standins.install(patch, kernel)
            rows = [check_case(kernel, case, dtype, Settings("cpu")) for dtype in DTYPES[1:] for case in list_cases()]
        yield _row([kernel, *list(_summary(rows))[:3]])


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # what Inductor imports has something to say
    PAGE.write_text(page(measured()), encoding="utf-8")
