"""`zoo bench kernels`: what it says of decoding, and of vLLM beside it."""

import json
import math
import pathlib
import re
import sys
from types import SimpleNamespace

import pytest
from test_gpu_check import CPU, spec_shapes

from support.packaged_specs import load
from zoo.bench.kernels import checking, decoding, kernel_report, training_mfu, vllm
from zoo.bench.kernels.processes import Settings
from zoo.cache import page_rows


def test_decoding_reads_every_weight_but_the_table_and_all_that_is_held():
    spec = load(training_mfu.TINY.of, ("d_model=32", "d_ff=48"))
    model = training_mfu.BenchModel("tiny", training_mfu.TINY.of, ("d_model=32", "d_ff=48"))
    weights = 2 * sum(map(math.prod, spec_shapes(spec)))  # the head is tied: the table is read as its matrix
    for rows in (1, 3):
        row = decoding.time_decoding(model, rows, CPU)
        cache = 2 * spec.n_layers * 2 * 32 * 2 * row["context"]  # K and V, 2 heads of 32, 2 bytes
        row_of_table = 2 * 32
        assert row["bytes_per_step"] == weights + rows * (cache + row_of_table)
        assert row["bytes_per_second"] * rows == pytest.approx(row["bytes_per_step"] * row["tokens_per_second"])


def test_a_model_that_does_not_fit_is_left_out_with_its_size():
    model = decoding.MODELS[-1]
    spec = load(model.of, model.overrides)
    assert decoding.refuse_size(load(training_mfu.TINY.of), 1, decoding.QUICK, "cpu") is None
    huge = load(model.of, (*model.overrides, "n_layers=4000"))
    assert re.fullmatch(
        r"it needs [\d.]+ GB, [\d.]+ GB are free", decoding.refuse_size(huge, 32, decoding.WHOLE, "cpu")
    )
    assert 16e9 < 2 * sum(map(math.prod, spec_shapes(spec))) < 17e9  # the 8 B shape that the goal is for


def test_tokens_that_part_from_the_cpus_are_a_failure(monkeypatch):
    assert decoding.check_tokens(CPU)["passed"]
    place = page_rows.place_row

    def reversed_pages(row, number, group, count, new):
        found = place(row, number, group, count, new)
        return found._replace(pages=found.pages[::-1])

    monkeypatch.setattr(page_rows, "place_row", reversed_pages)
    row = decoding.check_tokens(CPU)
    assert not row["passed"]
    found = {kind: [] for kind in checking.KINDS} | {"quick": True, "window": None}
    found["decoding"] = [{"name": "decode equal tokens", **row}]
    (line,) = checking.list_failures(found)
    assert line.startswith("decode equal tokens: plain: row ")


def test_vllm_is_asked_for_the_same_shape_prompts_and_lengths(monkeypatch):
    asked, clock = [], [0.0]
    monkeypatch.setattr(vllm, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class LLM:
        def __init__(self, model, **options):
            config = json.loads((pathlib.Path(model) / "config.json").read_text())
            asked.append((config["hidden_size"], config["num_hidden_layers"], options["load_format"]))

        def generate(self, prompts, params, use_tqdm):
            asked.append((len(prompts), {len(each["prompt_token_ids"]) for each in prompts}, params))
            clock[0] += params / 4000
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * params)]) for _ in prompts]

    stand_in = SimpleNamespace(LLM=LLM, SamplingParams=lambda **options: options["max_tokens"])
    model = vllm.MODELS[-1]
    settings = Settings("cuda")
    monkeypatch.setattr(vllm, "find_version", lambda name: None)
    assert vllm.time_vllm(model, 32, settings) == {"left_out": "vllm is not installed (pip install vllm)"}
    monkeypatch.setattr(vllm, "find_version", lambda name: "0.0")
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    row = vllm.time_vllm(model, 32, settings)
    assert asked[0] == (4096, 32, "dummy")
    assert asked[1:] == [(32, {128}, new) for new in (16, 16, 16, 144, 144)]
    assert row["tokens_per_second"] == pytest.approx(32 * 4000)
    ours = {"model": model.name, "rows": 32, "kernel": "flash3", "page": 16, "tokens_per_second": 64000.0}
    ours |= {"bytes_per_step": 2e10, "share_of_copy": 0.5, "goal": None, "plain": {"tokens_per_second": 100.0}}
    ours["graphs"] = {"refusal": None}
    row["tokens_per_second"] = 128000.0
    lines = [line for each in (ours, row) for line in kernel_report._decoding(each, [ours, row])]
    assert lines[0].endswith("64,000.0 tok/s; 20.0 GB per step, 50.0 % of copy bandwidth; without graphs 100.0 tok/s")
    assert lines[1].endswith("32 rows, vLLM 0.0: 128,000.0 tok/s; ours 0.50 × that (goal 1.0)")
