"""What a process sends in a step, counted and predicted."""

from dataclasses import replace

from support.parallel_runs import BASE, INTERLEAVED, MODELS, SCHEDULES, SMALL, ZERO_BUBBLE, here, settle, spread_all  # noqa: F401  (a fixture)
from zoo.compose import load
from zoo.costs.rank_tensors import stages
from zoo.costs.setup import Setup
from zoo.costs.traffic import traffic
from zoo.training.precision import find_priced


def price_rank(name, way, processes, precision="fp32"):
    """The set-up of a rank in a step of 8 rows of 32 tokens, and the stages of its pipeline."""
    own = ["model.vocab_size=301", *(each.removeprefix("+") for each in MODELS[name][1])]
    changes = [each.removeprefix("model.") for each in own if each.startswith(("model.", "attention="))]
    spec = load(MODELS[name][0], changes)
    mesh = settle(way, processes)
    dtype = "fp32" if precision == "fp32" else "bf16"
    setup = Setup(context=32, precision=find_priced(precision), dtype=dtype).on_mesh(mesh)
    return spec, replace(setup, batch=8 // mesh.rows), stages(spec, setup)


def train_two_steps(name, processes, ways, precision="fp32"):
    """What each process held and sent in two steps on each mesh."""
    model, own = MODELS[name]
    jobs = []
    for number, way in enumerate(ways):
        parts = 1 << (settle(way, processes).pipeline.least - 1).bit_length()  # which divide the rows
        how = ["steps=2", "batch_size=8", f"accumulate={parts}", "sample=null", *BASE[:-1], *own]
        jobs.append((model, [*how, f"precision={precision}", f"parallel={way}", f"hydra.run.dir=run-{number}"]))
    return spread_all(processes, jobs)


SENDING = [
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
    ("chosen", "ddp", 2),
    ("chosen", "fsdp", 2),
    ("chosen", "tp", 2),
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
SENT = [
    *((*each, "fp32") for each in SENDING),
    ("dense", "tp", 2, "bf16"),
    ("hybrid", "tp", 2, "bf16"),
    ("all_experts", "{dp: 2, ep: 2}", 2, "bf16"),
    ("dense", "cp", 2, "bf16"),
    ("dense", "{cp: 2, cp_comm: ring}", 2, "bf16"),
    ("dense", "pp", 2, "bf16"),
    ("chunked", "{pp: 2, schedule: zero_bubble_v, chunks: 2}", 2, "bf16"),
    ("dense", "{pp: 2, tp: 2}", 4, "bf16"),
    ("dense", "fsdp_tp", 4, "bf16"),
    ("dense", "{pp: 2, dp: 2}", 4, "bf16_master"),
]
"""Each token of `all_experts` goes to every expert, so that routing is even, as prices take it. Sources and `answers`
have as many tokens, as a price has one context for both."""


def count_sent(name, way, processes, precision="fp32"):
    """The bytes that the first process sends in a step, and those that are predicted for its stage."""
    (told, *_) = train_two_steps(name, processes, [way], precision)
    spec, setup, pipeline = price_rank(name, way, processes, precision)
    predicted = sum(each["bytes"] for each in traffic(spec, setup, pipeline[0]).values())
    return sum(told[0]["sent"].values()), predicted
