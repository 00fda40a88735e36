"""The FLOPs that a run counts of its batches are those that torch counts of the objectives' own passes."""

import json
from functools import partial
from unittest.mock import MagicMock

import pytest
import torch
from test_objectives import KEYS, NODES, context_for, objective_of, rows_of, spec_for
from torch.utils.flop_counter import FlopCounterMode

import zoo
from support.flop_counts import counted
from support.tiny_models import needs, spec_of
from zoo.checkpoint import store
from zoo.costs.flops import count_flops
from zoo.jobs.train import resume_run
from zoo.run.builder import build
from zoo.training.objective import Objective
from zoo.training.objective.distil import load_teacher
from zoo.training.run_flops import TrainingFlops, sum_rows
from zoo.training.start.begin import StartSettings
from zoo.training.start.lora import Lora

MODELS = {
    "next_token": ["gqa", "mla", "sliding", "mamba2", "gated_delta"],
    "prefix_lm": ["gqa", "sliding"],
}
CASES = [(name, kind, False) for name in NODES for kind in MODELS.get(name, [None])]
UNEVEN = ("denoising", "ul2", "mamba2", "gated_delta")  # rows with padding; chunks that begin anew at each document
PACKED = [(name, kind, True) for name, kind, _ in CASES if not {name, kind} & {*UNEVEN}]


@pytest.mark.parametrize(("name", "attention", "packed"), CASES + PACKED)
def test_a_batch_costs_what_torch_counts_of_its_forward_pass(name, attention, packed):
    fields = {"denoisers": [{"mode": "R", "rate": 0.15}]} if name == "ul2" else {}  # of one length: no padding
    objective = objective_of(name, **fields)
    spec = (
        spec_for(name)
        if attention is None
        else spec_of([*NODES[name][1], f"attention={attention}", *needs(f"attention={attention}")])
    )
    model = build(spec)
    batch = objective.collator(context_for(name, documents=packed))(rows_of(), KEYS)
    targets = objective.targets(batch)
    with counted(model) as found:
        objective.judge(model, batch, targets, None)
    counter = TrainingFlops(spec, objective)
    assert sum_rows(counter.forward, batch, targets) == found.visible
    assert counter.count(batch) == 3 * found.visible


@pytest.mark.parametrize("attention", ["gqa", "dsa"])
def test_a_row_of_next_tokens_costs_what_the_price_says(attention):
    spec = spec_of(["vocab_size=300", f"attention={attention}", *needs(f"attention={attention}")])
    objective = objective_of("next_token")
    batch = objective.collator(context_for("next_token"))(rows_of(), KEYS)
    found = TrainingFlops(spec, objective).count(batch)
    figures = count_flops(spec, 64)
    assert found == pytest.approx(figures["train"] * 6 * 64, rel=1e-4)  # which is a rounded mean
    assert (figures["train"] < 3 * figures["forward"] - 3) == (attention == "dsa")  # an indexer has no backward pass


def test_a_teacher_costs_a_forward_pass_beside_the_students_step(tmp_path):
    spec, taught = spec_of(["vocab_size=300"]), spec_of(["vocab_size=300", "n_layers=3"])
    store.save_model(build(taught), tmp_path)
    objective = Objective.parse({"kind": "distil", "teacher": str(tmp_path), "base": {"kind": "next_token"}})
    batch = objective_of("next_token").collator(context_for("next_token"))(rows_of(), KEYS)
    targets = objective.targets(batch)
    counter = TrainingFlops(spec, objective)
    load_teacher(str(tmp_path), torch.device("cpu")).kernel = "eager"
    model = build(spec)
    with counted(model) as both:
        objective.loss(model, batch)
    with counted(model) as alone:
        objective_of("next_token").judge(model, batch, targets, None)
    assert counter.count(batch) == 3 * alone.visible + (both.visible - alone.visible)


def test_a_runs_lines_say_what_it_has_computed_and_a_run_that_goes_on_counts_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    own = ["model.n_layers=2", "model.vocab_size=300", "data=text", "data.path=text.txt", "data.tokenizer.kind=byte"]
    own += ["batch_size=4", "seq_len=32", "schedule=constant", "schedule.warmup=0", "log_every=1", "eval_batches=1"]
    zoo.train("bert-tiny", [*own, "steps=4", "hydra.run.dir=whole"])
    zoo.train("bert-tiny", [*own, "steps=2", "hydra.run.dir=run"])
    again = resume_run("run", ["steps=4"])
    flops = flops_by_step(tmp_path / "whole")
    assert list(flops) == [1, 2, 3, 4] and flops[4] > flops[3] > flops[2] > flops[1] > 0
    assert flops_by_step(tmp_path / "run") == flops and again["flops"] == flops[4]


def flops_by_step(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["flops"] for line in lines}


@pytest.mark.parametrize(
    ("name", "start", "passes"),  # through how much of the attention that hides pairs: forward 1, backward 2
    [
        ("mlm", {"freeze": ("embedding*",)}, 0),
        ("mlm", {"train": ("head*",)}, 0),
        ("mlm", {"lora": Lora(rank=2)}, 0),
        ("next_token", {"freeze": ("embedding*",)}, 3),
        ("next_token", {"lora": Lora(rank=3, on=("ffn",))}, 1 + 2 * 2 / 3),  # nothing before the first ffn trains
        ("prefix_lm", {"lora": Lora(rank=2)}, 3),
        ("span_corruption", {"freeze": ("encoder.*",)}, 3),
        ("span_corruption", {"lora": Lora(rank=3, on=("ffn",))}, 2),  # the first ffn of two layers
    ],
)
def test_a_batch_costs_what_torch_counts_of_a_step_that_trains_a_part(name, start, passes):
    objective, spec, chosen = objective_of(name), spec_for(name), StartSettings(**start)
    batch, model = objective.collator(context_for(name))(rows_of(), KEYS), build(spec)
    chosen.restrict(model, None)
    model.kernel = "eager"  # torch's counter gives sdpa on the CPU 0
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = MagicMock(parents={"Global"})  # whose hooks refuse the gradients that a chunked loss takes
    with counter:
        objective.loss(model, batch).total.backward()
    with counted(model) as forward:
        objective.judge(model, batch, objective.targets(batch), None)
    found = TrainingFlops(spec, objective, chosen)
    assert sum_rows(found.forward, batch, objective.targets(batch)) == forward.visible
    assert found.count(batch) == counter.get_total_flops() - round(passes * forward.hidden)


def test_a_run_that_trains_a_part_counts_what_the_price_of_that_part_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    own = ["model.n_layers=2", "data=text", "data.path=text.txt", "data.tokenizer.kind=byte", "steps=1"]
    own += ["batch_size=4", "seq_len=32", "eval_batches=1", "sample=null"]
    frozen = zoo.train("llama-tiny", [*own, "freeze=['embedding*']", "hydra.run.dir=frozen"])
    added = zoo.train("llama-tiny", [*own, "weights=frozen", "lora={rank: 2}", "hydra.run.dir=added"])
    prices = partial(zoo.stats, "llama-tiny", ["n_layers=2"], context=32)
    for run, price in ((frozen, prices(freeze=["embedding*"])), (added, prices(lora={"rank": 2}))):
        assert round(run["flops"] / run["tokens"]) == price["flops"]["train"]
