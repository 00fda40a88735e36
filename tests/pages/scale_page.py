"""Writes docs/scale.md: how to choose a mesh of processes, with examples that are run and published speeds beside what
is predicted. `python tests/pages scale` runs it; test_scale_page.py holds the page against the code."""

# ruff: noqa: E501  (rows of tables)

from __future__ import annotations

import contextlib
import io
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

from support.packaged_specs import load
from support.published_step_times import FUSED, RUNS, SOURCES, Run, cluster_of, predict
from zoo.costs import cluster as links
from zoo.costs import flops, step_time

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"

HEAD = """\
# From a laptop to 1,024 GPUs

Written by `python tests/pages scale`; a test holds this page against the code. The examples below were run when the page was
written. No speed here was measured by us: predictions stand beside what others have published.

## What each kind of parallelism divides

`zoo train parallel=NAME`, started by torchrun, or by Zoo itself with `launcher=torchrun nproc=8`:

| name | processes share | divides | sends | use it when |
| --- | --- | --- | --- | --- |
| `ddp` | nothing: each has rows and a model of its own | rows of a batch | gradients, once a microbatch | the model, its gradients and states fit on one GPU |
| `fsdp` | a copy of the weights | rows, weights, gradients, states (ZeRO-3) | weights twice and gradients, beside the compute | they do not fit |
| `hsdp` | a copy on each node | the same within a node; replicas between | the same within a node, gradients between | the network is slow |
| `tp` | rows and tokens | heads, d_ff, vocabulary; activations | the stream, 4 times a layer and pass, exposed | activations or one layer do not fit; within a node |
| `fsdp_tp` | both | both | both | many GPUs: fewer sequences a step than GPUs |
| `cp` | rows | tokens of a row | keys and values, exposed; `parallel.cp_comm=ring`: beside attention | long rows |
| `ep` | rows of their own | the experts of a mixture | tokens to their experts and back, exposed | a mixture of experts |
| `pp` | nothing: each has layers of its own | layers | the stream between stages, little | the network is slow, or there are hundreds of GPUs |

They compose: `parallel={dp: 2, shard: 8, cp: 1, tp: 8, ep: 1, pp: 4}` is 2 × 8 × 1 × 8 × 4 = 512 processes. `ep` is among dp, shard
and cp. Stages lie furthest apart, then dp, shard and cp; the processes of tp are neighbours, so that they are on one node.

**How the keys of `cp` meet.** `cp_comm=all_gather`, the default, gathers keys and values before each layer's attention and keeps them for the
backward pass: it sends least, one call computes a run's attention, and any kernel serves. With `cp_comm=ring` they travel from rank
to rank while each attends to those it has (Liu et al., 2023), and travel again in the backward pass with their gradients in float32:
twice the bytes in bfloat16, one and a half times in float32, but no rank keeps the keys of others. Take the ring where those do not fit
(many key heads, MLA, whose gathered latents are expanded for the whole row on every rank), or where the link is slow beside long runs of
tokens. Gather with few key heads, short rows, and with masks of many short documents. The ring's parts are computed by flash-attn 2
on a GPU (bfloat16; no mask, causal, causal window) and by torch's fused kernel on a CPU; softcaps and learned biases, and on a GPU
ALiBi and documents that end within a run, take a plain one that holds a run's scores. It takes no `kernel=` but auto and eager, no
dropout of attention, no `compile=true`. `zoo solve mesh --cp-comm ring` prices its memory, and of its bytes the time that attention does
not cover. On a GPU the ring has not been run: its calls are tested over stand-ins with torch's signatures.

## Choosing a mesh

1. **One GPU.** `zoo solve batch MODEL --gpu h100 --train` says whether a step fits. If not: `--recompute selective`, then `full`; a
   chunked loss; an optimizer with smaller states (`adamw8bit`, `lion`).
2. **One node.** `parallel=fsdp` on all GPUs. It divides all states, and its traffic hides behind compute while a rank has a few
   thousand tokens at once.
3. **Activations do not fit, or there are more GPUs than sequences in a step:** `tp` of 2, 4 or 8 within a node; `cp` for long rows.
4. **Hundreds of GPUs:** replicas of sharded groups (`dp` × `shard`), or `pp` with at least four microbatches a stage: the bubble
   is (p − 1)/(m + p − 1) of the time, or less with another schedule (below).
5. **Ask.** `zoo solve mesh` prices every combination and ranks those that fit.
6. **Measure** the first three for 20 steps each. Predictions a few per cent apart are equal.

**When nothing fits**, in this order: recompute (`--recompute full` takes a third more time at most), `--chunked-loss` (logits of a large
vocabulary), more `shard`, more `tp`, `pp`, more GPUs, `--optimizer adamw8bit`.

## A pipeline's layers and its schedule

**Layers are cut by their time**: the FLOPs of each for a row of the run, attention's and the head's product among them; an embedding
costs nothing. The slowest chunk is as fast as can be. So Llama 3 405B has 15 layers on the first and on the last of 8 stages and
16 on each other, as Meta cut it. `zoo stats --pp 8` prices the stages that `parallel={pp: 8}` runs, and a checkpoint knows of none: any
run goes on with another cut.

**Schedules** are torch's. p stages have v chunks of layers each and take m = `accumulate` microbatches. F is a forward pass, I and W
are the halves of a backward pass, for inputs and for weights; in a layer of products alone all three take as long.

| `parallel.schedule` | `chunks` | a stage waits, of the time that it computes | the fullest stage keeps, in microbatches of its layers | sends of a microbatch |
| --- | --- | --- | --- | --- |
| `1f1b` | 1 | (p − 1)/m | p | 1 |
| `interleaved` | v ≥ 2 | (p − 1)/(v·m) | p + (p − 1)/v | v |
| `zero_bubble` | v ≥ 1 | (p − 1)·(F + I − W)/(v·m·(F + I + W)): a third of the above | p, and so does every other stage | v |
| `zero_bubble_v` | 2 | (p − 1)·F/(2·m·(F + I + W)): a sixth of 1f1b's | p, and so does every other stage | 2 |

- **`1f1b`** where microbatches are many (m ≥ 8·p: it waits 11 % of a step at most), where memory is short, and with `shard` and recomputation.
- **`interleaved`** where they are few and the link between stages is fast: it waits 1/v of that, for v times the sends and up to
  half as many activations more. It takes as many microbatches as come out even in rounds of p.
- **`zero_bubble`** where they are few and every stage has room for what the first one keeps, and for the gradients that weights
  wait with (`train_peak` counts them; [46 % more](meshes.md) than the fullest stage of `1f1b` on the last of two). Its backward pass is in two halves, so it goes with neither `shard`, recomputation nor `cp_comm=ring`. `zero_bubble_v` waits least; it takes 2·p − 1 microbatches or more.

`tests/training/test_pipeline.py` runs all four on processes whose layers sleep a known time: each waits within 10 % of these formulas.

## `zoo solve mesh`

Every mesh whose product is `--count` and that the model and the program take: tp within a node (`--node 8`), cp where attention
can divide a row, ep that divides the experts, pp for decoders with at least as many microbatches as stages; with microbatches of
1, 2, 4 … sequences, and each recomputation. Memory is the exact price (`zoo stats --tp … --zero 3`); time is predicted. A step has 4 Mi
tokens unless `--global-batch` (sequences) or `--batch-tokens` says otherwise. `--network 400Gb` is what a GPU sends to other nodes, in
one direction; the link within a node is the GPU's (`conf/hardware/`). `--fp8` puts products inside layers in float8. `--schedule
interleaved --chunks 2` is how the stages of all pipelines compute, 1f1b unless given.
"""

EXAMPLES = [
    (
        "A model that one node holds.",
        "zoo solve mesh llama3-8b --gpu h100 --count 8 --context 8192 --global-batch 128 --top 4",
    ),
    ("70 B on eight nodes.", "zoo solve mesh --gpu h100 --count 64 --model llama3-70b --top 5"),
    (
        "The same with long rows: 16 times the context, as many tokens.",
        "zoo solve mesh llama3-70b --gpu h100 --count 64 --context 131072 --top 3",
    ),
    (
        "405 B on 1,024 GPUs, 16 Mi tokens a step.",
        "zoo solve mesh llama3.1-405b --gpu h100 --count 1024 --context 8192 --global-batch 2048 --top 5",
    ),
    (
        "A mixture of experts.",
        "zoo solve mesh qwen3-30b-a3b --gpu h100 --count 16 --context 4096 --top 4",
    ),
]

MODEL = """
## How time is predicted

A step is m microbatches through the slowest stage, the bubble, what data parallelism sends beyond what compute covers, and
the update. Matrix products and attention run at a share of the peak rate; what lies between them moves the bytes that a layer
saves, {forward} times forward and {backward} times backward, at {memory:.0%} of the memory's bandwidth. FlashAttention's backward
is 2.5 × its forward. A ring of ranks that are k to a node sends at k times a GPU's network rate, or at the link's. Launches of
kernels, loading data, uneven experts and stragglers cost nothing.

| constant | value | source |
| --- | --- | --- |
{rows}

The one calibrated constant was set by the dense runs below, so their median is no independent check; its spread is.
"""


def constants() -> list[tuple[str, str, str]]:
    """List the constants of the model of time with their sources, read from the code."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in step_time.MATMUL.items())
    calculon = "Isaev et al., 2023, Calculon, `systems/a100_80g.json`"
    mamf = "Bekman, ml-engineering, Maximum Achievable Matmul FLOPS, 2025"
    return [
        ("fastest bf16 product, of the peak", f"{shares}; others as h100", mamf),
        ("fastest fp8 product", f"{step_time.MATMUL_FP8:.1%}", mamf),
        ("products of a step, of the fastest", f"{step_time.REACHED:.0%}", "**calibrated** on this page"),
        (
            "attention, of the peak",
            f"{step_time.FLASH2:.0%} (FlashAttention-2, H100), {step_time.FLASH2_A100:.0%} (A100)",
            "Shah et al., 2024, abstract; Dao, 2023, §1 (50 to 73 %)",
        ),
        (
            "the same of Megatron-Core's runs",
            f"{FUSED:.0%}",
            "pytorch/benchmark #2391: FlashAttention-3, 8,192 tokens",
        ),
        ("memory bandwidth", f"{step_time.MEMORY_SHARE:.0%}", calculon),
        ("link, network", f"{links.LINK_SHARE:.0%}, {links.NETWORK_SHARE:.0%}", calculon),
        (
            "compute lost to hidden traffic",
            f"{links.LINK_USAGE:.0%} (link), {links.NETWORK_USAGE:.0%} (network)",
            calculon,
        ),
        ("network", f"{8 * links.NETWORK / 1e9:.0f} Gb/s a GPU", "torchtitan's H100 benchmarks; DGX H100"),
    ]


AGAINST = """
## Beside published runs

Published tok/s a GPU, and what is predicted for the same mesh, batch and sequence. MFU is predicted, of the bf16 peak and without what
is computed again; with float8 it may pass what bf16 reaches. `said` is what the page reports besides.

- **Recomputation.** torchtitan's "selective op" is predicted as every second layer. Megatron-Core's pages do not say; none is taken.
- **Machines.** torchtitan's H100s are limited to 500 W with HBM2e at 2.4 TB/s: their page says that the peak is "between SXM and NVL", and
  NVL's is taken. The network of its A100s is not stated; 200 Gb/s is taken, and half as much would change no row by 1 %.
- **Pipelines.** torchtitan's ran as many microbatches as stages, its default then; their page does not say.
- **Left out**: runs in eager mode (their elementwise work is not fused), with async TP alone as the difference, of models that are not in
  `conf/model/`, or whose experts lie across tp (Qwen3 235B). Megatron-LM's README (MFU of 41 to 48 % on H100, 2 B to 462 B)
  gives meshes only in a picture.
"""


def mesh_of(run: Run) -> str:
    """Write a run's mesh: FSDP's data ranks are `shard`."""
    names = {"dp": "shard" if run.mesh.get("zero") == 3 else "dp"}
    ways = " ".join(f"{names.get(name, name)}={size}" for name, size in run.mesh.items() if name != "zero" and size > 1)
    return ways + (f" v={run.chunks}" if run.chunks > 1 else "")


def is_mixture(run: Run) -> bool:
    return "ep" in run.mesh


def error(run: Run) -> float:
    return predict(run) / run.speed - 1


def table(runs: Sequence[Run]) -> str:
    """Write published runs beside their predictions."""
    titles = {"titan-h100": "torchtitan, H100", "titan-a100": "torchtitan, A100", "titan-h200": "torchtitan, H200"}
    titles |= {"nemo": "NeMo, H100", "bridge": "Megatron Bridge, H100"}
    lines = [
        "| source | model | mesh | sequence | batch | again | fp8 | tok/s | said | predicted | MFU | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        found, spec = predict(run), load(run.model)
        done = found * flops.count_flops(spec, run.context)["train"]
        lines.append(
            f"| {titles[run.source]} | {run.model} | {mesh_of(run)} | {run.context:,} | {run.batch}×{run.passes} | "
            f"{run.recompute} | {'yes' if run.float8 else ''} | {run.speed:,} | {run.said} | {found:,.0f} | "
            f"{100 * done / cluster_of(run).device.flops('bf16'):.0f} % | {100 * (found / run.speed - 1):+.0f} % |"
        )
    return "\n".join(lines)


def summary() -> str:
    """Write the errors of each group of runs: median, median of the absolute, and largest."""
    groups = {
        "torchtitan, no context parallelism": lambda run: run.source.startswith("titan") and "cp" not in run.mesh,
        "torchtitan, context parallelism": lambda run: run.source.startswith("titan") and "cp" in run.mesh,
        "Megatron-Core, dense": lambda run: not run.source.startswith("titan") and not is_mixture(run),
        "all dense": lambda run: not is_mixture(run),
        "mixtures of experts": is_mixture,
    }
    lines = ["| runs | number | median error | median of its size | largest |", "| --- | --- | --- | --- | --- |"]
    for name, belongs in groups.items():
        errors = [100 * error(run) for run in RUNS if belongs(run)]
        size = statistics.median(map(abs, errors))
        lines.append(
            f"| {name} | {len(errors)} | {statistics.median(errors):+.0f} % | {size:.0f} % | {max(errors, key=abs):+.0f} % |"
        )
    return "\n".join(lines)


FINDINGS = """
Where it is wrong:

- **Context parallelism in torchtitan (December 2024)**: at 4 and 8 ranks two thirds of what is predicted. Its attention went round a ring
  in as many parts as ranks, and is taken here to run at FlashAttention's rate. Zoo gathers keys and values unless told otherwise; its own
  speed is not measured.
- **Mixtures of experts.** Small experts, permuting tokens and launching kernels are not in the model, so two are predicted too fast. Qwen3
  30B on one machine was published at 5,113 and, a release later, at 9,058 tok/s. DeepSeek-V3's all-to-all is taken to be exposed over 64
  ranks, so it is predicted too slow. Rank mixtures by measuring.
- **Small dense models in fp8**: NeMo 24.07's 7 B to 13 B are predicted 8 to 24 % too fast, Megatron Bridge's 8 B is met. Casts to fp8
  are not counted.
"""


def run_example(command: str) -> str:
    """Run a command of the page, and give what it prints."""
    from zoo.cli import run

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run(shlex.split(command)[1:]) == 0
    return out.getvalue().rstrip()


def shown(command: str) -> str:
    """Give an example's output without the note, which every one ends with."""
    return run_example(command).split("\n\nMemory is exact")[0]


def page() -> str:
    """Give the whole page."""
    examples = "".join(f"\n{title}\n\n```\n$ {command}\n{shown(command)}\n```\n" for title, command in EXAMPLES)
    rows = "\n".join(f"| {' | '.join(row)} |" for row in constants())
    moves = {"forward": step_time.FORWARD_MOVES, "backward": step_time.BACKWARD_MOVES, "memory": step_time.MEMORY_SHARE}
    sources = "\n".join(f"- [{title}]({address})" for title, address in SOURCES.values())
    return "\n".join(
        [
            HEAD + examples + MODEL.format(rows=rows, **moves) + AGAINST,
            summary(),
            FINDINGS,
            table(RUNS),
            "",
            "Sources:",
            "",
            sources,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
