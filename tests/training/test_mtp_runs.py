"""Runs of models with modules for further tokens: stopped, read again, exported, and refused."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

import zoo
from support.tiny_runs import compose_run, read_folder, read_metrics
from zoo.checkpoint import store
from zoo.errors import ConfigError
from zoo.grammar.saved import read_spec
from zoo.jobs.train import resume_run, start_run
from zoo.run.builder import build
from zoo.training.planning import plan_training


@pytest.fixture
def config(corpus):
    return partial(compose_run, corpus, "model.mtp=2")


def test_a_stopped_run_goes_on_to_the_same_bits(config, tmp_path):
    start_run(config("schedule=constant"), tmp_path / "whole")
    start_run(config("schedule=constant", "steps=3"), tmp_path / "parts")
    resume_run(tmp_path / "parts", ["steps=6"])
    whole, parts = (tmp_path / name / "checkpoints/step-000006" for name in ("whole", "parts"))
    assert read_spec(parts).mtp.depth == 2
    assert read_folder(parts).keys() == read_folder(whole).keys()
    for name in (store.WEIGHTS, store.STATES):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert all("mtp" in line for line in read_metrics(tmp_path / "whole") if "loss" in line)


def test_a_trained_model_is_read_exported_and_run_without_its_modules(config, tmp_path):
    start_run(config("steps=3"), tmp_path / "run")
    model = store.load(tmp_path / "run")
    assert model.spec.mtp is None and not any(name.startswith("mtp") for name in model.state_dict())
    whole = build(read_spec(tmp_path / "run/checkpoints/step-000003"), device="cpu", dtype="fp32").eval()
    whole.load_state_dict(model.state_dict(), strict=False)
    prompt = torch.tensor([[5, 6, 7]])
    texts = [zoo.generate(each, prompt, max_new_tokens=8) for each in (model, whole)]
    assert torch.equal(*texts)
    zoo.export(whole, tmp_path / "hf", verify=False)
    assert_close(zoo.load(tmp_path / "hf")(prompt).logits, model(prompt).logits)


def test_weights_without_modules_start_a_run_that_has_some(config, tmp_path, capsys):
    start_run(config("steps=3"), tmp_path / "run")
    start_run(config("steps=3", f"weights={tmp_path / 'run'}"), tmp_path / "next")
    assert "mtp: its modules are drawn anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective=span_corruption"], "model.mtp: is of texts whose tokens are all predicted"),
        (["dropout={residual: 0.1}"], "model.mtp: goes with no dropout yet"),
        (["freeze=['*norm*']"], "model.mtp: goes with no freeze yet"),
    ],
)
def test_runs_that_cannot_train_modules_are_refused(config, overrides, said):
    with pytest.raises(ConfigError) as refused:
        plan_training(config(*overrides))
    assert any(fault.startswith(said) for fault in refused.value.faults)
