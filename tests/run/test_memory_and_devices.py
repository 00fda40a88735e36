"""What the machine has: devices by name, free memory as each operating system tells it."""

import builtins
import os
import sys

import pytest
import torch

from zoo.errors import ConfigError
from zoo.run import machine_memory
from zoo.run.builder import pick_device

VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               12345.
Pages active:                            400000.
Pages inactive:                          300000.
Pages speculative:                         1000.
Pages throttled:                              0.
Pages wired down:                        150000.
Pages purgeable:                            655.
"Translation faults":                1234567890.
"""
MEMINFO = "MemTotal:       16384000 kB\nMemFree:          100000 kB\nMemAvailable:    8192000 kB\n"


@pytest.fixture
def two_gpus(monkeypatch):
    """Two CUDA devices that are not there; the numbers that were made torch's current device."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_numbered_gpu_becomes_torchs_current_device(two_gpus):
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert two_gpus == [1]


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu", "meta"])
def test_a_device_without_a_number_leaves_the_current_one(two_gpus, device):
    assert pick_device(device) == torch.device("cuda" if device == "auto" else device)
    assert two_gpus == []


def test_a_gpu_that_is_not_there_is_one_line_with_those_that_are(two_gpus):
    with pytest.raises(ConfigError) as refused:
        pick_device("cuda:2")
    assert refused.value.faults == ["device: cuda:2 was asked for, found 2 GPUs (cuda:0 to cuda:1)"]
    assert two_gpus == []


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:-1", "cuda0", "cpu:1", "meta:0", "mps", ""])
def test_a_device_that_is_none_is_one_line(two_gpus, device):
    with pytest.raises(ConfigError, match=r"device: unknown .* \(one of: auto, cuda, cuda:N, cpu, meta\)"):
        pick_device(device)


def test_the_cpu_may_be_numbered_as_torch_numbers_it():
    assert pick_device("cpu:0") == torch.empty(0, device="cpu:0").device == torch.device("cpu")


def test_free_memory_is_what_each_system_counts_as_available():
    assert machine_memory.read_meminfo(MEMINFO) == 8_192_000 * 1024
    assert machine_memory.read_vm_stat(VM_STAT) == 16384 * (12345 + 300000 + 1000 + 655)
    for broken in ("", "Pages free: 1.", "page size of 4096 bytes", "MemTotal: 1 kB"):
        assert machine_memory.read_meminfo(broken) is None and machine_memory.read_vm_stat(broken) is None


def test_on_a_mac_it_is_read_from_vm_stat_and_unknown_without_it(monkeypatch):
    monkeypatch.setattr(machine_memory, "Path", lambda path: type("Missing", (), {"exists": lambda self: False})())
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(machine_memory, "_output_of", lambda command: VM_STAT if command == "vm_stat" else "")
    assert machine_memory.read_free_memory(torch.device("cpu")) == 16384 * 314000
    monkeypatch.undo()
    assert machine_memory._output_of("no-such-program-anywhere") == ""


def test_without_sysconf_and_resource_as_on_windows_the_figures_are_unknown_and_nothing_fails(monkeypatch):
    real = builtins.__import__

    def without_resource(name, *args, **kwargs):
        if name == "resource":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(machine_memory, "Path", lambda path: type("Missing", (), {"exists": lambda self: False})())
    monkeypatch.setattr(sys, "platform", "none")
    monkeypatch.delattr(os, "sysconf_names")
    monkeypatch.setattr(builtins, "__import__", without_resource)
    assert machine_memory.read_free_memory(torch.device("cpu")) is None
    assert machine_memory.read_peak_memory(torch.device("cpu")) is None


def test_windows_own_structure_has_the_size_and_the_place_that_its_documentation_states():
    assert machine_memory.ctypes.sizeof(machine_memory.WindowsMemory) == 64
    assert machine_memory.WindowsMemory.available_physical.offset == 16
