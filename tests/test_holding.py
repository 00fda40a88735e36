"""What a training run holds is what its price says: frozen weights, adapters, dropout, averages, accumulation."""

import pytest
import torch
from loaded import load
from saved import passes, saved_by, told
from tiny import spec_of
from tinyrun import compose_run, write_corpus
from tracked import StorageTracker

from zoo.costs.activations import PassShape, list_sections
from zoo.costs.setup import Setup
from zoo.costs.states import states
from zoo.costs.tuning import Tuning, apply_tuning
from zoo.run.adapters import Adapters, attach_adapters
from zoo.run.builder import build
from zoo.training import loop
from zoo.training.dropout import Dropout
from zoo.training.fitting import price_training
from zoo.training.planning import plan_training
from zoo.training.start.frozen import choose_trained, freeze_others
from zoo.training.start.lora import Lora
from zoo.training.task import start_run

SMALL = ["d_model=32", "n_heads=4", "vocab_size=67", "n_layers=3", "d_ff=48"]
MODELS = {
    "llama": lambda: spec_of(["n_layers=3"]),
    "tied": lambda: spec_of(["n_layers=3", "head.tied=true"]),
    "experts": lambda: spec_of(["ffn=moe"]),
    "post": lambda: spec_of(["block=post", "norm=layernorm", "bias=true"]),
    "both towers": lambda: load("t5-small", [*SMALL, "head_dim=8"]),
    "bert": lambda: load("bert-base", SMALL),
}


def check_saved(spec, model, tuning):
    """The storages that a pass of the built model saves are those that its price lists, each by its size."""
    tuned = apply_tuning(spec, tuning)
    shape = PassShape(batch=2, context=9, dtype="fp32", fused=False, model=tuned)
    expected = told(tuned.spec, list_sections(tuned.spec, shape))
    found = saved_by(model, passes(model, spec, 2, 9))
    assert +found == +expected


@pytest.mark.parametrize("model", ["llama", "experts", "both towers", "bert"])
@pytest.mark.parametrize(
    "rates",
    [{"residual": 0.3, "ffn": 0.2}, {"attention": 0.2, "embedding": 0.1}, {"layers": 0.5}],
    ids=lambda r: "-".join(r),
)
def test_what_dropout_keeps_is_priced(model, rates):
    spec = MODELS[model]()
    built = build(spec, device="cpu").train()
    Dropout(**rates).apply(built)
    check_saved(spec, built, Tuning(drops=frozenset(rates)))


FROZEN = {
    "the first layers": (["embedding*", "blocks.0.*", "blocks.1.*"], []),
    "a layer in the middle": (["blocks.1.*"], []),
    "all but biases and norms": ([], ["*norm*"]),
    "the queries": (["*.q.weight"], []),
    "the table": (["embedding*"], []),
}


@pytest.mark.parametrize("model", ["llama", "tied", "post"])
@pytest.mark.parametrize("name", FROZEN)
def test_what_frozen_weights_spare_is_priced(model, name):
    spec, (freeze, train) = MODELS[model](), FROZEN[name]
    if model == "post" and "1.*" in str(freeze):
        freeze = [each for each in freeze if "1.*" not in each] + ["blocks.0.*"]
    trained = frozenset(choose_trained(spec, freeze, train))
    built = build(spec, device="cpu").train()
    freeze_others(built, trained)
    check_saved(spec, built, Tuning(trained=trained))


@pytest.mark.parametrize("model", ["llama", "experts", "both towers"])
def test_what_adapters_keep_is_priced(model):
    spec = MODELS[model]()
    lora = Lora(rank=3, on=("attention", "ffn"), dropout=0.1)
    built = build(spec, device="cpu").train()
    attach_adapters(built, Adapters(lora.rank, lora.alpha, lora.dropout, lora.choose(spec)))
    freeze_others(built, set())
    tuning = Tuning(frozenset(), lora.choose(spec), lora.rank, drops_adapted=True)
    check_saved(spec, built, tuning)
    held = states(spec, Setup(precision="fp32", dtype="fp32"), tuned=apply_tuning(spec, tuning))
    trained = sum(each.nbytes for each in built.parameters() if each.requires_grad)
    assert (held["gradients"], held["optimizer"]) == (trained, 2 * trained)
    assert held["weights"] == sum(each.nbytes for each in built.parameters())


# ---------------------------------------------------------------- whole updates


class Look:
    """Measures the bytes of one update of a run, the third: the most that stood at once, and what stays of weights,
    states and averages; gradients are counted while they are there."""

    def __init__(self, monkeypatch):
        self.update, self.apply = loop.update, loop.apply_update
        monkeypatch.setattr(loop, "update", self.measure)
        monkeypatch.setattr(loop, "apply_update", self.look)
        self.peak = self.states = 0

    def measure(self, run):
        if run.step < 2:
            return self.update(run)
        kept = [*run.model.parameters(), *run.model.buffers()]
        kept += [] if run.computing is None else list(run.computing.model.parameters())
        kept += [value for state in run.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        kept += [] if run.ema is None else list(run.ema.weights.values())
        self.held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept if each.ndim}
        with StorageTracker() as tracker:
            tracker.know(kept)
            made = self.update(run)
        self.peak = sum(self.held.values()) + tracker.most
        return made

    def look(self, run, loads):
        if run.step == 3:
            gradients = sum(each.grad.nbytes for each in run.model.parameters() if each.grad is not None)
            self.states = sum(self.held.values()) + gradients
        self.apply(run, loads)


WIDE = [
    "model.d_model=64",
    "model.d_ff=160",
    "model.vocab_size=900",
    "seq_len=32",
    "steps=3",
    "eval_every=null",
    "save_every=null",
]
TABLE = ["seq_len=16", "model.vocab_size=4000", "model.d_model=128"]
RUNS = {
    "plain": [],
    "frozen": ["freeze=[embedding*,blocks.0.*]"],
    "dropout": ["dropout={residual:0.1,ffn:0.1,embedding:0.1}"],
    "an average": ["ema=0.9"],
    "accumulated": ["accumulate=2", "model.head.tied=false"],
    "accumulated, a large tied table": ["accumulate=4", *TABLE, "model.head.tied=true"],
    "accumulated, two large tables": ["accumulate=4", *TABLE, "model.head.tied=false"],
    "a large tied table": [*TABLE, "model.head.tied=true"],
    "every second layer": ["model.n_layers=4", "recompute=every_2"],
    "masters": ["precision=bf16_master", "accumulate=2"],
    "pure": ["precision=bf16_pure"],
    "pure and tied": ["precision=bf16_pure", "accumulate=2", "model.head.tied=true"],
}


@pytest.mark.parametrize("name", RUNS)
def test_the_peak_and_the_states_of_an_update_are_those_that_are_priced(tmp_path, monkeypatch, name):
    (tmp_path / "corpus").mkdir()
    config = compose_run(write_corpus(tmp_path / "corpus"), *WIDE, *RUNS[name])
    look, planned = Look(monkeypatch), plan_training(config)
    start_run(config, tmp_path / "run")
    rows = planned.settings.batch_size // planned.settings.accumulate
    told = price_training(planned.settings, planned.spec, rows, cuda=False)
    assert told["states"] == look.states
    assert told["peak"] == pytest.approx(look.peak, rel=0.03)
