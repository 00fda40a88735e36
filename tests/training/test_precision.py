"""The precision of training: what is held is what is priced, and what is learnt is what float32 learns."""

import copy
from contextlib import nullcontext

import pytest
import torch

from support.memory_tracker import StorageTracker
from support.packaged_specs import one_in
from support.tiny_runs import compose_run, read_folder, read_metrics
from zoo import runs
from zoo.checkpoint.tensor_files import read_header
from zoo.costs import price
from zoo.costs.setup import PRECISIONS
from zoo.data import Batch
from zoo.distributed.mesh import Mesh
from zoo.distributed.world import World
from zoo.jobs.train import resume_run, start_run
from zoo.run.builder import build
from zoo.training import update
from zoo.training.building import open_whole
from zoo.training.gradient import accumulate_gradient, choose_autocast
from zoo.training.layout import ProcessGroups
from zoo.training.planning import plan_training
from zoo.training.precision import ComputingCopies, find_priced


def test_every_precision_has_a_price():
    assert {find_priced(each) for each in ("fp32", "bf16", "bf16_master", "fp8_rowwise")} <= set(PRECISIONS)


@pytest.mark.parametrize("extra", [[], ["ffn=moe", "accumulate=2"]], ids=["dense", "experts"])
def test_the_bytes_held_after_a_step_are_those_that_are_priced(tmp_path, corpus, monkeypatch, extra):
    held = {}

    def look(run):
        own = [run.model, run.computing.model]
        assert all(each.grad is None for each in run.computing.copies.low)  # handed over as soon as they were whole
        tensors = [*own[0].parameters(), *own[1].parameters(), *(each.grad for each in own[0].parameters())]
        tensors += [each for state in run.optimizer.state.values() for each in state.values() if each.ndim]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        held["bytes"] = sum(storages.values())

    apply = update.apply_update
    monkeypatch.setattr(update, "apply_update", lambda run, loads: (apply(run, loads), look(run)))
    config = compose_run(corpus, "precision=bf16_master", *extra)
    start_run(config, tmp_path / "run")
    told = price(plan_training(config).spec, context=16, precision=find_priced("bf16_master"))["memory"]
    assert held["bytes"] == told["weights"] + told["gradients"] + told["optimizer"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_pure"])
def test_a_pipeline_runs_under_the_autocast_of_a_whole_model(corpus, monkeypatch, precision):
    settings, device = plan_training(compose_run(corpus, f"precision={precision}")).settings, torch.device("cpu")
    monkeypatch.setattr("zoo.training.layout.RankGroup", lambda group: group)
    monkeypatch.setattr("zoo.training.pipeline.Pipeline", lambda *given, holds: given[4])
    groups = ProcessGroups(Mesh(pp=2), World(0, 2), World(0, 1), World(0, 1), stages=object())
    model, autocast = build(plan_training(compose_run(corpus)).spec), choose_autocast(device, settings.autocast)
    whole = open_whole(model, settings, autocast, World(0, 1))
    for autocast in (whole.autocast, groups.open_pipeline(None, settings, device)):
        with autocast():
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")


def test_nothing_is_autocast_and_gradients_are_summed_up_in_float32(corpus):
    plan = plan_training(compose_run(corpus, "precision=bf16_master"))
    masters = build(plan.spec, device="cpu", seed=2).train()
    computing = ComputingCopies(masters)
    ids = torch.randint(0, 257, (4, 17), generator=torch.Generator().manual_seed(1))
    rows = Batch(ids[:, :-1], targets=ids[:, 1:])
    accumulate_gradient(computing.refresh(), plan.settings.objective, rows, 4, nullcontext)
    plain = copy.deepcopy(computing.model)
    for each in plain.parameters():
        each._post_accumulate_grad_hooks = None
    expected = [torch.zeros_like(each) for each in masters.parameters()]
    for row in range(4):
        part = Batch(ids[row : row + 1, :-1], targets=ids[row : row + 1, 1:])
        plan.settings.objective.loss(plain, part, weight=1 / 64, count=16).total.backward()
        for sums, each in zip(expected, plain.parameters(), strict=True):
            sums += each.grad.float()
        plain.zero_grad()
    for sums, (name, each) in zip(expected, masters.named_parameters(), strict=True):
        assert each.grad.dtype == torch.float32
        assert torch.equal(each.grad, sums), name


@pytest.mark.slow
def test_masters_learn_what_float32_learns(tmp_path, corpus):
    options = ["steps=30", "eval_every=null", "save_every=null", "optim.lr=0.01"]
    losses = {}
    for precision, seed in (("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16_master", 0)):
        folder = tmp_path / f"{precision}-{seed}"
        losses[precision, seed] = start_run(
            compose_run(corpus, *options, f"precision={precision}", f"seed={seed}"), folder
        )["val_loss"]
    seeds = [losses["fp32", seed] for seed in range(3)]
    noise = max(seeds) - min(seeds)
    assert abs(losses["bf16_master", 0] - losses["fp32", 0]) < max(noise, 0.03)
    assert losses["bf16_master", 0] != losses["fp32", 0]


@pytest.mark.parametrize(
    "extra", one_in(2, [["ema=0.9", "optim=muon", "ffn=moe", "recompute=full"], []]), ids=["all", "adamw"]
)
def test_a_run_with_masters_resumes_to_the_last_bit_and_saves_float32(tmp_path, corpus, extra):
    config = compose_run(corpus, "precision=bf16_master", *extra)
    start_run(config, tmp_path / "whole")
    start_run(config, tmp_path / "parts")
    (tmp_path / "parts/checkpoints/latest").write_text("step-000003\n")
    resume_run(tmp_path / "parts")
    found, whole = (read_folder(runs.find(tmp_path / name)) for name in ("parts", "whole"))
    assert found == whole
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    header = read_header(runs.find(tmp_path / "whole") / "model.safetensors")
    assert {each.dtype for each in header.values()} == {"F32"}


def test_what_computes_shares_the_masters_buffers_and_their_ties(corpus):
    plan = plan_training(compose_run(corpus, "ffn=moe", "model.selection_bias=true", "model.head.tied=true"))
    masters = build(plan.spec, device="cpu")
    computing = ComputingCopies(masters)
    for (name, mine), (_, theirs) in zip(computing.model.named_buffers(), masters.named_buffers(), strict=True):
        assert mine is theirs, name
    assert computing.model.head.out.weight is computing.model.embedding.tokens.weight
    with StorageTracker() as tracker:
        tracker.know([*computing.low, *computing.high])
        computing.refresh()
    assert tracker.most == 0
