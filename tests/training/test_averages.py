"""Runs with every optimizer, averages of weights and several decays: resumed to the last bit, and what they say."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from support.packaged_specs import one_in
from support.tiny_runs import compose_run, read_folder, read_metrics
from zoo import runs
from zoo.checkpoint import store
from zoo.cli.fit import collect_points
from zoo.costs.setup import OPTIMIZERS
from zoo.data import DataSettings, prepare
from zoo.errors import CheckpointError, ConfigError
from zoo.jobs.train import resume_run, start_run
from zoo.training import loop
from zoo.training.averages import EMA, MovingAverage
from zoo.training.planning import plan_training


@pytest.fixture
def config(corpus):
    return lambda *overrides: compose_run(corpus, *overrides)


def faults(config, *overrides) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        plan_training(config(*overrides))
    return refused.value.faults


CASES = {
    **{kind: [f"optim={kind}"] for kind in OPTIMIZERS if kind not in ("adamw", "adamw8bit", "schedule_free")},
    "schedule_free": ["optim=schedule_free", "schedule=constant"],
    "averages": ["ema={decay: 0.8, warmup: true}", "lawa=2", "eval_weights=ema"],
    "lawa": ["lawa=2", "eval_weights=lawa", "ffn=moe", "model.n_experts=2", "optim=muon"],
    "decays": ["steps=9", "schedule=wsd_s", "schedule.points=[3]", "schedule.decay=1", "keep=2", "ema=0.7"],
    "cautious": ["optim=muon", "optim.decay=cautious"],
    "hyperball": ["optim=normuon", "optim.decay=hyperball"],
    "groups": ["optim.groups={embedding: {lr: 0.01}}"],
}
FEW = ("muon", "soap", "averages", "decays")
REPEATED = [pytest.param(each, marks=() if name in FEW else pytest.mark.slow, id=name) for name, each in CASES.items()]
EIGHT_BITS = pytest.param(
    ["optim=adamw8bit", "model.d_model=64", "model.d_ff=64"],
    marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")],
    id="eight bits",
)


@pytest.mark.parametrize("overrides", [*REPEATED, EIGHT_BITS])
def test_a_run_that_lost_its_last_steps_repeats_them_to_the_last_bit(config, tmp_path, overrides):
    start_run(config(*overrides), tmp_path)
    last = runs.find(tmp_path)
    whole, lines = read_folder(last), read_metrics(tmp_path)
    assert lines[-2]["loss"] < lines[0]["loss"]
    (tmp_path / "checkpoints/latest").write_text("step-000003\n")
    resume_run(tmp_path)
    assert read_metrics(tmp_path) == lines
    assert read_folder(last) == whole


# ---------------------------------------------------------------- EMA and LAWA


@pytest.fixture
def seen(monkeypatch):
    """The weights after each update."""
    update, found = loop.update, []

    def record(run):
        terms = update(run)
        found.append({name: each.detach().clone() for name, each in run.model.named_parameters()})
        return terms

    monkeypatch.setattr(loop, "update", record)
    return found


def test_the_average_of_a_checkpoint_is_that_of_the_weights_after_each_update(config, tmp_path, seen):
    start_run(config("ema={decay: 0.9, warmup: true}"), tmp_path)
    saved = load_file(tmp_path / "checkpoints/step-000006/ema/model.safetensors")
    average = None
    for step, weights in enumerate(seen, 1):
        decay = min(0.9, (1 + step) / (10 + step))
        if average is None:  # of the weights before the first update, which are the same in any run of the seed
            average = {name: each.double() for name, each in start_weights(config).items()}
        average = {name: decay * average[name] + (1 - decay) * weights[name].double() for name in weights}
    for name, each in average.items():
        torch.testing.assert_close(saved[name].double(), each, rtol=1e-5, atol=1e-7)


def start_weights(config):
    from zoo.run.builder import build

    model = build(plan_training(config()).spec, device="cpu", seed=0)
    return {name: each.detach() for name, each in model.named_parameters()}


def test_a_moving_average_is_that_of_torch():
    model = torch.nn.Linear(5, 4)
    ours = MovingAverage(EMA(decay=0.75), model)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    theirs.update_parameters(model)  # its first is a copy
    for step in range(1, 5):
        with torch.no_grad():
            for each in model.parameters():
                each.add_(torch.randn_like(each))
        ours.update(model, step)
        theirs.update_parameters(model)
    for name, each in theirs.module.named_parameters():
        assert torch.equal(ours.weights[name], each)


def test_lawa_is_the_mean_of_the_last_checkpoints(config, tmp_path, seen):
    start_run(config("lawa=3", "save_every=1", "keep=3"), tmp_path)
    saved = load_file(tmp_path / "checkpoints/step-000006/lawa/model.safetensors")
    for name, each in saved.items():
        expected = torch.stack([weights[name].double() for weights in seen[-3:]]).mean(0)
        torch.testing.assert_close(each.double(), expected, rtol=1e-6, atol=1e-8)
    first = load_file(tmp_path / "checkpoints/step-000004/lawa/model.safetensors")
    assert first.keys() == saved.keys()


def validation_loss(model, corpus) -> float:
    """The mean over the split, row by row."""
    data = prepare(DataSettings.read({"kind": "text", "path": str(corpus), "tokenizer": {"kind": "byte"}}))
    ids = torch.tensor(data.validation.ids[:].astype("int64"))
    total = 0.0
    for start in range(0, len(ids) - 1, 16):
        row = ids[start : start + 17]
        total += float(F.cross_entropy(model(row[None, :-1]).logits[0], row[1:], reduction="sum").detach())
    return total / (len(ids) - 1)


@pytest.mark.parametrize("average", one_in(2, ["ema", "lawa"]))
def test_an_average_is_evaluated_where_asked_and_found_by_name(config, tmp_path, corpus, average):
    overrides = ["ema=0.9", "lawa=2", "eval_batches=null"]
    plain = start_run(config(*overrides), tmp_path / "plain")
    result = start_run(config(*overrides, f"eval_weights={average}"), tmp_path / "averaged")
    losses = [[line.get("loss") for line in read_metrics(tmp_path / run)] for run in ("plain", "averaged")]
    assert losses[0] == losses[1], "evaluating other weights leaves training as it was"
    loaded = store.load(tmp_path / "averaged" / average)
    assert result["val_loss"] == pytest.approx(validation_loss(loaded, corpus), rel=1e-5)
    assert result["val_loss"] != pytest.approx(plain["val_loss"], rel=1e-5)
    assert plain["val_loss"] == pytest.approx(validation_loss(store.load(tmp_path / "averaged"), corpus), rel=1e-5)


def test_an_average_that_a_run_does_not_keep_is_said_with_what_would_keep_it(config, tmp_path):
    start_run(config("steps=1"), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"ema: .*step-000001 has no such average of weights \(zoo train ema=0.999"
    ):
        runs.find(tmp_path / "ema")


def test_averages_that_cannot_be_are_refused(config):
    assert faults(config, "lawa=3")[0].startswith("lawa: is 3, more than are kept, keep=2 (keep=3)")
    assert faults(config, "lawa=2", "save_every=null")[0].startswith("lawa: is 2, and one checkpoint is saved")
    assert faults(config, "eval_weights=ema")[0].startswith("eval_weights: is ema, which the run does not keep")
    assert faults(config, "lawa=2", "save_every=2", "eval_weights=lawa")[0].startswith("eval_weights: is lawa, which")
    assert faults(config, "ema=1.5")[0].startswith("ema")
    found = faults(config, "optim=schedule_free", "ema=0.9")
    assert [fault.split(":")[0] for fault in found] == ["schedule", "ema"]
    assert "(schedule=constant would do)" in found[0]


# ---------------------------------------------------------------- schedule-free


def test_schedule_free_saves_and_evaluates_its_average_and_trains_on_undisturbed(config, tmp_path, corpus):
    overrides = ["optim=schedule_free", "schedule=constant", "eval_batches=null"]
    start_run(config(*overrides, "eval_every=null", "save_every=null"), tmp_path / "quiet")
    result = start_run(config(*overrides, "eval_every=1", "save_every=1"), tmp_path / "watched")
    losses = [[line["loss"] for line in read_metrics(tmp_path / run) if "loss" in line] for run in ("quiet", "watched")]
    assert losses[0] == losses[1]
    assert result["val_loss"] == pytest.approx(validation_loss(store.load(tmp_path / "watched"), corpus), rel=1e-5)
    folder = tmp_path / "watched/checkpoints/step-000006"
    states, model = load_file(folder / store.STATES), load_file(folder / store.WEIGHTS)
    for name, average in model.items():
        y, z = states[f"weights.{name}"], states[f"optimizer.{name}/z"]
        torch.testing.assert_close(0.9 * average + 0.1 * z, y, rtol=1e-4, atol=1e-6)
        assert not torch.equal(average, y)


# ---------------------------------------------------------------- several decays

DECAYS = ["steps=12", "schedule=wsd_s", "schedule.points=[5,9]", "schedule.decay=2", "schedule.warmup=1", "keep=1"]


def test_checkpoints_around_each_decay_stay_and_the_run_goes_on_from_before_it(config, tmp_path, monkeypatch):
    update, begun = loop.update, {}

    def record(run):
        begun[run.step] = {name: each.detach().clone() for name, each in run.model.named_parameters()}
        return update(run)

    monkeypatch.setattr(loop, "update", record)
    start_run(config(*DECAYS, "save_every=1", "eval_every=1"), tmp_path)
    kept = [runs.read_step(each) for each in runs.steps(tmp_path / "checkpoints")]
    assert kept == [3, 5, 7, 9, 10, 12]
    for before, after in ((3, 5), (7, 9)):
        folder = tmp_path / "checkpoints"
        weights = {step: load_file(folder / f"step-{step:06}/model.safetensors") for step in (before, after)}
        assert all(torch.equal(begun[after][name], each) for name, each in weights[before].items())
        assert any(not torch.equal(begun[after][name], each) for name, each in weights[after].items())
    rates = [line["lr"] for line in read_metrics(tmp_path) if "lr" in line]
    decayed = [1.0, 1 - math.sqrt(0.5)]
    assert [rate / max(rates) for rate in rates] == pytest.approx(
        [1.0] * 3 + decayed + [1.0] * 2 + decayed + [1] + decayed
    )


@pytest.mark.parametrize(("goes_on", "trained"), [("before", [5, 7, 8]), ("decayed", [5, 9, 12])])
def test_each_decay_ends_with_an_evaluation_of_the_decayed_weights(config, corpus, tmp_path, goes_on, trained):
    """Also where `eval_every` falls elsewhere. Its tokens are those that these weights were trained on."""
    start_run(config(*DECAYS, "eval_every=null", "eval_batches=null", f"schedule.continue_from={goes_on}"), tmp_path)
    lines = [line for line in read_metrics(tmp_path) if "val_loss" in line]
    assert [line["step"] for line in lines] == [5, 9, 12]
    assert [line["trained_tokens"] for line in lines] == [updates * 4 * 16 for updates in trained]
    for line in lines:
        checkpoint = store.load(tmp_path / f"checkpoints/step-{line['step']:06}")
        assert line["val_loss"] == pytest.approx(validation_loss(checkpoint, corpus), rel=1e-5)
    rows = collect_points([tmp_path], {}).rows()
    params = json.loads((tmp_path / "result.json").read_text())["params"]
    assert rows == [(params, line["trained_tokens"], line["val_loss"]) for line in lines]


@pytest.mark.slow
def test_the_published_wsd_s_goes_on_from_the_decayed_weights(config, tmp_path):
    start_run(config(*DECAYS, "schedule.continue_from=decayed"), tmp_path / "on")
    start_run(config(*DECAYS), tmp_path / "back")
    on, back = ([line["loss"] for line in read_metrics(tmp_path / run) if "loss" in line] for run in ("on", "back"))
    assert on[:5] == back[:5] and on[5:] != back[5:]


def test_points_that_leave_no_room_are_refused(config):
    (fault,) = faults(config, "steps=12", "schedule=wsd_s", "schedule.points=[5,6]", "schedule.decay=2")
    assert fault.startswith("schedule: points: the decay to step 6 begins at 4, and could not before step 6")


def test_a_run_whose_checkpoint_before_a_decay_is_gone_says_so(config, tmp_path):
    start_run(config(*DECAYS), tmp_path)
    (tmp_path / "checkpoints/latest").write_text("step-000005\n")
    shutil.rmtree(tmp_path / "checkpoints/step-000003")
    with pytest.raises(Exception, match=r"step-000003: is not there, and the run goes on from it after a decay"):
        resume_run(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert Path(tmp_path / "checkpoints/step-000005").is_dir()
