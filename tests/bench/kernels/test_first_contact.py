"""`zoo doctor --gpu`: what it measures, in small on a CPU, and the page that it makes of an H100's findings."""

import json
from dataclasses import replace

import pytest
import torch

from zoo.bench.kernels import device_timing, first_contact
from zoo.bench.kernels.cases import make_ask
from zoo.bench.kernels.processes import Settings
from zoo.cli import run
from zoo.costs.hardware import hardware
from zoo.kernels import KERNELS
from zoo.kernels.base import Machine
from zoo.kernels.dispatch import order
from zoo.kernels.found import EVERYTHING
from zoo.kernels.table import PLAIN

CPU = Settings("cpu", quick=True)
VERSIONS = {"torch": "2.13.0+cu130", "cuda": "13.0"}
MACHINE = {
    **{"device": "cuda", "name": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "memory": 85_029_158_912},
    **{"driver": "580.95.05", "versions": VERSIONS},
}
RATES = {"copy": 2.9e12, "fp32": 5.1e13, "tf32": 3.9e14, "bf16": 2.5e14, "fp16": 6.9e14, "fp8": 1.3e15}
MISSING = "flash-attn-3 is not installed (built from the hopper folder of flash-attention's repository)"


def make_findings(**changes):
    kernels = [
        *({"name": name, "passed": True} for name in ("sdpa", "flash_torch", "flex", "triton")),
        {"name": "flash2", "raised": "ImportError: undefined symbol: _ZN3c104cuda9SetDeviceEab"},
        {"name": "flash3", "refused": MISSING},
        {"name": "flash4", "left_out": "its 60 s, or the check's, were over"},
    ]
    links = [
        {"name": "copy to GPU 1", "rate": 2.1e10, "peer": False},
        {"name": "all-reduce", "ranks": 8, "rates": {1 << 20: 4.5e10, 1 << 28: 3.6e11}},
    ]
    rates = [{"name": name, "rate": rate} for name, rate in RATES.items()]
    h100 = hardware("h100")
    sheet = {name: h100.flops(name) for name in first_contact.DTYPES} | {"copy": h100.bandwidth, "link": h100.link}
    found = {
        "machine": MACHINE,
        "gpus": 8,
        "nccl": "2.28.3",
        "rates": rates,
        "links": links,
        "kernels": kernels,
        "sheet": sheet,
    }
    return {**found, **changes}


PAGE = """\
8 × NVIDIA H100 80GB HBM3, 79 GiB, compute capability 9.0
driver 580.95.05, torch 2.13.0+cu130 for CUDA 13.0, NCCL 2.28.3

Attention in bfloat16
  sdpa         torch         runs
  flash_torch  torch         runs
  flex         triton        runs
  triton       triton        runs
  flash2       flash-attn    no    ImportError: undefined symbol: _ZN3c104cuda9SetDeviceEab
"""


def test_the_page_says_what_runs_how_fast_and_what_to_do(monkeypatch):
    monkeypatch.setattr(first_contact, "find_version", lambda package: None)
    page = first_contact.format_findings(make_findings())
    assert page.startswith(PAGE)
    assert "  copy     2.90 TB/s     3.35 TB/s  87%\n" in page
    assert "bf16   250 TFLOP/s   989 TFLOP/s  25%\n" in page
    assert "  copy to GPU 1: 21.0 GB/s, through the host\n" in page
    assert "  all-reduce over 8: 45.0 GB/s at 1 MiB, 360 GB/s at 256 MiB\n" in page
    assert "\n  flash3: built from the hopper folder" in page
    todo = page.split("To do\n")[1].splitlines()
    assert [line.split(":")[0].strip() for line in todo if not line.startswith("    ")] == [
        "flash2 does not work here, and kernel=auto may take it",
        "flash3",
        "torch.compile",
        "bf16 below 60% of the data sheet",
        "GPUs copy through the host",
    ]


def test_every_kernel_that_auto_may_take_on_a_gpu_is_tried_on_what_it_is_taken_for():
    asks = [replace(PLAIN, needs_grad=True), replace(PLAIN, lengths=True, short_q=True, page=16)]
    known = {kernel.name for ask in asks for kernel in order(ask, Machine("cuda", (9, 0)))}
    assert known - {"eager"} == set(first_contact.KERNELS)
    for name in first_contact.KERNELS:
        (job,) = first_contact.list_trials(CPU, kernel=name)
        case = job.run.args[1]
        machine = Machine("cuda", (9, 0), EVERYTHING)
        assert KERNELS[name].refuses(make_ask(case, torch.bfloat16, grad=False), machine) is None
        assert (case.page is not None) == (name == "triton")


def test_a_machine_where_all_is_well_has_nothing_to_do(monkeypatch):
    monkeypatch.setattr(first_contact, "find_version", lambda package: "9.9")
    rates = [{"name": "copy", "rate": 3e12}]
    found = make_findings(kernels=[{"name": "sdpa", "passed": True}], rates=rates, links=[], gpus=1)
    assert first_contact.format_findings(found).endswith("\n\nNothing to do.")


def test_rates_of_every_dtype_are_measured(monkeypatch):
    monkeypatch.setattr(device_timing, "QUICK_SIDES", (32,))
    monkeypatch.setattr(device_timing, "time_call", lambda run, device, spend=0: (run(), 0.5)[1])
    for job in first_contact.list_rates(CPU)[1:]:
        assert job.run() == {"rate": 2 * 32**3 / 0.5}, job.name
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    fp8 = first_contact.list_rates(Settings("cuda"))[-1]
    assert fp8.run() == {"refused": "needs compute capability 8.9"}


def test_a_kernel_is_tried_by_one_call_against_eager():
    (job,) = first_contact.list_trials(CPU, kernel="sdpa")
    assert job.run()["passed"]
    (job,) = first_contact.list_trials(CPU, kernel="flash3")
    assert "refused" in job.run()


@pytest.mark.slow
def test_processes_reduce_sizes_of_tensors():
    row = first_contact.time_all_reduce(CPU, 2)
    assert row["ranks"] == 2 and list(row["rates"]) == list(first_contact.QUICK_SIZES)
    assert all(rate > 0 for rate in row["rates"].values())


@pytest.mark.slow
def test_everything_is_looked_at_in_processes_of_their_own(capfd):
    found = first_contact.look("cpu", gpus=2, quick=True, seconds=400)
    json.dumps(found)
    states = {row["name"]: row.get("passed", "refused" if "refused" in row else row) for row in found["kernels"]}
    assert states["sdpa"] is True and states["flash2"] == "refused"
    assert all("rate" in row for row in found["rates"]) and "rates" in found["links"][0]


def test_a_machine_without_a_gpu_is_told_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["doctor", "--gpu"]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("zoo: error: --gpu: needs a GPU, found no NVIDIA device, and torch") and said.count("\n") == 1
    )
