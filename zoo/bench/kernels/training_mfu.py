"""Measure model FLOPs utilization (MFU) of training: `zoo train`'s own step on Llama shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.analysis.solve.mesh_prices import MeshPrices
from zoo.bench.kernels.device_timing import name_device, synchronize
from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.bench.race_model import RaceShape
from zoo.compose import load
from zoo.costs import Setup, price
from zoo.costs.cluster import Cluster
from zoo.costs.flops import count_flops
from zoo.costs.hardware import of_device
from zoo.costs.step_time import StepPlan
from zoo.data import Batch
from zoo.distributed.gradients import measure_gradient
from zoo.kernels import machine_of, select
from zoo.kernels.base import AttentionQuery
from zoo.kernels.mask import Mask
from zoo.lazy import torch
from zoo.run.builder import build
from zoo.run.machine_memory import read_free_memory
from zoo.training.compiling import compile_model
from zoo.training.gradient import accumulate_gradient, choose_autocast, clip_gradient
from zoo.training.objective import NextToken
from zoo.training.optim import AdamW

if TYPE_CHECKING:
    from zoo.costs.rows import Priced
    from zoo.model.tower import Tower

ACCOUNTING = (
    "MFU = tok/s × FLOPs per token ÷ the datasheet's bf16 FLOP/s; exact: products and visible pairs, backward = 2 × "
    "forward; palm: 6N + 12·L·H·Q·T, N without embedding tables; megatron: as exact, with half of the T² pairs; no "
    "recomputation. A step is forward, chunked cross-entropy, backward, clipping and fused AdamW; bf16 autocast over "
    "float32 weights, each layer compiled"
)
CONVENTIONS = ("exact", "palm", "megatron")
"""Conventions of counting FLOPs, from zoo.costs.flops."""

MOST_ROWS = 32
SHARE = 0.8
"""Fraction of free memory that a training step may take, as estimated by zoo.costs."""

WARM, LEAST, SPEND = 3, 5, 5.0
"""Number of untimed steps, least number of timed steps, and seconds for all timed steps."""


class BenchModel(NamedTuple):
    """A model: its name in the report, its packaged name `of`, overrides, and the tokens per sequence of training
    (`length`)."""

    name: str
    of: str
    overrides: tuple[str, ...] = ()
    length: int = 2048


MODELS = (
    BenchModel("Llama 124 M", "llama3-8b", tuple(RaceShape().overrides())),
    BenchModel("Llama 1.2 B", "llama3.2-1b"),
)
TINY = BenchModel("Llama tiny", "llama-tiny", ("d_model=32", "n_layers=2", "d_ff=48", "vocab_size=256"), 64)


def list_jobs(settings: Settings) -> list[Measurement]:
    """List one job per model."""
    models = (TINY,) if settings.quick else MODELS
    return [Measurement(f"train {model.name}", partial(time_training, model, settings)) for model in models]


def time_training(model: BenchModel, settings: Settings) -> ReportRow:
    """Measure tokens per second of training, and MFU by each convention."""
    spec = load(model.of, model.overrides)
    device = torch.device(settings.device)
    rows = 2 if settings.quick else fit_rows(spec, model.length, read_free_memory(device))
    built = build(spec, device=settings.device, seed=settings.seed)
    step = make_step(built, rows, model.length, compiled=not settings.quick)
    start = time.perf_counter()
    for _ in range(WARM):
        step()
    synchronize(settings.device)
    warm = time.perf_counter() - start
    taken = time_steps(step, settings.device, LEAST, 0.2 if settings.quick else SPEND)
    rate = rows * model.length / taken
    return {
        "model": model.name,
        "params": sum(each.numel() for each in built.parameters()),
        "rows": rows,
        "length": model.length,
        "kernel": name_kernel(spec, model.length, device),
        "first_steps_seconds": warm,
        "step_seconds": taken,
        "tokens_per_second": rate,
        "peak_bytes": torch.cuda.max_memory_allocated() if settings.device == "cuda" else None,
        "predicted_seconds": predict_seconds(spec, rows, model.length, settings),
        **compute_mfu(spec, model.length, rate, settings),
    }


def compute_mfu(spec: Priced, length: int, rate: float, settings: Settings) -> dict[str, Any]:
    """Compute FLOPs per token and MFU by convention, relative to the data sheet's FLOP/s (if known) and to the measured
    FLOP/s.

    The measured peak is the fastest dtype's. If the exact MFU at a peak is above 1, the peak must be wrong, and all
    MFUs at that peak are left out.
    """
    flops = {name: count_flops(spec, length, name)["train"] for name in CONVENTIONS}
    card = of_device(name_device(settings.device))
    peaks = {"sheet": card.flops("bf16")} if card is not None and "bf16" in card.tflops else {}
    if settings.limits is not None:
        peaks["measured"] = max(settings.limits.flops.values())
    mfu = {peak: {name: each * rate / most for name, each in flops.items()} for peak, most in peaks.items()}
    mfu = {peak: found for peak, found in mfu.items() if found["exact"] <= 1}
    return {"flops_per_token": flops, "peak_flops_per_second": peaks, "mfu": mfu}


def predict_seconds(spec: Priced, rows: int, length: int, settings: Settings) -> float | None:
    """Predict the seconds of a training step by zoo.costs.step_time. None for a device without a data sheet."""
    card = of_device(name_device(settings.device))
    if card is None:
        return None
    setup = Setup(context=length, batch=rows, precision="bf16", fused_optimizer=True, chunked_loss=True, gpu=card.name)
    return MeshPrices(spec, setup, Cluster(device=card, node=1)).predict(StepPlan(setup=setup)).total


def fit_rows(spec: Priced, length: int, free: int | None) -> int:
    """Choose the batch size: the largest power of two up to MOST_ROWS whose memory fits by zoo.costs, at least 1."""
    setup = {"context": length, "precision": "bf16", "fused_optimizer": True, "chunked_loss": True}
    rows = MOST_ROWS
    while rows > 1 and price(spec, batch=rows, **setup)["memory"]["train_peak"] > SHARE * (free or 0):
        rows //= 2
    return rows


def make_step(model: Any, rows: int, length: int, *, compiled: bool) -> Callable[[], None]:
    """Make a training step on random tokens from the functions of the training loop."""
    device = next(model.parameters()).device
    ids = torch.randint(model.spec.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), None)
    objective, optimizer, under = NextToken(), AdamW(lr=1e-4).build(model), choose_autocast(device, "bf16")
    model.train()
    if compiled:
        compile_model(model)

    def step() -> None:
        accumulate_gradient(model, objective, batch, 1, under)
        clip_gradient(list(model.parameters()), 1.0, measure_gradient(model))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def time_steps(step: Callable[[], Any], device: str, least: int, spend: float) -> float:
    """Return the mean seconds of a step, over at least `least` consecutive steps that take at least `spend` seconds."""
    steps, start = 0, time.perf_counter()
    while True:
        for _ in range(least):
            step()
        synchronize(device)
        steps += least
        passed = time.perf_counter() - start
        if passed >= spend:
            return passed / steps


def name_kernel(spec: Tower, length: int, device: torch.device) -> str:
    """Return the kernel that `auto` chooses for causal attention in the first kind of layer."""
    attention = next(iter(spec.blocks.values())).attention
    ask: AttentionQuery | None = attention.ask("bfloat16", **{**Mask(length, length).features, "needs_grad": True})
    return "none" if ask is None else select(ask, machine_of(device)).name
