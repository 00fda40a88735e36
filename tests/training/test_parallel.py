"""Runs over several processes: the losses, weights and files of one process, whatever the mesh, and whoever dies."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import zoo
from support.parallel_runs import (  # noqa: F401  (a fixture)
    BASE,
    MESHES,
    MODELS,
    SMALL,
    WAYS,
    compare,
    compare_gradients,
    compare_losses,
    find_rank,
    here,
    lines_of,
    spread,
    train_alike,
    train_packaged,
    wait_for,
)
from zoo.checkpoint.parallel_checkpoint import open_weights
from zoo.errors import ConfigError
from zoo.training.validation import require_room

FEW = ("fsdp", "tp", "pp")


def list_cases():
    yield pytest.param("dense", 2, FEW, id="dense-2-few")
    for name, ways in WAYS.items():
        yield pytest.param(name, 2, ways, marks=[pytest.mark.slow], id=f"{name}-2")
    for name, ways in MESHES.items():
        yield pytest.param(name, 4, ways, marks=[pytest.mark.slow], id=f"{name}-4")


@pytest.mark.parametrize(("name", "processes", "ways"), list(list_cases()))
def test_processes_train_as_one_does_on_their_rows_by_turns(name, processes, ways, here):  # noqa: F811
    for folder in train_alike(name, processes, ways, 20 if processes == 4 else 6):
        compare("one", folder)
        assert compare_gradients("one", folder) < 1e-5, folder


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("tp",), ("ddp", "fsdp", "pp")])
def test_the_packaged_run_at_its_own_rate_has_the_losses_of_one_process(ways, here):  # noqa: F811
    train_packaged(ways, 30)
    for folder in ("alone", *ways):
        assert compare_losses("one", folder)[-1] < 5e-5, folder


def test_sharded_weights_compute_in_bfloat16_as_one_processs_bfloat16_copies_do(here):  # noqa: F811
    """FSDP gathers bfloat16 and sums gradients in float32, as the copies of bf16_master do: there is no autocast, which
    would round at other places."""
    model, own = MODELS["dense"]
    common = [*BASE, *own, "batch_size=8", "steps=3", "eval_every=null", "save_every=null", "sample=null"]
    zoo.train(model, [*common, "accumulate=2", "precision=bf16_master", "hydra.run.dir=one"])
    spread(2, [(model, [*common, "parallel=fsdp", "precision=bf16", "hydra.run.dir=two"])])
    zoo.train(model, [*common, "accumulate=2", "precision=bf16", "hydra.run.dir=cast"])
    losses = [[line["loss"] for line in lines_of(run) if "loss" in line] for run in ("one", "two", "cast")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[1] != pytest.approx(losses[2], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp", "ddp"])
def test_compiled_layers_on_sharded_bfloat16_weights_train_as_plain_ones_do(way, here):  # noqa: F811
    """What a mesh of GPUs does by default: bfloat16, layers compiled, weights sharded. It evaluates and samples too."""
    model, own = MODELS["dense"]
    common = [*BASE, *own, "batch_size=8", "steps=6", "eval_every=3", f"parallel={way}", "precision=bf16"]
    spread(2, [(model, [*common, f"compile={each}", f"hydra.run.dir=run-{each}"]) for each in ("false", "true")])
    runs = ("run-false", "run-true")
    plain, compiled = (
        [line[name] for line in lines_of(run) for name in ("loss", "val_loss") if name in line] for run in runs
    )
    assert compiled == pytest.approx(plain, abs=5e-3)
    assert compiled != plain  # so it is compiled: fused operations round less often
    weights = [open_weights(max(Path(run, "checkpoints").glob("step-*"))) for run in runs]
    for name, each in weights[0].items():
        assert (each - weights[1][name]).norm() < 5e-3 * max(float(each.norm()), 1), name


def test_a_sample_gathers_the_weights_once_for_all_its_tokens(here):  # noqa: F811
    model, own = MODELS["dense"]
    common = [*BASE[:-1], *own, "batch_size=8", "steps=1", "eval_every=null", "save_every=null", "parallel=fsdp"]
    told = spread(2, [(model, [*common, "sample.tokens=9", "hydra.run.dir=run"])])[0]
    (stored,) = Path("run/checkpoints").glob("step-*")
    whole = sum(each.numel() * 4 for each in open_weights(stored).values())
    assert told["sampled"] == {"gather": whole / 2 + 128}  # with a row that the table of 301 is padded by


def test_whole_weights_that_one_process_lacks_room_for_cost_the_sample_alone():
    """All processes agree, and one line says so."""
    world = SimpleNamespace(sum=lambda *values: [2])  # of three, two have no room
    run: Any = SimpleNamespace(device=torch.device("cpu"), world=world)
    with pytest.raises(
        ConfigError, match=r"^sample: gathers 16\.0 GB of weights, which a process lacks \(sample=null\)"
    ):
        require_room(run, 16 * 10**9)


@pytest.mark.slow
def test_a_pipeline_of_sharded_or_copied_weights_computes_in_bfloat16(here):  # noqa: F811
    """Its stages declare the dtype that they send: a float32 buffer took bfloat16's bytes for numbers of its own."""
    model, own = MODELS["dense"]
    common = [*BASE, *own, "batch_size=8", "steps=3", "eval_every=2", "save_every=null", "sample=null"]
    zoo.train(model, [*common, "accumulate=4", "precision=bf16_master", "hydra.run.dir=one"])
    ways = [("{pp: 2, shard: 2}", "bf16"), ("{pp: 2, shard: 2}", "bf16_master"), ("{pp: 2, dp: 2}", "bf16_master")]
    jobs = [
        (model, [*common, "accumulate=2", f"parallel={way}", f"precision={precision}", f"hydra.run.dir=run-{number}"])
        for number, (way, precision) in enumerate(ways)
    ]
    spread(4, jobs)
    one, *others = (
        [line["loss"] for line in lines_of(run) if "loss" in line] for run in ("one", *map("run-{}".format, range(3)))
    )
    for losses in others:
        assert losses == pytest.approx(one, abs=1e-3)
    judged = [next(line["val_loss"] for line in lines_of(f"run-{number}") if "val_loss" in line) for number in range(3)]
    whole = next(line["val_loss"] for line in lines_of("one") if "val_loss" in line)
    assert judged == pytest.approx([whole] * 3, abs=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_any_mesh_that_is_legal_trains_as_one_process_does(seed, here):  # noqa: F811
    drawn = random.Random(seed)
    name = drawn.choice(["dense", "even_experts"])
    sizes = {"dp": 1, "shard": 1, "cp": 1, "tp": 1, "pp": 1}
    for _ in range(2):  # four processes
        sizes[drawn.choice(list(sizes))] *= 2
    tokens = sizes["dp"] * sizes["shard"] * sizes["cp"]
    sizes["ep"] = drawn.choice([each for each in (1, 2, 4) if each <= tokens]) if name != "dense" else 1
    for way in ("tp", "pp"):  # six heads and two layers
        if sizes[way] == 4:
            sizes[way], sizes["dp"] = 2, 2
    (folder,) = train_alike(name, 4, [yaml.safe_dump(sizes, default_flow_style=True).strip()], 6)
    compare("one", folder)


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_processes(here):  # noqa: F811
    model, own = MODELS["averaged"]
    common = [*BASE, *own, "batch_size=8", "eval_every=2", "save_every=2"]
    zoo.train(model, [*common, "steps=8", "accumulate=4", "hydra.run.dir=whole"])
    zoo.train(model, [*common, "steps=2", "accumulate=4", "hydra.run.dir=run"])
    for processes, accumulate, steps in ((2, 2, 4), (4, 1, 6)):
        change = [f"steps={steps}", f"accumulate={accumulate}", "parallel=fsdp"]
        spread(processes, [(None, change, "run")])
    zoo.train(resume="run", overrides=["steps=8", "accumulate=4", "parallel=none"])
    compare("whole", "run")


@pytest.mark.slow
def test_a_run_with_dropout_goes_on_with_another_mesh(here):  # noqa: F811
    model, own = MODELS["dropped"]
    common = [*BASE, *own, "batch_size=8", "eval_every=2", "save_every=2"]
    zoo.train(model, [*common, "steps=6", "accumulate=4", "hydra.run.dir=whole"])
    zoo.train(model, [*common, "steps=2", "accumulate=4", "hydra.run.dir=run"])
    spread(2, [(None, ["steps=4", "accumulate=4", "parallel=tp"], "run")])
    spread(2, [(None, ["steps=6", "accumulate=2", "parallel=fsdp"], "run")])
    compare("whole", "run")


@pytest.mark.slow
def test_adapters_train_in_processes_as_in_one_and_go_on_in_another_number(here):  # noqa: F811
    model, own = MODELS["dense"]
    base = [each for each in BASE if not each.startswith(("model.", "data.tokenizer", "optim."))]
    common = [*base, "weights=first", "lora={rank: 4, on: [attention, ffn]}", "optim.lr=3e-3", "batch_size=8"]
    zoo.train(model, [*BASE, *own, "batch_size=8", "steps=2", "hydra.run.dir=first"])
    common += ["eval_every=2", "save_every=2"]
    zoo.train(None, [*common, "steps=20", "accumulate=2", "hydra.run.dir=one"])
    ways = ("ddp", "fsdp", "cp")
    jobs = [(None, [*common, "steps=20", f"parallel={way}", f"hydra.run.dir={way}"]) for way in ways]
    jobs += [(None, [*common, "steps=4", "parallel=fsdp", "hydra.run.dir=part"])]
    spread(2, jobs)
    zoo.train(resume="part", overrides=["steps=20", "accumulate=2", "parallel=none"])
    for folder in (*ways, "part"):
        compare("one", folder)
        found = [
            load_file(max(Path(run).glob("checkpoints/step-*")) / "adapter.safetensors") for run in ("one", folder)
        ]
        assert all((each - found[1][name]).norm() < 2e-4 * max(each.norm(), 1) for name, each in found[0].items())


def start(processes, folder, *more):
    command = [sys.executable, "-m", "zoo", "train", "model=llama-tiny", *BASE, *SMALL, "batch_size=8", "steps=5000"]
    command += ["parallel=fsdp", "launcher=torchrun", f"nproc={processes}", "save_every=2", "eval_every=5000", *more]
    command += [f"hydra.run.dir={folder}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


OTHERS = [(0, signal.SIGKILL), (1, signal.SIGTERM), (0, signal.SIGTERM), (0, signal.SIGINT)]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("rank", "how"), [(1, signal.SIGKILL), *OTHERS])
def test_a_rank_that_dies_ends_the_run_in_one_line_and_a_signal_stops_all(rank, how, here):  # noqa: F811
    running = start(2, "run")
    wait_for(lambda: (here / "run" / "checkpoints" / "latest").exists() or running.poll() is not None)
    os.kill(wait_for(lambda: find_rank(running.pid, rank)), how)
    _, said = running.communicate(timeout=60)
    if how is signal.SIGKILL:
        assert running.returncode == 1
        assert f"rank {rank}: process" in said and "killed by SIGKILL" in said
        assert "Traceback" not in said
    else:
        assert running.returncode == (0 if how is signal.SIGTERM else 130) and "stopped after step" in said
    last = max((here / "run" / "checkpoints").glob("step-*")).name
    done = int(last.removeprefix("step-"))
    result = zoo.train(resume="run", overrides=[f"steps={done + 2}", "parallel=none", "launcher=none", "nproc=null"])
    assert result["status"] == "done" and result["steps"] == done + 2
