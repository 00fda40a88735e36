"""Optimizers, step by step in float64, against torch's own, transformers' and the papers' formulas in numpy."""

import sys

import numpy as np
import pytest
import torch

from support.optimizer_steps import MIXTURE, agree, decays, trace
from support.tiny_models import choices, spec_of
from zoo.costs.setup import OPTIMIZERS
from zoo.errors import ConfigError
from zoo.run.builder import build
from zoo.training.optim import (
    SGD,
    Adafactor,
    AdamW,
    Lion,
    Optim,
    ScheduleFree,
    set_rates,
)

# ---------------------------------------------------------------- names


def test_the_optimizers_that_train_are_those_that_are_priced():
    assert sorted(OPTIMIZERS) == choices("optim") == sorted(Optim.kinds)


# ---------------------------------------------------------------- rules


def test_lion_is_the_published_algorithm():
    lr, first, second, decay = 0.01, 0.8, 0.7, 0.3

    def steps_of(name, w, gradients):
        momentum = np.zeros_like(w)
        for g in gradients:
            w = w - lr * (np.sign(first * momentum + (1 - first) * g) + (decay if decays(name, w) else 0) * w)
            momentum = second * momentum + (1 - second) * g
            yield w

    agree(trace(Lion(lr=lr, betas=(first, second), weight_decay=decay), MIXTURE)[0], steps_of)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_has_momentum_and_decay_in_the_gradient(nesterov):
    lr, mu, decay = 0.1, 0.8, 0.2

    def steps_of(name, w, gradients):
        momentum = None
        for g in gradients:
            g = g + (decay if decays(name, w) else 0) * w
            momentum = g if momentum is None else mu * momentum + g
            w = w - lr * (g + mu * momentum if nesterov else momentum)
            yield w

    agree(trace(SGD(lr=lr, momentum=mu, nesterov=nesterov, weight_decay=decay))[0], steps_of)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="nesterov looks ahead along the momentum, which is 0"):
        SGD(momentum=0.0, nesterov=True)


def test_adafactor_is_that_of_transformers():
    optimization = pytest.importorskip("transformers.optimization")
    found, _, _ = trace(Adafactor(lr=0.03), MIXTURE)

    def steps_of(name, w, gradients):
        weight = torch.nn.Parameter(torch.tensor(w))
        optimizer = optimization.Adafactor([weight], lr=0.03, relative_step=False, scale_parameter=True)
        for g in gradients:
            weight.grad = torch.tensor(g)
            optimizer.step()
            yield weight.detach().numpy().copy()

    agree(found, steps_of, rtol=1e-7)


def test_adafactor_takes_relative_steps_of_gradients_that_are_small_or_zero():
    model = build(spec_of(), device="cpu")
    optimizer = Adafactor(lr=0.01).build(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-6
        parameter.grad[0] = 0
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer.step()
    for name, each in model.named_parameters():
        moved = (each.detach() - before[name]).square().mean().sqrt()
        least = max(1e-3, float(before[name].square().mean().sqrt()))
        assert 0.5 * 0.01 * least < float(moved) < 1.01 * 0.01 * least, name


def test_schedule_free_keeps_the_average_of_the_paper():
    lr, (first, second), eps, decay = 0.02, (0.8, 0.9), 1e-6, 0.3
    factors = (0.25, 0.5, 1.0, 1.0)
    optim = ScheduleFree(lr=lr, betas=(first, second), eps=eps, weight_decay=decay)
    found, model, optimizer = trace(optim, MIXTURE, factors)
    averages = {}

    def steps_of(name, w, gradients):
        x = y = z = w
        square, weights = np.zeros_like(w), 0.0
        for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
            square = second * square + (1 - second) * g**2
            rate = lr * factor
            z = z - rate * (g / (np.sqrt(square / (1 - second**t)) + eps) + (decay if decays(name, w) else 0) * y)
            weights += rate**2
            x = (1 - rate**2 / weights) * x + rate**2 / weights * z
            y = (1 - first) * z + first * x
            yield y
        averages[name] = x

    agree(found, steps_of, rtol=1e-8)
    evaluated = optimizer.evaluation_weights()
    for name, each in model.named_parameters():
        np.testing.assert_allclose(evaluated[each].numpy(), averages[name], rtol=1e-8, atol=1e-11, err_msg=name)


# ---------------------------------------------------------------- groups


def rates(optimizer, model):
    """Learning rate and decay of every parameter, by name."""
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: found[id(each)] for name, each in model.named_parameters()}


GROUPS = {
    "embedding": {"lr": 0.5},
    "attention.norm": {"weight_decay": 0.7},
    "bias": {"lr": 0.25, "weight_decay": 0.0},
    "experts": {"lr": 0.125},
    "head": {"lr": 2.0, "weight_decay": 0.9},
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_groups_rate_is_its_own_times_the_schedule(kind):
    optim = Optim.parse({"kind": kind, "lr": 1.0, "weight_decay": 0.3, "groups": GROUPS})
    model = build(spec_of([*MIXTURE, "head.tied=false"]), device="cpu")
    optimizer = optim.build(model)
    for factor in (0.5, 0.125):
        set_rates(optimizer, factor)
        for name, (rate, decay) in rates(optimizer, model).items():
            expected = (1.0, 0.3)
            if name.startswith("embedding"):
                expected = (0.5, 0.3)
            elif "q_norm" in name or "k_norm" in name:
                expected = (1.0, 0.7)
            elif name.endswith("bias"):
                expected = (0.25, 0.0)
            elif ".experts." in name:
                expected = (0.125, 0.3)
            elif name.startswith("head"):
                expected = (2.0, 0.9)
            elif name.endswith("norm.weight"):
                expected = (1.0, 0.0)
            assert (rate, decay) == (pytest.approx(expected[0] * factor), expected[1]), name


def test_groups_that_no_tensor_is_in_are_refused_with_what_there_is():
    optim = Optim.parse({"kind": "adamw", "groups": {"embeding": {"lr": 1.0}, "head.norm": {"lr": 1.0}}})
    first, second = optim.refuses(spec_of())
    assert first.startswith("groups.embeding: no tensor of the model is in it (did you mean 'embedding'?)")
    assert second.startswith("groups.head.norm: no tensor")
    with pytest.raises(ValueError, match="changes nothing"):
        Optim.parse({"kind": "adamw", "groups": {"embedding": {}}})


def test_weights_that_are_frozen_are_left_out():
    model = build(spec_of(), device="cpu")
    model.embedding.requires_grad_(False)
    groups = AdamW().make_groups(model)
    assert all(each is not model.embedding.tokens.weight for group in groups for each in group["params"])


def test_eight_bits_without_torchao_are_refused_with_what_would_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim.quant_utils", None)
    monkeypatch.delitem(sys.modules, "zoo.training.optim.eight_bits", raising=False)
    optim = Optim.parse({"kind": "adamw8bit"})
    with pytest.raises(ConfigError, match=r"adamw8bit needs torchao.*optim=adamw"):
        optim.check_device(torch.device("cpu"))
