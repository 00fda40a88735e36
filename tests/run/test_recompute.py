"""Recomputed activations: what is kept is what `zoo stats --recompute` prices, and the gradients stay the same."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.memory_tracker import StorageTracker
from support.packaged_specs import load
from support.saved_activations import passes, saved_by, told
from support.tiny_models import AVERAGED, DEEP, every_choice, name, spec_of
from support.tiny_runs import compose_run, read_metrics, write_corpus
from zoo.costs import Setup, price
from zoo.costs.activations import PassShape, list_sections
from zoo.costs.again import RECOMPUTE
from zoo.costs.flops import count_flops
from zoo.costs.memory import training
from zoo.errors import ConfigError
from zoo.jobs.train import resume_run, start_run
from zoo.run.builder import build
from zoo.run.recompute import set_recompute
from zoo.training.dropout import Dropout
from zoo.training.planning import plan_training

SMALL = ["d_model=32", "n_heads=4", "vocab_size=67", "n_layers=2", "d_ff=48"]
MODELS = {
    "llama": lambda: spec_of([]),
    "experts": lambda: spec_of(["ffn=moe"]),
    "softcap and window": lambda: spec_of(["attention.window=4", "attention.softcap=20"]),
    "latent": lambda: spec_of(["attention=mla"]),
    "averaged routers": lambda: spec_of(AVERAGED),
    "attention residuals": lambda: spec_of(DEEP),
    "relative bias": lambda: spec_of(["position=t5"]),
    "recurrent": lambda: spec_of(["attention=mamba2", "position=none"]),
    "both towers": lambda: load("t5-small", [*SMALL, "head_dim=8"]),
    "bert": lambda: load("bert-base", SMALL),
    "two kinds": lambda: spec_of(["n_layers=7", "pattern=[near*2,layer]", "layers={near:{attention:{window:4}}}"]),
}


def gradients(spec, what, dropout=None):
    """Logits' mean square and its gradients, of a model made from one seed."""
    model = build(spec, device="cpu", seed=3).train()
    set_recompute(model, what)
    if dropout is not None:
        dropout.apply(model)
    torch.manual_seed(7)
    out = passes(model, spec, 2, 9)()
    total = out.logits.square().mean() + sum(out.losses.values())
    total.backward()
    return total.detach(), {name: each.grad for name, each in model.named_parameters()}


@pytest.mark.parametrize("what", ["selective", "full"])
@pytest.mark.parametrize("model", [each for each in MODELS if each != "two kinds"])
def test_gradients_are_those_without_recomputation_bit_for_bit(model, what):
    spec = MODELS[model]()
    (loss, plain), (same, again) = gradients(spec, "none"), gradients(spec, what)
    assert torch.equal(loss, same)
    for key, grad in plain.items():
        assert (grad is None) == (again[key] is None), key
        assert grad is None or torch.equal(grad, again[key]), key


@pytest.mark.parametrize("what", ["every_2", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", ["experts", "relative bias", "both towers"])
def test_gradients_are_the_same_bit_for_bit_under_dropout(model, what):
    """What is dropped is drawn again from the same random numbers, in each layer that is computed again."""
    spec, dropout = MODELS[model](), Dropout(attention=0.2, residual=0.2, embedding=0.1, ffn=0.2, layers=0.3)
    (loss, plain), (same, again) = gradients(spec, "none", dropout), gradients(spec, what, dropout)
    assert torch.equal(loss, same) and not torch.equal(loss, gradients(spec, "none")[0])
    assert all(grad is None or torch.equal(grad, again[key]) for key, grad in plain.items())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["selective", "full"])
@pytest.mark.parametrize("overrides", list(every_choice()), ids=name)
def test_every_choice_has_the_same_gradients(overrides, what):
    spec = spec_of(overrides)
    if spec.towers() and all(tower.head.kind == "none" for tower in spec.towers().values()):
        return  # nothing to take the gradient of
    plain, again = gradients(spec, "none")[1], gradients(spec, what)[1]
    assert all(grad is None or torch.equal(grad, again[key]) for key, grad in plain.items())


@pytest.mark.parametrize("model", ["llama", "softcap and window", "latent", "both towers", "bert"])
def test_selective_keeps_the_bytes_that_are_priced(model):
    spec = MODELS[model]()
    built = build(spec, device="cpu").train()
    set_recompute(built, "selective")
    expected = told(spec, list_sections(spec, PassShape(batch=2, context=9, dtype="fp32", fused=False, selective=True)))
    found = saved_by(built, passes(built, spec, 2, 9))
    found.pop(0, None)  # an empty tensor that torch 2.11 keeps for a checkpoint
    assert found == expected


KEEPING = [(model, 1) for model in ("llama", "softcap and window", "latent", "experts", "both towers", "bert")]
KEEPING += [("both towers", 2), ("two kinds", 2), ("two kinds", 3)]


@pytest.mark.parametrize(("model", "every"), KEEPING)
def test_full_and_every_nth_layer_keep_the_bytes_that_are_priced(model, every):
    spec = MODELS[model]()
    what = "full" if every == 1 else f"every_{every}"
    found = held_after_a_pass(spec, "none") - held_after_a_pass(spec, what)
    setup = {"batch": 2, "context": 9, "precision": "fp32", "dtype": "fp32"}
    kept = [training(spec, Setup(**setup, recompute=each), fused=False)["activations"] for each in ("none", what)]
    spared = kept[0] - kept[1]
    indices = {"experts": 60, "bert": 72}  # bytes of numbers of rows and of places, which only the plain pass lets go
    assert abs(found - spared) <= indices.get(model, 0) and spared > 0


def held_after_a_pass(spec, what):
    """Bytes that stand between a forward pass and its backward pass, weights left out."""
    model = build(spec, device="cpu").train()
    set_recompute(model, what)
    run = passes(model, spec, 2, 9)
    with StorageTracker() as tracker:
        tracker.know([*model.parameters(), *model.buffers()])
        out = run()
        loss, logits = out.logits.square().mean() + sum(out.losses.values()), out.logits
        del out, logits
        held = tracker.live
        del loss
    return held


def test_nothing_is_recomputed_where_no_gradient_is_wanted(monkeypatch):
    spec = spec_of([])
    model = build(spec, device="cpu").eval()
    set_recompute(model, "full")
    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", None)
    with torch.no_grad():
        passes(model, spec, 2, 9)()


@pytest.mark.parametrize("what", ["every_2", "every_17"])
def test_the_names_are_those_of_the_price(tmp_path, what):
    plan = plan_training(compose_run(tmp_path, f"recompute={what}", "model.n_layers=17"))
    assert plan.settings.recompute == what
    price(plan.spec, recompute=what, context=16)


@pytest.mark.parametrize(
    ("what", "fault"),
    {
        "half": r"recompute: unknown 'half'.*\(one of: none, selective, full, every_2, every_3 …\)",
        "every_1": r"recompute: is every_1, which is every layer \(full\)",
        "every_3": r"recompute: is every_3, and of 2 layers none is recomputed \(every_2, or recompute=full\)",
    }.items(),
)
def test_what_would_compute_no_layer_again_is_refused_by_run_and_price(tmp_path, what, fault):
    with pytest.raises(ConfigError, match=fault):
        plan_training(compose_run(tmp_path, f"recompute={what}"))
    with pytest.raises(ConfigError, match=fault):
        price(spec_of(["n_layers=2"]), recompute=what, context=16)


def test_the_flops_of_every_second_layer_are_those_that_torch_counts():
    """Of an encoder, which sees every pair: what a step computes more of, by torch's counter."""
    spec, context = load("bert-base", [*SMALL, "n_layers=5"]), 12
    counted = {}
    for what in ("none", "every_2"):
        model = build(spec, device="cpu", kernel="eager").train()
        set_recompute(model, what)
        with FlopCounterMode(display=False) as counter:
            passes(model, spec, 1, context)().logits.square().mean().backward()
        counted[what] = counter.get_total_flops()
    told = count_flops(spec, context, recompute="every_2")
    assert told["train_hardware"] - told["train"] == round((counted["every_2"] - counted["none"]) / context)


@pytest.mark.slow
def test_a_run_learns_the_same_whatever_it_recomputes_and_may_change_it(tmp_path):
    (tmp_path / "corpus").mkdir()
    corpus = write_corpus(tmp_path / "corpus")
    for what in (*RECOMPUTE, "every_2"):
        start_run(compose_run(corpus, f"recompute={what}", "steps=4", "accumulate=2", "ffn=moe"), tmp_path / what)
        resume_run(tmp_path / what, ["steps=6", "recompute=full"])
    plain, *others = (read_metrics(tmp_path / what) for what in (*RECOMPUTE, "every_2"))
    assert all(each == plain for each in others)


def test_recomputation_inside_of_a_compiled_layer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"recompute: .*is selective, inside of layers that are compiled whole"):
        plan_training(compose_run(tmp_path, "compile=true", "recompute=selective"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which inductor imports
def test_compiled_layers_are_recomputed_to_the_same_losses(tmp_path):
    (tmp_path / "corpus").mkdir()
    config = ["compile=true", "steps=4", "eval_every=null"]
    corpus = write_corpus(tmp_path / "corpus")
    for what in ("none", "full"):
        start_run(compose_run(corpus, *config, f"recompute={what}"), tmp_path / what)
    losses = [[line["loss"] for line in read_metrics(tmp_path / what) if "lr" in line] for what in ("none", "full")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
