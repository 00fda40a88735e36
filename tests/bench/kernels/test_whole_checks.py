"""Whole runs and generated tokens, as `zoo bench kernels` checks them on a GPU, here on a CPU in small."""

import json

import pytest
import torch

from zoo.bench.kernels import checking, generated_tokens, whole_runs
from zoo.bench.kernels.decoding import build_loud, draw_prompts, run_prompts
from zoo.bench.kernels.processes import CheckPart, Measurement, Settings
from zoo.compose import load
from zoo.generation.engine import Engine

CPU = Settings("cpu", quick=True)
RUNS = {job.name: job.run for job in whole_runs.list_jobs(CPU)}
TOKENS = {job.name: job.run for job in generated_tokens.list_jobs(CPU)}
SLOW = pytest.mark.slow
FEW_RUNS: tuple[str, ...] = ()  # one that does not pass is trained below
FEW_TOKENS = ("generate dense", "generate encoder-decoder")


@pytest.mark.parametrize("name", [name if name in FEW_RUNS else pytest.param(name, marks=SLOW) for name in RUNS])
def test_a_run_in_small_passes_or_is_refused_with_what_a_cpu_lacks(name):
    row = RUNS[name]()
    assert row.get("passed") or "cpu" in row["refused"], row


@pytest.mark.parametrize("name", [name if name in FEW_TOKENS else pytest.param(name, marks=SLOW) for name in TOKENS])
def test_tokens_of_every_way_are_those_of_a_full_pass(name):
    row = TOKENS[name]()
    assert row["passed"], row


def test_tokens_of_an_engine_that_forgets_a_key_do_not_pass():
    """Each token is chosen as if the prompt's last token but one had not been there."""
    spec = load("llama-tiny", ("n_layers=2", "d_model=64", "vocab_size=512"))
    exact, model = build_loud(spec, 0), build_loud(spec, 0).bfloat16()
    (prompt,) = draw_prompts(spec.vocab_size, [20], 0)
    sizes = {"rows": 1, "tokens": 60, "reuse": False}
    right = run_prompts(Engine(model.eval(), **sizes), [prompt], generated_tokens.NEW)[0]
    wrong = run_prompts(Engine(model.eval(), **sizes), [[*prompt[:-2], prompt[-1]]], generated_tokens.NEW)[0]
    assert generated_tokens.measure_gap(exact, model, prompt, right) <= generated_tokens.TIMES
    assert generated_tokens.measure_gap(exact, model, prompt, wrong) > 2 * generated_tokens.TIMES


def test_a_run_whose_loss_does_not_fall_does_not_pass(monkeypatch):
    train = whole_runs.train
    monkeypatch.setattr(whole_runs, "train", lambda *args: train(*args, "optim.lr=1e-9"))
    row = whole_runs.train_model(CPU, "t5-tiny")
    assert not row["passed"] and row["fault"].startswith("its loss goes from 8.")


def list_one(settings):
    return [Measurement("one", dict)]


def test_the_report_is_kept_after_each_part_and_what_time_leaves_out_is_no_failure(monkeypatch):
    one = list_one
    parts = [[CheckPart("runs", one, 30.0)], [CheckPart("tokens", one, 30.0)], [CheckPart("errors eager", one, 30.0)]]
    monkeypatch.setattr(checking, "list_parts", lambda quick, fetched, gpus: parts)
    kept = []
    found = checking.check_kernels("cpu", quick=True, minutes=2, keep=lambda report: kept.append(json.dumps(report)))
    counts = [[len(json.loads(each)[kind]) for kind in ("runs", "tokens")] for each in kept]
    assert counts == [[1, 0], [1, 1], [1, 1]]
    assert found["minutes"] == 2 and found["runs"] == [{"name": "one"}]
    late = {**found, "errors": [{"name": "flex: late", "left_out": "the check's time was over"}]}
    assert checking.list_failures(late) == []


def test_a_gap_is_none_for_the_tokens_that_a_full_pass_chooses():
    spec = load("llama-tiny", ("n_layers=1", "d_model=32", "vocab_size=64"))
    model, rounded = build_loud(spec, 1), build_loud(spec, 1).bfloat16()
    ids = [3, 5, 7]
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert generated_tokens.measure_gap(model, rounded, ids[:3], ids[3:]) == 0
