"""Runs that fail, are killed or find another process at work: one line, and a checkpoint from which they go on."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from support.packaged_specs import one_in
from support.tiny_models import model_of
from support.tiny_runs import compose_run, read_metrics
from zoo import runs
from zoo.distributed.world import ALONE
from zoo.errors import CheckpointError, ConfigError, ZooError
from zoo.jobs import train
from zoo.jobs.train import resume_run, start_run
from zoo.training import finite, loop, validation
from zoo.training.failures import is_out_of_memory


@pytest.fixture
def config(corpus):
    """Composes a tiny run that writes samples, with a test's own overrides."""
    return partial(compose_run, corpus, "sample.tokens=4")


def test_a_loss_that_is_no_number_ends_the_run_with_one_line_and_keeps_the_checkpoint(config, tmp_path):
    with pytest.raises(ZooError) as failed:
        start_run(config("optim.lr=1e30", "clip=null", "save_every=1", "skip_nonfinite=0"), tmp_path)
    assert failed.value.exit_code == 1
    assert str(failed.value).startswith("step 2: the ") and "\n" not in str(failed.value)
    assert runs.find(tmp_path).name == "step-000001"


@pytest.mark.parametrize("value", one_in(3, [math.nan, math.inf, -math.inf]))
def test_weights_that_are_not_finite_are_named_and_never_saved(config, tmp_path, monkeypatch, value):
    update = loop.update

    def spoil(run):
        terms = update(run)
        if run.step == 4:
            with torch.no_grad():  # after the step's loss was seen
                run.model.blocks[1].ffn.up.weight[3, 5] = value
        return terms

    monkeypatch.setattr(loop, "update", spoil)
    with pytest.raises(ZooError) as failed:
        start_run(config("save_every=2"), tmp_path)
    found = (
        "step 4: blocks.1.ffn.up.weight is not finite, found 1 of its 1,536 values; the checkpoint of step 2 is whole"
    )
    assert str(failed.value).startswith(found) and failed.value.exit_code == 1
    assert runs.find(tmp_path).name == "step-000002"


def test_the_largest_finite_weights_are_saved():
    run = SimpleNamespace(model=model_of(), step=1, world=ALONE)
    with torch.no_grad():
        run.model.norm.weight.fill_(torch.finfo(torch.float32).max)  # their norm would overflow
    finite.refuse_nonfinite_weights(run)


FAILURES = {
    "evaluate": (validation, "evaluation", torch.OutOfMemoryError("CUDA out of memory")),
    "write_sample": (validation, "sample", ConfigError("kernel: cannot decode")),
    "picture": (train.DRAWINGS, "picture", OSError(28, "No space left on device")),
}


@pytest.mark.parametrize("work", one_in(3, FAILURES))
def test_a_failing_evaluation_sample_or_picture_is_a_warning_after_the_checkpoint(
    config, tmp_path, monkeypatch, capsys, work
):
    where, what, error = FAILURES[work]
    whole = start_run(config(), tmp_path / "whole")
    patch, real = (
        (monkeypatch.setitem, where[work]) if isinstance(where, dict) else (monkeypatch.setattr, getattr(where, work))
    )

    def fail_at_step_3(run):
        if run.step == 3:
            assert run.saves.step == 3
            raise error
        real(run)

    patch(where, work, fail_at_step_3)
    result = start_run(config(), tmp_path / "run")
    said = getattr(error, "strerror", None) or str(error)
    assert f"step 3: no {what}, found {said}" in " ".join(capsys.readouterr().err.split())
    assert result["status"] == "done" and result["val_loss"] == whole["val_loss"]
    lines = [
        line
        for line in read_metrics(tmp_path / "whole")
        if work != "evaluate" or "val_loss" not in line or line["step"] != 3
    ]
    assert read_metrics(tmp_path / "run") == lines


@pytest.mark.parametrize("step", one_in(2, [3, 6]))
def test_a_process_killed_while_it_evaluates_goes_on_with_that_evaluation(config, tmp_path, monkeypatch, step):
    start_run(config(), tmp_path / "whole")
    evaluate = validation.evaluate

    def die(run):
        if run.step == step:
            raise SystemExit(9)  # nothing in the loop catches it, as nothing catches a kill
        evaluate(run)

    monkeypatch.setattr(validation, "evaluate", die)
    with pytest.raises(SystemExit):
        start_run(config(), tmp_path / "parts")
    monkeypatch.setattr(validation, "evaluate", evaluate)
    assert runs.find(tmp_path / "parts").name == f"step-{step:06}"
    result = resume_run(tmp_path / "parts")
    assert result["status"] == "done" and result["val_loss"] is not None
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    for name in ("samples.txt", "checkpoints/latest"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ConfigError, match="is finished"):
        resume_run(tmp_path / "parts")


HOLD = """
import os, pathlib, sys, time
from zoo import runs
with runs.locked(pathlib.Path(sys.argv[1]), print):
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_while_the_first_trains_and_a_killed_one_blocks_nobody(config, tmp_path):
    run = tmp_path / "run"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        number = first.stdout.readline().strip()
        with pytest.raises(CheckpointError) as refused:
            start_run(config("steps=1"), run)
    finally:
        first.kill()
        first.communicate()
    (fault,) = refused.value.faults
    assert fault.startswith(f"{run}: process {number} on ") and "is training in it (" in fault
    start_run(config("steps=1"), run)
    with (
        runs.locked(run, print),
        pytest.raises(CheckpointError, match=f"process {os.getpid()} on .* is training in it"),
    ):
        resume_run(run, ["steps=2"])
    assert resume_run(run, ["steps=2"])["steps"] == 2


ERRORS = {
    "a full disk": (
        OSError(28, "No space left on device", "/there/file"),
        "/there/file: cannot be read or written, found No",
    ),
    "safetensors": (
        OSError("/there/file: I/O error"),
        "cannot be read or written, found /there/file: I/O error",
    ),
    "CUDA": (
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
        "memory: ran out, found CUDA out of memory. Tried to allocate 2 GiB",
    ),
    "CPU": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        "memory: ran",
    ),
    "Python": (MemoryError(), "memory: ran out, found too little memory (accumulate=2 "),
}


@pytest.mark.parametrize("error, said", ERRORS.values(), ids=ERRORS)
def test_a_full_disk_and_a_lack_of_memory_end_the_run_with_one_line(config, tmp_path, monkeypatch, error, said):
    def fail(run):
        if run.step == 4:
            raise error
        return update(run)

    update = loop.update
    monkeypatch.setattr(loop, "update", fail)
    with pytest.raises(ZooError) as failed:
        start_run(config(), tmp_path)
    assert failed.value.exit_code == 1 and said in str(failed.value) and "\n" not in str(failed.value)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["error"], result["steps"]) == ("failed", str(failed.value), 4)
    assert runs.find(tmp_path).name == "step-000003"
    monkeypatch.setattr(loop, "update", update)
    assert resume_run(tmp_path)["steps"] == 6


def test_torchs_own_allocator_is_understood():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
