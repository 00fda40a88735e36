"""Whole training runs, against one another and against what they leave behind."""

import csv
import json
import math
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from support.packaged_specs import one_in
from support.tiny_runs import compose_run, read_metrics
from zoo import runs
from zoo.checkpoint import store
from zoo.data import DataSettings, hold_out, prepare
from zoo.errors import CheckpointError, ConfigError
from zoo.jobs.train import resume_run, start_run
from zoo.paths import conf_dir
from zoo.training.memory_fit import advise, price_training
from zoo.training.objective import NextToken
from zoo.training.planning import plan_training


@pytest.fixture
def config(corpus):
    """Composes a tiny run that writes samples, with a test's own overrides."""
    return partial(compose_run, corpus, "sample.tokens=4")


def data_of(path):
    """The corpus as `config` has it prepared."""
    return prepare(DataSettings.read({"kind": "text", "path": str(path), "tokenizer": {"kind": "byte"}}))


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize("kind", sorted(path.stem for path in (conf_dir() / "schedule").glob("*.yaml")))
@pytest.mark.parametrize("steps", one_in(3, [7, 1, 2, 1000]))
def test_a_packaged_schedule_is_positive_and_reaches_its_peak_in_runs_of_any_length(config, kind, steps):
    schedule = plan_training(config(f"schedule={kind}", "steps=60")).settings.schedule
    factors = [schedule.factor(step, steps) for step in range(steps)]
    assert max(factors) == pytest.approx(1.0)
    assert min(factors) > 0


# ---------------------------------------------------------------- whole runs


def test_a_run_learns_and_leaves_behind_what_it_says(config, tmp_path, pictures):
    cfg = config("steps=40", "optim.lr=0.01", "eval_every=20", "eval_batches=null", "accumulate=2")
    result = start_run(cfg, tmp_path)
    lines = read_metrics(tmp_path)
    training = [line["loss"] for line in lines if "loss" in line]
    assert training[0] == pytest.approx(math.log(257), abs=0.3)
    assert result["val_loss"] < 3.0 < training[0]
    assert [line["step"] for line in lines if "val_loss" in line] == [20, 40]
    assert [line["lr"] for line in lines if "loss" in line][:3] == pytest.approx([0.005, 0.01, 0.01])
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows if row["loss"]] == training
    assert float(rows[-1]["val_loss"]) == lines[-1]["val_loss"]
    assert (tmp_path / "samples.txt").read_text().count("──── step") == 2
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (tmp_path / "config.yaml").exists() and (tmp_path / "model.yaml").exists()


def test_the_validation_loss_is_the_mean_over_the_split_of_the_saved_model(config, tmp_path):
    cfg = config("eval_batches=null")
    result = start_run(cfg, tmp_path)
    tokens = data_of(cfg.data.path).validation
    ids = torch.tensor(tokens.ids[:].astype("int64"))
    model, total = store.load(tmp_path), 0.0
    for start in range(0, len(ids) - 1, 16):
        row = ids[start : start + 17]
        if start + 17 <= len(ids):
            total += float(F.cross_entropy(model(row[None, :-1]).logits[0], row[1:], reduction="sum").detach())
    rest = (len(ids) - 1) % 16
    if rest:
        row = ids[len(ids) - 1 - rest :]
        total += float(F.cross_entropy(model(row[None, :-1]).logits[0], row[1:], reduction="sum").detach())
    assert result["val_loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / tokens.n_bytes, rel=1e-5)


OTHERWISE = ["ffn=moe", "schedule=wsd", "accumulate=2", "data.documents=true"]


@pytest.mark.parametrize("extra", [[], OTHERWISE], ids=["dense", "moe"])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(config, tmp_path, monkeypatch, extra):
    start_run(config(*extra), tmp_path / "whole")
    loss = NextToken.loss
    calls = iter(range(100))

    def stop_in_the_fourth_update(*args, **options):
        if torch.is_grad_enabled() and next(calls) == (6 if extra else 3):
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*args, **options)

    monkeypatch.setattr(NextToken, "loss", stop_in_the_fourth_update)
    with pytest.raises(KeyboardInterrupt):
        start_run(config("save_every=2", *extra), tmp_path / "parts")
    assert runs.find(tmp_path / "parts").name == "step-000004"
    assert json.loads((tmp_path / "parts/result.json").read_text())["status"] == "stopped"
    resume_run(tmp_path / "parts", ["save_every=3"])
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    for name in ("samples.txt", "checkpoints/latest"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for name in (store.WEIGHTS, store.STATES):
        file = Path("checkpoints/step-000006") / name
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_run_that_was_killed_after_its_checkpoint_repeats_what_was_lost_once(config, tmp_path):
    start_run(config(), tmp_path)
    whole = read_metrics(tmp_path)
    (tmp_path / "checkpoints/latest").write_text("step-000003\n")
    resume_run(tmp_path)
    assert read_metrics(tmp_path) == whole
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == len(whole) + 1


def test_a_finished_run_says_so_and_goes_on_when_it_is_given_more_steps(config, tmp_path):
    start_run(config(), tmp_path)
    with pytest.raises(ConfigError, match=r"is finished, found a checkpoint of step 6 \(steps=12"):
        resume_run(tmp_path)
    with pytest.raises(ConfigError) as refused:
        resume_run(tmp_path, ["seq_len=8", "stpes=12", "steps"])
    assert [fault.split(":")[0] for fault in refused.value.faults] == ["seq_len", "stpes", "steps"]
    assert "did you mean 'steps'?" in refused.value.faults[1]
    assert resume_run(tmp_path, ["steps=7"])["steps"] == 7
    assert [line["step"] for line in read_metrics(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_whose_metrics_were_cut_off_does_not_go_on(config, tmp_path):
    start_run(config("steps=3"), tmp_path)
    (tmp_path / "metrics.csv").write_text("step\n")
    with pytest.raises(CheckpointError, match=r"metrics.csv: has lost lines, found 5 bytes of"):
        resume_run(tmp_path, ["steps=4"])


@pytest.mark.parametrize("text", [b"[1, 2]", b"x", b"", b"\xff"])
@pytest.mark.parametrize("file", one_in(2, ["checkpoints/step-000006/training.json", "config.yaml"]))
def test_a_run_whose_own_files_hold_something_else_is_refused_in_one_line(config, tmp_path, file, text):
    start_run(config("save_every=6", "eval_every=null", "sample=null"), tmp_path)
    (tmp_path / file).write_bytes(text)
    with pytest.raises(CheckpointError, match=Path(file).name):
        resume_run(tmp_path, ["steps=8"])


def test_a_run_does_not_write_over_another(config, tmp_path):
    start_run(config("steps=1"), tmp_path)
    with pytest.raises(ConfigError, match="--resume"):
        start_run(config("steps=1"), tmp_path)


def test_a_run_does_not_go_on_with_other_data(config, tmp_path, corpus):
    start_run(config("steps=3"), tmp_path)
    added = corpus / "added.txt"
    added.write_text("something else\n")
    try:
        with pytest.raises(ConfigError, match="its data is not what it was"):
            resume_run(tmp_path, ["steps=4"])
    finally:
        added.unlink()


def test_what_fits_is_said_as_the_exact_price_has_it(config):
    plan = plan_training(config("batch_size=8", "accumulate=1"))
    peaks = {rows: price_training(plan.settings, plan.spec, rows)["peak"] for rows in (1, 2, 4, 8)}
    assert sorted(peaks.values()) == list(peaks.values())
    advice = [advise(plan.settings, plan.spec, peaks[rows]) for rows in (4, 2, 1)]
    assert [each.split(" ")[0] for each in advice] == ["accumulate=2", "accumulate=4", "accumulate=8"]
    assert "one row of 16 tokens does not fit either" in advise(plan.settings, plan.spec, 1000)
    assert advise(plan.settings, plan.spec, None).startswith("accumulate=2 takes 4 of 8 rows at a time")


def test_every_fault_of_a_config_is_listed_at_once(config):
    cfg = config()
    for key, value in {
        "steps": 0,
        "accumulate": 3,
        "precision": "fp8",
        "schedule.warmup": 1.5,
        "optim.betas": [0.9, 1.0],
        "sample.temperature": 1e-9,
        "data.tokenizer.kind": "bytes",
        "model.d_model": 0,
    }.items():
        OmegaConf.update(cfg, key, value)
    with pytest.raises(ConfigError) as refused:
        plan_training(cfg)
    found = [fault.split(":")[0] for fault in refused.value.faults]
    assert sorted(found) == sorted(
        [
            *("steps", "accumulate", "precision", "schedule.warmup", "optim.betas.1", "sample.temperature"),
            *("data.tokenizer", "model.d_model"),
        ]
    )


def test_what_does_not_go_together_is_said_with_what_would_do(config):
    with pytest.raises(ConfigError) as refused:
        plan_training(config("seq_len=64", "kernel=spda", "data.tokenizer.kind=bpe"))
    assert refused.value.faults == [
        "kernel: there is no 'spda' (did you mean 'sdpa'?)",
        "seq_len: is 64, more than model.max_seq_len=32 (seq_len=32, or model.max_seq_len=64)",
        "model.vocab_size: is 257, fewer than the tokenizer's 4096 "
        "(model.vocab_size=4096, or data.tokenizer.vocab_size=257 beside it)",
    ]


def test_a_vocabulary_that_is_too_small_is_found_before_anything_is_written(config, tmp_path):
    with pytest.raises(ConfigError, match=r"model.vocab_size: is 256, fewer than the tokenizer's 257 \("):
        start_run(config("model.vocab_size=256"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which inductor imports
def test_compiled_layers_train_to_the_same_losses(config, tmp_path):
    start_run(config(), tmp_path / "eager")
    start_run(config("compile=true"), tmp_path / "compiled")
    for eager, compiled in zip(read_metrics(tmp_path / "eager"), read_metrics(tmp_path / "compiled"), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4)


def test_in_bf16_the_weights_stay_in_float32_and_the_loss_close(config, tmp_path):
    full, half = start_run(config(), tmp_path / "fp32"), start_run(config("precision=bf16"), tmp_path / "bf16")
    assert half["val_loss"] == pytest.approx(full["val_loss"], abs=0.02)
    assert {each.dtype for each in store.load(tmp_path / "bf16").parameters()} == {torch.float32}


# ---------------------------------------------------------------- what is measured and shown


def test_held_out_rows_are_spread_over_the_whole_split(corpus):
    data = data_of(corpus)
    rows = (len(data.validation) - 1) // 4
    (held,) = hold_out(data.held_out, 3, 4, wanted=rows // 2, documents=False)
    batches = held.batches
    found = torch.cat([batch.input_ids for batch in batches])
    expected = torch.tensor(data.validation.ids[: rows * 4].astype("int64")).view(rows, 4)
    assert len(found) == rows // 2
    assert [len(batch.input_ids) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    at = [(expected == row).all(1).nonzero().flatten().tolist() for row in found]  # the texts repeat some rows
    assert min(at[0]) < rows // 8 and max(at[-1]) > rows * 3 // 4
