"""How many threads compute, and in which dtype: what the measurements lead to, and that a user's word is kept."""

import json

import pytest
import torch

from support.tiny_models import model_of
from zoo.jobs.plan import plan_launch, task_config
from zoo.jobs.train import resume_run, start_run
from zoo.run import fastest_dtype, threads
from zoo.run.threads import ThreadWatch, choose_fastest, list_candidates
from zoo.training import speed

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    """Nobody has stated a number of threads, and torch has four of them."""
    for name in threads.STATED:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def measured(monkeypatch):
    """Rates that the next probe finds, in place of a measurement; counts the probes."""
    found = {"rates": {4: 4.0, 1: 1.0}, "probes": 0}

    def measure_rates(numbers, lap, spend=0.0):
        found["probes"] += 1
        return found["rates"]

    monkeypatch.setattr(threads, "measure_rates", measure_rates)
    return found


def test_all_cores_all_but_one_and_halves_are_tried():
    assert list_candidates(1) == [1]
    assert list_candidates(2) == [2, 1]
    assert list_candidates(8) == [8, 7, 4, 2, 1]
    assert list_candidates(6) == [6, 5, 3, 1]


def test_the_fastest_number_of_threads_is_taken_and_a_small_gain_is_not():
    assert choose_fastest({4: 10.0, 3: 25.0, 1: 20.0}, 4, 4).threads == 3
    assert choose_fastest({4: 10.0, 3: 11.0, 1: 9.0}, 4, 4).threads == 4  # within what a probe is off by
    assert choose_fastest({4: 10.0, 3: 10.0, 1: 9.5}, 4, 1).threads == 1  # what is at work stays
    assert choose_fastest({4: 10.0, 1: 42.0}, 4, 4).gain == pytest.approx(4.2)


def test_a_choice_says_what_was_found_and_how_to_overrule_it():
    assert str(choose_fastest({2: 10.0, 1: 42.0}, 2, 2)) == (
        "1 thread of 2, 4.2 times as fast while other programs use the cores (OMP_NUM_THREADS=2 keeps 2)"
    )
    assert str(choose_fastest({2: 10.0, 1: 6.0}, 2, 1)) == "2 threads again: they are the fastest now"


def test_a_probe_measures_each_number_and_leaves_torchs_own(free):
    laps = dict.fromkeys((4, 2, 1), 0)

    def lap():
        laps[torch.get_num_threads()] += 1

    rates = threads.measure_rates([4, 2, 1], lap, spend=0.01)
    assert rates.keys() == laps.keys() and min(rates.values()) > 0
    assert min(laps.values()) >= threads.ROUNDS
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("name", threads.STATED)
def test_a_number_of_threads_that_the_user_stated_is_neither_measured_nor_changed(name, free, measured, monkeypatch):
    monkeypatch.setenv(name, "4")
    measured["rates"] = {4: 1.0, 1: 9.0}
    watch = ThreadWatch(CPU, clock=iter(range(0, 9000, 100)).__next__)
    assert threads.use_fastest_threads(CPU) is None
    assert watch.begin() is None
    assert watch.follow(100.0) is None and watch.follow(1.0) is None
    assert measured["probes"] == 0 and torch.get_num_threads() == 4


def test_a_process_that_asks_again_gets_its_threads_back_once_the_other_program_has_gone(free, measured):
    measured["rates"] = {4: 1.0, 1: 3.0}
    assert threads.use_fastest_threads(CPU).threads == 1
    assert threads.use_fastest_threads(CPU) is None and torch.get_num_threads() == 1  # said once
    watch = ThreadWatch(CPU)
    assert watch.most == 4 and watch.watches  # a run in the same process has all of them to choose from
    measured["rates"] = {4: 4.0, 1: 1.0}
    assert threads.use_fastest_threads(CPU).threads == 4 and torch.get_num_threads() == 4


def test_nothing_is_measured_for_another_device(free, measured):
    assert threads.use_fastest_threads(torch.device("meta")) is None
    assert ThreadWatch(torch.device("meta")).begin() is None
    assert measured["probes"] == 0


def test_a_run_looks_again_when_its_pace_falls_and_takes_all_threads_back_when_it_may(free, measured):
    now = [0.0]
    watch = ThreadWatch(CPU, clock=lambda: now[0])
    assert watch.begin() is None and measured["probes"] == 1  # quiet: torch's own
    now[0] = 100.0
    assert watch.follow(1000.0) is None and watch.follow(800.0) is None and measured["probes"] == 1
    measured["rates"] = {4: 1.0, 1: 3.0}  # another program has come
    assert watch.follow(300.0).threads == 1 and torch.get_num_threads() == 1
    now[0] += threads.WAIT / 2
    assert watch.follow(300.0) is None and measured["probes"] == 2  # too early
    measured["rates"] = {4: 4.0, 1: 1.0}  # and has gone
    now[0] += threads.WAIT
    assert watch.follow(300.0).threads == 4 and torch.get_num_threads() == 4


def test_a_probe_that_changes_nothing_is_made_ever_more_rarely(free, measured):
    now = [0.0]
    watch = ThreadWatch(CPU, clock=lambda: now[0])
    watch.follow(1000.0)
    for _ in range(600):
        now[0] += 1.0
        watch.follow(100.0)
    assert 600 / threads.LONGEST_WAIT <= measured["probes"] <= 600 / threads.LONGEST_WAIT + 5


def test_a_resumed_run_goes_on_with_the_threads_of_its_checkpoint(free, measured):
    watch = ThreadWatch(CPU)
    watch.best = 1000.0
    torch.set_num_threads(1)
    state = watch.state()
    torch.set_num_threads(4)
    again = ThreadWatch(CPU)
    again.restore(state)
    assert torch.get_num_threads() == 1 and again.most == 4 and again.best == 1000.0
    again.restore({})  # a checkpoint from before there was a choice
    assert torch.get_num_threads() == 1


# ---------------------------------------------------------------- dtypes


@pytest.fixture
def bf16_is(monkeypatch):
    """Says how many times slower bfloat16 is, in place of a measurement."""
    return lambda times: monkeypatch.setattr(fastest_dtype, "measure_slowdown", lambda dtype, **_: times)


def test_16_bits_that_are_slow_compute_in_float32_with_the_same_values(bf16_is):
    bf16_is(6.0)
    model = model_of(dtype="bf16")
    before = {name: each.detach().clone() for name, each in model.state_dict().items()}
    line = fastest_dtype.use_fastest_dtype(model)
    assert line == "computes in float32: the weights' bfloat16 is 6.0 times slower than float32 on this CPU"
    for name, each in model.state_dict().items():
        assert each.dtype is torch.float32
        assert torch.equal(each, before[name].float())


def test_a_model_that_came_to_compute_in_float32_in_inference_mode_can_be_trained(bf16_is):
    bf16_is(6.0)
    model = model_of(dtype="bf16")
    with torch.inference_mode():
        fastest_dtype.use_fastest_dtype(model)
    model(torch.arange(8)[None]).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_16_bits_that_are_fast_or_asked_for_stay(bf16_is):
    told = []
    bf16_is(0.5)
    model = model_of(dtype="bf16")
    fastest_dtype.settle_cpu(model, told.append)
    assert told == []
    bf16_is(6.0)
    fastest_dtype.settle_cpu(model, told.append, dtype="dtype: bf16")
    assert told == ["dtype: bf16 is 6.0 times slower than fp32 on this CPU"]
    assert next(model.parameters()).dtype is torch.bfloat16


def test_a_model_that_does_not_fit_in_float32_stays_in_16_bits_and_that_is_said(bf16_is, monkeypatch):
    from zoo.run import builder

    bf16_is(6.0)
    model = model_of(dtype="bf16")
    monkeypatch.setattr(builder, "read_free_memory", lambda device: 1000)
    assert fastest_dtype.use_fastest_dtype(model).startswith("computes in bfloat16, 6.0 times slower than float32")
    assert next(model.parameters()).dtype is torch.bfloat16


def test_the_probe_of_a_dtype_leaves_torchs_number_of_threads():
    fastest_dtype.measure_slowdown.cache_clear()
    before = torch.get_num_threads()
    for training in (False, True):
        assert 0 < fastest_dtype.measure_slowdown(torch.bfloat16, training=training) < float("inf")
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------- a run


@pytest.fixture
def config(tmp_path):
    """A composed config of a tiny run, with a test's own overrides laid over it."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"the cat {n} is {n * n}" for n in range(400)))
    tiny = [
        *("model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.n_kv_heads=1", "model.head_dim=8"),
        *("model.d_ff=16", "model.vocab_size=257", "model.max_seq_len=32", "data=text", "data.tokenizer.kind=byte"),
        *("steps=6", "batch_size=2", "seq_len=16", "eval_every=3", "eval_batches=1", "save_every=3", "sample=null"),
        *("device=cpu", f"data.path={tmp_path / 'text.txt'}"),
    ]

    def compose(*overrides):
        with plan_launch([*tiny, *overrides], check=False) as plan:
            return task_config(plan.jobs[0])

    return compose


def test_a_run_beside_a_busy_core_says_how_many_threads_it_takes_and_keeps_them_when_it_goes_on(
    free, measured, config, tmp_path, capsys
):
    measured["rates"] = {4: 1.0, 1: 3.0}
    folder = tmp_path / "run"
    start_run(config(), folder)
    assert "computes with 1 thread of 4, 3.0 times as fast while other" in capsys.readouterr().err
    weights = folder / "checkpoints/step-000006/model.safetensors"
    whole, counters = weights.read_bytes(), json.loads((weights.parent / "training.json").read_text())
    assert counters["threads"]["threads"] == 1
    assert torch.get_num_threads() == 4  # a run leaves torch as it was
    measured["rates"] = {4: 4.0, 1: 1.0}  # the core is free now, but other sums would round otherwise
    (folder / "checkpoints/latest").write_text("step-000003\n")
    resume_run(folder)
    assert weights.read_bytes() == whole


def test_a_run_in_bf16_on_a_cpu_without_it_is_told_how_slow_that_is(bf16_is, config, tmp_path, capsys):
    bf16_is(6.0)
    start_run(config("precision=bf16", "steps=1"), tmp_path / "run")
    said = capsys.readouterr().err
    line = "precision: bf16 is 6.0 times slower than fp32 on this CPU (precision=fp32 would do)"
    assert line in said.splitlines()
    start_run(config("steps=1"), tmp_path / "other")
    assert "slower" not in capsys.readouterr().err


def test_a_share_of_a_peak_that_does_not_hold_is_shown_nowhere(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "measure_peak", lambda device, precision: 1.0)
    found = start_run(config("steps=1"), tmp_path / "run")
    assert found["mfu"] is None
    assert "MFU" not in next(line for line in capsys.readouterr().err.splitlines() if line.startswith("step 1/1"))
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert line["mfu"] is None and line["tokens_per_second"] > 0
