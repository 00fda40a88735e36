"""`zoo bench kernels`: cases that tell every feature apart, the rule, processes that fail, and a whole run in small."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.packaged_specs import load
from zoo import kernels
from zoo.bench.kernels import (
    accuracy,
    attention_speed,
    between_products,
    cases,
    checking,
    device_timing,
    kernel_report,
    training_mfu,
)
from zoo.bench.kernels.processes import Settings
from zoo.cli import run
from zoo.costs.hardware import CARDS, list_gpus, of_device
from zoo.kernels import dispatch
from zoo.kernels.eager import Eager
from zoo.kernels.sdpa import SDPA
from zoo.run.builder import build

CPU = Settings("cpu", quick=True)
ALL = cases.list_cases()
LIMITS = device_timing.Limits({"float32": 1e12, "bfloat16": 2e12}, 1e11)


def ids(case):
    return case.name


# ---------------------------------------------------------------- cases


def test_names_of_cases_are_their_own_and_the_same_in_both_sizes():
    found = [case.name for case in ALL]
    assert len(set(found)) == len(found)
    assert found == [case.name for case in cases.list_cases(large=True)]
    assert cases.find_case("sinks", large=True).head_dim == 128


def dropped(case):
    """The case without one of its features, for each."""
    for field in ("window", "softcap"):
        if getattr(case, field):
            yield field, {field: None}
    for field, none in (("causal", False), ("sinks", False), ("bias", "none")):
        if getattr(case, field) != none:
            yield field, {field: none}
    if case.hides:
        yield case.hides[0], {"hides": ()}


CHANGE_NOTHING = {("window wider than the row", "window")}


@pytest.mark.parametrize("case", ALL, ids=ids)
def test_a_kernel_that_leaves_a_feature_out_gives_another_answer_by_far(case):
    whole = cases.make_inputs(case, "cpu", torch.float64)
    y = whole.forward("eager")
    for field, change in dropped(case):
        alone = field == "causal" and case.queries == 1
        if (case.name, field) in CHANGE_NOTHING or alone:
            continue
        less = replace(case, **change)
        tensors = {name: each for name, each in whole.tensors.items() if name != "sinks" or less.sinks}
        hidden = whole.hidden if less.hides else {}
        other = replace(whole, case=less, tensors=tensors, hidden=hidden).forward("eager")
        assert accuracy.measure_errors(other, y)["norm"] > 0.05, field


@pytest.mark.parametrize("case", ALL, ids=ids)
@pytest.mark.parametrize("grad", [False, True], ids=["forward", "backward"])
def test_a_case_asks_for_what_attention_asks_for(case, grad, monkeypatch):
    if grad and not case.trains:
        return
    asked = []

    def select(ask, machine, kernel):
        asked.append(ask)
        return kernels.KERNELS["eager"]

    monkeypatch.setattr(dispatch, "select", select)
    inputs = cases.make_inputs(case, "cpu", torch.float32)
    inputs.backward("auto") if grad else inputs.forward("auto")
    assert asked == [cases.make_ask(case, torch.float32, grad=grad)]


def test_a_seed_gives_the_same_numbers_in_every_dtype():
    case = cases.find_case("sinks and window")
    one, again = (cases.make_inputs(case, "cpu", torch.float32, seed=3) for _ in range(2))
    low, other = (
        cases.make_inputs(case, "cpu", torch.bfloat16, seed=3),
        cases.make_inputs(case, "cpu", torch.float32, seed=4),
    )
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, again.tensors[name])
        assert torch.equal(tensor.bfloat16(), low.tensors[name])
        assert not torch.equal(tensor, other.tensors[name])
    assert low.to(torch.float64).output_gradient.dtype == torch.float64


def test_padding_is_given_no_say():
    inputs = cases.make_inputs(cases.find_case("padding on the left"), "cpu", torch.float64)
    pads = ~inputs.real[..., 0, 0]
    answers = inputs.backward("eager")
    assert pads.any()
    for name in ("y", "q", "k", "v"):
        assert answers[name][pads].abs().max() == 0
        assert answers[name][~pads].norm() > 0


# ---------------------------------------------------------------- the rule


class Deaf(SDPA):
    """A kernel that takes every ask and leaves windows out."""

    name = "deaf"

    def refuses(self, ask, machine):
        return None

    def __call__(self, q, k, v, how):
        how.mask.window = None
        return super().__call__(q, k, v, how)


class Broken(Eager):
    """One whose answers hold a NaN."""

    name = "broken"

    def __call__(self, q, k, v, how):
        return super().__call__(q, k, v, how) * torch.tensor(math.nan)


@pytest.fixture
def others(monkeypatch):
    for kernel in (Deaf(), Broken()):
        monkeypatch.setitem(kernels.KERNELS, kernel.name, kernel)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kernel_that_leaves_windows_out_fails_where_there_are_some_and_passes_elsewhere(others, dtype):
    assert accuracy.check_case("deaf", cases.find_case("causal"), dtype, CPU)["passed"]
    row = accuracy.check_case("deaf", cases.find_case("window"), dtype, CPU)
    assert not row["passed"]
    assert row["forward"]["excess"] > 5
    assert row["backward"]["excess"] > 5


def test_no_number_is_an_error_beyond_any_other(others):
    row = accuracy.check_case("broken", cases.find_case("causal"), "float32", CPU)
    assert not row["passed"]
    assert row["forward"]["excess"] == math.inf
    text = kernel_report.format_report(row)
    assert json.loads(text)["forward"]["tensors"]["y"]["norm"] == "nan"


def test_errors_are_the_difference_over_what_was_to_come():
    found = accuracy.measure_errors(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    assert found == {"largest": pytest.approx(0.125), "norm": pytest.approx(0.1)}


def test_twice_eagers_error_passes_and_more_does_not():
    exact = {"y": torch.ones(4, dtype=torch.float64)}
    eager = {"y": torch.full((4,), 1.01, dtype=torch.float64)}
    for error, passes in ((0.0199, True), (0.0202, True), (0.0212, False)):  # and a thousandth of bfloat16
        assert accuracy.compare_errors({"y": exact["y"] + error}, exact, eager, "bfloat16")["passed"] is passes


def test_a_refusal_is_told_in_the_kernels_own_words():
    row = accuracy.check_case("sdpa", cases.find_case("softcap"), "float32", CPU)
    assert row["refused"] == "scaled_dot_product_attention has no softcap"
    assert "passed" not in row


# ---------------------------------------------------------------- figures


class Event:
    """A CUDA event on a clock that goes on by a millisecond at each record."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 1.0
        self.at = Event.now

    def elapsed_time(self, other):
        return other.at - self.at

    def synchronize(self):
        pass


def test_on_cuda_a_call_takes_what_its_events_say(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for spend, timed in (
        (60.0, device_timing.WARM + 1 + device_timing.MOST),
        (0.0, 3),
    ):  # no time: warm up once, look once, time one
        calls = []
        assert device_timing.time_call(lambda: calls.append(1), "cuda", spend=spend) == pytest.approx(1e-3)  # noqa: B023
        assert len(calls) == timed


@pytest.mark.parametrize(
    ("device", "file"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g-pcie"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", "t4"),
    ],
)
def test_a_card_is_known_by_its_own_name(device, file):
    assert of_device(device).name == file


def test_every_card_has_a_sheet_and_what_is_no_card_has_none():
    assert set(CARDS.values()) <= set(list_gpus())
    assert of_device("x86_64 CPU") is None


def test_mfu_is_the_textbooks_formula():
    spec = load(training_mfu.TINY.of, training_mfu.TINY.overrides)
    params, table = sum(map(math.prod, spec_shapes(spec))), spec.vocab_size * spec.d_model
    assert spec.head.tied  # so that the table is the head's matrix, which counts
    attention = spec.blocks["layer"].attention
    flops = 6 * params + 12 * spec.n_layers * attention.n_heads * attention.head_dim * 64
    found = training_mfu.compute_mfu(spec, 64, 1000.0, replace(CPU, limits=LIMITS))
    assert table in map(math.prod, spec_shapes(spec))
    assert found["flops_per_token"]["palm"] == flops
    assert found["mfu"] == {"measured": {name: each * 1000 / 2e12 for name, each in found["flops_per_token"].items()}}


def test_mfu_is_of_the_float32_rate_where_bf16_is_slower_and_left_out_above_one():
    spec = load(training_mfu.TINY.of, training_mfu.TINY.overrides)
    slow = replace(CPU, limits=replace(LIMITS, flops={"float32": 2e12, "bfloat16": 4e9}))
    fast = replace(CPU, limits=replace(LIMITS, flops={"float32": 4e9, "bfloat16": 2e12}))
    assert (
        training_mfu.compute_mfu(spec, 64, 1000.0, slow)["mfu"]
        == training_mfu.compute_mfu(spec, 64, 1000.0, fast)["mfu"]
    )
    assert training_mfu.compute_mfu(spec, 64, 1e9, fast)["mfu"] == {}


def spec_shapes(spec):
    return [tuple(each.shape) for each in build(spec, device="meta").parameters()]


def test_a_batch_is_as_large_as_its_price_allows():
    spec = load("llama3.2-1b")
    free = [training_mfu.fit_rows(spec, 2048, gigabytes * 10**9) for gigabytes in (1, 40, 80, 10**4)]
    assert free[0] == 1
    assert free == sorted(free)
    assert free[3] == training_mfu.MOST_ROWS


def window_rows(**seconds):
    for kernel, (forward, both) in seconds.items():
        times = {"forward": {"seconds": forward}, "both": {"seconds": both}}
        yield {"kernel": kernel, "length": 8192, "window": 1024, **times}


def test_a_windows_gain_is_the_best_kernels_over_a_masked_sdpa():
    found = attention_speed.find_window_gain(
        [*window_rows(sdpa=(3.0, 9.0), flash2=(1.0, 5.0), flex=(1.2, 4.5)), {"kernel": "sdpa"}]
    )
    assert found["forward"] == {"kernel": "flash2", "ratio": 3.0}
    assert found["both"] == {"kernel": "flex", "ratio": 2.0}
    assert found["passed"]
    assert not attention_speed.find_window_gain(list(window_rows(sdpa=(3.0, 9.0), flash2=(1.0, 7.0))))["passed"]
    assert attention_speed.find_window_gain(list(window_rows(flash2=(1.0, 7.0)))) is None


def test_a_decoding_step_from_pages_is_timed_beside_the_bytes_of_its_keys():
    settings, rows = replace(CPU, limits=LIMITS), []
    for kernel in ("eager", "sdpa", "triton", "flex"):
        for job in attention_speed.list_page_jobs(settings, kernel=kernel):
            rows.append(job.run())
    eager = rows[:2]
    assert [row["bytes"] for row in eager] == [2 * 256 * 2 * (16 + 16) * 2, 2 * 256 * 48 * 2]  # MLA's values are keys
    for row in rows[:4]:
        assert row["share_of_copy"] * row["seconds"] * LIMITS.copy == pytest.approx(row["bytes"])
    assert all("CUDA" in row["refused"] for row in rows[4:6])
    assert all("left_out" in row for row in rows[6:])
    lines = kernel_report._page_reads({"speed": [*rows, {"kernel": "sdpa", "forward": {"seconds": 1.0}}]})
    assert [line.split()[0] for line in lines] == ["paged", "eager", "sdpa"]


def test_scores_that_do_not_fit_are_not_tried(monkeypatch):
    monkeypatch.setattr(attention_speed, "_free_for_scores", lambda device: 1e6)
    assert attention_speed.time_passes("eager", (1, 512, 2, 16), None, CPU) == {
        "left_out": "its scores take 0.0 GB, more than 0.0 GB, half of the free memory"
    }


@pytest.mark.parametrize("name", ["rmsnorm", "layernorm", "rotary", "swiglu", "cross-entropy"])
def test_libraries_that_are_not_there_are_said_to_be_missing(name, monkeypatch):
    monkeypatch.setattr(between_products, "find_version", lambda package: None)
    row = between_products.time_piece(name, "liger", between_products.SMALL, Settings("cuda"))
    assert row["left_out"] == "liger-kernel is not installed"


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "there is no CUDA device"),
        (["--device", "cpu"], "--device cpu --quick"),
        (["--device", "cpu", "--quick", "--out", "docs/gpu"], "cpu, quick: not a GPU result"),
        (["--quick", "--out", "docs/gpu/mine.json"], "quick: not a result to keep"),
        (["--quick", "--out", "no/such/folder/x.json"], "there is no folder"),
        (["--batch", "3", "--against", "hf"], "races have it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, told, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(Path(__file__).parents[3])
    assert run(["bench", "kernels", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_race_has_no_device(capsys):
    assert run(["bench", "train", "--quick"]) == 2
    assert "--quick: train has none" in capsys.readouterr().err


def test_every_kernel_is_part_of_the_check_behind_whole_runs_and_tokens():
    order = [group[0].name for group in checking.list_parts()]
    assert order[:2] == ["runs", "tokens"]
    assert max(order.index(f"errors {name}") for name in checking.ORDER) < order.index("speed eager")
    named = {part.name for group in checking.list_parts() for part in group}
    assert {f"errors {name}" for name in checking.ORDER} < named
    assert {*checking.ORDER, *checking.list_on_request()} == set(kernels.KERNELS)
    asked = {part.name for group in checking.list_parts(fetched=True) for part in group}
    assert asked - named == {f"{kind} {name}" for kind in ("errors", "speed") for name in checking.list_on_request()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run in small, by the command line: its exit code, and what it wrote."""
    folder = tmp_path_factory.mktemp("check")
    code = run(["bench", "kernels", "--device", "cpu", "--quick", "--out", str(folder)])
    (file,) = folder.iterdir()
    return code, json.loads(file.read_text(encoding="utf-8")), file


@pytest.mark.slow  # all in one worker, as they share a run
@pytest.mark.xdist_group("gpu_check")
def test_a_whole_run_in_small_finds_nothing_wrong(whole):
    code, found, file = whole
    assert checking.list_failures(found) == []
    assert code == 0
    assert file.name == kernel_report.name_file(found)
    assert file.name.endswith("cpu.json")


@pytest.mark.slow  # all in one worker, as they share a run
@pytest.mark.xdist_group("gpu_check")
def test_every_kernel_is_asked_every_case(whole):
    rows = whole[1]["errors"]
    for kernel in checking.ORDER:
        found = {row["case"] for row in rows if row["kernel"] == kernel}
        assert found == {case.name for case in ALL}
    states = {checking.name_state(row) for row in rows if row["kernel"] == "eager"}
    assert states == {"passed"}


@pytest.mark.slow  # all in one worker, as they share a run
@pytest.mark.xdist_group("gpu_check")
def test_what_was_measured_is_there_and_above_nothing(whole):
    found = whole[1]
    assert {name for name in ("seconds", "date", "seed") if name in found} == {"seconds", "date", "seed"}
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert found["training"][0]["tokens_per_second"] > 0
    assert 0 < found["training"][0]["mfu"]["measured"]["exact"] < 1
    assert found["decoding"][1]["share_of_copy"] > 0
    measured = [row for row in found["pieces"] if "both" in row]
    assert {row["piece"] for row in measured} == {*between_products.PIECES, "grouped", "layer"}
    assert all(row["both"]["seconds"] > 0 for row in measured)


@pytest.mark.slow  # all in one worker, as they share a run
@pytest.mark.xdist_group("gpu_check")
def test_the_table_fits_a_page_and_says_what_it_is_not(whole):
    lines = kernel_report.format_table(whole[1]).splitlines()
    assert "cpu, quick: not a GPU result" in lines
    assert len([line for line in lines if line]) <= 60
    assert max(map(len, lines)) <= 180
    assert lines[-1] == "no failures"


@pytest.mark.slow  # all in one worker, as they share a run
@pytest.mark.xdist_group("gpu_check")
def test_failures_are_named_and_end_with_exit_code_one(whole, capsys, monkeypatch):
    found = json.loads(json.dumps(whole[1]))
    found["errors"] = [row for row in found["errors"] if "left_out" not in row]
    found["errors"] += [{"name": "flex: late", "left_out": "its 40 s were over"}]  # shown, and no failure
    found["errors"] += [{"name": "flash2_hub: all", "left_out": checking.ON_REQUEST}]
    found["errors"][0] = errors_row = {**found["errors"][0], "passed": False}
    errors_row["forward"] = {**errors_row["forward"], "passed": False, "excess": 3.0}
    found["training"][0] = {"name": "train tiny", "raised": "OutOfMemoryError: 80 GB"}
    found["quick"], found["window"] = False, {"passed": False, "least": 1.5, "length": 8, "window": 2}
    named = checking.list_failures(found)
    assert [line.partition(":")[0] for line in named] == ["eager", "train tiny", "window"]
    assert "3.0 × what is allowed" in named[0]
    monkeypatch.setattr(checking, "check_kernels", lambda *_, **__: found)
    assert run(["bench", "kernels", "--device", "cpu", "--quick"]) == 1
    shown = capsys.readouterr()
    assert "3 failures" in shown.out
    assert "zoo: error: kernels: 3 failures" in shown.err
