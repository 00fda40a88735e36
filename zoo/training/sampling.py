"""Samples of text that a run writes while it trains: whether the model writes any, and by which kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.costs.kernels import asks
from zoo.costs.setup import Setup
from zoo.kernels import KERNELS, machine_of
from zoo.training.objective.base import describe

if TYPE_CHECKING:
    from zoo.training.settings import Training


def writes(spec: Any) -> bool:
    """Whether a model writes text, so that samples can be taken."""
    return any(tower.causal and tower.head.predicts_tokens for tower in spec.towers().values())


def describe_silence(spec: Any) -> str:
    """Name what keeps a model from writing text: its topology, or its head."""
    heads = [tower.head for tower in spec.towers().values() if tower.causal]
    return f"{describe(spec)} with a head of kind '{heads[-1].kind}'" if heads else describe(spec)


def choose_sampling_kernel(spec: Any, settings: Training, device: Any) -> tuple[str, str | None]:
    """Choose the kernel for samples. Returns its name, and a line that says so where it is not the one that trains.

    Training and evaluation compute in the run's precision. Samples are generated with the weights as they are, mostly
    in float32, a token at a time and without gradients: other asks, which a kernel named for training may refuse. Then
    `auto` generates them.
    """
    kernel = settings.kernel
    if kernel == "auto":
        return kernel, None
    machine, setup = machine_of(device), Setup(dtype="bf16" if settings.pure else "fp32")
    towers = spec.towers().values()
    for use, tower in ((use, tower) for use in ("prefill", "decode") for tower in towers if tower.causal):
        for kind in tower.blocks:
            for ask in asks(tower, kind, use, setup).values():
                reason = None if ask is None else KERNELS[kernel].refuses(ask, machine)
                if reason is not None:
                    return "auto", f"kernel={kernel} trains and evaluates; samples take kernel=auto, as {reason}"
    return kernel, None
