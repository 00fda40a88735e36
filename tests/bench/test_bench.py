"""`zoo bench`: what it counts, what it refuses, and one small race of each kind."""

import json
import math
import sys

import pytest

from zoo.bench import calling, show
from zoo.bench.calling import WORKERS, MissingPeer, run_worker
from zoo.bench.race_model import RaceShape, parse_shape
from zoo.bench.race_plan import Race, Racer, choose_interpreters, parse_peers, plan_race
from zoo.bench.race_report import compute_share, make_report
from zoo.bench.racing import require_equal
from zoo.cli import run
from zoo.errors import ConfigError, ZooError

TINY = ["d_model=32", "n_layers=2", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48", "vocab_size=256"]
# A 2-core machine's limits, and what was reached on it (docs/performance.md).
MACHINE = {"gemm_fp32_tflops": 0.33, "gemm_bf16_tflops": 2.2, "read_gb_s": 28.0}


def answer(rate, **more):
    return {"rate": rate, "version": "1", "torch": "2", "peak_bytes": 10, "busy": 1.0, "first": [0.5]} | more


def test_matrix_parameters_are_those_of_the_linear_layers_of_transformers():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = RaceShape()
    config = LlamaConfig(
        hidden_size=shape.d_model,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        intermediate_size=shape.d_ff,
        vocab_size=shape.vocab_size,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    linears = [module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert shape.matrix_params == sum(linears) == 100_073_472


@pytest.mark.parametrize(
    ("plan", "rate", "share"),
    [
        (Race(workload="decode"), 44.6, 0.64),
        (Race(workload="decode", dtype="bf16", batch=8), 299, 0.27),
        (Race(workload="train", batch=4, length=512), 365, 0.66),
        (Race(workload="prefill", dtype="bf16", length=1024), 1024 / 0.307, 0.23),
    ],
    ids=lambda value: value.workload if isinstance(value, Race) else "",
)
def test_shares_of_the_limit_match_those_worked_out_by_hand(plan, rate, share):
    assert compute_share(plan, rate, MACHINE) == pytest.approx(share, abs=0.006)


def test_a_ratio_is_the_median_of_pairs_of_the_same_round():
    ours = [answer(10), answer(30), answer(20)]
    theirs = [
        answer(5),
        answer(10),
        answer(40),
    ]  # pairs 2, 3 and 0.5; the ratio of medians would be 2 as well, of means 0.9
    machine = [MACHINE, MACHINE | {"read_gb_s": 30.0}, MACHINE | {"read_gb_s": 20.0}]
    racers = [Racer(name, name, "python") for name in ("zoo", "hf")]
    found = make_report(Race(workload="decode"), racers, {"zoo": ours, "hf": theirs}, machine)
    assert found["contenders"]["hf"]["ratios"] == [2, 3, 0.5]
    assert found["contenders"]["hf"]["ratio"] == 2
    assert found["contenders"]["zoo"]["ratio"] == 1
    assert found["machine"]["read_gb_s"] == 28.0


@pytest.mark.parametrize("theirs", [[1.0, 2.1], [1.0, math.nan]], ids=["other values", "not a number"])
def test_contenders_that_compute_another_function_are_not_compared(theirs):
    with pytest.raises(ZooError, match="hf: its fp32 logits differ from ours"):
        require_equal("fp32 logits", {"zoo": [1.0, 2.0], "hf": theirs}, 1e-3)


def test_rounding_is_let_through():
    assert require_equal("logits", {"zoo": [1.0, 2.0], "hf": [1.0, 2.0002]}, 1e-3)["hf"] == pytest.approx(
        1e-4, rel=0.01
    )


def test_all_faults_of_a_shape_are_listed_at_once():
    with pytest.raises(ConfigError) as error:
        parse_shape(["n_layer=2", "d_ff=wide", "d_model=-8", "n_kv_heads=5"])
    assert len(error.value.faults) == 4
    assert "did you mean 'n_layers'?" in error.value.faults[0]


def test_a_python_can_be_named_for_one_peer_or_for_all():
    assert choose_interpreters(["hf", "litgpt"], ["litgpt=/env/python"]) == {
        "zoo": sys.executable,
        "hf": sys.executable,
        "litgpt": "/env/python",
    }
    assert choose_interpreters(["hf"], ["/env/python"])["hf"] == "/env/python"
    with pytest.raises(ConfigError, match="'litgpt' is not raced"):
        choose_interpreters(["hf"], ["litgpt=/env/python"])


def test_a_misspelt_peer_is_one_line_and_exit_code_2(capsys):
    assert run(["bench", "decode", "--against", "litgp"]) == 2
    fault = "no such peer (did you mean 'litgpt'?)"
    assert capsys.readouterr().err.splitlines() == [f"zoo: error: --against litgp: {fault}"]


def test_a_prompt_beyond_the_models_length_is_refused():
    with pytest.raises(ConfigError, match="2048 tokens and 128 new, max_seq_len is 2048"):
        plan_race("decode", {"batch": None, "length": 2048, "new_tokens": None}, [])
    with pytest.raises(ConfigError, match="--new-tokens: prefill has none"):
        plan_race("prefill", {"new_tokens": 8}, [])


def test_peers_are_named_once():
    assert parse_peers("hf, litgpt,hf") == ["hf", "litgpt"]


def test_a_missing_peer_is_said_with_how_to_install_it(tmp_path):
    python = tmp_path / "python"
    # An interpreter that finds the standard library alone.
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(MissingPeer, match=r"--against hf: .*No module named 'transformers' \(pip install transformers"):
        run_worker("hf", str(python), Race(workload="check").job("unused"))
    with pytest.raises(ConfigError, match="No such file"):
        run_worker("hf", str(tmp_path / "none"), Race(workload="check").job("unused"))


def test_a_race_without_a_checkout_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(calling, "WORKERS", tmp_path)
    with pytest.raises(ConfigError, match=r"^bench: races need a checkout of zoo, .* \(git clone\)$"):
        run_worker("hf", sys.executable, Race(workload="check").job("unused"))


@pytest.fixture
def workers(monkeypatch, tmp_path, request):
    """The workers of zoo and transformers, imported here rather than run, and a job with weights for both."""
    monkeypatch.syspath_prepend(WORKERS)
    import run_hf
    import run_zoo

    workload = getattr(request, "param", "train")
    shape = TINY if workload == "train" else [*TINY, "n_kv_heads=4"]
    job = plan_race(workload, {"batch": 2, "length": 16, "spend": 0.6}, shape).job(str(tmp_path / "model"))
    run_zoo.export_folder(job)
    return run_zoo.CONTENDER, run_hf.CONTENDER, job


@pytest.mark.parametrize("workers", ["train", "mlm"], indirect=True)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_three_steps_of_training_give_the_losses_of_transformers(workers, dtype):
    ours, theirs, job = workers
    import harness

    found = [harness.time_train(contender, job | {"dtype": dtype})["losses"] for contender in (ours, theirs)]
    assert min(map(len, found)) >= 3
    found = [losses[:3] for losses in found]
    # Later losses are a little apart: ours leaves the norms' weights out of the decay.
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6 if dtype == "fp32" else 2e-3)
    assert found[0] == pytest.approx(found[1], rel=1e-4 if dtype == "fp32" else 2e-3)
    assert found[0][2] < found[0][0]


def test_generated_tokens_are_those_of_transformers(workers):
    ours, theirs, job = workers
    import harness
    import torch

    ids = harness.make_token_ids(2, 16, 256)
    found = [each.generate(each.load(job, torch.float32).eval(), ids, 6, job) for each in (ours, theirs)]
    assert found[0].tolist() == found[1].tolist()


def test_a_weight_that_no_one_fills_is_an_error(workers, tmp_path):
    import harness
    import torch
    from safetensors.torch import save_file

    (tmp_path / "part").mkdir()
    save_file({"weight": torch.ones(2, 3)}, tmp_path / "part" / "model.safetensors")
    with pytest.raises(ValueError, match="do not fill bias"):
        harness.fill_model(torch.nn.Linear(3, 2), str(tmp_path / "part"), lambda name: (name, 0))


@pytest.mark.slow
def test_a_small_race_finds_zoo_and_transformers_equal_and_reports_both(capsys):
    sizes = ["--rounds", "1", "--threads", "1", "--new-tokens", "6", "--shape", ",".join(TINY)]
    assert run(["bench", "decode", "--against", "hf", "--json", *sizes]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"]["fp32 logits"]["hf"] < 1e-5
    assert list(found["contenders"]) == ["zoo", "hf"]
    for row in found["contenders"].values():
        assert row["rate"] > 0
        assert row["peak_bytes"] > 50e6  # torch alone takes more
    assert found["machine"]["gemm_fp32_tflops"] > 0
    assert any(line.startswith("share: N x weight bytes") for line in show.list_notes(found))
    assert show.make_table(found).row_count == 2


def test_a_slow_contender_is_measured_once_and_a_fast_one_as_often_as_the_time_allows(workers):
    import time

    import timing

    assert len(timing.time_calls(lambda: time.sleep(0.02), spend=0.01)) == 1
    assert 2 <= len(timing.time_calls(lambda: time.sleep(0.01), spend=0.1)) <= 10
    assert len(timing.time_calls(lambda: None, spend=60)) == timing.MOST  # and no list without end


def test_threads_that_nobody_asked_for_are_those_that_the_machine_finds_fastest(monkeypatch):
    from zoo.bench import racing

    jobs, told = [], []

    def worker(name, python, job):
        jobs.append((name, job["workload"], job["threads"]))
        machine = {"name": "a processor", "cores": 2, "memory_bytes": 1, "isa": "avx2"}
        return {"threads": 1, "why": "1 thread of 2: 4.0 times as fast as 2 now"} | machine

    monkeypatch.setattr(racing, "run_worker", worker)
    assert racing.settle_machine(Race(workload="decode"), "python", told.append)[0].threads == 1
    assert jobs == [("machine", "threads", None)]
    assert told == ["on a processor, AVX2", "every contender computes with 1 thread of 2: 4.0 times as fast as 2 now"]
    assert racing.settle_machine(Race(workload="decode", threads=2), "python", told.append)[0].threads == 2
    with pytest.raises(ConfigError, match="--isa avx512: a processor has AVX2, and not AVX-512"):
        racing.settle_machine(Race(workload="decode", isa="avx512"), "python", told.append)


def test_a_share_is_of_the_float32_rate_where_bf16_is_the_slower():
    slow = MACHINE | {"gemm_bf16_tflops": 0.004}
    plan = Race(workload="train", dtype="bf16", batch=4, length=512)
    assert compute_share(plan, 365, slow) == compute_share(Race(workload="train", batch=4, length=512), 365, slow)


def test_losses_are_compared_as_far_as_the_slower_contender_came():
    from zoo.bench.racing import _cut_to_shortest

    assert _cut_to_shortest({"zoo": [3.0, 2.0, 1.0], "hf": [3.0, 2.0]}) == {"zoo": [3.0, 2.0], "hf": [3.0, 2.0]}
