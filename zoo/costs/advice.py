"""Advise on training memory: the largest part of it, and the options that would save most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from zoo.costs.setup import Setup

PARTS = ("weights", "gradients", "optimizer", "activations", "loss_head", "step")
"""The parts of a training step's memory. They do not all exist at the same time."""


def advice(setup: Setup, figures: dict[str, Any], peak: Callable[[Setup], int]) -> dict[str, Any]:
    """Find the largest part of training memory (`bottleneck`), and the options that would lower the peak.

    `figures` has the bytes of each part of training memory; `peak` prices the peak of another set-up. `change_first`
    lists options of `zoo stats` with the new peak and the bytes saved, the largest saving first. Options that save
    nothing are left out. No option changes the model or the batch of a rank.
    """
    what = max((name for name in PARTS if name in figures), key=lambda name: figures[name])
    found = []
    for option, changed in _options(setup):
        would = peak(changed)
        if would < figures["train_peak"]:
            found.append({"change": option, "train_peak": would, "saves": figures["train_peak"] - would})
    found.sort(key=lambda each: -each["saves"])
    return {"bottleneck": what, "change_first": found}


def _options(setup: Setup) -> Iterator[tuple[str, Setup]]:
    if not setup.chunked_loss:
        yield "--chunked-loss", replace(setup, chunked_loss=True)
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
