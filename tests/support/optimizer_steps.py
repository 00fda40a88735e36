"""Optimizers stepped on random gradients in float64, to hold against formulas written in numpy."""

import numpy as np
import torch

from support.tiny_models import spec_of
from zoo.run.builder import build
from zoo.training.optim import (
    set_rates,
)

MIXTURE = ["ffn=moe", "n_experts=3", "norm=layernorm", "attention.bias=true", "attention.qk_norm={kind: rmsnorm}"]
STEPS = 4


def trace(optim, overrides=(), factors=(1.0,) * STEPS, seed=0):
    """Step a model in float64 with random gradients; give for each parameter its first value, its gradients and its
    values after each step."""
    model = build(spec_of(list(overrides)), device="cpu", dtype=torch.float64, seed=seed)
    optimizer = optim.build(model)
    generator = torch.Generator().manual_seed(seed)
    found = {name: (each.detach().clone().numpy(), [], []) for name, each in model.named_parameters()}
    for factor in factors:
        set_rates(optimizer, factor)
        for name, each in model.named_parameters():
            each.grad = torch.randn(each.shape, generator=generator, dtype=torch.float64)
            each.grad *= 10 ** float(torch.rand((), generator=generator) * 4 - 4)  # of any size
            found[name][1].append(each.grad.numpy().copy())
        optimizer.step()
        for name, each in model.named_parameters():
            found[name][2].append(each.detach().numpy().copy())
    return found, model, optimizer


def decays(name, value):
    return value.ndim > 1 and not name.endswith("bias")


def agree(found, steps_of, rtol=1e-9, atol=1e-12):
    for name, (before, gradients, after) in found.items():
        for step, (expected, value) in enumerate(zip(steps_of(name, before, gradients), after, strict=True)):
            np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=f"{name}, step {step}")
