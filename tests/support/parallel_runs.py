"""Runs of several processes for tests: models, meshes, and the run of one process beside those of several."""

import json
import random
import time
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import zoo
from support.forked_processes import read_found, run_ranks
from support.parallel_run_ranks import keeping_gradients
from zoo.checkpoint.parallel_checkpoint import open_weights
from zoo.distributed.world import World
from zoo.training.mesh_settings import ParallelSettings
from zoo.training.packaged import read_packaged

WORDS = ("fox", "dog", "runs", "jumps", "over", "the", "lazy", "quick", "brown", "sleeps", "and", "it", "tree", "river")
BASE = [
    *("data=text", "data.path=text.txt", "data.tokenizer.kind=byte", "model.vocab_size=301"),
    *("seq_len=32", "schedule=constant", "schedule.warmup=0", "optim.lr=3e-4", "eval_batches=2", "sample.tokens=3"),
]
PAIRS = ["data=jsonl", "data.path=pairs.jsonl", "data.source=q", "data.target=a", "objective=seq2seq"]
COMPARED = [
    "data=jsonl",
    "data.path=pairs.jsonl",
    "objective=contrastive",
    "objective.anchor=q",
    "objective.positive=a",
]
ANSWERS = ["data=jsonl", "data.path=answers.jsonl", "data.form=preference", "objective=dpo", "seq_len=64"]
SMALL = ["model.n_layers=2", "model.d_model=64", "model.d_ff=96"]
DRAWS = ("model.router=sparsemixer", "model.router.balance_coef=0", "model.router.jitter=0.3")
DROPS = "dropout={attention: 0.1, residual: 0.1, embedding: 0.1, ffn: 0.1, layers: 0.2}"
MODELS = {
    "dense": ("llama-tiny", SMALL),
    "deep": ("llama-tiny", ["model.n_layers=5", "model.d_model=64", "model.d_ff=96"]),
    "experts": ("mixtral-tiny", ["model.n_layers=2"]),
    "latents": ("deepseek-tiny", []),
    "shared_block": (
        "llama-tiny",
        [*SMALL, "model.attention=mamba2", "model.block=shared_attention", "+model.adapter_rank=4", "model.n_heads=4"],
    ),
    "shortcut": (
        "mixtral-tiny",
        [
            "model.n_layers=2",
            "model.block=shortcut",
            "+model.zero_experts=4",
            "model.n_experts=8",
            "model.top_k=3",
            DROPS,
        ],
    ),
    "dense_latents": ("llama-tiny", [*SMALL, "attention=mla"]),
    "chosen": ("llama-tiny", [*SMALL, "attention=dsa", "+model.index_top_k=8", "+model.index_n_heads=4"]),
    "hybrid": ("qwen3-next-tiny", []),
    "encoder_decoder": ("t5-tiny", ["model.n_layers=1", "model.vocab_size=320"]),
    "answers": ("t5-tiny", ["model.n_layers=1", "model.vocab_size=320", *PAIRS]),
    "encoder": ("bert-tiny", ["model.n_layers=2"]),
    "compared": ("bert-tiny", ["model.n_layers=2", *COMPARED, DROPS]),
    "compared_parts": ("bert-tiny", ["model.n_layers=2", *COMPARED, DROPS]),
    "preferred": ("llama-tiny", [*SMALL, *ANSWERS]),
    "judged": ("llama-tiny", [*SMALL, *ANSWERS, "objective=kto"]),
    "rewarded": ("llama-tiny", [*SMALL, *ANSWERS, "objective=reward"]),
    "odds": ("llama-tiny", [*SMALL, *ANSWERS, "objective=orpo"]),
    "margins": ("llama-tiny", [*SMALL, *ANSWERS, "objective=ipo"]),
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
    "dropped_experts": ("mixtral-tiny", ["model.n_layers=2", *DRAWS, DROPS]),
    "dropped_towers": ("t5-tiny", ["model.n_layers=2", "model.vocab_size=320", DROPS, "recompute=full"]),
    "dropped_parallel": ("llama-tiny", [*SMALL, "model.block=parallel", DROPS]),
    "compiled": ("llama-tiny", [*SMALL, "compile=true", DROPS]),
    "pairs_of_layers": ("llama-tiny", [*SMALL, "model.n_layers=8"]),
    "neurons": (
        "llama-tiny",
        [*SMALL, "optim=normuon", "optim.dtype=fp32", "optim.decay=hyperball", "optim.groups={layers: {lr: 0.02}}"],
    ),
    "orthogonal": (
        "mixtral-tiny",
        ["model.n_layers=2", "model.router.balance_coef=0", "optim=muon", "optim.dtype=fp32"],
    ),
}
CHUNKED = ("chunked", "chunked_experts", "chunked_hybrid", "chunked_drops")
MICROBATCHES = {"accumulated": 2, "compared_parts": 2, **dict.fromkeys(CHUNKED, 2)}
"""Of each process, where they are several."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_texts(tmp_path)
    return tmp_path


def write_texts(folder):
    """A text to train on, pairs of a source and an answer that fill their rows, and preferences of one length."""
    drawn = random.Random(0)
    lines = [" ".join(drawn.choice(WORDS) for _ in range(9)) for _ in range(1500)]
    (folder / "text.txt").write_text(". ".join(lines))
    pairs = (json.dumps({"q": q, "a": a}) for q, a in pairwise(lines) if min(len(q), len(a)) > 32)
    (folder / "pairs.jsonl").write_text("\n".join(pairs))
    fits = [line[:28] for line in lines]
    made = ({"prompt": line, "chosen": " fox", "rejected": " dog"} for line in fits)
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, made)))


def spread(processes, jobs):
    """Run jobs in so many processes; returns what each process held in the last."""
    return [told[-1] for told in spread_all(processes, jobs)]


def spread_all(processes, jobs):
    """Run jobs in so many processes; returns what each process held in each."""
    Path("jobs.json").write_text(json.dumps([(*job, None)[:3] for job in jobs]))
    run_ranks(processes, "support.parallel_run_ranks", "jobs.json", ".")
    return read_found(processes, ".")


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
    tensors = [open_weights(max(Path(run).glob("checkpoints/step-*"))) for run in (one, other)]  # whole or in shards
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
    "chosen": ("ddp", "fsdp", "tp"),
    "shared_block": ("ddp", "fsdp", "tp"),
    "shortcut": ("fsdp", "tp", "ep"),
    "dense_latents": ("cp", "{cp: 2, cp_comm: ring}"),
    "hybrid": ("fsdp", "tp", "ep"),
    "encoder_decoder": ("ddp", "fsdp", "tp"),
    "encoder": ("ddp", "fsdp", "tp"),
    "compared": ("ddp", "fsdp", "tp"),
    "compared_parts": ("ddp", "tp"),
    "preferred": ("ddp", "fsdp", "tp"),
    "judged": ("ddp", "fsdp", "tp"),
    "rewarded": ("fsdp", "tp"),
    "odds": ("tp",),
    "margins": ("tp",),
    "averaged": ("ddp", "fsdp", "tp", "cp"),
    "schedule_free": ("ddp", "fsdp", "tp"),
    "accumulated": ("ddp", "fsdp", "tp", "cp"),
    "recomputed": ("ddp", "fsdp", "tp", "cp", "{cp: 2, cp_comm: ring}"),
    **{name: tuple(f"{{pp: 2, {each}}}" for each in SCHEDULES) for name in CHUNKED},
    "dropped": ("ddp", "fsdp", "tp", "cp", "pp"),
    "dropped_experts": ("fsdp", "tp", "cp", "ep", "pp"),
    "dropped_towers": ("ddp", "tp"),
    "dropped_parallel": ("tp",),
    "compiled": ("fsdp", "tp", "pp", "cp"),
    "orthogonal": ("ddp", "fsdp", "cp", "pp"),
    "neurons": ("fsdp",),
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


def settle(way, processes):
    """The mesh of a packaged way, or of a mapping."""
    node = way if "{" not in way else yaml.safe_load(way)
    return ParallelSettings.parse(read_packaged("parallel", node)).settle(World(size=processes))


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


PACKAGED = [
    *("seq_len=128", "seed=1", "data.max_bytes=2000000"),
    *("eval_every=null", "save_every=null", "sample=null"),
]
"""`zoo train` at its own rate and with its own model, on rows half as long. With an embedding of 0.02, losses of seed 1
part after 20 steps."""


def train_packaged(ways, steps):
    """Train as packaged: in one process with two microbatches (the folder `one`) and with one (`alone`), and in two
    processes, each in a folder of its way's name."""
    for folder, parts in (("one", 2), ("alone", 1)):
        zoo.train("llama-tiny", [*PACKAGED, f"steps={steps}", f"accumulate={parts}", f"hydra.run.dir={folder}"])
    shared = {way: f"accumulate={2 // settle(way, 2).rows}" for way in ways}
    common = [*PACKAGED, f"steps={steps}"]
    spread(
        2,
        [("llama-tiny", [*common, parts, f"parallel={way}", f"hydra.run.dir={way}"]) for way, parts in shared.items()],
    )


def compare_losses(one, other):
    """The largest difference of the losses of two runs so far, after each step."""
    pairs = zip(lines_of(one), lines_of(other), strict=True)
    return list(accumulate((abs(a["loss"] - b["loss"]) for a, b in pairs if "loss" in a), max))


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
