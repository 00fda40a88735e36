"""What a training run holds is what its price says: frozen weights, adapters, dropout, averages, accumulation."""

import pytest
import torch
from safetensors.torch import load_file

import zoo
from support.memory_tracker import StorageTracker
from support.packaged_specs import load
from support.saved_activations import passes, saved_by, told
from support.tiny_models import AVERAGED, spec_of
from support.tiny_runs import compose_run, write_corpus
from zoo.checkpoint import store
from zoo.costs.activations import PassShape, list_sections
from zoo.costs.setup import Setup
from zoo.costs.states import states
from zoo.costs.tuning import Tuning, apply_tuning
from zoo.data import Batch, prepare
from zoo.grammar import to_dict
from zoo.report.progress import Show
from zoo.run.adapters import Adapters, attach_adapters
from zoo.run.builder import build
from zoo.run.held_weights import list_held_weights
from zoo.training.building import build_run, deposit_tied_gradients
from zoo.training.dropout import Dropout
from zoo.training.memory_fit import price_training
from zoo.training.objective.causal import NextToken, Seq2Seq
from zoo.training.objective.distil import TEACHERS, load_teacher
from zoo.training.planning import plan_training
from zoo.training.precision import lower_weights
from zoo.training.saving import save_checkpoint
from zoo.training.start.frozen import choose_trained, freeze_others
from zoo.training.start.lora import Lora
from zoo.training.update import update

SMALL = ["d_model=32", "n_heads=4", "vocab_size=67", "n_layers=3", "d_ff=48"]
MODELS = {
    "llama": lambda: spec_of(["n_layers=3"]),
    "tied": lambda: spec_of(["n_layers=3", "head.tied=true"]),
    "experts": lambda: spec_of(["ffn=moe"]),
    "averaged routers": lambda: spec_of([*AVERAGED, "attention=cca"]),
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


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("model", ["llama", "experts", "averaged routers", "both towers"])
def test_what_adapters_keep_is_priced(model, dora):
    spec = MODELS[model]()
    lora = Lora(rank=3, on=("attention",) if dora else ("attention", "ffn"), dropout=0.1, dora=dora)
    built = build(spec, device="cpu").train()
    attach_adapters(built, Adapters(lora.rank, lora.alpha, lora.dropout, lora.choose(spec), dora=dora))
    freeze_others(built, set())
    tuning = Tuning(frozenset(), lora.choose(spec), lora.rank, drops_adapted=True, dora=dora)
    check_saved(spec, built, tuning)
    held = states(spec, Setup(precision="fp32", dtype="fp32"), tuned=apply_tuning(spec, tuning))
    trained = sum(each.nbytes for each in built.parameters() if each.requires_grad)
    assert (held["gradients"], held["optimizer"]) == (trained, 2 * trained)
    assert held["weights"] == sum(each.nbytes for each in built.parameters())
    assert states(spec, Setup(), tuned=apply_tuning(spec, tuning))["master"] == trained  # ZeRO's, in fp32 as here


# ---------------------------------------------------------------- whole updates


@pytest.mark.parametrize("model", ["tied", "both towers"])
def test_a_tied_table_has_the_gradient_that_autograd_sums_up(model):
    """Though the head's is added at once: for one pass, and beside what stands from another."""
    spec = MODELS[model]()
    kinds, grads = {"decoder": NextToken(), "encoder_decoder": Seq2Seq()}, []
    ids = torch.randint(0, 60, (2, 2, 8), generator=torch.Generator().manual_seed(1))
    for deposits in (False, True):
        built = build(spec, device="cpu", seed=4).train()
        if deposits:
            deposit_tied_gradients(built)
        for rows in ids:
            batch = Batch(rows, targets=rows.flip(1), decoder_input_ids=rows if model == "both towers" else None)
            kinds[spec.kind].loss(built, batch, weight=0.7).total.backward()
            grads.append({name: each.grad.clone() for name, each in built.named_parameters()})
    for plain, ours in zip(grads[:2], grads[2:], strict=True):
        for name, each in plain.items():
            torch.testing.assert_close(ours[name], each, rtol=1e-4, atol=1e-6, msg=name)


def measure(run, others=()):
    """Bytes of a run's third update: what stays of weights, `others` among them, states, averages and gradients, and
    the most at once."""
    run.model.train()
    for _ in range(2):
        update(run)
    kept = [*run.model.parameters(), *run.model.buffers(), *others]
    kept += run.computing.model.parameters()  # of copies in bfloat16, or the model's own again
    kept += [value for state in run.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    kept += [part for each in list_held_weights(run.model) for part in each.parts.values()]
    kept += [] if run.ema is None else list(run.ema.weights.values())
    held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept if each.ndim}
    gradients = {}
    take = run.optimizer.step

    def step():
        gradients["bytes"] = sum(each.grad.nbytes for each in run.model.parameters() if each.grad is not None)
        take()

    run.optimizer.step = step
    with StorageTracker() as tracker:
        tracker.know(kept)
        update(run)
    return sum(held.values()) + gradients["bytes"], sum(held.values()) + tracker.most


def make_run(folder, *overrides):
    """A run before its first update, and its plan."""
    (folder / "corpus").mkdir()
    planned = plan_training(compose_run(write_corpus(folder / "corpus"), *overrides))
    device = torch.device("cpu")
    (folder / "run").mkdir()
    return build_run(planned, folder / "run", device, prepare(planned.data), Show(3)), planned


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
    "an average of what trains": ["ema=0.9", "freeze=[embedding*,blocks.0.*]"],
    "accumulated": ["accumulate=2", "model.head.tied=false"],
    "accumulated, a large tied table": ["accumulate=4", *TABLE, "model.head.tied=true"],
    "accumulated, two large tables": ["accumulate=4", *TABLE, "model.head.tied=false"],
    "a large tied table": [*TABLE, "model.head.tied=true"],
    "every second layer": ["model.n_layers=4", "recompute=every_2"],
    "masters": ["precision=bf16_master", "accumulate=2"],
    "masters of a large tied table": ["precision=bf16_master", "accumulate=4", *TABLE, "model.head.tied=true"],
    "masters of frozen weights": ["precision=bf16_master", "freeze=[embedding*,blocks.0.*]"],
    "pure": ["precision=bf16_pure"],
    "pure, with experts": ["precision=bf16_pure", "ffn=moe", "optim=lion"],
    "pure and tied": ["precision=bf16_pure", "accumulate=2", "model.head.tied=true"],
}


FAST = ("frozen", "accumulated, a large tied table", "pure")
EACH_RUN = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]


@pytest.mark.parametrize("name", EACH_RUN)
def test_the_peak_and_the_states_of_an_update_are_those_that_are_priced(tmp_path, name):
    run, planned = make_run(tmp_path, *WIDE, *RUNS[name])
    try:
        states, peak = measure(run)
    finally:
        run.records.close("done")
        run.gauges.watch.end()
    rows = planned.settings.batch_size // planned.settings.accumulate
    told = price_training(planned.settings, planned.spec, rows, cuda=False)
    assert told["states"] == states
    assert told["peak"] == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("width", [64, pytest.param(256, marks=pytest.mark.slow)])
def test_a_teachers_weights_and_what_its_loss_takes_are_priced(tmp_path, width):
    spec = plan_training(compose_run(tmp_path, *WIDE, f"model.d_model={width}", "model.n_layers=5")).spec
    folder = store.save_model(build(spec, device="cpu", seed=1), tmp_path / "teacher")
    run, planned = make_run(tmp_path, *WIDE, "objective=distil", f"objective.teacher={folder}")
    planned.settings.objective.prepare_run(run, lambda: run.model, 3)
    teacher = load_teacher(str(folder), run.device)
    try:
        states, peak = measure(run, teacher.parameters())
    finally:
        run.records.close("done")
        run.gauges.watch.end()
        TEACHERS.clear()
    told = price_training(planned.settings, planned.spec, planned.settings.batch_size, cuda=False)
    assert told["states"] == states
    assert told["peak"] == pytest.approx(peak, rel=0.02)


ADAPTED = {
    "adapters": ([], [], "fp32"),
    "a norm beside them": ([], ["train=[norm*]", "optim=lion"], "bf16"),
    "selection biases": (["ffn=moe", "router=sigmoid_topk"], ["train=[embedding*]"], "fp32"),
    "over NF4": ([], ["quantise:nf4"], "bf16"),
    "DoRA over int8": ([], ["quantise:int8", "dora:true"], "bf16"),
    "over experts in int8": (["ffn=moe"], ["quantise:int8"], "bf16"),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_a_run_with_adapters_holds_and_saves_what_is_priced(tmp_path, name):
    model, extra, dtype = ADAPTED[name]
    wide = WIDE if not model else ["steps=3", "eval_every=null", "save_every=null"]
    spec = plan_training(compose_run(tmp_path, *wide, *model)).spec
    begun = build(spec, device="cpu", seed=1)
    if dtype == "bf16":
        lower_weights(begun)
    base = store.save_model(begun, tmp_path / "base")
    fields = ["rank:3", "on:[attention,ffn]", *(each for each in extra if ":" in each)]
    lora = [f"weights={base}", f"lora={{{','.join(fields)}}}", "ema=0.9", *(each for each in extra if "=" in each)]
    run, planned = make_run(tmp_path, *wide, *lora)
    try:
        states, peak = measure(run)
        run.step = 3
        save_checkpoint(run)
    finally:
        run.records.close("done")
        run.gauges.watch.end()
    told = price_training(planned.settings, planned.spec, planned.settings.batch_size, cuda=False)
    assert told["states"] + sum(each.nbytes for each in run.model.buffers()) == states
    assert told["peak"] == pytest.approx(peak, rel=0.02)
    stated = {"lora": to_dict(planned.settings.lora), "train": planned.settings.train}
    setup = {"precision": "fp32", "dtype": dtype, "optimizer": planned.settings.optim.kind}
    priced = zoo.stats(planned.spec, **stated, **setup)
    learning = [each for each in run.model.parameters() if each.requires_grad]
    assert priced["trained"]["parameters"] == sum(each.numel() for each in learning)
    held = sum(each.nbytes for each in list_held_weights(run.model))
    assert priced["memory"]["weights"] == held + sum(each.nbytes for each in run.model.parameters())
    assert (held > 0) == (dtype == "bf16")
    assert priced["memory"]["gradients"] == sum(each.nbytes for each in learning)
    folder = tmp_path / "run" / "checkpoints" / "step-000003"
    sizes = {
        each.relative_to(folder).as_posix(): sum(tensor.nbytes for tensor in load_file(each).values() if tensor.ndim)
        for each in folder.rglob("*.safetensors")
    }
    random = torch.get_rng_state().nbytes
    own = ("model.safetensors", "adapter.safetensors", "training.safetensors")
    assert sum(sizes[name] for name in own) == priced["trained"]["checkpoint"] + random
    assert sizes["training.safetensors"] == priced["memory"]["optimizer"] + random
    assert sizes["adapter.safetensors"] == sizes["ema/adapter.safetensors"] == 4 * priced["trained"]["adapters"]
