"""What processes cannot share is refused before one starts, in a line that says what would do."""

import pytest

import zoo
from support.parallel_runs import BASE, SMALL, here  # noqa: F401  (a fixture)
from zoo import cli
from zoo.distributed.world import World
from zoo.errors import ConfigError
from zoo.training.mesh_settings import ParallelSettings


@pytest.mark.parametrize(
    ("size", "fields", "fault"),
    [
        (1, {"shard": 4}, r"dp=1 shard=4 needs 4 processes, found 1 \(torchrun --nproc-per-node 4"),
        (3, {"dp": "auto", "shard": 2}, r"needs a multiple of 2 processes, found 3"),
        (2, {}, r"dp=1 shard=1 uses one process, found 2 \(parallel=ddp or fsdp\)"),
    ],
)
def test_a_mesh_that_the_processes_do_not_fill_is_refused(size, fields, fault):
    with pytest.raises(ConfigError, match=fault):
        ParallelSettings.parse(fields).settle(World(size=size))


def test_a_mesh_fills_up_with_the_processes_that_there_are():
    assert ParallelSettings.parse({"dp": "auto", "shard": 2}).settle(World(size=6)).dp == 3
    assert ParallelSettings.parse({"shard": "auto"}).settle(World(size=6)).shard == 6
    assert ParallelSettings.parse({}).settle(World()).size == 1


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["optim=adafactor"], r"optim: adafactor needs whole tensors, .*optim=adamw, or parallel=none"),
        (["parallel=tp", "optim=muon"], r"optim: muon needs whole tensors, .*optim=adamw, or tp=1 and ep=1"),
        (["parallel=tp", "optim.decay=hyperball"], r"optim: adamw with decay=hyperball needs .* tp=1 and ep=1"),
        (["parallel=ddp", "optim=soap"], r"optim: soap needs whole tensors, .*optim=adamw, or parallel=none"),
        (["lora={rank: 2, dropout: 0.1}"], "lora.dropout: is 0.1, and each process would draw for itself"),
        (["parallel=tp", "lora={rank: 2}"], "lora: adapts whole products, of which each process of tp"),
        (["precision=bf16_pure"], r"precision: is bf16_pure, which one process alone does .*bf16_master"),
        (["lawa=2"], "lawa: is 2, which one process alone does"),
        (["batch_size=9"], r"batch_size: is 9, which 2 processes .* \(a multiple of 2\)"),
        (["parallel=none"], "uses one process, found 2"),
        (["parallel=tp", "precision=bf16_master"], "precision: is bf16_master, whose copies are those of dp"),
        (["parallel=cp", "seq_len=34"], r"seq_len: is 34, which 2·cp=4 do not divide \(a multiple of 4\)"),
        (["parallel={cp: 2, cp_comm: ring}", "kernel=sdpa"], r"kernel: .*kernel=auto, or parallel.cp_comm=all_gather"),
        (["parallel={cp: 2, cp_comm: ring}", "compile=true"], "compile: .*compile=false, or parallel.cp_comm=all_ga"),
        (
            ["parallel={cp: 2, cp_comm: ring}", "dropout={attention: 0.1}"],
            "dropout.attention: .*dropout.attention=0, or",
        ),
        (["parallel={cp: 1, cp_comm: ring}"], "cp_comm: is ring, and cp=1 has no keys to send"),
        (["parallel={shard: 2, async_tp: true}"], "async_tp: is true, and tp=1 exchanges nothing"),
        (["parallel={cp: 2, cp_comm: rign}"], "cp_comm: .*all_gather"),
        (["parallel=pp"], r"accumulate: is 1, and the pp=2 stages take as many microbatches"),
        (["parallel=ep"], r"ep: 2 ranks for experts, of which this model has none \(ep=1\)"),
        (["parallel={tp: 3}"], "needs a multiple of 3 processes, found 2"),
    ],
)
def test_what_processes_cannot_share_is_refused_before_one_starts(overrides, fault, here):  # noqa: F811
    launched = ["launcher=torchrun", "nproc=2", "parallel=fsdp", *BASE, *SMALL, "steps=2"]
    with pytest.raises(ConfigError, match=fault):
        zoo.train("llama-tiny", [*launched, *overrides])


def test_a_sweep_is_no_work_of_several_processes(here, monkeypatch, capsys):  # noqa: F811
    sweep = ["train", "-m", *BASE, *SMALL, "steps=1", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert cli.run([*sweep, "launcher=torchrun", "nproc=2", "parallel=ddp", "batch_size=8"]) == 1
    assert "launcher: is torchrun, and neither a sweep nor a program starts processes" in capsys.readouterr().err
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert cli.run([*sweep, "parallel=ddp"]) == 2
    assert "multirun: torchrun has started 2 processes, and each would run the sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["launcher=torchrun"], "nproc: is null, and launcher=torchrun starts processes"),
        (["nproc=2"], "nproc: is 2, and nothing starts them"),
    ],
)
def test_a_launcher_needs_a_number_and_a_number_a_launcher(overrides, fault, here):  # noqa: F811
    with pytest.raises(ConfigError, match=fault):
        zoo.train("llama-tiny", [*BASE, *overrides])
