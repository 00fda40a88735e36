"""Advise on training memory: the largest part of it, and the options that would cut it most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from zoo.costs.setup import Setup

PARTS = ("weights", "gradients", "optimizer", "activations", "loss_head", "step")
"""The parts of a training step's memory. They do not all exist at the same time."""

CHUNKED = "--chunked-loss"
"""The option of a loss in chunks, in which `zoo train` computes it."""

MOMENTS = {"loss": ("activations", "loss_head"), "step": ("gradients", "step")}
"""Maps the moment of a training peak (`peak_at`) to the memory figures that add to weights and optimizer states. At
other moments only shares of figures add, which are shown as one rest."""


def list_addends(memory: Mapping[str, Any]) -> list[str]:
    """List the memory figures that count in full at the training peak: weights, optimizer states, and those of
    MOMENTS."""
    names = ["weights", "optimizer", *MOMENTS.get(memory.get("peak_at", ""), ())]
    several_stages = sum(memory[name] for name in names) > memory.get("train_peak", 0)  # the fullest for each figure
    return names[:2] if several_stages else names


def advice(setup: Setup, figures: dict[str, Any], train: Callable[[Setup], dict[str, Any]]) -> dict[str, Any]:
    """Find the largest part of training memory (`bottleneck`), and the options that would lower the peak.

    `figures` has the bytes of each part of training memory; `train` prices another set-up. `change_first` lists
    options of `zoo stats` with the new peak, its moment and the bytes saved, the largest saving first. Options that
    save nothing are left out. No option changes the model or the batch of a rank.
    """
    what = max((name for name in PARTS if name in figures), key=lambda name: figures[name])
    found = []
    for option, changed in _options(setup):
        would = train(changed)
        if (saves := figures["train_peak"] - would["train_peak"]) > 0:
            there = {name: would[name] for name in ("train_peak", "peak_at")}
            found.append({"change": option, **there, "saves": saves})
    found.sort(key=lambda each: -each["saves"])
    return {"bottleneck": what, "change_first": found}


def _options(setup: Setup) -> Iterator[tuple[str, Setup]]:
    if not setup.chunked_loss:
        yield CHUNKED, replace(setup, chunked_loss=True)
    apart = setup.pipeline.splits_backward  # such a schedule allows neither recomputation nor sharded weights
    if setup.recompute != "full" and not apart:
        yield "--recompute full", replace(setup, recompute="full")
    if setup.optimizer == "adamw" and not setup.fused_optimizer:
        yield "--fused-optimizer", replace(setup, fused_optimizer=True)
    if setup.optimizer in ("adamw", "lion", "muon", "normuon", "schedule_free", "sgd", "soap"):
        yield "--optimizer adamw8bit", replace(setup, optimizer="adamw8bit")
    if setup.offload == "none" and setup.optimizer != "adamw8bit":
        yield "--offload states", replace(setup, offload="states")
    if apart:
        return
    if setup.dp * setup.cp == 1:
        yield "--dp 8 --zero 3", replace(setup, dp=8, zero=3)
    elif setup.zero < 3:
        yield "--zero 3", replace(setup, zero=3)
