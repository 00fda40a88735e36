"""`compile=auto`: layers are compiled where a trial shows that it pays, and a run is otherwise as if none had been."""

import re

import pytest
import torch

from support.tiny_runs import compose_run, read_folder, read_metrics
from zoo.jobs.train import resume_run, start_run
from zoo.kernels.found import MACHINES, Machine
from zoo.training import compiling
from zoo.training.compiling import compile_if_it_pays


@pytest.fixture
def always(monkeypatch):
    """A trial is always made, and always won. The layers go through Dynamo, and no code is made of them."""
    for name, value in {"LEAST": 0, "FEWEST": 1, "GAIN": 0}.items():
        monkeypatch.setattr(compiling, name, value)
    monkeypatch.setattr(compiling, "compile_model", compile_quickly)
    monkeypatch.setitem(MACHINES, "cpu", Machine("cpu", None, frozenset({"compiler"})))
    torch.compiler.reset()
    return monkeypatch


def compile_quickly(model):
    for block in model.blocks:
        block.compile(dynamic=False, backend="aot_eager")


def count_compiled(monkeypatch) -> list[bool]:
    """What each update of the runs to come finds its first layer to be: compiled or not."""
    found = []
    monkeypatch.setattr("zoo.training.loop.compile_if_it_pays", lambda run: (compile_if_it_pays(run), note(run)))

    def note(run):
        found.append(run.model.blocks[0]._compiled_call_impl is not None)

    return found


def test_a_run_that_would_take_minutes_compiles_its_layers_after_its_first_steps(tmp_path, corpus, always, capsys):
    found = count_compiled(always)
    start_run(compose_run(corpus), tmp_path / "run")
    assert found == [False, False, True, True, True, True]
    assert "compile: layers are compiled from step 4 on" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_run_that_resumes_keeps_the_choice_without_a_trial(tmp_path, corpus, always):
    steady = ("schedule=constant", "save_every=6")
    start_run(compose_run(corpus, "steps=9", *steady), tmp_path / "whole")
    start_run(compose_run(corpus, *steady), tmp_path / "half")
    always.setattr(compiling, "LEAST", float("inf"))  # a trial now would not be made
    found = count_compiled(always)
    resume_run(tmp_path / "half", ["steps=9"])
    assert found == [True, True, True]
    whole, half = (read_folder(tmp_path / name / "checkpoints/step-000009") for name in ("whole", "half"))
    assert whole == half


@pytest.mark.slow
def test_a_trial_that_is_lost_leaves_no_trace(tmp_path, corpus, always, capsys):
    start_run(compose_run(corpus, "compile=false"), tmp_path / "plain")
    always.setattr(compiling, "GAIN", float("inf"))
    found = count_compiled(always)
    start_run(compose_run(corpus), tmp_path / "tried")
    assert not any(found) and "compile: not, as compiled layers are" in " ".join(capsys.readouterr().err.split())
    plain, tried = (read_folder(tmp_path / name / "checkpoints") for name in ("plain", "tried"))
    assert plain == tried and read_metrics(tmp_path / "plain") == read_metrics(tmp_path / "tried")


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(tmp_path, corpus, always, capsys):
    def fail(graph, inputs):
        raise RuntimeError("the compiler is broken")

    always.setattr(compiling, "compile_model", lambda model: [each.compile(backend=fail) for each in model.blocks])
    found = count_compiled(always)
    start_run(compose_run(corpus), tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert not any(found)
    assert re.search("compile: the layers cannot be compiled here, found .*the compiler is broken", said)


@pytest.mark.parametrize(
    "overrides",
    [
        ["compile=false"],
        ["data.documents=true"],
        ["recompute=selective"],
        ["batch_size=512", "data.validation_fraction=0.01"],
        ["model=bert-tiny", "model.vocab_size=300", "objective=mlm"],
    ],
    ids=lambda each: each[-1],
)
def test_no_trial_is_made_where_compiling_cannot_pay(tmp_path, corpus, always, overrides):
    found = count_compiled(always)
    start_run(compose_run(corpus, *overrides), tmp_path / "run")
    assert not any(found)


def test_no_trial_is_made_of_a_short_run_or_without_a_compiler(tmp_path, corpus, always):
    found = count_compiled(always)
    always.setitem(MACHINES, "cpu", Machine("cpu", None, frozenset()))
    start_run(compose_run(corpus), tmp_path / "without")
    always.setitem(MACHINES, "cpu", Machine("cpu", None, frozenset({"compiler"})))
    always.setattr(compiling, "LEAST", 3600.0)
    start_run(compose_run(corpus), tmp_path / "short")
    assert not any(found)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_master"])
def test_compiled_layers_learn_what_plain_ones_do(tmp_path, corpus, monkeypatch, precision):
    for name, value in {"LEAST": 0, "FEWEST": 1, "GAIN": 0}.items():
        monkeypatch.setattr(compiling, name, value)
    torch.compiler.reset()
    for compiled in ("auto", "false"):
        overrides = (f"compile={compiled}", f"precision={precision}", "steps=12")
        start_run(compose_run(corpus, *overrides), tmp_path / compiled)
    auto, plain = (read_metrics(tmp_path / name)[-1]["val_loss"] for name in ("auto", "false"))
    assert auto == pytest.approx(plain, rel=1e-5 if precision == "fp32" else 2e-2)
