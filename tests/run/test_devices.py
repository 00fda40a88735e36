"""Kernels, layers, a training step and decoding on every device: the CPU, and a GPU where there is one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import zoo
from support.tiny_models import every_choice, model_of
from support.tiny_models import name as named
from zoo.bench.kernels.accuracy import check_case
from zoo.bench.kernels.cases import list_cases
from zoo.bench.kernels.processes import Settings
from zoo.cache.cache import Cache
from zoo.kernels import KERNELS, machine_of
from zoo.kernels.table import PLAIN

CASES = {each.name: each for each in list_cases()}
COMPILED = ("flex", "flash4")  # at first use, for seconds a case: `make gpu-check` has them
RUNNING = [name for name, each in KERNELS.items() if not each.on_request and name not in COMPILED]
AXES = ("attention", "position", "router", "ffn", "block", "pattern")
DECODERS = [each for each in every_choice() if "kind=encoder" not in each and each[0].startswith(AXES)]


def loss_of(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1).double(), ids[:, 1:].flatten())


@pytest.mark.parametrize("kernel", RUNNING)
def test_a_kernel_that_runs_there_equals_eager_in_every_case_that_it_does_not_refuse(kernel, device):
    if reason := KERNELS[kernel].refuses(PLAIN, machine_of(device)):
        pytest.skip(reason)
    for case in CASES.values():
        row = check_case(kernel, case, "bfloat16", Settings(device.type))
        assert row.get("passed", "refused" in row), row


@pytest.mark.parametrize("overrides", DECODERS, ids=named)
def test_decoding_token_by_token_equals_one_pass(overrides, device):
    """Within what float32 loses: a few times as far from float64 as one pass is, and 1e-5, some hundred times
    float32's epsilon, of the logits."""
    model = model_of(overrides).to(device)
    ids = torch.randint(1, 67, (2, 12))
    with torch.inference_mode():
        whole, cache = model(ids).logits, Cache.allocate(model, 2, 12)
        pieces = [
            model(ids[:, a:b], cache=cache).logits for a, b in ((0, 5), (5, 8), *((n, n + 1) for n in range(8, 12)))
        ]
        exact = model.double()(ids).logits
    error = (torch.cat(pieces, 1) - exact).norm()
    assert error <= 4 * (whole - exact).norm() + 1e-5 * exact.norm()


@pytest.mark.parametrize("overrides", [[], ["ffn=moe"], ["attention=mla"], ["position=alibi"]], ids=named)
def test_the_gradient_of_a_training_step_is_that_of_float64(overrides, device):
    """Each weight's gradient to a thousandth of its size: float32 has 1e-7, and a step sums some hundreds of terms."""
    model = model_of(overrides).to(device)
    ids = torch.randint(1, 67, (2, 24))
    loss_of(model, ids).backward()
    found = {name: each.grad.double() for name, each in model.named_parameters()}
    model.double().zero_grad()
    loss_of(model, ids).backward()
    for name, each in model.named_parameters():
        assert (found[name] - each.grad).norm() <= 1e-3 * each.grad.norm() + 1e-9, name


def test_a_run_trains_evaluates_and_samples_there(device, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "numbers.txt").write_text("".join(f"{n} and {n + 1} make {2 * n + 1}\n" for n in range(300)))
    small = ["n_layers=1", "d_model=32", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48", "max_seq_len=64"]
    data = ["data=text", f"data.path={text}", "data.tokenizer.kind=byte", f"hydra.run.dir={tmp_path / 'run'}"]
    steps = ["steps=3", "batch_size=2", "seq_len=24", "eval_batches=1", "sample.tokens=3", f"device={device.type}"]
    found = zoo.train("llama-tiny", [*(f"model.{each}" for each in small), *data, *steps])
    assert found["steps"] == 3 and 3 < found["val_loss"] < 10


@pytest.mark.slow
def test_the_gpu_marker_collects_the_tests_that_take_a_device():
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    folder = Path(__file__).parents[1] / "kernels"
    done = subprocess.run([*command, "test_grouped.py"], cwd=folder, capture_output=True, text=True, timeout=120)
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    assert done.returncode == 0, done.stdout + done.stderr
    assert collected and all("[cuda" in line for line in collected)
