"""Runs of other objectives than the next token: they resume to the bit, evaluate with the same masks, and write what a
model of theirs can write."""

import json

import pytest
import torch

import zoo
from support.objective_runs import SIZES, SMALL
from support.packaged_specs import one_in
from zoo.checkpoint import store
from zoo.jobs.train import resume_run
from zoo.text.fill import fill

RUNS = {
    "mlm": ("bert-tiny", ["objective.whole_word=true"]),
    "span_corruption": ("t5-tiny", ["data.documents=true"]),
    "denoising": ("bart-tiny", ["accumulate=2"]),
    "ul2": ("t5-tiny", ["accumulate=2"]),
}


def train(name, *more):
    model, own = RUNS[name]
    return zoo.train(model, [*SMALL, *SIZES[model], f"objective={name}", *own, *more])


MEASURED = ("tokens_per_second", "mfu", "memory")


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: each for key, each in line.items() if key not in ("tokens_per_second", "mfu", "memory")} for line in lines
    ]


@pytest.mark.parametrize("name", one_in(2, RUNS))
def test_a_run_resumes_to_the_bit(name, here):
    result = train(name, "steps=6", "hydra.run.dir=whole")
    train(name, "steps=3")
    resume_run("run", ["steps=6"])
    assert lines_of(here / "run") == lines_of(here / "whole")
    assert result["flops"] > 0 and result["bits_per_byte"] is None and result["val_loss"] > 0
    assert (here / "whole" / "samples.txt").read_text().count("step") == (0 if name == "mlm" else 2)
    tensors = [store.load(here / run).state_dict() for run in ("run", "whole")]
    assert all(torch.equal(each, tensors[1][key]) for key, each in tensors[0].items())


def test_an_objective_is_chosen_by_the_topology_and_said(here, capsys):
    zoo.train("bert-tiny", [*SMALL, *SIZES["bert-tiny"], "steps=1"])
    said = capsys.readouterr()
    assert "objective: mlm, as the model is an encoder" in said.out + said.err
    assert "sample: none, as the model is an encoder, which writes no text" in said.out + said.err
    assert len(fill(str(here / "run"), ["word1 <mask>xx"])[0]) == 1  # the mask that was added is saved with the run


@pytest.mark.slow
def test_a_student_learns_from_a_trained_teacher(here):
    own = ["model.n_layers=2", "model.n_kv_heads=2"]
    zoo.train("llama-tiny", [*SMALL, *own, "steps=20", "hydra.run.dir=teacher"])
    how = ["objective=distil", "objective.teacher=teacher", "objective.mix=1.0", "steps=20"]
    result = zoo.train("llama-tiny", [*SMALL, *own, *how])
    lines = [line for line in lines_of(here / "run") if "distil" in line]
    assert lines[-1]["distil"] < 0.5 * lines[0]["distil"] and result["val_loss"] < 5
    config = (here / "run" / "config.yaml").read_text()
    assert f"teacher: {here / 'teacher'}" in config


def test_router_biases_move_with_training_and_are_saved(here):
    sizes = ["model.n_layers=2", "model.kv_lora_rank=16", "model.qk_nope_head_dim=8", "model.qk_rope_head_dim=4"]
    small = [each for each in SMALL if "head_dim" not in each]
    own = [*small, *sizes, "model.v_head_dim=8", "model.pattern=[dense,sparse]", "steps=3", "router_bias_rate=0.05"]
    zoo.train("deepseek-tiny", own)
    bias = store.load(here / "run").blocks[1].ffn.router.selection_bias
    steps = bias / 0.05
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert 0 < float(steps.abs().max()) <= 3
    assert all(line["load_max"] >= 1 >= line["load_min"] for line in lines_of(here / "run") if "loss" in line)
