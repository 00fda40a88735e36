"""What `auto` stands for follows from the device and the mesh, and is what the run's config says from then on."""

from dataclasses import replace

import pytest
import torch
import yaml

from support.tiny_runs import compose_run, write_corpus
from zoo.distributed.world import ALONE, World
from zoo.errors import ConfigError
from zoo.jobs.train import start_run
from zoo.kernels import KERNELS
from zoo.kernels.base import Machine
from zoo.run import cuda_start
from zoo.run.builder import pick_device
from zoo.training import device_defaults
from zoo.training.device_defaults import settle_defaults
from zoo.training.planning import plan_resumption, plan_training
from zoo.training.start.lora import Lora

AUTO = ["precision=auto", "compile=auto", "checkpoint=auto", "steps=100"]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def settle(tmp_path, monkeypatch):
    """Settle a run's defaults on a device, of which only the description is read: no GPU is needed. Returns the
    settings, the same values in the config, and the lines that were said."""

    def make(device, *overrides, world=ALONE, lora=None, capability=(9, 0), packages=("compiler",)):
        machine = Machine(device.type, capability if device.type == "cuda" else None, frozenset(packages))
        monkeypatch.setattr(device_defaults, "machine_of", lambda where: machine)
        for name, value in (("RANK", world.rank), ("LOCAL_RANK", 0), ("WORLD_SIZE", world.size)):
            monkeypatch.setenv(name, str(value))
        lines, planned = [], plan_training(compose_run(tmp_path, *AUTO, *overrides))
        planned = replace(planned, settings=replace(planned.settings, lora=lora))
        planned = settle_defaults(planned, device, world, lines.append)
        names = ("precision", "compile", "checkpoint")
        chosen = {name: getattr(planned.settings, name) for name in names}
        assert {name: planned.config[name] for name in names} == chosen
        return chosen, lines

    return make


def test_a_processor_computes_in_float32_and_tries_compiled_layers(settle):
    assert settle(CPU) == ({"precision": "fp32", "compile": "auto", "checkpoint": "whole"}, [])


def test_a_gpu_computes_in_bfloat16_with_compiled_layers_and_one_line_says_so(settle):
    chosen, lines = settle(GPU)
    assert chosen == {"precision": "bf16", "compile": True, "checkpoint": "whole"}
    chosen = "precision=bf16, compile=true, kernel=sdpa (each can be set); float32 products in TF32"
    assert lines == [f"defaults on cuda:0: {chosen}"]


def test_the_line_names_the_kernel_of_each_kind_of_layer_unless_the_user_has(settle, monkeypatch):
    monkeypatch.setattr(KERNELS["flash2"], "loaded", "here")
    softcap = "model.attention.softcap=30"
    for kernel, told in (("auto", True), ("eager", False)):
        (line,) = settle(GPU, f"kernel={kernel}", softcap, packages=("compiler", "flash-attn"))[1]
        assert ("kernel=flash2 " in line) == ("kernel" in line) == told


def test_a_run_in_float32_takes_no_tf32_and_the_line_says_none(settle):
    assert settle(GPU, "precision=fp32")[1] == ["defaults on cuda:0: compile=true, kernel=sdpa (each can be set)"]


def test_a_gpu_without_bfloat16_computes_in_float32(settle):
    assert settle(GPU, capability=(7, 5))[0]["precision"] == "fp32"


@pytest.mark.parametrize(
    "overrides",
    [["data.documents=true"], ["recompute=selective"], ["steps=20"]],
    ids=["rows of many shapes", "recomputation inside of layers", "a short run"],
)
def test_layers_that_cannot_be_compiled_once_or_not_in_time_are_not(settle, overrides):
    assert settle(GPU, *overrides)[0]["compile"] is False


def test_layers_are_not_compiled_without_a_compiler(settle):
    assert settle(GPU, packages=())[0]["compile"] is False


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["parallel.dp=2"], "whole"),
        (["parallel.shard=2"], "sharded"),
        (["parallel.tp=2"], "sharded"),
        (["parallel.pp=2", "accumulate=2"], "sharded"),
    ],
    ids=["copies", "fsdp", "tensor parallel", "pipeline"],
)
def test_a_mesh_that_divides_weights_saves_them_in_shards(settle, overrides, kept):
    chosen, lines = settle(CPU, "batch_size=8", *overrides, world=World(0, 2))
    assert chosen["checkpoint"] == kept
    assert lines == (["defaults on cpu: checkpoint=sharded (each can be set)"] if kept == "sharded" else [])


def test_adapters_are_saved_whole_on_any_mesh(settle):
    assert settle(CPU, "batch_size=8", "parallel.shard=2", world=World(0, 2), lora=Lora())[0]["checkpoint"] == "whole"


@pytest.mark.parametrize("stated", ["precision=fp32", "compile=false", "checkpoint=async"])
def test_what_the_user_states_stays(settle, stated):
    name, _, value = stated.partition("=")
    chosen, lines = settle(GPU, stated)
    assert str(chosen[name]).lower() == value
    assert stated not in " ".join(lines)


def test_a_resumed_run_has_the_precision_that_it_began_with(tmp_path):
    write_corpus(tmp_path)
    run = tmp_path / "run"
    start_run(compose_run(tmp_path, "steps=2", "precision=auto"), run)
    assert yaml.safe_load((run / "config.yaml").read_text())["precision"] == "fp32"
    assert plan_resumption(run, ["steps=4"]).settings.precision == "fp32"


# ---------------------------------------------------------------- a GPU that does not start


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose NVIDIA driver is too old for torch's CUDA, as Linux shows it."""
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\n")
    monkeypatch.setattr(cuda_start, "DEVICES", tmp_path)
    monkeypatch.setattr(cuda_start, "DRIVER", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(cuda_start.HIDDEN, raising=False)
    return tmp_path


def test_a_gpu_that_does_not_start_is_told_with_both_versions_and_nothing_runs_on_the_processor(machine, monkeypatch):
    def fail():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(ConfigError) as error:
        pick_device("auto")
    (line,) = error.value.faults
    assert line.startswith("device: this machine's GPU does not start, found NVIDIA driver 550.54.14, torch ")
    assert "built for CUDA 13.0: The NVIDIA driver on your system is too old" in line
    assert "device=cpu" in line
    assert pick_device("cpu") == CPU


def test_a_torch_without_cuda_is_told_beside_a_gpu(machine, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"driver 550\.54\.14, torch .* built without CUDA \("):
        pick_device("auto")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_the_user_hides_is_none(machine, monkeypatch, hidden):
    monkeypatch.setenv(cuda_start.HIDDEN, hidden)
    assert pick_device("auto") == CPU


def test_a_machine_without_a_gpu_takes_the_processor(machine):
    (machine / "nvidia0").unlink()
    assert pick_device("auto") == CPU
