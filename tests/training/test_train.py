"""Whole training runs, against one another and against what they leave behind."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from support.packaged_specs import one_in
from support.tiny_models import model_of
from zoo import runs
from zoo.checkpoint import store
from zoo.data import DataSettings, hold_out, prepare
from zoo.distributed.world import ALONE
from zoo.errors import CheckpointError, ConfigError, ZooError
from zoo.jobs import train
from zoo.jobs.plan import plan_launch, task_config
from zoo.jobs.train import resume_run, start_run
from zoo.paths import conf_dir
from zoo.training import finite, loop, validation
from zoo.training.failures import is_out_of_memory
from zoo.training.fitting import advise, price_training
from zoo.training.objective import NextToken
from zoo.training.planning import plan_training

TINY = [
    *("model.n_layers=2", "model.d_model=32", "model.n_heads=4", "model.n_kv_heads=2", "model.head_dim=8"),
    *("model.d_ff=48", "model.vocab_size=257", "model.max_seq_len=32", "data=text", "data.tokenizer.kind=byte"),
    *("steps=6", "batch_size=4", "seq_len=16", "eval_every=3", "eval_batches=2", "save_every=3", "sample.tokens=4"),
]
MEASURED = ("tokens_per_second", "mfu", "memory")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Many short texts of few words: what a tiny model learns in a few steps."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        lines = [f"the {noun} {number} is {number * step}\n" for step, noun in enumerate(("cat", "dog", "cow", "hen"))]
        (folder / f"{number}.txt").write_text("".join(lines * 2))
    return folder


@pytest.fixture
def config(corpus):
    """Composes the packaged training config with TINY and a test's own overrides laid over it."""

    def compose(*overrides):
        with plan_launch([*TINY, f"data.path={corpus}", *overrides], check=False) as plan:
            return task_config(plan.jobs[0])

    return compose


def lines_of(run: Path) -> list[dict]:
    """The metrics of a run without those that a clock gave."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


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
    lines = lines_of(tmp_path)
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
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")
    for name in ("samples.txt", "checkpoints/latest"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for name in (store.WEIGHTS, store.STATES):
        file = Path("checkpoints/step-000006") / name
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_run_that_was_killed_after_its_checkpoint_repeats_what_was_lost_once(config, tmp_path):
    start_run(config(), tmp_path)
    whole = lines_of(tmp_path)
    (tmp_path / "checkpoints/latest").write_text("step-000003\n")
    resume_run(tmp_path)
    assert lines_of(tmp_path) == whole
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
    assert [line["step"] for line in lines_of(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]


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
    "draw_picture": (train, "picture", OSError(28, "No space left on device")),
}


@pytest.mark.parametrize("work", one_in(3, FAILURES))
def test_a_failing_evaluation_sample_or_picture_is_a_warning_after_the_checkpoint(
    config, tmp_path, monkeypatch, capsys, work
):
    where, what, error = FAILURES[work]
    whole = start_run(config(), tmp_path / "whole")
    real = getattr(where, work)

    def fail_at_step_3(run):
        if run.step == 3:
            assert run.saves.step == 3
            raise error
        real(run)

    monkeypatch.setattr(where, work, fail_at_step_3)
    result = start_run(config(), tmp_path / "run")
    said = getattr(error, "strerror", None) or str(error)
    assert f"step 3: no {what}, found {said}" in " ".join(capsys.readouterr().err.split())
    assert result["status"] == "done" and result["val_loss"] == whole["val_loss"]
    lines = [
        line
        for line in lines_of(tmp_path / "whole")
        if work != "evaluate" or "val_loss" not in line or line["step"] != 3
    ]
    assert lines_of(tmp_path / "run") == lines


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
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")
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
        "kernel: there is no 'spda' (did you mean 'sdpa'?) (there are auto, flash3, flash4, flash2, "
        "flash_torch, sdpa, flex, eager, flash3_hub, flash2_hub)",
        "seq_len: is 64, more than model.max_seq_len=32 (seq_len=32, or model.max_seq_len=64)",
        "model.vocab_size: is 257, fewer than the tokenizer's 4096 "
        "(model.vocab_size=4096, or data.tokenizer.vocab_size=257)",
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
    for eager, compiled in zip(lines_of(tmp_path / "eager"), lines_of(tmp_path / "compiled"), strict=True):
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
