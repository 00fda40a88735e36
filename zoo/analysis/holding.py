"""Find the smallest accelerators whose memory holds a model, to generate and to train. Layouts of one accelerator are
tried before layouts of several; the first layout that fits is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zoo.costs.generating import generating
from zoo.costs.hardware import Hardware, hardware
from zoo.costs.memory import training
from zoo.costs.rows import Priced
from zoo.costs.setup import Setup
from zoo.costs.shadow.tape import UnknownOperation
from zoo.costs.transient import GenerationShape, measure_peaks
from zoo.errors import ConfigError

LADDER = ("t4", "l4", "a100-40g", "l40s", "h100", "h200", "b200", "b300")
"""One widely rented accelerator of each memory size, smallest first. Reading all files of conf/hardware would slow
`zoo stats` down; `zoo solve gpu` tries all of them."""

TENSOR_PARALLEL = (2, 4, 8)
"""Degrees of tensor parallelism that are tried if one GPU does not hold the model. All are within one machine."""

LEAN = "--recompute full --chunked-loss"
"""Options that keep few activations and logits; tried if no layout holds the training without them."""

SHARDED = "--dp 8 --zero 3"
"""The sharded layout of training that `zoo.costs.advice` has priced already."""


def find_holders(spec: Priced, setup: Setup, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Find an accelerator that holds the peak of each use: `generate` (for an encoder `run`), and `train`. Give the
    `gpu`, its `memory`, the number of `gpus`, the `options` of the layout, and whether it `fits`. A use whose peak is
    unknown is absent.

    For a set-up of one rank, layouts of several GPUs are tried too: tensor parallelism to generate, ZeRO to train. A
    set-up of several ranks is tried as it is. If the set-up names a `gpu`, no other is tried. If nothing fits, the last
    layout tried is returned, on the largest accelerator.
    """
    peaks = figures["memory"]
    tried: dict[str, Iterable[tuple[int, str, int]]] = {}
    if "generate_peak" in peaks:
        tried["generate"] = _generating(spec, setup, peaks)
    elif "kv_cache" not in peaks and (needed := _count_running(spec, setup, peaks)) is not None:
        tried["run"] = [(1, "", needed)]
    if "train_peak" in peaks:
        tried["train"] = _training(spec, setup, peaks)
    ladder = LADDER if setup.gpu is None else (setup.gpu,)
    return {use: _choose(ladder, setup.dtype, layouts) for use, layouts in tried.items()}


def _generating(spec: Priced, setup: Setup, peaks: Mapping[str, Any]) -> Iterator[tuple[int, str, int]]:
    """List layouts for generating, the fewest GPUs first: number of GPUs, options, bytes on each GPU."""
    yield setup.ranks, "", peaks["generate_peak"]
    if setup.ranks > 1:
        return
    for ranks in TENSOR_PARALLEL:
        try:
            yield ranks, f"--tp {ranks}", generating(spec, dataclasses.replace(setup, tp=ranks))["total"]
        except ConfigError:  # a degree that does not divide the heads
            continue


def _count_running(spec: Priced, setup: Setup, peaks: Mapping[str, Any]) -> int | None:
    """Count the peak bytes of an encoder's pass without gradients; None on several ranks, and for a pass that cannot be
    traced."""
    if setup.ranks > 1:
        return None
    run = GenerationShape(setup.tokens(spec), setup.batch, setup.dtype, setup.cache_dtype, True)
    try:
        found = measure_peaks(spec, run)
    except (UnknownOperation, ConfigError):
        return None
    return peaks["weights"] + max(found.encode, found.prefill)


def _training(spec: Priced, setup: Setup, peaks: Mapping[str, Any]) -> Iterator[tuple[int, str, int]]:
    """List layouts for training: one GPU, then eight that share the states, then both with recomputation and a chunked
    loss."""
    yield setup.ranks, "", peaks["train_peak"]
    changes = {each["change"]: each["train_peak"] for each in peaks["change_first"]}
    if setup.ranks > 1 or SHARDED not in changes:
        return
    yield 8, "--zero 3", changes[SHARDED]  # "8 GPUs" is printed anyway, so --dp 8 is left out
    lean = dataclasses.replace(setup, recompute="full", chunked_loss=True)
    yield 1, LEAN, training(spec, lean)["train_peak"]
    yield 8, f"--zero 3 {LEAN}", training(spec, dataclasses.replace(lean, dp=8, zero=3))["train_peak"]


def _choose(ladder: tuple[str, ...], dtype: str, layouts: Iterable[tuple[int, str, int]]) -> dict[str, Any]:
    """Choose the first layout that fits, on the smallest accelerator that has the dtype and enough memory."""
    gpus, options = 0, ""
    for gpus, options, needed in layouts:
        for name in ladder:
            device = hardware(name)
            if dtype in device.tflops and needed <= device.usable:
                return _holder(device, gpus, options, True)
    return _holder(hardware(ladder[-1]), gpus, options, False)


def _holder(device: Hardware, gpus: int, options: str, fits: bool) -> dict[str, Any]:
    return {"gpu": device.name, "memory": device.sold_memory, "gpus": gpus, "options": options, "fits": fits}
