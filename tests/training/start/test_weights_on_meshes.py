"""Runs on a mesh that start from weights: each process reads its part, and never holds the whole model."""

import json
import os
import shutil
from math import prod
from pathlib import Path

import pytest
import torch

import zoo
from support.checkpoint_ranks import pattern
from support.forked_processes import read_found, run_ranks
from support.parallel_runs import BASE, MODELS, here, lines_of, settle  # noqa: F401  (a fixture)
from zoo.checkpoint.parallel_checkpoint import open_weights
from zoo.checkpoint.tensor_files import sort_aligned, stream_tensors
from zoo.compose import load
from zoo.grammar.saved import write_spec
from zoo.run.machine_memory import read_available_memory
from zoo.spec import table

COMMON = ["steps=1", "eval_every=null", "batch_size=8", *BASE[:-1], "sample=null", "optim.lr=1e-30"]
"""Updates of 1e-30 leave the weights as they were read."""

DEEPER = ["model.n_layers=4", "model.n_kv_heads=1", "deepen=identity"]
LORA, DORA = "lora={rank: 2}", "lora={rank: 2, dora: true}"


def start(processes, model, jobs):
    """Start runs on meshes, each from some weights, and in one process; returns the weights of each as they began, and
    holds what a process took to build them against its part and one tensor."""
    planned = []
    for number, (way, source, *own) in enumerate(jobs):
        parts = f"accumulate={4 // settle(way, processes).rows}"
        told = [*COMMON, *MODELS[model][1], f"weights={source}", *own]
        planned.append(
            (MODELS[model][0], [*told, parts, f"parallel={way}", "checkpoint=whole", f"hydra.run.dir=mesh-{number}"])
        )
        zoo.train(MODELS[model][0], [*told, "accumulate=4", f"hydra.run.dir=one-{number}"])
    Path("jobs.json").write_text(json.dumps(planned))
    run_ranks(processes, "support.checkpoint_ranks", "start", "jobs.json", ".")
    measured = read_found(processes, ".")
    for number in range(len(jobs)):
        one, mesh = ({**zoo.load(f"{name}-{number}").state_dict()} for name in ("one", "mesh"))
        assert one.keys() == mesh.keys()
        for name, each in one.items():
            assert torch.allclose(mesh[name], each, rtol=0, atol=1e-28), (jobs[number], name)
        sizes = [each.nbytes for each in one.values()]
        for told in measured:
            found = told[number]
            assert found["held"] < 0.75 * sum(sizes) and found["most"] <= found["held"] + 2.1 * max(sizes), jobs[number]


@pytest.fixture
def source(here):  # noqa: F811
    """Weights in three forms: of Zoo, whole and in shards, and of transformers."""
    zoo.train(MODELS["dense"][0], [*COMMON[:-1], *MODELS["dense"][1], "checkpoint=whole", "hydra.run.dir=whole"])
    whole = max(Path("whole").glob("checkpoints/step-*"))
    more = ["checkpoint=sharded", "hydra.run.dir=shards", f"weights={whole}"]
    zoo.train(MODELS["dense"][0], [*COMMON, *MODELS["dense"][1], *more])
    zoo.export(zoo.load(whole), "hf", verify=False)
    return whole


def test_each_process_reads_its_part_of_the_weights(source):
    start(2, "dense", [("fsdp", "hf"), ("pp", "shards")])
    for name, each in open_weights(source).items():  # and the values are those that the files have
        assert torch.allclose(zoo.load("mesh-0").state_dict()[name], each, rtol=0, atol=1e-28)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "jobs"),
    [
        (
            2,
            [
                ("tp", "hf"),
                ("tp", "whole", *DEEPER),
                ("fsdp", "whole", *DEEPER),
                ("fsdp", "shards"),
                ("fsdp", "whole", LORA),
                ("fsdp", "hf", DORA),
            ],
        ),
        (4, [("fsdp_tp", "hf"), ("{pp: 2, shard: 2}", "shards"), ("hsdp", "whole")]),
    ],
)
def test_each_process_reads_its_part_of_the_weights_on_other_meshes(processes, jobs, source):
    start(processes, "dense", jobs)


def test_each_process_reads_its_part_of_a_teacher_and_the_student_learns_what_one_process_does(source):
    packaged, own = MODELS["dense"]
    told = [*COMMON[:-1], *own, "objective=distil", "objective.teacher=whole", "objective.mix=1.0", "steps=2"]
    zoo.train(packaged, [*told, "accumulate=4", "hydra.run.dir=one"])
    Path("jobs.json").write_text(
        json.dumps([(packaged, [*told, "accumulate=2", "parallel=fsdp", "hydra.run.dir=mesh"])])
    )
    run_ranks(2, "support.checkpoint_ranks", "teach", "jobs.json", ".")
    sizes = [each.nbytes for each in zoo.load("whole").state_dict().values()]
    for (told,) in read_found(2, "."):
        assert told["held"] < 0.6 * sum(sizes) and told["most"] <= told["held"] + 1.1 * max(sizes)
    one, mesh = ([line["distil"] for line in lines_of(run) if "distil" in line] for run in ("one", "mesh"))
    assert mesh == pytest.approx(one, abs=1e-5)


# ---------------------------------------------------------------- a large model

GB = float(os.environ.get("ZOO_TEST_GB", "13"))
"""Size of the weights that four processes read."""

SHARD = 2e9  # bytes of a file
LARGE = ["model.d_model=2048", "model.d_ff=5632", "model.n_heads=16", "model.n_kv_heads=4", "model.vocab_size=301"]


def make_weights(folder):
    """Write float32 weights of GB gigabytes, one tensor in memory at a time; returns the settings of their model."""
    layers = int((GB * 1e9 - count_bytes(1)) // (count_bytes(2) - count_bytes(1))) + 1
    spec, shapes = load_shapes(layers)
    folder.mkdir()
    write_spec(spec, folder)
    files, size = [[]], 0
    for name, shape in shapes.items():
        if size > SHARD:
            files, size = [*files, []], 0
        files[-1].append(name)
        size += 4 * prod(shape)
    for number, names in enumerate(files):
        forms = {name: torch.empty(shapes[name], device="meta") for name in names}
        made = ((name, pattern(shapes[name], [0] * len(shapes[name]))) for name in sort_aligned(forms))
        stream_tensors(forms, made, folder / f"model-{number}.safetensors")
    index = {name: f"model-{number}.safetensors" for number, names in enumerate(files) for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return [*LARGE, f"model.n_layers={layers}"], max(4 * prod(shape) for shape in shapes.values())


def load_shapes(layers):
    spec = load("llama-tiny", [each.removeprefix("model.") for each in (*LARGE, f"n_layers={layers}")])
    return spec, table(spec, spec.d_model)


def count_bytes(layers):
    return 4 * sum(map(prod, load_shapes(layers)[1].values()))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp", "{tp: 2, shard: 2}"])
def test_four_processes_read_weights_of_which_one_could_not_hold_four(way, here):  # noqa: F811
    """`ZOO_TEST_GB=1` makes fewer. Four whole models in float32 would take 52 GB."""
    need, free, disk = 1.15 * GB + 4, read_available_memory() or 0, shutil.disk_usage(".").free
    if free < need * 1e9 or disk < (GB + 1) * 1e9:
        found = f"{free / 1e9:.1f} GB of memory and {disk / 1e9:.1f} GB of disk are free"
        pytest.skip(f"{found}, {GB:g} GB of weights need {need:.1f} and {GB + 1:.1f} (ZOO_TEST_GB=1)")
    own, largest = make_weights(Path("large"))
    told = [*COMMON, *own, "model.vocab_size=301", "weights=large", "other_tokenizer=true", f"parallel={way}"]
    Path("job.json").write_text(json.dumps(("llama-tiny", [*told, "hydra.run.dir=run"])))
    run_ranks(4, "support.checkpoint_ranks", "read", "job.json", ".", timeout=3600)
    found = read_found(4, ".")
    shutil.rmtree("large")
    print(json.dumps(found))
    for each in found:
        assert not each["wrong"]
        assert each["held"] < 0.27 * GB * 1e9
        assert each["peak"] - each["before"] < each["held"] + largest + 300e6
