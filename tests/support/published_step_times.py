"""Published speeds of training on many GPUs, each with its source, and the step that Zoo predicts for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from support.packaged_specs import load
from zoo.analysis.solve.mesh_prices import MeshPrices
from zoo.costs.cluster import Cluster
from zoo.costs.hardware import SheetFigure, hardware
from zoo.costs.setup import Setup
from zoo.costs.step_time import StepPlan

SOURCES = {
    "titan-h100": (
        "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, December 2024",
        "https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md",
    ),
    "titan-a100": (
        "torchtitan, docs/performance.md, 2024",
        "https://github.com/pytorch/torchtitan/blob/041336434916bdc0f88c1f89fda176fd3c2092e4/docs/performance.md",
    ),
    "titan-h200": (
        "torchtitan, benchmarks/llama3_8b_h200_2025-06_torchtitan.md (Trainy), June 2025",
        "https://github.com/pytorch/torchtitan/blob/bcdeaa37c92d1eaceeec3351e7ac81be6a1488af/benchmarks/llama3_8b_h200_2025-06_torchtitan.md",
    ),
    "nemo": (
        "NeMo (Megatron-Core), performance_summary.md, container 24.07",
        "https://github.com/NVIDIA/NeMo/blob/070a0bb168d405d653b9734c0017cf5078e77c0d/docs/source/performance/performance_summary.md",
    ),
    "bridge": (
        "Megatron Bridge (Megatron-Core), performance-summary-archive.md, containers 25.09 to 26.02",
        "https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/0a25f911b2ed6c6905a539504fdb8e5b40e3438b/docs/performance-summary-archive.md",
    ),
}
"""Title and address of each source."""

FUSED = 0.62
"""The share of the peak that FlashAttention-3 reaches with 8,192 tokens and heads of 128 (pytorch/benchmark, #2391: 614
of 989 TFLOP/s)."""


class Run(NamedTuple):
    """A published run: `mesh` are the ranks of a Setup, `batch` the sequences of a microbatch on a rank, `passes` the
    microbatches, `speed` the tokens a second and GPU that were published."""

    source: str
    model: str
    mesh: dict[str, int]
    context: int
    batch: int
    passes: int
    recompute: str
    float8: bool
    speed: int
    chunks: int = 1
    said: str = ""  # MFU or TFLOP/s, as published

    @property
    def gpus(self) -> int:
        return Setup(**self.mesh).ranks


def titan(model: str, mesh: dict[str, int], batch: int, speed: int, **more: Any) -> Run:
    passes = more.pop("passes", 1)
    values = {"context": 8192, "recompute": "full", "float8": True, "source": "titan-h100", **more}
    return Run(model=model, mesh={"zero": 3, **mesh}, batch=batch, passes=passes, speed=speed, **values)


def megatron(source: str, model: str, mesh: dict[str, int], sequences: int, batch: int, speed: int, **more: Any) -> Run:
    """A run of Megatron-Core's with its distributed optimizer (ZeRO 1), in fp8 unless said."""
    said = f"{more.pop('tflops')} TFLOP/s"
    values = {"context": 8192, "recompute": "none", "float8": True, "said": said, **more}
    mesh = {"zero": 1, **mesh}
    passes = sequences // (mesh.get("dp", 1) * batch)
    return Run(source, model, mesh, batch=batch, passes=passes, speed=speed, **values)


OP = {"recompute": "every_2"}
BF16 = {"float8": False}
A100 = {"source": "titan-a100", "float8": False}
FOUR = {"context": 4096}

RUNS = [
    titan("llama3-8b", {"dp": 8}, 2, 6667, **OP, **BF16),
    titan("llama3-8b", {"dp": 8}, 2, 8532, **OP),
    titan("llama3-8b", {"dp": 128}, 2, 6514, **OP, **BF16),
    titan("llama3-8b", {"dp": 128}, 2, 8380, **OP),
    titan("llama3-8b", {"dp": 8}, 1, 3890, context=32768),
    titan("llama3-8b", {"dp": 4, "cp": 2}, 1, 2540, context=65536),
    titan("llama3-8b", {"dp": 2, "cp": 4}, 1, 1071, context=131072),
    titan("llama3-8b", {"cp": 8}, 1, 548, context=262144),
    titan("llama3-70b", {"dp": 32, "tp": 8}, 16, 829),
    titan("llama3.1-405b", {"dp": 8, "tp": 8, "pp": 8}, 4, 100, passes=8),
    titan("llama3.1-405b", {"dp": 8, "tp": 8, "pp": 8}, 4, 128, passes=8, chunks=2),
    titan("llama3.1-405b", {"dp": 8, "tp": 8, "pp": 8}, 1, 76, passes=8, context=32768),
    titan("llama3.1-405b", {"dp": 4, "cp": 2, "tp": 8, "pp": 8}, 1, 47, passes=8, context=65536),
    titan("llama3.1-405b", {"dp": 2, "cp": 4, "tp": 8, "pp": 8}, 1, 31, passes=8, context=131072),
    titan("llama3.1-405b", {"cp": 8, "tp": 8, "pp": 8}, 1, 16, passes=8, context=262144),
    titan("llama3-8b", {"dp": 64}, 1, 2904, **A100, recompute="every_2", said="56.8 %"),
    titan("llama3-70b", {"dp": 64}, 1, 331, **A100, said="51.7 %"),
    titan("llama2-13b", {"dp": 64}, 2, 2162, **A100, **FOUR, recompute="none", said="61.1 %"),
    titan("llama2-13b", {"dp": 64}, 2, 1914, **A100, **FOUR, recompute="every_2", said="54.1 %"),
    titan("llama2-70b", {"dp": 64}, 2, 353, **A100, **FOUR, said="50.5 %"),
    titan("llama3-8b", {"dp": 32}, 2, 10938, source="titan-h200", **OP),
    titan("llama3-8b", {"dp": 64}, 2, 10753, source="titan-h200", **OP),
    megatron("nemo", "gpt3-175b", {"dp": 4, "tp": 4, "pp": 8}, 256, 1, 726, context=2048, chunks=6, tflops=782),
    megatron("nemo", "gpt3-175b", {"dp": 16, "tp": 4, "pp": 8}, 2048, 2, 782, context=2048, chunks=6, tflops=842),
    megatron("nemo", "llama2-7b", {"dp": 8}, 128, 1, 16847, **FOUR, tflops=776),
    megatron("nemo", "llama2-13b", {"dp": 4, "pp": 4}, 128, 1, 8646, **FOUR, chunks=10, tflops=754),
    megatron("nemo", "llama2-70b", {"dp": 4, "tp": 4, "pp": 4}, 128, 1, 1707, **FOUR, chunks=20, tflops=759),
    megatron("nemo", "llama3-8b", {"dp": 4, "cp": 2}, 128, 1, 12036, tflops=697),
    megatron("nemo", "llama3-70b", {"dp": 2, "cp": 2, "tp": 4, "pp": 4}, 128, 1, 1533, chunks=5, tflops=738),
    megatron("bridge", "llama3-8b", {"dp": 8, "zero": 3}, 128, 1, 14451, tflops=744),
    megatron("bridge", "llama3-70b", {"dp": 2, "tp": 4, "pp": 8}, 256, 1, 1621, chunks=5, tflops=728),
    megatron("bridge", "llama3.1-405b", {"dp": 8, "cp": 2, "tp": 8, "pp": 8}, 1536, 1, 311, chunks=8, tflops=784),
    megatron("bridge", "llama3.1-405b", {"dp": 8, "cp": 2, "tp": 8, "pp": 8}, 512, 1, 292, chunks=8, tflops=737),
    megatron("bridge", "gpt-oss-120b", {"dp": 16, "pp": 4, "ep": 8}, 1280, 1, 5993, **FOUR, **BF16, tflops=163),
    megatron("bridge", "qwen3-30b-a3b", {"dp": 8, "pp": 2, "ep": 8}, 1024, 1, 5113, **FOUR, chunks=12, tflops=118),
    megatron(
        "bridge",
        "deepseek-v3",
        {"dp": 64, "tp": 2, "pp": 8, "ep": 64},
        8192,
        1,
        1297,
        **FOUR,
        chunks=4,
        tflops=338,
    ),
]
"""Runs whose page states GPU, mesh, batch and sequence. Recomputation of Megatron's is not stated: none."""


def cluster_of(run: Run) -> Cluster:
    """The machine of a run: Grand Teton's H100 has HBM2e at 2.4 TB/s and a limit of 500 W, so that its peak is "between
    SXM and NVL" (NVL's is taken); the A100s' network is not stated, and taken to be 200 Gb/s."""
    name = {"titan-a100": "a100-80g", "titan-h200": "h200"}.get(run.source, "h100")
    device = hardware(name)
    if run.source == "titan-h100":
        own = SheetFigure(value=2400, source=SOURCES[run.source][0], checked=True)
        sizes = {**device.sizes, "bandwidth_gb_s": own}
        device = replace(device, sizes=sizes, tflops=hardware("h100-nvl").tflops)
    return Cluster(device=device, network=25e9) if name == "a100-80g" else Cluster(device=device)


def predict(run: Run) -> float:
    """Predict the tokens a second and GPU of a run."""
    titans = run.source.startswith("titan")
    base = Setup(context=run.context, precision="bf16" if titans else "bf16_master")
    prices = MeshPrices(load(run.model), base, cluster_of(run))
    order = {"schedule": "interleaved", "chunks": run.chunks} if run.chunks > 1 else {}
    setup = replace(base, **run.mesh, **order, batch=run.batch, recompute=run.recompute)
    attention = None if titans else FUSED
    keeps = titans and setup.pp > 1
    plan = StepPlan(
        setup=setup,
        microbatches=run.passes,
        float8=run.float8,
        attention=attention,
        keeps_gathered=keeps,
    )
    time = prices.predict(plan)
    return plan.sequences * run.context / time.total / plan.gpus
