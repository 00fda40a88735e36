"""Runs over several GPUs and the goals of a report (`zoo bench kernels --gpus N`), in small on a CPU."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext

import zoo
from zoo.bench.kernels import checking, decoding, kernel_report, mesh_runs, processes, training_mfu
from zoo.bench.kernels.decoding import run_prompts
from zoo.bench.kernels.processes import Settings
from zoo.cli import run
from zoo.compose import load
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.generation.engine import Engine

ROOT = Path(__file__).parents[3]
CPU = Settings("cpu", quick=True)
JOBS = {job.name: job.run for job in mesh_runs.list_jobs(CPU, gpus=2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_every_run_over_two_processes_passes(name, monkeypatch):
    monkeypatch.setattr(mesh_runs, "PATIENCE", 600.0)
    row = JOBS[name]()
    assert row["passed"], row


def test_meshes_are_of_so_many_processes():
    for gpus, more in ((2, 0), (4, 3), (8, 3)):
        meshes = mesh_runs.list_meshes(gpus)
        assert len(meshes) == 8 + more and "pp" in meshes
    assert mesh_runs.list_meshes(8)["cp × tp"] == "{shard: 2, cp: 2, tp: 2}"


def test_a_run_that_parts_or_fails_does_not_pass():
    assert mesh_runs.compare([3.0, 2.0], (3.0, 2.0005), None)["passed"]
    assert mesh_runs.compare([3.0, 2.0], (3.0, 2.1), None)["fault"] == "losses part by 1.0e-01"
    assert mesh_runs.compare([3.0, float("nan")], (3.0, 2.1), None)["passed"] is False
    assert mesh_runs.compare([3.0], (3.0, 2.1), None)["fault"] == "has 1 losses of 2"
    assert mesh_runs.compare([], (3.0,), "zoo: error: x")["fault"] == "zoo: error: x"
    assert mesh_runs.call_zoo(1, "model=llama-tiny", "steps=0").startswith("zoo: error: steps: ")


def test_a_killed_run_without_a_checkpoint_does_not_pass(tmp_path):
    assert mesh_runs.list_leftovers(tmp_path) == ["it has no checkpoint"]
    (tmp_path / "checkpoints/step-000002").mkdir(parents=True)
    assert "step-000002" in mesh_runs.list_leftovers(tmp_path)[0]


BLOCKED = """
import os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir(exist_ok=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as a host that waits in CUDA: no handler runs
(run / "metrics.jsonl").write_text('{"loss": 1.0}\\n' * 6)
time.sleep(300)
"""


@pytest.mark.slow
def test_a_rank_that_waits_in_cuda_for_a_killed_one_ends_in_time(tmp_path, monkeypatch):
    """What torchrun takes to kill it, beside its own shutdown timeout, which a run sets to ten minutes."""

    def make_command(gpus, *options):
        (folder,) = (each.partition("=")[2] for each in options if each.startswith("hydra.run.dir="))
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        return [sys.executable, "-m", *launcher, str(tmp_path / "rank.py"), folder]

    def resume(gpus, *options):
        with Path(options[1], "metrics.jsonl").open("a") as file:
            file.write('{"loss": 1.0}\n')

    (tmp_path / "rank.py").write_text(BLOCKED, encoding="utf-8")
    monkeypatch.setattr(mesh_runs, "call_zoo", resume)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    monkeypatch.setattr(mesh_runs, "make_command", make_command)
    monkeypatch.setattr(mesh_runs, "list_leftovers", lambda run: [])
    row = mesh_runs.kill_one(CPU, 2)
    assert row["passed"] and row["seconds"] > 20, row


@pytest.mark.parametrize(
    ("after", "fault", "told"),
    [
        ([3.0, 2.0, 1.0], None, None),
        ([3.0, 2.5, 1.0], None, "resumed, losses part by 5.0e-01"),
        ([3.0, 2.0], "zoo: error: x", "resumed, zoo: error: x"),
    ],
)
def test_a_killed_run_that_does_not_go_on_to_the_same_losses_does_not_pass(after, fault, told, monkeypatch):
    @contextmanager
    def start(gpus, *options):
        yield SimpleNamespace(pid=0, wait=lambda seconds: None, poll=lambda: 1)

    losses, killed = iter([[3.0, 2.0], after]), []
    monkeypatch.setattr(mesh_runs, "started", start)
    monkeypatch.setattr(mesh_runs, "wait_until", lambda *_: None)
    monkeypatch.setattr(mesh_runs, "find_workers", lambda parent: [11, 12])
    monkeypatch.setattr(mesh_runs.os, "kill", lambda *each: killed.append(each))
    monkeypatch.setattr(mesh_runs, "read_losses", lambda run: next(losses))
    monkeypatch.setattr(mesh_runs, "list_leftovers", lambda run: [])
    monkeypatch.setattr(mesh_runs, "call_zoo", lambda *_: fault)
    row = mesh_runs.kill_one(CPU, 2)
    assert killed == [(12, signal.SIGKILL)]
    assert row.get("fault") == told


@pytest.mark.parametrize("right", [True, False])
def test_texts_of_two_processes_pass_if_a_full_pass_chooses_their_tokens(right, monkeypatch):
    """What stands for the command is the engine of one process, which forgets each prompt's last token but one."""
    asked = []

    def generate(command):
        folder = Path(command[command.index("--checkpoint") + 1]).parent
        texts = (folder / "prompts.txt").read_text().split("\n")
        prompts = [make_byte_tokenizer().encode(text) for text in texts]
        prompts = prompts if right else [[*ids[:-2], ids[-1]] for ids in prompts]
        model = zoo.load(folder / "model").bfloat16().eval()
        written = run_prompts(Engine(model, rows=len(texts), tokens=120), prompts, 8)
        lines = [json.dumps({"index": at, "tokens": tokens}) for at, tokens in enumerate(written)]
        (folder / "texts.jsonl").write_text("\n".join(lines))
        asked.append(command[3:])

    monkeypatch.setattr(mesh_runs, "call", generate)
    assert mesh_runs.generate_apart(CPU)["passed"] is right
    assert "--tp" in asked[0] and "--graphs" not in asked[0]


def test_a_killed_process_leaves_the_others_the_time_that_torchrun_takes():
    close = inspect.signature(MultiprocessContext.close)
    assert close.parameters["timeout"].default + 10 <= mesh_runs.SOON


def make_report(**changes):
    found = {kind: [] for kind in checking.KINDS} | {"quick": False, "window": None}
    name = decoding.MODELS[-1].name
    found["training"] = [{"name": "t", "model": "Llama 1.2 B", "mfu": {"sheet": {"exact": 0.41, "palm": 0.5}}}]
    found["meshes"] = [{"name": "m", "model": "Llama 3 8B", "mfu": 0.43, "tokens_per_second": 9e4, "passed": True}]
    ours = {"model": name, "kernel": "flash3", "share_of_copy": 0.8, "tokens_per_second": 6000.0}
    found["decoding"] = [{**ours, "rows": 1}, {**ours, "rows": 64}]
    found["decoding"] += [{"model": name, "rows": 64, "peer": "vLLM", "tokens_per_second": 7500.0}]
    return {**found, **changes}


def test_the_report_says_which_goals_were_missed():
    assert kernel_report._goals(make_report()) == [
        "goals                                                 measured    goal",
        "  train Llama 1.2 B: MFU of the data sheet's bf16       41.0 %  45.0 %  missed",
        "  train Llama 3 8B over all GPUs: MFU                   43.0 %  42.0 %  met",
        "  decode Llama 3.2 1B, 1 row: share of the bandwidth         -  80.0 %  not measured",
        "  decode Llama 3 8B, 1 row: share of the bandwidth      80.0 %  80.0 %  met",
        "  decode Llama 3 8B, 64 rows: of vLLM's tokens/s        0.80 ×  1.00 ×  missed",
    ]
    assert [goal.state for goal in kernel_report.list_goals(make_report(quick=True))] == []
    empty = make_report(training=[], meshes=[], decoding=[])
    assert {goal.state for goal in kernel_report.list_goals(empty)} == {"not measured"}


def test_a_step_is_predicted_for_a_card_with_a_data_sheet(monkeypatch):
    spec = load("llama3.2-1b")
    monkeypatch.setattr(training_mfu, "name_device", lambda device: "NVIDIA H100 80GB HBM3")
    seconds = training_mfu.predict_seconds(spec, 8, 2048, CPU)
    flops = 6 * 1.24e9 * 8 * 2048
    assert 0.35 < flops / seconds / 989e12 < 0.7  # the MFU that the prediction means
    monkeypatch.setattr(training_mfu, "name_device", lambda device: "x86_64 CPU")
    assert training_mfu.predict_seconds(spec, 8, 2048, CPU) is None


def test_more_gpus_than_there_are_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"gpus: is 8, and there are 2 \(--gpus 2\)"):
        checking.require_device("cuda", quick=False, gpus=8)
    assert run(["bench", "train", "--gpus", "2"]) == 2
    assert "--gpus: train has none (kernels has)" in capsys.readouterr().err


def test_without_minutes_no_part_takes_anothers_time_and_every_page_says_how_long_it_takes(monkeypatch, capsys):
    for gpus, minutes in ((1, 27), (2, 42), (8, 49)):
        parts = [checking.ALLOWED["device"], *(group[0].seconds for group in checking.list_parts(gpus=gpus))]
        assert sum(parts) / 60 == checking.count_minutes(gpus=gpus) == minutes
    for page in ("README.md", "CONTRIBUTING.md", "docs/kernels.md", "docs/gpu/README.md"):
        assert "27 minutes" in (ROOT / page).read_text(encoding="utf-8")
    assert "GPUS=8    # 49 minutes" in (ROOT / "docs/gpu/README.md").read_text(encoding="utf-8")
    assert run(["bench", "--help"]) == 0
    assert "[default: 27; 42 with --gpus, 49 with --gpus 8]" in " ".join(capsys.readouterr().out.split())
    limits = []
    monkeypatch.setattr(checking, "check_kernels", lambda *_, minutes, **__: limits.append(minutes) or make_report())
    monkeypatch.setattr(kernel_report, "format_table", lambda report: "")
    assert run(["bench", "kernels"]) == run(["bench", "kernels", "--minutes", "5"]) == 0
    assert limits == [None, 5.0]


def test_the_table_of_findings_names_tests_that_are_there():
    page = (ROOT / "docs/gpu/README.md").read_text(encoding="utf-8").split("## What a reading found")[1]
    rows = [line.split("|")[1:4] for line in page.splitlines() if re.match(r"\| \d+\. ", line)]
    assert [int(finding.split(".")[0]) for finding, _, _ in rows] == list(range(1, 25))
    for finding, state, held in rows:
        assert state.strip().startswith(("mended", "in part")), finding
        files = held.split(",")
        assert files and all((ROOT / file.strip()).is_file() for file in files), finding


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_names_no_minutes_unless_the_user_does():
    def ask(*words):
        known = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
        command = ["make", "-n", "-C", str(ROOT), "VENV=none", *words]
        return subprocess.run(command, capture_output=True, text=True, env=known, check=True).stdout

    assert "--minutes" not in ask("gpu-check", "GPUS=8")
    assert "--minutes 5 --gpus 8" in ask("gpu-check", "GPUS=8", "MINUTES=5")
    assert "--minutes 10 " in ask("fuzz")


def test_what_no_time_was_left_for_is_named_and_its_goals_are_not_measured(monkeypatch):
    def time_is_over(group, settings, start, minutes):
        if group[0].name == "device":
            machine = {"name": "H100", "device": "cuda", "versions": {}}
            return [{"machine": machine, "limits": {"flops": {"bfloat16": 1e12}, "copy": 1e12}}]
        return [row for part in group for row in processes.run_apart(part, settings, time.monotonic())]

    monkeypatch.setattr(checking, "require_device", lambda *_: None)
    monkeypatch.setattr(checking, "_run_group", time_is_over)
    lines = kernel_report.format_table(checking.check_kernels("cuda", gpus=8)).splitlines()
    assert len([line for line in lines if line.endswith("not measured")]) == 6  # five of them above
    assert any(line.startswith("left out: runs") and "the check's time was over" in line for line in lines)
    assert lines[-1] == "no failures; goals: 5 not measured"


def test_the_part_of_meshes_is_there_for_several_gpus():
    assert "meshes 8B" in [group[0].name for group in checking.list_parts(gpus=8)]
    names = [group[0].name for group in checking.list_parts(quick=True, gpus=2)]
    assert "meshes" in names and "meshes" not in [group[0].name for group in checking.list_parts(quick=True)]
