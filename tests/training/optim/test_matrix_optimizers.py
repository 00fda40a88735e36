"""Optimizers of whole matrices (Muon, NorMuon, SOAP) and decay, against the papers' formulas in numpy."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.forked_processes import read_found, run_ranks
from support.optimizer_steps import MIXTURE, agree, decays, trace
from support.tiny_models import needs, spec_of
from zoo.costs import Setup, muon_stacks, price
from zoo.costs.tuning import apply_tuning
from zoo.costs.update_flops import ITERATIONS, LONGEST, REFRESHED, optimizer_flops
from zoo.errors import ConfigError
from zoo.run.builder import build
from zoo.training.optim import (
    SOAP,
    AdamW,
    Muon,
    NorMuon,
    Optim,
    ScheduleFree,
    orthogonal,
)
from zoo.training.optim.eigenbasis import SOAPOptimizer
from zoo.training.start.begin import StartSettings
from zoo.training.start.lora import Lora

# ---------------------------------------------------------------- muon


def newton_schulz(g, iterations):
    """Jordan et al., 2024, of one matrix, on whichever side is short."""
    x = (g.T if g.shape[0] > g.shape[1] else g) / max(np.linalg.norm(g), 1e-7)
    for _ in range(iterations):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_orthogonalises_each_matrix_and_each_experts_by_itself(nesterov):
    lr, mu, decay = 0.02, 0.9, 0.4
    optim = Muon(lr=lr, momentum=mu, nesterov=nesterov, iterations=3, weight_decay=decay)
    found, model, _ = trace(optim, MIXTURE)
    hidden = {
        name
        for name, each in model.named_parameters()
        if "blocks" in name and name.endswith("weight") and each.ndim > 1
    }
    assert {name.split(".")[-2] for name in hidden} == {"q", "k", "v", "o", "gate", "up", "down"} | (
        {"score"} & {name.split(".")[-2] for name in hidden}
    ) | {name.split(".")[-2] for name in hidden if "router" in name}

    def steps_of(name, w, gradients):
        momentum = np.zeros_like(w)
        for g in gradients:
            momentum = mu * momentum + (1 - mu) * g
            update = mu * momentum + (1 - mu) * g if nesterov else momentum
            matrices = update.reshape(-1, *update.shape[-2:])
            turned = np.stack([newton_schulz(each, 3) for each in matrices]).reshape(w.shape)
            w = w * (1 - lr * decay) - lr * 0.2 * math.sqrt(max(w.shape[-2:])) * turned
            yield w

    agree({name: found[name] for name in hidden}, steps_of, rtol=1e-7, atol=1e-10)

    def steps_of_adamw(name, w, gradients):
        weight = torch.nn.Parameter(torch.tensor(w))
        options = {"betas": optim.betas, "eps": optim.eps, "weight_decay": decay if decays(name, w) else 0.0}
        optimizer = torch.optim.AdamW([weight], lr=lr, **options)
        for g in gradients:
            weight.grad = torch.tensor(g)
            optimizer.step()
            yield weight.detach().numpy().copy()

    agree({name: each for name, each in found.items() if name not in hidden}, steps_of_adamw)


def list_hidden(model):
    """The names of the matrices inside layers, stacks of experts' included."""
    named = model.named_parameters()
    return {name for name, each in named if "blocks" in name and name.endswith("weight") and each.ndim > 1}


def test_normuon_divides_each_neurons_update_by_the_root_of_its_second_moment():
    lr, mu, beta, decay, eps = 0.02, 0.9, 0.8, 0.4, 1e-8
    optim = NorMuon(lr=lr, momentum=mu, beta2=beta, nesterov=False, iterations=3, weight_decay=decay, eps=eps)
    found, model, _ = trace(optim, MIXTURE)

    def step_matrices(w, gradients):
        momentum, v = np.zeros_like(w), np.zeros(w.shape[0])
        for g in gradients:
            momentum = mu * momentum + (1 - mu) * g
            o = newton_schulz(momentum, 3)
            v = beta * v + (1 - beta) * (o * o).mean(1)
            o = o / (np.sqrt(v) + eps)[:, None]
            w = w - lr * decay * w - lr * 0.2 * math.sqrt(w.size) / np.linalg.norm(o) * o
            yield w

    agree({name: found[name] for name in list_hidden(model)}, by_matrix(step_matrices), rtol=1e-7, atol=1e-10)


def by_matrix(step_matrices):
    """The steps of a tensor whose matrices, the experts', are stepped each by itself."""

    def steps_of(name, w, gradients):
        if w.ndim == 2:
            return step_matrices(w, gradients)
        each = [step_matrices(w[index], [g[index] for g in gradients]) for index in range(len(w))]
        return (np.stack(step) for step in zip(*each, strict=True))

    return steps_of


@pytest.mark.parametrize(("shape", "longest"), [((12, 12), 99), ((3, 10, 10), 99), ((8, 20), 10), ((20, 8), 10)])
def test_soap_is_adam_in_the_eigenbasis_of_shampoos_preconditioner(shape, longest):
    """Of preconditioners of full rank: the first basis of a null space is any."""
    lr, (first, second), beta, eps, decay = 0.02, (0.9, 0.8), 0.7, 1e-8, 0.4

    def step_matrices(w, gradients):
        sides = [side for side in (0, 1) if w.shape[side] <= longest]
        grams = {0: lambda g: g @ g.T, 1: lambda g: g.T @ g}
        mean = {side: (1 - beta) * grams[side](gradients[0]) for side in sides}
        basis = {0: np.eye(w.shape[0]), 1: np.eye(w.shape[1])}
        basis |= {side: np.linalg.eigh(each)[1][:, ::-1] for side, each in mean.items()}
        m, v = np.zeros_like(w), np.zeros_like(w)
        yield w  # the first step only makes the bases
        for t, g in enumerate(gradients[1:], 1):
            m = first * m + (1 - first) * g
            v = second * v + (1 - second) * (basis[0].T @ g @ basis[1]) ** 2
            adam = (basis[0].T @ m @ basis[1] / (1 - first**t)) / (np.sqrt(v / (1 - second**t)) + eps)
            w = w - lr * decay * w - lr * basis[0] @ adam @ basis[1].T
            yield w
            for side in sides:
                mean[side] = beta * mean[side] + (1 - beta) * grams[side](g)
                if t % 2 == 0:
                    order = np.argsort(-np.diag(basis[side].T @ mean[side] @ basis[side]), kind="stable")
                    v = np.take(v, order, axis=side)
                    basis[side] = np.linalg.qr(mean[side] @ basis[side][:, order])[0]

    weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    options = {"shampoo_beta": beta, "precondition_frequency": 2, "max_precondition_dim": longest}
    groups = [{"params": [weight], "weight_decay": decay}]
    optimizer = SOAPOptimizer(groups, lr=lr, betas=(first, second), eps=eps, **options)
    gradients, before, after = torch.randn(7, *shape, dtype=torch.float64), weight.detach().numpy().copy(), []
    for weight.grad in gradients:
        optimizer.step()
        after.append(weight.detach().numpy().copy())
    agree({"": (before, list(gradients.numpy()), after)}, by_matrix(step_matrices))


def test_soap_goes_on_from_restored_states_as_an_optimizer_that_begins_with_them():
    """As a run does that goes back to before a decay: bases follow after updates, not steps."""
    torch.manual_seed(0)
    gradients = torch.randn(9, 6, 4, dtype=torch.float64)
    options = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "shampoo_beta": 0.9}

    def make(weight):
        groups = [{"params": [weight], "hidden": True}]
        return SOAPOptimizer(groups, **options, precondition_frequency=4, max_precondition_dim=99)

    def step(optimizer, weight, some):
        for each in some:
            weight.grad = each.clone()
            optimizer.step()

    weight = torch.nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
    optimizer = make(weight)
    step(optimizer, weight, gradients[:4])
    then, states = weight.detach().clone(), copy.deepcopy(optimizer.state[weight])
    step(optimizer, weight, gradients[4:6])
    other = torch.nn.Parameter(then.clone())
    fresh = make(other)
    fresh.state[other] |= copy.deepcopy(states)
    weight.data.copy_(then)
    optimizer.state[weight].update(states)
    step(optimizer, weight, gradients[4:])
    step(fresh, other, gradients[4:])
    assert torch.equal(weight, other)


def test_soap_follows_a_rotation_that_adam_does_not():
    """In its eigenbasis a rotated problem is the problem: the loss of both is the same after as many steps."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    target, scales = torch.randn(8, 8, dtype=torch.float64), torch.linspace(1, 5, 8, dtype=torch.float64)

    def train(make, turned):
        weight = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.float64))
        optimizer = make([weight])
        for _ in range(20):
            optimizer.zero_grad()
            apart = (turned.T @ weight - target) * scales[:, None]
            loss = apart.square().sum()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    def soap(weights):
        options = {"lr": 0.05, "betas": (0.9, 0.9), "eps": 1e-8, "shampoo_beta": 0.9}
        return SOAPOptimizer([{"params": weights}], **options, precondition_frequency=1, max_precondition_dim=99)

    plain, rotated = (train(soap, each) for each in (torch.eye(8, dtype=torch.float64), turn))
    assert rotated == pytest.approx(plain, rel=1e-6)
    adam = [train(lambda w: torch.optim.Adam(w, lr=0.05), each) for each in (torch.eye(8, dtype=torch.float64), turn)]
    assert abs(adam[0] - adam[1]) > 0.05 * adam[0]


# ---------------------------------------------------------------- decay


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon", "soap", "sgd"])
def test_cautious_decay_spares_what_the_update_makes_larger(kind):
    lr, decay = 0.02, 0.4
    dtype = {"dtype": "fp32"} if kind == "muon" else {}
    made = [
        Optim.parse({"kind": kind, "lr": lr, "weight_decay": each, "decay": how, **dtype})
        for each, how in ((0.0, "uniform"), (decay, "cautious"))
    ]
    plain, ours = (trace(each, MIXTURE, factors=(1.0,))[0] for each in made)
    for name, (before, _, (stepped,)) in plain.items():
        update = (before - stepped) / lr
        rate = decay if decays(name, before) else 0.0
        expected = before - lr * (update + rate * (update * before >= 0) * before)
        np.testing.assert_allclose(ours[name][2][0], expected, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("kind", ["adamw", "lion", "normuon"])
def test_hyperball_steps_on_the_sphere_of_a_matrix_first_norm(kind):
    lr = 0.1
    dtype = {"dtype": "fp32"} if kind == "normuon" else {}
    optim = Optim.parse({"kind": kind, "lr": lr, "decay": "hyperball", **dtype})
    found, model, _ = trace(optim, MIXTURE, factors=(1.0, 0.5, 0.25))
    plain = Optim.parse({"kind": kind, "lr": lr, "weight_decay": 0.0, **dtype})
    uniform = trace(Optim.parse({"kind": kind, "lr": lr, **dtype}), MIXTURE, factors=(1.0, 0.5, 0.25))[0]
    rule = trace(plain, MIXTURE, factors=(1.0,))[0]
    for name, (before, _, after) in found.items():
        if name not in list_hidden(model):
            np.testing.assert_array_equal(after[-1], uniform[name][2][-1], err_msg=name)
            continue
        radius = np.linalg.norm(before, axis=(-2, -1), keepdims=True)
        update = before - rule[name][2][0]
        new = before - lr * radius * update / np.linalg.norm(update, axis=(-2, -1), keepdims=True)
        expected = radius * new / np.linalg.norm(new, axis=(-2, -1), keepdims=True)
        np.testing.assert_allclose(after[0], expected, rtol=1e-9, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(np.linalg.norm(after[-1], axis=(-2, -1), keepdims=True), radius, rtol=1e-12)


def test_a_skipped_update_changes_no_weight_that_decays_otherwise():
    for how in ("cautious", "hyperball"):
        model = build(spec_of(), device="cpu")
        optimizer = AdamW(decay=how).build(model)
        before = [each.detach().clone() for each in model.parameters()]
        for each in model.parameters():
            each.grad = torch.ones_like(each)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
        assert all(torch.equal(each, old) for each, old in zip(model.parameters(), before, strict=True))


def test_a_matrix_of_zeros_has_no_sphere():
    model = build(spec_of(), device="cpu")
    torch.nn.init.zeros_(next(each for name, each in model.named_parameters() if name in list_hidden(model)))
    with pytest.raises(ConfigError, match=r"optim.decay: hyperball keeps .* 0 for one of .*decay=uniform"):
        AdamW(decay="hyperball").build(model)


def test_an_average_is_not_decayed_otherwise():
    (fault,) = ScheduleFree(decay="cautious").refuses(spec_of())
    assert fault.startswith("decay: is cautious, and schedule_free steps other weights")


# ---------------------------------------------------------------- what all of Muon's share


def test_muon_is_torchs_on_matrices():
    torch.manual_seed(0)
    shapes = [(24, 16), (16, 24), (16, 16), (24, 16)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    rule = orthogonal.MuonOptimizer(
        [{"params": ours, "weight_decay": 0.1}],
        **{"lr": 0.1, "momentum": 0.95, "nesterov": True, "iterations": 5, "dtype": torch.bfloat16},
        **{"betas": (0.9, 0.95), "eps": 1e-8},
    )
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        rule.step()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0.1 * 0.2 * 24**0.5 * 0.05)  # bf16, in another order


@pytest.mark.parametrize(("replicas", "shards"), [(2, 2), pytest.param(1, 3, marks=pytest.mark.slow)])
def test_processes_share_muons_matrices_and_step_as_one_does(tmp_path, replicas, shards):
    run_ranks(replicas * shards, "support.muon_ranks", tmp_path, replicas, shards)
    found = read_found(replicas * shards, tmp_path)
    assert max(each["apart"] for each in found) < 2e-6
    counts = [each["matrices"] for each in found]
    assert sum(counts) == 3 * 2 * 15  # rules × steps × matrices: nobody does another's work
    assert max(counts) <= 0.5 * sum(counts)


def test_an_orthogonalised_matrix_has_singular_values_near_one():
    x = orthogonal.orthogonalise(torch.randn(3, 20, 50, dtype=torch.float64), 5)
    values = torch.linalg.svdvals(x)
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3


def test_stacks_hold_one_shape_on_either_side_and_no_more_than_they_may(monkeypatch):
    monkeypatch.setattr(muon_stacks, "STACK", 40)
    shapes = [(4, 5), (5, 4), (3, 4, 5), (4, 4), (4, 5), (4, 5)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for each in parameters:
        each.grad = torch.zeros_like(each)
    stacks = [[tuple(each.shape) for each in stack] for stack in orthogonal.stack_by_shape(parameters)]
    assert stacks == [[(4, 5), (5, 4)], [(3, 4, 5)], [(4, 5), (4, 5)], [(4, 4)]]


CHOSEN = ["attention=dsa", *needs("attention=dsa")]


def test_the_flops_of_soaps_steps_are_those_that_torch_counts_between_two_refreshes():
    spec = spec_of([*MIXTURE, "n_layers=2"])
    model = build(spec, device="cpu")
    optimizer = SOAP(eps=1e-4).build(model)

    def step():
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    step()
    with FlopCounterMode(display=False) as counter:
        for _ in range(REFRESHED):
            step()
    assert REFRESHED * optimizer_flops(spec, "soap") == pytest.approx(counter.get_total_flops(), rel=1e-4)
    assert (SOAP().precondition_frequency, SOAP().max_precondition_dim) == (REFRESHED, LONGEST)


def test_the_flops_of_a_step_are_those_of_the_matrices_that_train():
    spec = spec_of(["n_layers=2"])
    model = build(spec, device="cpu")
    start = StartSettings(freeze=("blocks.0.*",))
    start.restrict(model, None)
    optimizer = Muon(dtype="fp32").build(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    tuned = apply_tuning(spec, start.describe_tuning(spec))
    assert 2 * optimizer_flops(spec, "muon", tuned) == 2 * counter.get_total_flops() == optimizer_flops(spec, "muon")
    adapters = StartSettings(lora=Lora(rank=2, on=("attention",))).describe_tuning(spec)
    assert optimizer_flops(spec, "muon", apply_tuning(spec, adapters)) == 0  # AdamW steps them


@pytest.mark.parametrize(
    "overrides", [[], MIXTURE, ["attention=mla", "position=rope"], ["ffn=moe", "n_experts=5"], CHOSEN]
)
def test_the_flops_of_muons_step_are_those_that_torch_counts(overrides):
    spec = spec_of([*overrides, "n_layers=2"])
    model = build(spec, device="cpu")
    optimizer = Muon(dtype="fp32").build(model)
    for name, parameter in model.named_parameters():
        if ".index_" not in name:  # an indexer gets no gradient
            parameter.grad = torch.randn_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert optimizer_flops(spec, "muon") == counter.get_total_flops() > 0
    assert price(spec, Setup(optimizer="muon"))["flops"]["optimizer_step"] == counter.get_total_flops()
    assert Muon().iterations == ITERATIONS
    assert "optimizer_step" not in price(spec, Setup())["flops"]


def test_muon_says_in_which_dtype_it_orthogonalises():
    cpu = torch.device("cpu")
    assert Muon(dtype="fp32").describe(cpu) == "muon: orthogonalises in float32"
    assert Muon(dtype="bf16").describe(cpu) == "muon: orthogonalises in bfloat16"
    assert Muon().describe(cpu).endswith(", the faster here")


def test_muons_state_is_saved_and_loaded_as_torchs():
    _, model, optimizer = trace(Muon(lr=0.01))
    fresh = Muon(lr=0.01).build(model)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin = {name: each.detach().clone() for name, each in model.named_parameters()}
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    optimizer.step()
    stepped = {name: each.detach().clone() for name, each in model.named_parameters()}
    with torch.no_grad():
        for name, each in model.named_parameters():
            each.copy_(twin[name])
    fresh.step()
    assert all(torch.equal(each, stepped[name]) for name, each in model.named_parameters())
