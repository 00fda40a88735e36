"""Updates that the device skips by itself: as those that the host skips, and the host waits for none."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from support.forked_processes import run_ranks
from support.tiny_models import spec_of
from support.tiny_runs import SMALL, compose_run, read_folder, read_metrics
from zoo.checkpoint.resume_states import take_apart
from zoo.checkpoint.sharded import ShardedTensors
from zoo.costs.setup import OPTIMIZERS
from zoo.distributed.sharded_tensors import own_part
from zoo.errors import ZooError
from zoo.jobs.train import start_run
from zoo.model import loss
from zoo.run.builder import build
from zoo.training import gradient, loop, update
from zoo.training.log import RunLog
from zoo.training.optim import Optim, set_rates

NAMES = ("host", "device")
MIXTURE = ["model=deepseek-tiny", "model.d_model=64"]


def spoil_gradient(monkeypatch, *steps):
    """Let the gradient of these steps be infinite in one weight."""
    accumulate, count = gradient.accumulate_gradient, iter(range(1, 100))

    def spoiled(model, *args):
        found = accumulate(model, *args)
        if next(count) in steps:
            own_part(next(model.parameters()).grad).view(-1)[5] = torch.inf
        return found

    monkeypatch.setattr(gradient, "accumulate_gradient", spoiled)


def decide_on_device(monkeypatch):
    """Let the optimizer decide on a CPU too, and only where it can."""
    monkeypatch.setattr(
        update, "decides_on_device", lambda run: getattr(run.optimizer, "_step_supports_amp_scaling", False)
    )


@pytest.mark.parametrize(
    "options",
    [["ema=0.9"], pytest.param(["optim=muon", "log_every=6", "eval_every=null"], marks=pytest.mark.slow)],
    ids=["adamw", "muon"],
)
def test_the_device_skips_what_the_host_would_skip(tmp_path, corpus, monkeypatch, options):
    for name in NAMES:
        with monkeypatch.context() as patch:
            spoil_gradient(patch, 2, 4, 5)
            if name == "device":
                decide_on_device(patch)
            result = start_run(compose_run(corpus, *options), tmp_path / name)
            assert result["skipped"] == 3
    for name in ("nonfinite.jsonl", "metrics.jsonl"):
        host, device = ((tmp_path / each / name).read_text().splitlines() for each in NAMES)
        assert len(host) == len(device) and (name == "metrics.jsonl" or host == device)
    assert read_metrics(tmp_path / "host") == read_metrics(tmp_path / "device")
    assert read_folder(tmp_path / "host/checkpoints") == read_folder(tmp_path / "device/checkpoints")


@pytest.mark.parametrize(
    "options", [["precision=bf16_pure"], [*MIXTURE, "precision=bf16_master"]], ids=["pieces", "mixture"]
)
def test_a_skipped_update_changes_neither_weights_nor_moments_nor_biases(tmp_path, corpus, monkeypatch, options):
    seen, before = [], {}
    apply = update.apply_update

    def watch(run, loads, skipped):
        state = {name: each.clone() for name, each in run.model.state_dict().items()}
        apply(run, loads, skipped)
        moments = [value.clone() for state in run.optimizer.state.values() for value in state.values()]
        same = all(torch.equal(each, run.model.state_dict()[name]) for name, each in state.items())
        seen.append((int(skipped), same, run.step > 1 and all(map(torch.equal, before["moments"], moments))))
        before["moments"] = moments

    decide_on_device(monkeypatch)
    monkeypatch.setattr(update, "apply_update", watch)
    accumulate = gradient.accumulate_gradient
    count = iter(range(1, 100))

    def spoiled(model, *args):
        found = accumulate(model, *args)
        return (
            found._replace(terms={**found.terms, "loss": found.terms["loss"] * torch.nan})
            if next(count) == 3
            else found
        )

    monkeypatch.setattr(gradient, "accumulate_gradient", spoiled)
    start_run(compose_run(corpus, *options, "steps=4", "eval_every=null", "save_every=null"), tmp_path / "run")
    assert seen == [(0, False, False), (0, False, False), (1, True, True), (0, False, False)]


def test_a_run_ends_at_the_line_of_metrics_after_too_many(tmp_path, corpus, monkeypatch):
    spoil_gradient(monkeypatch, *range(2, 20))
    decide_on_device(monkeypatch)
    options = ["steps=20", "log_every=6", "eval_every=null", "save_every=null", "skip_nonfinite=3"]
    with pytest.raises(ZooError, match=r"^step 4: the gradient's norm is inf, and 3 updates in a row were skipped"):
        start_run(compose_run(corpus, *options), tmp_path / "run")
    lines = (tmp_path / "run/nonfinite.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3, 4]


class WatchedReads(TorchDispatchMode):
    """Collects the values that the host reads. Whole numbers are the batch's, which lies in the host's memory."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.note(args[0])
        return func(*args, **(kwargs or {}))

    def note(self, value):
        if value.is_floating_point() or value.dtype is torch.bool:
            self.found.append(value)


@pytest.mark.parametrize(
    ("optimizer", "uncounted"),
    [("adamw", [1, 1, 2]), pytest.param("muon", [1, 1, 2], marks=pytest.mark.slow), ("soap", [0, 1, 2])],
)
def test_the_host_reads_nothing_before_the_line_of_metrics(tmp_path, corpus, monkeypatch, optimizer, uncounted):
    found, before, lists = [], update.update, torch.Tensor.tolist

    def watched(run):
        with WatchedReads() as reads, monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", lambda value: (reads.note(value), lists(value))[1])
            terms = before(run)
        found.append((len(run.uncounted), len(reads.found)))
        return terms

    decide_on_device(monkeypatch)
    monkeypatch.setattr(loop, "update", watched)
    monkeypatch.setattr(loss, "_is_one", lambda factor: False)  # a CPU alone looks, as it does before it clips
    options = ["ema=0.9", f"optim={optimizer}", "clip=null", "steps=3", "log_every=3"]
    start_run(compose_run(corpus, *options, "eval_every=null", "save_every=null"), tmp_path / "run")
    assert found == [(count, int(not count)) for count in uncounted]


RULES = [{"kind": kind} for kind in OPTIMIZERS]
RULES += [{"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"kind": "sgd", "momentum": 0.0}]
RULES += [{"kind": "lion", "decay": "cautious"}, {"kind": "adafactor", "weight_decay": 0.1}]
RULES += [{"kind": "soap", "precondition_frequency": 2}, {"kind": "soap", "decay": "hyperball"}]
SKIPPED = (0, 2, 4, 5, 6)
"""The first step, whose states are not there yet, one that finds states, and several in a row."""


def take_steps(options, step_all):
    """Step a model with random gradients, some of them not finite; return its weights and states."""
    model = build(spec_of(["n_layers=1", "ffn=moe", "vocab_size=256"]), device="cpu", seed=1)  # 8 bits: its table
    optimizer = Optim.parse(options).build(model)
    generator = torch.Generator().manual_seed(0)
    for step in range(9):
        set_rates(optimizer, 0.5 + step / 4)
        for number, each in enumerate(model.parameters()):
            each.grad = torch.randn(each.shape, generator=generator)
            if step in SKIPPED and number % 2:
                each.grad.view(-1)[3] = (torch.nan, torch.inf)[number % 3 == 0]
        step_all(optimizer, step)
    return model.state_dict(), [optimizer.state[each] for each in model.parameters()]


@pytest.mark.parametrize("options", RULES, ids=lambda options: " ".join(map(str, options.values())))
def test_every_rule_skips_on_the_device_to_the_bit_what_the_host_skips(monkeypatch, options):
    """And reads nothing there: neither the flag, nor its counters, nor a norm. SOAP alone decides the first step on the
    host, and then reads a counter when its bases may have to follow."""

    def decide_on_host(optimizer, step):
        if step not in SKIPPED:
            optimizer.step()

    def decide_there(optimizer, step):
        if options["kind"] == "soap" and not optimizer._step_supports_amp_scaling:
            return decide_on_host(optimizer, step)
        optimizer.found_inf = torch.tensor(float(step in SKIPPED))
        with WatchedReads() as reads, monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", reads.note)
            optimizer.step()
        assert optimizer._step_supports_amp_scaling and ("precondition_frequency" in options or not reads.found)
        return None

    with torch.compiler.set_stance("force_eager"):
        host, device = take_steps(options, decide_on_host), take_steps(options, decide_there)
    assert all(torch.equal(value, device[0][name]) for name, value in host[0].items())
    for mine, theirs in zip(host[1], device[1], strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            for part, other in zip(take_apart(value).values(), take_apart(theirs[name]).values(), strict=True):
                assert torch.equal(part.double(), other.double()), name


def test_a_line_is_written_after_the_next_step_is_launched(tmp_path, corpus, monkeypatch):
    """Or at once, before a checkpoint (step 3) or an evaluation (step 5). Lines are those of a run that waits."""
    order, before, write, reads = [], update.update, RunLog.write_line, WatchedReads()
    options = ["eval_every=5", "save_every=3", "clip=null"]
    start_run(compose_run(corpus, *options), tmp_path / "host")

    def launch(run):
        with reads:
            terms = before(run)
        order.append(f"launch {run.step}")
        return terms

    def note(records, **line):
        order.append(f"write {line['step']}" if "loss" in line else "evaluate")
        write(records, **line)

    decide_on_device(monkeypatch)
    monkeypatch.setattr(loop, "update", launch)
    monkeypatch.setattr(RunLog, "write_line", note)
    monkeypatch.setattr(loss, "_is_one", lambda factor: False)
    start_run(compose_run(corpus, *options), tmp_path / "device")
    steps = "launch 1, launch 2, write 1, launch 3, write 2, write 3, launch 4, launch 5, write 4, write 5, evaluate"
    assert order == [*steps.split(", "), "launch 6", "write 6", "evaluate"]
    assert not reads.found
    assert read_metrics(tmp_path / "host") == read_metrics(tmp_path / "device")


def main(corpus, folder, decides, optimizer):
    """Train as one rank of several."""
    patch = pytest.MonkeyPatch()
    spoil_gradient(patch, 2, 3)
    if decides == "device":
        decide_on_device(patch)
    options = [f"data.path={corpus}", f"optim={optimizer}", "ema=0.9", "parallel=fsdp", "log_every=3", "device=cpu"]
    zoo.train("llama-tiny", [*SMALL, *options, f"hydra.run.dir={folder}"])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion"])
def test_processes_that_share_weights_skip_the_same_updates(tmp_path, corpus, optimizer):
    for decides in NAMES:
        run_ranks(2, "training.test_skipped_on_device", corpus, tmp_path / decides, decides, optimizer)
    assert read_metrics(tmp_path / "host")[-2]["skipped"] == 2
    assert read_metrics(tmp_path / "host") == read_metrics(tmp_path / "device")
    folders = sorted((tmp_path / "host/checkpoints").rglob("*.shards"))
    assert folders
    for folder in folders:  # torch writes the tensors of a file in any order
        host, device = (ShardedTensors(tmp_path / name / folder.relative_to(tmp_path / "host")) for name in NAMES)
        assert host.forms.keys() == device.forms.keys()
        assert all(torch.equal(host[name], device[name]) for name in host.forms)
