"""Whole checkpoints of a mesh: no process gathers the model, and the files have what one process writes."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import zoo
from support.forked_processes import read_found, run_ranks
from support.parallel_runs import BASE, MODELS, here, settle  # noqa: F401  (a fixture)


@pytest.mark.parametrize(
    ("model", "processes", "ways"),
    [
        ("dense", 2, ["fsdp", "pp"]),
        pytest.param("hybrid", 2, ["ddp", "fsdp", "tp", "ep", "pp"], marks=pytest.mark.slow),
        pytest.param("averaged", 4, ["hsdp", "fsdp_tp", "{shard: 2, cp: 2}"], marks=pytest.mark.slow),
        pytest.param("schedule_free", 2, ["fsdp", "tp"], marks=pytest.mark.slow),
        pytest.param("experts", 4, ["{pp: 2, shard: 2, ep: 2}", "{shard: 2, tp: 2, ep: 2}"], marks=pytest.mark.slow),
    ],
)
def test_a_process_holds_one_whole_tensor_at_a_time_while_it_saves(model, processes, ways, here):  # noqa: F811
    packaged, own = MODELS[model]
    common = ["steps=1", "eval_every=null", "batch_size=8", *BASE[:-1], "sample=null", *own, "checkpoint=whole"]
    zoo.train(packaged, [*common, "accumulate=4", "hydra.run.dir=one"])
    jobs = []
    for number, way in enumerate(ways):
        parts = f"accumulate={4 // settle(way, processes).rows}"
        jobs.append((packaged, [*common, parts, f"parallel={way}", f"hydra.run.dir={number}"]))
    Path("jobs.json").write_text(json.dumps(jobs))
    run_ranks(processes, "support.checkpoint_ranks", "save", "jobs.json", ".")
    for number, way in enumerate(ways):
        folder = max(Path(str(number)).glob("checkpoints/step-*"))
        files = {file: load_file(file) for file in folder.rglob("*.safetensors")}
        sizes = [each.nbytes for held in files.values() for each in held.values()]
        most = [told[number]["most"] for told in read_found(processes, ".")]
        assert max(most[1:]) <= max(sizes) < sum(sizes) / 4, way
        assert most[0] <= 2 * max(sizes) < sum(sizes) / 4, way  # one, and a piece of it that arrives
        for file, held in files.items():
            alone = load_file(Path("one", file.relative_to(str(number))))
            assert {name: form(each) for name, each in held.items() if "@" not in name} == {
                name: form(each) for name, each in alone.items()
            }


@pytest.mark.parametrize(
    ("model", "processes", "ways"),
    [
        ("dense", 2, ["fsdp", "tp"]),
        pytest.param("schedule_free", 2, ["fsdp", "pp"], marks=pytest.mark.slow),
        pytest.param("experts", 4, ["{shard: 2, tp: 2, ep: 2}", "hsdp"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("saved", ["whole", pytest.param("sharded", marks=pytest.mark.slow)])
def test_a_process_reads_its_part_of_the_states_of_a_run_that_goes_on(model, processes, ways, saved, here):  # noqa: F811
    packaged, own = MODELS[model]
    common = ["eval_every=null", "batch_size=8", *BASE[:-1], "sample=null", *own, f"checkpoint={saved}"]
    zoo.train(packaged, [*common, "steps=2", "accumulate=4", "hydra.run.dir=one"])
    jobs = []
    for number, way in enumerate(ways):
        zoo.train(packaged, [*common, "steps=1", "accumulate=4", f"hydra.run.dir={number}"])
        parts = f"accumulate={4 // settle(way, processes).rows}"
        jobs.append(({"resume": str(number)}, ["steps=2", parts, f"parallel={way}"]))
    Path("jobs.json").write_text(json.dumps(jobs))
    run_ranks(processes, "support.checkpoint_ranks", "resume", "jobs.json", ".")
    one = zoo.load("one").state_dict()
    largest = max(each.nbytes for each in one.values())
    for number, way in enumerate(ways):
        for told in read_found(processes, "."):
            found = told[number]
            assert found["most"] <= found["held"] + 2.1 * largest, way  # shards are read by way of two pieces
            assert found["read"] <= 1.01 * found["held"], way
        for name, each in zoo.load(str(number)).state_dict().items():
            assert (each - one[name]).norm() <= 1e-4 * one[name].norm() + 1e-6, (way, name)


def form(tensor):
    return tensor.dtype, tensor.shape
