"""Runs over several processes: the losses, weights and files of one process, whatever the mesh, and whoever dies."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from spread_runs import keeping_gradients

import zoo
from zoo import cli
from zoo.compose import load
from zoo.costs.parallel import stages
from zoo.costs.setup import Setup
from zoo.costs.states import states
from zoo.costs.traffic import traffic
from zoo.errors import ConfigError
from zoo.ranks.world import World
from zoo.training.parallel import Parallel, read_parallel

RUNS = Path(__file__).parent / "spread_runs.py"
WORDS = ("fox", "dog", "runs", "jumps", "over", "the", "lazy", "quick", "brown", "sleeps", "and", "it", "tree", "river")
BASE = [
    *("data=text", "data.path=text.txt", "data.tokenizer.kind=byte", "model.vocab_size=301"),
    *("seq_len=32", "schedule=constant", "schedule.warmup=0", "optim.lr=3e-4", "eval_batches=2", "sample.tokens=3"),
]
PAIRS = ["data=jsonl", "data.path=pairs.jsonl", "data.source=q", "data.target=a", "objective=seq2seq"]
SMALL = ["model.n_layers=2", "model.d_model=64", "model.d_ff=96"]
DROPS = "dropout={attention: 0.1, residual: 0.1, embedding: 0.1, ffn: 0.1, layers: 0.2}"
MODELS = {
    "dense": ("llama-tiny", SMALL),
    "deep": ("llama-tiny", ["model.n_layers=5", "model.d_model=64", "model.d_ff=96"]),
    "experts": ("mixtral-tiny", ["model.n_layers=2"]),
    "latents": ("deepseek-tiny", []),
    "dense_latents": ("llama-tiny", [*SMALL, "attention=mla"]),
    "hybrid": ("qwen3-next-tiny", []),
    "encoder_decoder": ("t5-tiny", ["model.n_layers=1", "model.vocab_size=320"]),
    "answers": ("t5-tiny", ["model.n_layers=1", "model.vocab_size=320", *PAIRS]),
    "encoder": ("bert-tiny", ["model.n_layers=2"]),
    "averaged": ("llama-tiny", [*SMALL, "ema=0.9", "eval_weights=ema"]),
    "schedule_free": ("llama-tiny", [*SMALL, "optim=schedule_free"]),
    "accumulated": ("llama-tiny", SMALL),
    "even_experts": ("mixtral-tiny", ["model.n_layers=2", "model.router.balance_coef=0"]),
    "all_experts": ("mixtral-tiny", ["model.n_layers=2", "model.n_experts=4", "model.top_k=4"]),
    "recomputed": ("gpt-tiny", ["model.n_layers=2", "recompute=full"]),
    "chunked": ("llama-tiny", [*SMALL, "model.n_layers=4"]),
    "chunked_experts": ("mixtral-tiny", ["model.n_layers=4"]),
    "chunked_hybrid": ("qwen3-next-tiny", ["model.n_experts=4", "model.top_k=4"]),  # no token is near two experts
    "chunked_drops": ("llama-tiny", [*SMALL, "model.n_layers=4", DROPS]),
    "dropped": ("llama-tiny", [*SMALL, "model.n_layers=3", DROPS]),
    "dropped_experts": ("mixtral-tiny", ["model.n_layers=2", "model.router.balance_coef=0", DROPS]),
    "dropped_towers": ("t5-tiny", ["model.n_layers=2", "model.vocab_size=320", DROPS, "recompute=full"]),
    "dropped_parallel": ("llama-tiny", [*SMALL, "model.block=parallel", DROPS]),
    "compiled": ("llama-tiny", [*SMALL, "compile=true", DROPS]),
    "pairs_of_layers": ("llama-tiny", [*SMALL, "model.n_layers=8"]),
    "orthogonal": (
        "mixtral-tiny",
        ["model.n_layers=2", "model.router.balance_coef=0", "optim=muon", "optim.dtype=fp32"],
    ),
}
CHUNKED = ("chunked", "chunked_experts", "chunked_hybrid", "chunked_drops")
MICROBATCHES = {"accumulated": 2, **dict.fromkeys(CHUNKED, 2)}
"""Of each process, where they are several."""

QUICK = ("dense",)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_texts(tmp_path)
    return tmp_path


def write_texts(folder):
    """A text to train on, and pairs of a source and an answer that fill their rows."""
    drawn = random.Random(0)
    lines = [" ".join(drawn.choice(WORDS) for _ in range(9)) for _ in range(1500)]
    (folder / "text.txt").write_text(". ".join(lines))
    pairs = (json.dumps({"q": q, "a": a}) for q, a in pairwise(lines) if min(len(q), len(a)) > 32)
    (folder / "pairs.jsonl").write_text("\n".join(pairs))


def torchrun(processes, *args, timeout=600):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*command, *map(str, args)], capture_output=True, text=True, timeout=timeout)


def spread(processes, jobs):
    """Run jobs in so many processes; returns what each process held in the last."""
    return [told[-1] for told in spread_all(processes, jobs)]


def spread_all(processes, jobs):
    """Run jobs in so many processes; returns what each process held in each."""
    Path("jobs.json").write_text(json.dumps([(*job, None)[:3] for job in jobs]))
    done = torchrun(processes, RUNS, "jobs.json", ".")
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(Path(f"{rank}.json").read_text()) for rank in range(processes)]


def compare_gradients(one, other):
    """The largest difference of a tensor's gradient in the first steps of two runs, relative to its norm; of one below
    a thousandth of the whole norm, relative to that."""
    first, second = (load_file(f"{run}.gradients") for run in (one, other))
    assert first.keys() == second.keys()
    least = 1e-3 * sum(float(each.norm()) ** 2 for each in first.values()) ** 0.5
    return max(float((each - second[name]).norm()) / max(float(each.norm()), least) for name, each in first.items())


def lines_of(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def compare(one, other, near=2e-4):
    """Hold the lines of metrics, the samples and the last weights of two runs against each other."""
    for a, b in zip(lines_of(one), lines_of(other), strict=True):
        for name in ("loss", "val_loss"):
            assert b.get(name) == pytest.approx(a.get(name), abs=1e-5), (other, name, a["step"])
        assert b.get("grad_norm") == pytest.approx(a.get("grad_norm"), rel=5e-4)
        assert {n: b.get(n) for n in ("tokens", "flops", "lr")} == {n: a.get(n) for n in ("tokens", "flops", "lr")}
    tensors = [load_file(max(Path(run).glob("checkpoints/step-*")) / "model.safetensors") for run in (one, other)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, each in tensors[0].items():  # AdamW takes a whole step for a gradient that rounding gave its sign
        assert (each - tensors[1][name]).norm() < near * max(each.norm(), 1), (other, name)
    samples = [(Path(run) / "samples.txt").read_text() for run in (one, other)]
    assert samples[0] == samples[1] or not samples[1]  # a pipeline writes none


INTERLEAVED, ZERO_BUBBLE = "schedule: interleaved, chunks: 2", "schedule: zero_bubble"
SCHEDULES = (INTERLEAVED, ZERO_BUBBLE, "schedule: zero_bubble_v, chunks: 2")
WAYS = {
    "dense": ("ddp", "fsdp", "tp", "cp", "{cp: 2, cp_comm: ring}", "pp"),
    "experts": ("ddp", "fsdp", "tp", "ep", "{dp: 2, ep: 2}", "pp"),
    "even_experts": ("cp", "{shard: 2, ep: 2}"),
    "latents": ("fsdp", "tp", "ep"),
    "dense_latents": ("cp", "{cp: 2, cp_comm: ring}"),
    "hybrid": ("fsdp", "tp", "ep"),
    "encoder_decoder": ("ddp", "fsdp", "tp"),
    "encoder": ("ddp", "fsdp", "tp"),
    "averaged": ("ddp", "fsdp", "tp", "cp"),
    "schedule_free": ("ddp", "fsdp", "tp"),
    "accumulated": ("ddp", "fsdp", "tp", "cp"),
    "recomputed": ("ddp", "fsdp", "tp", "cp", "{cp: 2, cp_comm: ring}"),
    **{name: tuple(f"{{pp: 2, {each}}}" for each in SCHEDULES) for name in CHUNKED},
    "dropped": ("ddp", "fsdp", "tp", "cp", "pp"),
    "dropped_experts": ("fsdp", "tp", "cp", "ep", "pp"),
    "dropped_towers": ("ddp", "tp"),
    "dropped_parallel": ("tp",),
    "compiled": ("tp", "pp", "cp"),
    "orthogonal": ("ddp", "fsdp", "cp", "pp"),
}
"""By model, how two processes share its run."""

MESHES = {
    "dense": (
        "hsdp",
        "fsdp_tp",
        "{cp: 2, tp: 2}",
        "{shard: 2, cp: 2}",
        "{dp: 2, cp: 2}",
        "{dp: 2, tp: 2}",
        "cp",
        "{pp: 2, dp: 2}",
        "{pp: 2, shard: 2}",
        "{pp: 2, tp: 2}",
        "{pp: 2, cp: 2}",
        "{cp: 4, cp_comm: ring}",
        "{cp: 2, tp: 2, cp_comm: ring}",
        "{shard: 2, cp: 2, cp_comm: ring}",
        "{pp: 2, cp: 2, cp_comm: ring}",
    ),
    "chunked": (
        *(f"{{pp: 2, {other}: 2, {each}}}" for other in ("dp", "tp") for each in SCHEDULES),
        f"{{pp: 2, shard: 2, {INTERLEAVED}}}",
        f"{{pp: 2, cp: 2, {INTERLEAVED}}}",
        f"{{pp: 2, cp: 2, {ZERO_BUBBLE}}}",
        f"{{pp: 4, {ZERO_BUBBLE}}}",
    ),
    "chunked_experts": tuple(f"{{pp: 2, dp: 2, ep: 2, {each}}}" for each in SCHEDULES),
    "chunked_hybrid": tuple(f"{{pp: 2, {other}: 2, {each}}}" for other in ("dp", "tp") for each in SCHEDULES),
    "accumulated": ("fsdp", "hsdp", "fsdp_tp", "{cp: 2, tp: 2}"),
    "experts": (
        "hsdp",
        "fsdp_tp",
        "{shard: 2, tp: 2, ep: 2}",
        "{dp: 4, ep: 2}",
        "{dp: 2, shard: 2, ep: 4}",
        "ep",
        "{pp: 2, shard: 2, ep: 2}",
    ),
    "even_experts": ("{shard: 2, cp: 2, ep: 4}", "{cp: 2, tp: 2, ep: 2}", "{dp: 2, cp: 2, ep: 2}"),
    "hybrid": ("hsdp", "fsdp_tp", "{dp: 2, tp: 2, ep: 2}", "pp"),
    "latents": ("hsdp", "fsdp_tp", "{shard: 4, ep: 2}", "{pp: 2, tp: 2}"),
    "encoder_decoder": ("fsdp", "hsdp", "fsdp_tp", "{dp: 2, tp: 2}"),
    "dropped": ("hsdp", "fsdp_tp", "{cp: 2, tp: 2}", "{pp: 2, tp: 2}", "{pp: 2, cp: 2}", "{pp: 2, shard: 2}"),
    "dropped_experts": ("{shard: 2, tp: 2, ep: 2}", "{cp: 2, tp: 2, ep: 2}"),
}
"""And how four do."""


def list_cases():
    for name, ways in WAYS.items():
        yield pytest.param(name, 2, ways, marks=[] if name in QUICK else [pytest.mark.slow], id=f"{name}-2")
    for name, ways in MESHES.items():
        yield pytest.param(name, 4, ways, marks=[pytest.mark.slow], id=f"{name}-4")


def settle(way, processes):
    """The mesh of a packaged way, or of a mapping."""
    node = way if "{" not in way else yaml.safe_load(way)
    return Parallel.parse(read_parallel(node)).settle(World(size=processes))


def list_common(name, steps):
    return [f"steps={steps}", "eval_every=3", "batch_size=8", *BASE, *MODELS[name][1]]


def train_one(name, processes, steps):
    """Train a model in one process, on the microbatches of several, in the folder `one`."""
    parts = processes * MICROBATCHES.get(name, 1)
    with keeping_gradients("one"):
        zoo.train(MODELS[name][0], [*list_common(name, steps), f"accumulate={parts}", "hydra.run.dir=one"])


def train_spread(name, processes, ways, steps):
    """Train a model in several processes, on the microbatches that one takes; returns the folders."""
    parts = processes * MICROBATCHES.get(name, 1)
    jobs = []
    for number, way in enumerate(ways):
        each = [f"accumulate={parts // settle(way, processes).rows}", f"parallel={way}", f"hydra.run.dir=run-{number}"]
        jobs.append((MODELS[name][0], [*list_common(name, steps), *each]))
    spread(processes, jobs)
    return [f"run-{number}" for number in range(len(ways))]


def train_alike(name, processes, ways, steps):
    """Train a model in one process and in several, on the same microbatches; returns the folders."""
    train_one(name, processes, steps)
    return train_spread(name, processes, ways, steps)


@pytest.mark.parametrize(("name", "processes", "ways"), list(list_cases()))
def test_processes_train_as_one_does_on_their_rows_by_turns(name, processes, ways, here):
    for folder in train_alike(name, processes, ways, 20 if processes == 4 else 6):
        compare("one", folder)
        assert compare_gradients("one", folder) < 1e-5, folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_any_mesh_that_is_legal_trains_as_one_process_does(seed, here):
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
def test_a_run_goes_on_with_any_number_of_processes(here):
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
def test_a_run_with_dropout_goes_on_with_another_mesh(here):
    model, own = MODELS["dropped"]
    common = [*BASE, *own, "batch_size=8", "eval_every=2", "save_every=2"]
    zoo.train(model, [*common, "steps=6", "accumulate=4", "hydra.run.dir=whole"])
    zoo.train(model, [*common, "steps=2", "accumulate=4", "hydra.run.dir=run"])
    spread(2, [(None, ["steps=4", "accumulate=4", "parallel=tp"], "run")])
    spread(2, [(None, ["steps=6", "accumulate=2", "parallel=fsdp"], "run")])
    compare("whole", "run")


@pytest.mark.slow
def test_adapters_train_in_processes_as_in_one_and_go_on_in_another_number(here):
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


def price_rank(name, way, processes):
    """The set-up of a rank in a step of 8 rows of 32 tokens, and the stages of its pipeline."""
    own = ["model.vocab_size=301", *MODELS[name][1]]
    spec = load(MODELS[name][0], [each.removeprefix("model.") for each in own if each.startswith("model.")])
    mesh = settle(way, processes)
    setup = Setup(context=32, precision="fp32", dtype="fp32").on_mesh(mesh)
    return spec, replace(setup, batch=8 // mesh.rows), stages(spec, setup)


def train_two_steps(name, processes, ways):
    """What each process held and sent in two steps on each mesh."""
    model, own = MODELS[name]
    jobs = []
    for number, way in enumerate(ways):
        parts = 1 << (settle(way, processes).pipeline.least - 1).bit_length()  # which divide the rows
        how = ["steps=2", "batch_size=8", f"accumulate={parts}", "sample=null", *BASE[:-1], *own]
        jobs.append((model, [*how, f"parallel={way}", f"hydra.run.dir=run-{number}"]))
    return spread_all(processes, jobs)


HELD = {
    ("experts", 4): ("fsdp", "ddp", "hsdp", "ep", "{shard: 2, tp: 2, ep: 2}", "{dp: 2, shard: 2, ep: 4}"),
    ("deep", 2): ("fsdp", "tp", "cp", "pp"),
    ("deep", 4): ("hsdp", "fsdp_tp", "{shard: 2, cp: 2}", "{pp: 2, tp: 2}", "{pp: 2, shard: 2}"),
    ("chunked", 2): tuple(f"{{pp: 2, {each}}}" for each in SCHEDULES),
    ("chunked", 4): (f"{{pp: 2, tp: 2, {INTERLEAVED}}}", f"{{pp: 2, shard: 2, {INTERLEAVED}}}"),
    ("pairs_of_layers", 4): (f"{{pp: 2, shard: 2, {INTERLEAVED}}}",),
    ("latents", 2): ("fsdp", "tp", "ep"),
    ("hybrid", 2): ("fsdp", "tp", "ep"),
    ("encoder_decoder", 2): ("fsdp", "tp"),
    ("encoder_decoder", 4): ("fsdp_tp",),
}


def list_held():
    for case, ways in HELD.items():
        yield pytest.param(
            *case, ways, marks=[] if case == ("deep", 2) else [pytest.mark.slow], id=f"{case[0]}-{case[1]}"
        )


@pytest.mark.parametrize(("name", "processes", "ways"), list(list_held()))
def test_what_each_process_holds_is_what_zoo_stats_prices_to_the_byte(name, processes, ways, here):
    """Of the rank that has most, in a stage: FSDP cuts what it does not divide unevenly."""
    told = train_two_steps(name, processes, ways)
    for number, way in enumerate(ways):
        spec, setup, pipeline = price_rank(name, way, processes)
        per_stage = processes // setup.pp
        for stage in pipeline:
            ranks = [told[rank][number] for rank in range(stage.index * per_stage, (stage.index + 1) * per_stage)]
            priced = states(spec, setup, stage)
            assert max(each["weights"] for each in ranks) * 4 == priced["weights"], (way, stage.index)
            assert max(each["gradients"] for each in ranks) == priced["gradients"], (way, stage.index)
            assert max(each["states"] for each in ranks) == priced["optimizer"], (way, stage.index)
            if setup.zero == 3:
                assert {each["gathered"] for each in ranks} == {priced["gathered"]}, (way, stage.index)


SENT = [
    ("dense", "tp", 2),
    ("dense", "fsdp", 2),
    ("dense", "ddp", 2),
    ("dense", "cp", 2),
    ("dense", "{cp: 2, cp_comm: ring}", 2),
    ("dense", "pp", 2),
    *(("chunked", f"{{pp: 2, {each}}}", 2) for each in SCHEDULES),
    ("chunked_experts", f"{{pp: 2, dp: 2, {INTERLEAVED}}}", 4),
    ("chunked", f"{{pp: 2, dp: 2, {ZERO_BUBBLE}}}", 4),
    ("latents", "fsdp", 2),
    ("latents", "tp", 2),
    ("dense_latents", "{cp: 2, cp_comm: ring}", 2),
    ("hybrid", "fsdp", 2),
    ("hybrid", "tp", 2),
    ("encoder_decoder", "ddp", 2),
    ("encoder_decoder", "fsdp", 2),
    ("answers", "tp", 2),
    ("all_experts", "ep", 2),
    ("all_experts", "{dp: 2, ep: 2}", 2),
    ("dense", "hsdp", 4),
    ("dense", "fsdp_tp", 4),
    ("dense", "{shard: 2, cp: 2}", 4),
    ("all_experts", "{shard: 2, tp: 2, ep: 2}", 4),
    ("all_experts", "{dp: 2, shard: 2, ep: 4}", 4),
    ("all_experts", "{shard: 4, ep: 2}", 4),
]
"""Each token of `all_experts` goes to every expert, so that routing is even, as prices take it. Sources and `answers`
have as many tokens, as a price has one context for both."""


def count_sent(name, way, processes):
    """The bytes that the first process sends in a step, and those that are predicted for its stage."""
    (told, *_) = train_two_steps(name, processes, [way])
    spec, setup, pipeline = price_rank(name, way, processes)
    predicted = sum(each["bytes"] for each in traffic(spec, setup, pipeline[0]).values())
    return sum(told[0]["sent"].values()), predicted


def list_sent():
    for number, each in enumerate(SENT):
        yield pytest.param(*each, marks=[pytest.mark.slow] if number else [], id="-".join(each[:2]))


@pytest.mark.parametrize(("name", "way", "processes"), list(list_sent()))
def test_what_a_process_sends_is_what_is_predicted(name, way, processes, here):
    sent, predicted = count_sent(name, way, processes)
    assert sent == pytest.approx(predicted, abs=1)


def start(processes, folder, *more):
    command = [sys.executable, "-m", "zoo", "train", "model=llama-tiny", *BASE, *SMALL, "batch_size=8", "steps=5000"]
    command += ["parallel=fsdp", "launcher=torchrun", f"nproc={processes}", "save_every=2", "eval_every=5000", *more]
    command += [f"hydra.run.dir={folder}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def find_rank(parent, rank):
    """The process id of a rank that a launcher started."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            variables = (place / "environ").read_bytes().split(b"\0")
            ours = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
        except (OSError, ValueError):
            continue
        if ours and f"RANK={rank}".encode() in variables:
            return int(place.name)
    return None


def wait_for(check, seconds=120):
    until = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


OTHERS = [(0, signal.SIGKILL), (1, signal.SIGTERM), (0, signal.SIGTERM), (0, signal.SIGINT)]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("rank", "how"), [(1, signal.SIGKILL), *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS)]
)
def test_a_rank_that_dies_ends_the_run_in_one_line_and_a_signal_stops_all(rank, how, here):
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


def test_a_process_needs_memory_for_its_part_alone(here, monkeypatch):
    from zoo.training.fitting import price_training, take_share
    from zoo.training.planning import plan_resumption

    zoo.train("llama-tiny", [*BASE, *SMALL, "steps=1", "batch_size=8", "hydra.run.dir=run"])
    whole = plan_resumption(Path("run"), [])
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("LOCAL_RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "4")
    parts = plan_resumption(Path("run"), ["parallel=fsdp"])
    assert take_share(parts.settings).batch_size == 2
    shared = price_training(take_share(parts.settings), parts.spec, 2)
    copied = price_training(take_share(plan_resumption(Path("run"), ["parallel=ddp"]).settings), parts.spec, 2)
    half = plan_resumption(Path("run"), ["parallel={pp: 2, dp: 2}", "accumulate=2"]).settings
    staged = price_training(take_share(half), parts.spec, 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = price_training(whole.settings, whole.spec, 2)
    assert copied["states"] == alone["states"]
    assert staged["states"] < 0.9 * alone["states"]  # the table is on both stages
    assert shared["states"] == pytest.approx(alone["states"] / 4, rel=0.02)


# ---------------------------------------------------------------- refusals


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
        Parallel.parse(fields).settle(World(size=size))


def test_a_mesh_fills_up_with_the_processes_that_there_are():
    assert Parallel.parse({"dp": "auto", "shard": 2}).settle(World(size=6)).dp == 3
    assert Parallel.parse({"shard": "auto"}).settle(World(size=6)).shard == 6
    assert Parallel.parse({}).settle(World()).size == 1


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["optim=adafactor"], r"optim: adafactor needs whole tensors, .*optim=adamw, or parallel=none"),
        (["parallel=tp", "optim=muon"], r"optim: muon needs whole tensors, .*optim=adamw, or tp=1 and ep=1"),
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
        (["parallel={cp: 2, cp_comm: rign}"], "cp_comm: .*all_gather"),
        (["parallel=pp"], r"accumulate: is 1, and the pp=2 stages take as many microbatches"),
        (["parallel=ep"], r"ep: 2 ranks for experts, of which this model has none \(ep=1\)"),
        (["parallel={tp: 3}"], "needs a multiple of 3 processes, found 2"),
    ],
)
def test_what_processes_cannot_share_is_refused_before_one_starts(overrides, fault, here):
    launched = ["launcher=torchrun", "nproc=2", "parallel=fsdp", *BASE, *SMALL, "steps=2"]
    with pytest.raises(ConfigError, match=fault):
        zoo.train("llama-tiny", [*launched, *overrides])


def test_a_sweep_is_no_work_of_several_processes(here, monkeypatch, capsys):
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
def test_a_launcher_needs_a_number_and_a_number_a_launcher(overrides, fault, here):
    with pytest.raises(ConfigError, match=fault):
        zoo.train("llama-tiny", [*BASE, *overrides])
