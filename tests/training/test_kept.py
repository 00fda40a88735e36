"""What a run skips and what it keeps: losses that are no number, the last checkpoints and the best ones."""

import json
import math

import pytest
import torch

from support.packaged_specs import one_in
from support.tiny_runs import compose_run, read_folder, read_metrics
from zoo import runs
from zoo.data import Batches
from zoo.errors import CheckpointError, ConfigError, ZooError
from zoo.jobs.train import resume_run, start_run
from zoo.training import gradient, loop, validation
from zoo.training.objective import NextToken
from zoo.training.planning import plan_training


def spoil_gradient(monkeypatch, *steps):
    """Let the gradient of these steps be NaN in one weight, whatever the loss is."""
    accumulate = gradient.accumulate_gradient
    count = iter(range(1, 1000))

    def spoiled(model, *args):
        found = accumulate(model, *args)
        if next(count) in steps:
            next(model.parameters()).grad.view(-1)[5] = math.nan
        return found

    monkeypatch.setattr(gradient, "accumulate_gradient", spoiled)


def steps_of(run):
    return [runs.read_step(each) for each in runs.steps(run / "checkpoints")]


# ---------------------------------------------------------------- skipped


def test_a_gradient_that_is_no_number_changes_nothing_and_is_counted(tmp_path, corpus, monkeypatch):
    seen = {}
    update = loop.update

    def watch(run):
        before = {name: each.clone() for name, each in run.model.state_dict().items()}
        moments = [value.clone() for state in run.optimizer.state.values() for value in state.values()]
        found = update(run)
        after = run.model.state_dict()
        same = all(torch.equal(before[name], after[name]) for name in before)
        kept = [value for state in run.optimizer.state.values() for value in state.values()]
        same_moments = len(moments) == len(kept) and all(map(torch.equal, moments, kept))
        seen[run.step] = (same, same_moments, all(each.grad is None for each in run.model.parameters()))
        return found

    spoil_gradient(monkeypatch, 2, 4)
    monkeypatch.setattr(loop, "update", watch)
    result = start_run(compose_run(corpus, "ema=0.9"), tmp_path / "run")
    assert {step: found[:2] for step, found in seen.items()} == {step: (step in (2, 4),) * 2 for step in range(1, 7)}
    assert all(cleared for _, _, cleared in seen.values())
    lines = [line for line in read_metrics(tmp_path / "run") if "lr" in line]
    assert [line["skipped"] for line in lines] == [0, 1, 1, 2, 2, 2]
    assert ["grad_norm" in line for line in lines] == [True, False, True, False, True, True]
    assert all("NaN" not in line for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert result["skipped"] == 2


def test_the_rows_of_a_skipped_batch_are_noted_and_are_those_that_were_read(tmp_path, corpus, monkeypatch):
    rows = {}
    read = Batches.read

    def noted(self, first, count):
        rows[first] = [tuple(self.place(number)) for number in range(first, first + count)]
        return read(self, first, count)

    monkeypatch.setattr(Batches, "read", noted)
    spoil_gradient(monkeypatch, 3)
    start_run(compose_run(corpus), tmp_path / "run")
    (line,) = map(json.loads, (tmp_path / "run/nonfinite.jsonl").read_text().splitlines())
    assert (line["step"], line["first_row"], line["grad_norm"]) == (3, 8, "nan")
    assert [(0, row["window"], row["epoch"]) for row in line["rows"]] == rows[8]


@pytest.mark.parametrize("most", one_in(2, [3, 1]))
def test_so_many_skipped_in_a_row_end_the_run_and_no_checkpoint_is_written_meanwhile(
    tmp_path, corpus, monkeypatch, most
):
    spoil_gradient(monkeypatch, 2, *range(4, 20))
    options = ["save_every=1", "steps=20", "eval_every=null", f"skip_nonfinite={most}"]
    with pytest.raises(ZooError) as failed:
        start_run(compose_run(corpus, *options), tmp_path / "run")
    last = 2 if most == 1 else 6
    assert str(failed.value).startswith(f"step {last}: the gradient's norm is nan, and {most} updates in a row were")
    assert "nonfinite.jsonl" in str(failed.value) and failed.value.exit_code == 1
    assert steps_of(tmp_path / "run")[-1] == (1 if most == 1 else 3)


def test_a_run_that_was_cut_off_between_skipped_updates_counts_on(tmp_path, corpus, monkeypatch):
    loss = NextToken.loss

    def lose(self, model, batch, **options):  # the same rows whichever process reads them
        found = loss(self, model, batch, **options)
        bad = model.training and torch.is_grad_enabled() and int(batch.input_ids.sum()) % 3 == 0
        return found._replace(total=found.total * math.nan) if bad else found

    monkeypatch.setattr(NextToken, "loss", lose)
    options = ["steps=12", "save_every=2", "skip_nonfinite=9", "eval_every=null"]
    start_run(compose_run(corpus, *options), tmp_path / "whole")
    whole = read_metrics(tmp_path / "whole")
    assert 1 < whole[-2]["skipped"] < 9
    start_run(compose_run(corpus, *options), tmp_path / "parts")
    newest = tmp_path / "parts/checkpoints/latest"
    newest.write_text(f"step-{steps_of(tmp_path / 'parts')[0]:06}\n")
    resume_run(tmp_path / "parts")
    assert read_metrics(tmp_path / "parts") == whole
    for name in ("nonfinite.jsonl", "checkpoints/latest"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ---------------------------------------------------------------- kept


def losses_of(run):
    return {line["step"]: line["val_loss"] for line in read_metrics(run) if "val_loss" in line}


@pytest.mark.parametrize("most", one_in(2, [2, 1]))
def test_the_lowest_validation_losses_stay_beside_the_newest(tmp_path, corpus, monkeypatch, most):
    options = ["steps=12", "eval_every=2", "save_every=3", "keep=1", f"keep_best={most}"]
    wanted = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 6.0, 12: 3.7}
    step, made = {}, lambda loss: validation.LossSum(loss, 1, [(loss, 1)])
    update = loop.update

    def counted(run):
        found = update(run)
        step["now"] = run.step
        return found

    monkeypatch.setattr(loop, "update", counted)
    monkeypatch.setattr(validation, "measure_validation_loss", lambda run, batches, metrics: made(wanted[step["now"]]))
    start_run(compose_run(corpus, *options), tmp_path / "run")
    assert losses_of(tmp_path / "run") == wanted
    best = sorted(wanted, key=wanted.__getitem__)[:most]
    assert steps_of(tmp_path / "run") == sorted({*best, 12})
    assert runs.read_step(runs.find(f"{tmp_path}/run@best")) == 4
    assert runs.read_step(runs.find(f"{tmp_path}/run@12")) == 12
    assert runs.read_step(runs.find(tmp_path / "run")) == 12


def test_a_run_cut_off_at_its_best_ends_with_the_same_checkpoints(tmp_path, corpus):
    options = ["steps=9", "eval_every=2", "save_every=3", "keep=2", "keep_best=2"]
    config = compose_run(corpus, *options)
    start_run(config, tmp_path / "whole")
    start_run(config, tmp_path / "parts")
    checkpoints = tmp_path / "parts/checkpoints"
    (checkpoints / "latest").write_text(f"{runs.steps(checkpoints)[0].name}\n")
    (checkpoints / "best").write_text("step-000001\n")  # as a process leaves it that is killed before it moves on
    resume_run(tmp_path / "parts")
    found, whole = (read_folder(tmp_path / name / "checkpoints") for name in ("parts", "whole"))
    assert found == whole
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


def test_what_was_not_kept_is_said_with_what_is_there(tmp_path, corpus):
    start_run(compose_run(corpus), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run@best: the run has kept none \(zoo train keep_best=1 does\)"):
        runs.find(f"{tmp_path}/run@best")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4 \(there are: 3, 6\)"):
        runs.find(f"{tmp_path}/run@4")
    with pytest.raises(CheckpointError, match="run@worst: no such folder"):
        runs.find(f"{tmp_path}/run@worst")


@pytest.mark.parametrize("key", ["keep_best", "skip_nonfinite"])
def test_a_negative_number_is_refused(corpus, key):
    with pytest.raises(ConfigError, match=key):
        plan_training(compose_run(corpus, f"{key}=-1"))
