"""The most memory that a process takes in a step, measured and predicted."""

from dataclasses import replace

from support.parallel_runs import BASE, SCHEDULES, ZERO_BUBBLE, settle, spread_all
from zoo.compose import load
from zoo.costs.memory import training
from zoo.costs.setup import Setup
from zoo.training.precision import find_priced

SIZES = ["n_layers=4", "d_model=128", "n_heads=8", "n_kv_heads=4", "d_ff=320", "vocab_size=1000"]
ROWS, TOKENS = 8, 256
MESHES = {
    1: ("none",),
    2: ("ddp", "fsdp", "tp", "cp", "{cp: 2, cp_comm: ring}", "pp", *(f"{{pp: 2, {each}}}" for each in SCHEDULES[1:])),
    4: (
        "hsdp",
        "fsdp_tp",
        "cp",
        "{dp: 2, cp: 2}",
        "{shard: 2, cp: 2}",
        "{cp: 2, tp: 2}",
        "{pp: 2, dp: 2}",
        "{pp: 2, shard: 2}",
        "{pp: 2, tp: 2}",
        *(f"{{pp: 2, {other}: 2, {ZERO_BUBBLE}}}" for other in ("dp", "tp")),
    ),
}
CASES = [
    (way, processes, precision, recompute)
    for processes, ways in MESHES.items()
    for way in ways
    for precision in ("fp32", "bf16")
    for recompute in (("none",) if "zero_bubble" in way else ("none", "full"))
]


def measure_memory(processes, cases):
    """Train two steps in so many processes for each case (way, precision, recompute). Returns for each the bytes of the
    process that takes most in the second step, and those that `zoo stats` predicts, above weights and states too."""
    jobs = []
    for number, (way, precision, recompute) in enumerate(cases):
        how = [*BASE[:3], *(f"model.{each}" for each in SIZES), f"seq_len={TOKENS}", "steps=2", f"batch_size={ROWS}"]
        how += [f"accumulate={count_parts(way, processes)}", "eval_every=null", "save_every=null", "sample=null"]
        how += [
            f"precision={precision}",
            f"recompute={recompute}",
            f"parallel={way}",
            f"hydra.run.dir=of-{processes}-{number}",
        ]
        jobs.append(("llama-tiny", how))
    told = spread_all(processes, jobs)
    return [
        (max(rank[number]["peak"] for rank in told), predict(*case, processes)) for number, case in enumerate(cases)
    ]


def predict(way, precision, recompute, processes):
    """The peak that `zoo stats` prices for a step of the run, with a CPU's kernels."""
    mesh, dtype = settle(way, processes), "fp32" if precision == "fp32" else "bf16"
    how = {"precision": find_priced(precision), "dtype": dtype, "recompute": recompute}
    setup = Setup(context=TOKENS, chunked_loss=True, fused_optimizer=True, **how).on_mesh(mesh)
    parts = count_parts(way, processes)
    setup = replace(setup, batch=ROWS // mesh.rows // parts, accumulate=parts)
    return training(load("llama-tiny", SIZES), setup, fused=False)["train_peak"]


def count_parts(way, processes):
    """A pipeline has four micro-batches in a step, of which the first stage holds two."""
    return 4 if settle(way, processes).pp > 1 else 1
