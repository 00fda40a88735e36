"""Modules that predict further tokens: against the equations in plain torch, their prices against torch's counts."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import zoo
from support.flop_counts import counted
from support.memory_tracker import StorageTracker
from support.packaged_specs import load, make_loud
from zoo.cli import run
from zoo.costs import Setup, price
from zoo.costs.elementwise_flops import count_elementwise
from zoo.costs.flops import count_flops
from zoo.costs.memory import training
from zoo.costs.rank_model import context_faults, layer_faults, tensor_faults
from zoo.distributed.pipeline_schedule import PipelineSchedule
from zoo.errors import ConfigError
from zoo.run.builder import build
from zoo.training.objective import NextToken
from zoo.training.routing import list_routers

SIZES = ["n_layers=2", "d_model=24", "n_heads=2", "n_kv_heads=2", "head_dim=12", "d_ff=40", "vocab_size=61"]
ROWS = torch.randint(0, 61, (3, 12), generator=torch.Generator().manual_seed(3))
IDS, TARGETS = ROWS[:, :-1], ROWS[:, 1:]


def model_of(*overrides):
    spec = load("llama-tiny", [*SIZES, *overrides])
    return make_loud(build(spec, device="cpu", dtype="fp32", seed=0), {61}).train()


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def rotate(x):
    """Rotary positions over x [B, T, H, C], in halves."""
    angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def layer(w, x):
    """A layer of Llama: x + attention(norm(x)), then x + ffn(norm(x))."""
    y = rms(x, w["attention_norm.weight"])
    q, k, v = ((y @ w[f"attention.{name}.weight"].T).unflatten(-1, (2, 12)) for name in "qkv")
    scores = torch.einsum("bthc,bshc->bhts", rotate(q), rotate(k)) * 12**-0.5
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    x = x + torch.einsum("bhts,bshc->bthc", scores.softmax(-1), v).flatten(2) @ w["attention.o.weight"].T
    y = rms(x, w["ffn_norm.weight"])
    return x + (F.silu(y @ w["ffn.gate.weight"].T) * (y @ w["ffn.up.weight"].T)) @ w["ffn.down.weight"].T


def equations(model, depth, weight):
    """λ/D · Σ_k (1/T) Σ_i CE(Out(h_i^k), t_{i+k+1}), on rows cut to the T − k positions that have all they need."""
    weights, table = dict(model.named_parameters()), model.embedding.tokens.weight
    hidden, total = model(IDS, logits_to_keep=0).hidden, 0.0
    for ahead in range(1, depth + 1):
        w = {name.removeprefix(f"mtp.{ahead - 1}."): each for name, each in weights.items()}
        joined = (rms(hidden[:, :-1], w["hidden_norm.weight"]), rms(table[IDS[:, ahead:]], w["next_norm.weight"]))
        hidden = layer(w, torch.cat(joined, -1) @ w["project.weight"].T)
        logits = rms(hidden, w["head_norm.weight"]) @ table.T
        total = total + F.cross_entropy(logits.flatten(0, 1), TARGETS[:, ahead:].flatten(), reduction="sum")
    return weight / depth * total / TARGETS.numel()


@pytest.mark.parametrize(("depth", "weight"), [(1, 0.3), (3, 0.7)])
def test_loss_and_gradients_are_those_of_the_equations(depth, weight):
    model = model_of(f"mtp={{depth: {depth}, weight: {weight}}}")
    found = model(IDS, targets=TARGETS).losses["mtp"]
    found.backward()
    own = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    stated = equations(model, depth, weight)
    stated.backward()
    assert_close(found, stated)
    for name, each in model.named_parameters():
        assert_close(own[name], torch.zeros_like(each) if each.grad is None else each.grad, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_step_is_that_of_both_losses_and_evaluation_has_the_next_token_s_alone():
    model, plain = model_of("mtp=1"), model_of()
    plain.load_state_dict(model.state_dict(), strict=False)
    batch = zoo.data.Batch(IDS, TARGETS)
    both = NextToken().loss(model, batch, weight=1 / TARGETS.numel())
    next_token = F.cross_entropy(plain(IDS).logits.flatten(0, 1), TARGETS.flatten())
    assert_close(both.total, next_token + equations(model, 1, 0.3))
    assert_close(both.terms["loss"], next_token)
    for each in (model.eval(), plain.eval()):
        assert_close(NextToken().judge(each, batch, TARGETS.numel(), None) / TARGETS.numel(), next_token)


def test_packed_documents_are_predicted_as_separate_rows_are():
    model, documents = model_of("mtp=2"), torch.tensor([[0] * 5 + [1] * 6])
    targets = TARGETS[:1].clone()
    targets[0, 4] = -100
    packed = model(IDS[:1], targets=targets, documents=documents).losses["mtp"] * 10
    parts = [(IDS[:1, :5], targets[:, :5], 4), (IDS[:1, 5:], targets[:, 5:], 6)]
    assert_close(packed, sum(model(ids, targets=own).losses["mtp"] * count for ids, own, count in parts))


def test_a_module_s_mixture_is_balanced_with_the_others():
    model = model_of("mtp=1", "ffn=moe", "n_experts=4", "top_k=2")
    out = model(IDS, targets=TARGETS)
    routers = list_routers(model)
    assert len(out.loads) == len(routers) == 3 and routers[-1] is model.mtp[0].ffn.router
    assert all(int(load.sum()) == 2 * IDS.numel() for load in out.loads)


# ---------------------------------------------------------------- prices


@pytest.mark.parametrize(
    "overrides", [[], ["head.tied=false", "head.bias=true"], ["ffn=moe", "n_experts=4", "top_k=2"]]
)
def test_parameters_are_counted_and_generation_costs_as_much_as_without(overrides):
    model, plain = model_of("mtp=2", *overrides), model_of(*overrides)
    with_modules, without = (price(each.spec, context=16, gpu="h100") for each in (model, plain))
    assert with_modules["params"]["total"] == sum(each.numel() for each in model.parameters())
    assert with_modules["params"]["total"] > without["params"]["total"]
    for figure in ("forward", "prefill", "decode"):
        assert with_modules["flops"][figure] == without["flops"][figure]
    for figure in ("kv_cache", "generate_peak"):
        assert with_modules["memory"][figure] == without["memory"][figure]
    for figure in ("decode", "prefill"):
        assert with_modules["roofline"][figure] == without["roofline"][figure]
    assert with_modules["params"]["active"] == without["params"]["active"]
    assert count_elementwise(model.spec) > count_elementwise(plain.spec)


def test_training_flops_are_those_that_torch_counts_but_for_positions_without_a_target():
    model = model_of("mtp=2")
    model.kernel = "eager"
    with counted(model) as found, torch.no_grad():
        model(IDS, targets=TARGETS)
    priced = count_flops(model.spec, IDS.shape[1])["train"] / 3 * IDS.numel()
    unlabelled = len(IDS) * (1 + 2) * 2 * 24 * 61  # of the head; the layer computes them
    assert found.visible == pytest.approx(priced - unlabelled, abs=2 * IDS.numel())


@pytest.mark.parametrize("depth", [1, 2])
def test_the_memory_of_a_step_is_what_tensors_take(depth):
    spec = load("llama-tiny", ["d_model=64", "n_layers=4", "vocab_size=257", f"mtp={depth}"])
    model = build(spec, device="cpu", dtype="fp32").train()
    rows = torch.randint(0, 257, (8, 129))
    tracker, count = StorageTracker(), rows[:, 1:].numel()
    tracker.know(model.parameters())
    with tracker:
        NextToken().loss(model, zoo.data.Batch(rows[:, :-1], rows[:, 1:]), weight=1 / count).total.backward()
    setup = Setup(context=128, batch=8, dtype="fp32", precision="fp32", chunked_loss=True, optimizer="sgd")
    figures = training(spec, setup, fused=False)
    states = figures["weights"] + figures["optimizer"]
    assert tracker.most == pytest.approx(figures["train_peak"] - states, rel=0.02)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "overrides", "said"),
    [
        ("bert-tiny", ["mtp=1"], "'encoder' has no such field"),
        ("t5-tiny", ["decoder.mtp=1"], "decoder.mtp: is of a decoder that reads a text alone"),
        ("llama-tiny", ["mtp=1", "prefix_lm=true"], "mtp: shows a position the next token"),
        (
            "llama3-8b",
            ["mtp=1", "head.kind=none"],
            "mtp: reads logits of states d_model wide, and the head is of kind 'none'",
        ),
        ("llama-tiny", ["mtp=1", "layers={mtp: {}}", "pattern=[mtp]"], "mtp: is the name of a kind of layer"),
        ("llama-tiny", ["mtp=1", "attention.value_residual=0.5"], "mtp: adds a layer 'layer'"),
        ("llama-tiny", ["mtp=0"], "mtp: must be greater than 0"),
    ],
)
def test_models_that_can_have_no_modules_are_refused(model, overrides, said):
    with pytest.raises(ConfigError) as refused:
        load(model, overrides)
    assert len(refused.value.faults) == 1 and said in refused.value.faults[0]


def test_meshes_that_cut_rows_heads_or_layers_are_refused():
    spec = load("llama-tiny", ["mtp=1"])
    schedule = PipelineSchedule("1f1b", 2, 1)
    for found in (context_faults(spec, 2), [*tensor_faults(spec, 2)], layer_faults(spec, schedule)):
        assert len(found) == 1 and "mtp" in found[0]
    with pytest.raises(ConfigError, match="mtp's modules are not divided"):
        price(spec, Setup(tp=2))


@pytest.mark.parametrize(
    ("option", "said"), [("--explain", "explain: has no formulas"), ("--verify", "verify: runs no")]
)
def test_what_cannot_follow_modules_says_so_in_one_line(option, said, capsys):
    assert run(["stats", "llama-tiny", "mtp=1", option]) == 2
    assert said in capsys.readouterr().err
