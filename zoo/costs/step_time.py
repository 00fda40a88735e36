# b sequences of a microbatch, m microbatches, p stages, v chunks of a stage
"""Predict how long a training step takes on a mesh of GPUs.

A step is m microbatches through the slowest stage, the pipeline's bubble, the exposed communication of data
parallelism, and the update. Matrix products and attention are timed at a share of the peak rate, elementwise work at
the memory's bandwidth. Collectives of tensor, context and expert parallelism are exposed, because a layer waits for
them; those of data parallelism overlap with the layers, and keys sent round a ring overlap with attention.

Kernel launches, waiting for data, uneven experts and stragglers cost nothing. docs/scale.md compares with published
runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zoo.costs.again import read_every
from zoo.costs.cluster import Cluster
from zoo.costs.flops import FLASH_BACKWARD
from zoo.costs.hardware import Hardware
from zoo.costs.layer_cut import BEFORE, BEHIND, count_attention, count_part
from zoo.costs.rank_tensors import Stage
from zoo.costs.rows import Priced, tabulate
from zoo.costs.setup import Setup
from zoo.costs.traffic import DataTraffic, ring_forward_share, split_data, traffic
from zoo.distributed.pipeline_schedule import PipelineSchedule

MATMUL = {"a100": 0.869, "gh200": 0.836, "h100": 0.803, "mi325x": 0.604, "mi300x": 0.514}
"""The share of the peak that the fastest bf16 product reaches, by the beginning of a GPU's name (Bekman,
ml-engineering, Maximum Achievable Matmul FLOPS, 2025). Other GPUs are taken to be like the H100."""

MATMUL_FP8 = 0.709
"""The share of the peak that the fastest fp8 product reaches on an H100 (same source)."""

REACHED = 0.75
"""Rate of the products of a whole training step ÷ that of the fastest product. The only CALIBRATED constant here: among
multiples of 0.05, the one with the smallest median error on the published dense runs of docs/scale.md."""

FLASH2 = 0.35
"""The share of the peak that attention reaches: FlashAttention-2 on an H100 (Shah et al., 2024, FlashAttention-3,
abstract)."""

FLASH2_A100 = 0.6
"""FlashAttention-2 on an A100: 50 to 73 % of the peak (Dao, 2023, FlashAttention-2, §1)."""

FORWARD_MOVES, BACKWARD_MOVES = 2, 3
"""How often memory moves each byte that a layer saves. The forward pass writes and reads the byte. The backward pass
reads the byte, and writes and reads its gradient. (A fused kernel between two products moves nothing else.)"""

MEMORY_SHARE = 0.9
"""The share of the memory bandwidth that is reached (Isaev et al., 2023, Calculon, systems/a100_80g.json)."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A training step on a mesh.

    `setup` has the ranks, the pipeline's schedule and one microbatch of `batch` sequences; a step has `microbatches` of
    them on each rank. `float8` puts the products inside layers into fp8. `attention` is the share of the peak that
    attention reaches (None: FlashAttention-2's). With `keeps_gathered` FSDP gathers weights once a step.
    """

    setup: Setup
    microbatches: int = 1
    float8: bool = False
    attention: float | None = None
    keeps_gathered: bool = False

    @property
    def gpus(self) -> int:
        return self.setup.ranks

    @property
    def sequences(self) -> int:
        """Count the sequences of a step."""
        return self.setup.batch * self.microbatches * self.setup.rows


class StageWork(NamedTuple):
    """The work of a rank of a stage in a forward pass of one sequence. `layers` is the FLOPs of matrix products in the
    layers, `beside` those of all other products (of routers, and outside the layers), `attention` those of QKᵀ, PV and
    states. `saved` is the bytes of saved activations. `units` counts FSDP's units; `stage` is the stage's index. `once`
    has two numbers, the FLOPs in `layers` and in `attention` that have no backward pass."""

    layers: float
    beside: float
    attention: float
    saved: float
    units: int
    stage: int = 0
    once: tuple[float, float] = (0.0, 0.0)

    @property
    def learning(self) -> StageWork:
        """The work that has a backward pass."""
        layers, attention = self.once
        return self._replace(layers=self.layers - layers, attention=self.attention - attention, once=(0.0, 0.0))


class StageTraffic(NamedTuple):
    """Bytes that a rank sends. `streams` counts those for each sequence of a microbatch, `fixed` those once a step,
    both by kind of parallelism, without data parallelism. `data` counts those of data parallelism for one
    microbatch."""

    streams: Mapping[str, float]
    fixed: Mapping[str, float]
    data: DataTraffic


class StepTime(NamedTuple):
    """Seconds of a step: `compute` of all microbatches, all exposed `communication`, the pipeline's `bubble`, and the
    optimizer's `update`."""

    compute: float
    communication: float
    bubble: float
    update: float

    @property
    def total(self) -> float:
        return sum(self)


def measure_work(stage: Stage, context: int, saved: Mapping[str, float], tp: int) -> StageWork:
    """Count the work of a rank of a stage for one sequence. `saved` are the bytes that each section (`list_sections`)
    of an undivided pass saves for the sequence."""
    table = tabulate(stage)
    layers = beside = once = 0.0
    for row in table.parts:
        slot = row.slot if row.slot in (*BEFORE, *BEHIND) else "head"
        if row.kind is None and slot not in stage.ends[row.where]:
            continue
        flops = count_part(row, context)
        inner = row.kind is not None and "router" not in row.roles
        layers, beside = (layers + flops, beside) if inner else (layers, beside + flops)
        once += 0 if row.learns else flops
    attention = sum(count_attention(each, context) for each in table.attentions)
    choosing = sum(count_attention(each, context) for each in table.attentions if not each.learns)
    prefixes = {name: f"{name}." if name else "" for name in stage.ends}
    kept = sum(saved[f"{prefixes[name]}layer:{kind}"] * count for name, kind, count in stage.layers())
    for name, ends in stage.ends.items():
        kept += saved.get(f"{prefixes[name]}loss", 0) if "head" in ends else 0
        kept += saved[f"{prefixes[name]}embedding"] if "embedding" in ends else 0
    units = sum(count for _, _, count in stage.layers()) + len(stage.ends)
    return StageWork(layers, beside, attention, kept / tp, units, stage.index, (once, choosing))


def count_traffic(spec: Priced, setup: Setup, stage: Stage) -> StageTraffic:
    """Count the bytes that a rank of a stage sends. All kinds but data parallelism send a fixed amount a step plus an
    amount for each sequence; pricing two batches separates them."""
    one, two = (traffic(spec, replace(setup, batch=batch), stage) for batch in (1, 2))
    streams = {name: two[name]["bytes"] - one[name]["bytes"] for name in one if name != "dp"}
    fixed = {name: one[name]["bytes"] - streams[name] for name in streams}
    return StageTraffic(streams, fixed, split_data(stage, setup))


class PassTime(NamedTuple):
    """Seconds of a stage's compute for one microbatch: the forward pass, the backward pass for the gradients of
    `inputs` (recomputation included), and that for the gradients of `weights`."""

    forward: float
    inputs: float
    weights: float

    @property
    def backward(self) -> float:
        return self.inputs + self.weights

    @property
    def total(self) -> float:
        return self.forward + self.backward


def pass_seconds(work: StageWork, plan: StepPlan, device: Hardware) -> PassTime:
    """Time the compute of one microbatch in seconds. The gradients of weights take as long as the forward pass's
    products, except those of indexers."""
    setup = plan.setup
    sequences = setup.batch / setup.cp
    rate = device.flops(setup.computed) * share_of_peak(device) * REACHED
    fast = device.flops("fp8") * MATMUL_FP8 * REACHED if plan.float8 else rate

    def compute(part: StageWork) -> tuple[float, float]:
        return part.layers / fast + part.beside / rate, attention_seconds(part, plan, device)

    products, attention = compute(work)
    undone, attended = compute(work.learning)
    moved = work.saved / (MEMORY_SHARE * device.bandwidth)
    forward = products + attention + FORWARD_MOVES * moved
    inputs = undone + FLASH_BACKWARD * attended + BACKWARD_MOVES * moved
    again = attended if setup.recompute == "selective" else share_again(setup.recompute) * forward
    return PassTime(forward * sequences, (inputs + again) * sequences, undone * sequences)


def attention_seconds(work: StageWork, plan: StepPlan, device: Hardware) -> float:
    """Time the attention of one sequence in the forward pass, in seconds."""
    flash = plan.attention or (FLASH2_A100 if device.name.startswith("a100") else FLASH2)
    return work.attention / (device.flops(plan.setup.computed) * flash)


def share_of_peak(device: Hardware) -> float:
    """Give the share of a GPU's peak that its fastest product reaches."""
    return next((share for name, share in MATMUL.items() if device.name.startswith(name)), MATMUL["h100"])


def share_again(recompute: str) -> float:
    """Give the share of the layers whose forward pass, collectives included, is recomputed."""
    every = read_every(recompute)
    return 1.0 if recompute == "full" else 1 / every if every else 0.0


def exposed_seconds(sent: StageTraffic, plan: StepPlan, cluster: Cluster, attention: float) -> tuple[float, float]:
    """Time the collectives that layers wait for, in seconds: in one microbatch, and once a step. `attention` is the
    seconds of a rank's attention in a microbatch's forward pass; sending round a ring overlaps with it."""
    setup = plan.setup
    again = 1 + share_again(setup.recompute) / 2  # the forward pass sends half of the bytes
    stage = setup.rows * setup.cp * setup.tp  # GPUs from one stage to the next
    times = {
        "tp": lambda size: cluster.ring_seconds(size, 1, setup.tp) * again,
        "cp": lambda size: travel_seconds(cluster.ring_seconds(size, setup.tp, setup.cp), attention, setup, cluster),
        "ep": lambda size: cluster.exchange_seconds(size, setup.tp, setup.ep) * again,
        "pp": lambda size: cluster.ring_seconds(size, stage, setup.pp),
    }
    each = sum(times[name](size * setup.batch) for name, size in sent.streams.items())
    once = sum(times[name](size) for name, size in sent.fixed.items())
    return each, once


def travel_seconds(sending: float, attention: float, setup: Setup, cluster: Cluster) -> float:
    """Count the seconds that layers wait for other ranks' keys. Sending the keys takes `sending` seconds in both passes
    together; `attention` is as in `exposed_seconds`."""
    again = share_again(setup.recompute)
    if setup.cp_comm != "ring":
        return sending * (1 + again / 2)
    first = sending * ring_forward_share(setup)
    passes = ((first, 1.0), (first * again, again), (sending - first, FLASH_BACKWARD))
    covers = attention * (setup.cp - 1) / setup.cp
    exposed = sum(max(each - covers * times, 0) for each, times in passes)
    hidden = sum(each for each, _ in passes) - exposed
    return exposed + cluster.usage(setup.tp, setup.cp) * hidden


def data_seconds(
    sent: StageTraffic, work: StageWork, plan: StepPlan, cluster: Cluster, compute: PassTime, held: Mapping[str, Any]
) -> float:
    """Count the seconds that data parallelism adds to a step: communication that compute does not cover, and the
    slow-down of compute by covered communication. `compute` is of one microbatch, `held` are the figures of `states`.

    FSDP gathers weights and reduces gradients for each microbatch, also in a pipeline. Gradients are reduced once a
    step with ZeRO 1 and 2, and in a pipeline that does not shard weights or keeps them gathered.
    """
    setup, passes = plan.setup, plan.microbatches
    size, copies = setup.dp * setup.cp, setup.replicas
    gather, reduce = (cluster.ring_seconds(each, setup.tp, size) for each in (sent.data.gathered, sent.data.reduced))
    reduce += cluster.ring_seconds(sent.data.replicated, setup.tp * size, copies)
    gathers = 1 if plan.keeps_gathered or setup.zero < 3 else passes
    reduces = 1 if setup.zero in (1, 2) or (setup.pp > 1 and gathers == 1) else passes

    def beyond(gather: float, reduce: float) -> float:
        """Time the communication that compute does not cover. Half of the gathering is in the forward pass. The first
        unit's weights and the last unit's gradients are always exposed."""
        waits = max(gather / 2 - compute.forward, 0) + max(gather / 2 + reduce - compute.backward, 0)
        return max(waits, (gather + reduce) / work.units)

    exposed = beyond(gather, reduce)
    exposed += (passes - 1) * beyond(gather if gathers > 1 else 0.0, reduce if reduces > 1 else 0.0)
    hidden = gather * gathers + reduce * reduces - exposed
    return exposed + cluster.usage(setup.tp, size * copies) * max(hidden, 0)


def bubble_seconds(schedule: PipelineSchedule, passes: PassTime) -> float:
    """Time the bubble of a pipeline stage in a step: (stages − 1) × a wait ÷ chunks of a stage. `passes` has the
    seconds of a microbatch: F forward, I for gradients of inputs, W for gradients of weights. The wait is

    - 1f1b, interleaved: F + I + W (Narayanan et al., 2021, §2.2);
    - zero_bubble: F + I − W (Qi et al., 2023, §2, ZB-H1), and I at least;
    - zero_bubble_v: the longest of F, I and 2·(I − W), for torch's order of passes. The formula holds if W ≤ F ≤ I.
    """
    forward, inputs, weights = passes
    each = passes.total
    if schedule.kind == "zero_bubble":
        each = max(forward + inputs - weights, inputs)
    elif schedule.kind == "zero_bubble_v":
        each = max(forward, inputs, 2 * (inputs - weights))
    return (schedule.stages - 1) * each / schedule.chunks


def predict_step(
    work: StageWork, sent: StageTraffic, plan: StepPlan, cluster: Cluster, held: Mapping[str, Any]
) -> StepTime:
    """Predict a step's time from the work, traffic and states (`held`) of the slowest stage."""
    passes = pass_seconds(work, plan, cluster.device)
    sequences = plan.setup.batch / plan.setup.cp
    attention = attention_seconds(work, plan, cluster.device) * sequences
    each, once = exposed_seconds(sent, plan, cluster, attention)
    waits = PassTime(passes.forward + each / 2, passes.inputs + each / 2, passes.weights)  # layers wait in both passes
    bubble = bubble_seconds(plan.setup.pipeline, waits)
    update = held["updated"] / (MEMORY_SHARE * cluster.device.bandwidth)
    data = data_seconds(sent, work, plan, cluster, passes, held)
    communication = each * plan.microbatches + once + data
    return StepTime(passes.total * plan.microbatches, communication, bubble, update)
