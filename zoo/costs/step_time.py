# b sequences of a microbatch, m microbatches, p stages, v chunks of a stage
"""Predict how long a training step takes on a mesh of GPUs.

A step is m microbatches through the slowest stage, the pipeline's bubble, what data parallelism sends beyond what
compute covers, and the update. What is computed is timed by class of operator: matrix products and attention at a share
of the peak rate, what lies between them at the memory's bandwidth. Collectives of tensor, context and expert
parallelism are exposed, as a layer waits for them; those of data parallelism run beside the layers, and keys that go
round a ring beside attention.

Launches of kernels, waiting for data, uneven experts and stragglers cost nothing here. `docs/scale.md` compares
predictions with published runs.
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
from zoo.costs.parallel import Stage
from zoo.costs.rows import tabulate
from zoo.costs.setup import Setup
from zoo.costs.states import states
from zoo.costs.traffic import ring_forward_share, split_data, traffic
from zoo.ranks.schedule import Schedule

MATMUL = {"a100": 0.869, "gh200": 0.836, "h100": 0.803, "mi325x": 0.604, "mi300x": 0.514}
"""The share of the peak that the fastest bf16 product reaches, by the beginning of a GPU's name (Bekman,
ml-engineering, Maximum Achievable Matmul FLOPS, 2025). Others are taken to be like the H100."""

MATMUL_FP8 = 0.709
"""The same of fp8 products on an H100."""

REACHED = 0.75
"""What products of a whole training step reach of the fastest one's rate. CALIBRATED, as the only constant here: of
steps of 0.05 the one at which the published dense runs of docs/scale.md have the smallest median error."""

FLASH2, FUSED = 0.35, 0.62
"""The share of the peak that attention reaches: FlashAttention-2 on an H100 (Shah et al., 2024, FlashAttention-3,
abstract), and FlashAttention-3 with 8,192 tokens and heads of 128 (pytorch/benchmark, #2391: 614 of 989 TFLOP/s)."""

FLASH2_A100 = 0.6
"""FlashAttention-2 on an A100: 50 to 73 % of the peak (Dao, 2023, FlashAttention-2, §1)."""

FORWARD_MOVES, BACKWARD_MOVES = 2, 3
"""How often the bytes that a layer saves pass through memory: each is written and read once in the forward pass; in the
backward pass it is read, and its gradient is written and read. (A fused kernel between two products has no other.)"""

MEMORY_SHARE = 0.9
"""The share of the memory's bandwidth that is reached (Isaev et al., 2023, Calculon, systems/a100_80g.json)."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A training step on a mesh.

    `setup` has the ranks, the schedule of the pipeline and one microbatch, of `batch` sequences; `microbatches` go
    through a rank in a step. With `float8` the products inside layers are in fp8. `attention` is the share of the peak
    that attention reaches, that of FlashAttention-2 unless given; with `keeps_gathered` FSDP gathers weights once a
    step.
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
    """The work of a rank of a stage in a forward pass of one sequence: FLOPs of matrix products inside `layers` and
    `beside` them, FLOPs of `attention`, and bytes of saved activations (`saved`). `units` are the layers and ends that
    FSDP gathers one by one; `index` is the stage's. `once` counts those FLOPs of `layers` and `attention` that have no
    backward pass."""

    layers: float
    beside: float
    attention: float
    saved: float
    units: int
    index: int = 0
    once: tuple[float, float] = (0.0, 0.0)

    @property
    def learning(self) -> StageWork:
        """What has a backward pass."""
        layers, attention = self.once
        return self._replace(layers=self.layers - layers, attention=self.attention - attention, once=(0.0, 0.0))


class StageTraffic(NamedTuple):
    """Bytes that a rank sends: for a sequence of a microbatch, by kind of parallelism (`streams`), and once a step
    (`fixed`); of data parallelism the weights it `gathered` and the gradients it `reduced` in one pass, and those that
    replicas sum up (`replicated`)."""

    streams: Mapping[str, float]
    fixed: Mapping[str, float]
    gathered: float
    reduced: float
    replicated: float


class StepTime(NamedTuple):
    """Seconds of a step: `compute` and exposed `communication` of all microbatches, the pipeline's `bubble`, and the
    optimizer's `update`."""

    compute: float
    communication: float
    bubble: float
    update: float

    @property
    def total(self) -> float:
        return sum(self)


def measure_work(stage: Stage, context: int, saved: Mapping[str, float], tp: int) -> StageWork:
    """Count what a rank of a stage computes for one sequence. `saved` are the bytes that each section of a pass saves
    of it on one rank alone, by the names of `list_sections`."""
    table = tabulate(stage)
    layers = beside = kept = once = 0.0
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
    for name, kind, count in stage.layers():
        kept += saved[f"{name}.layer:{kind}" if name else f"layer:{kind}"] * count
    for name, ends in stage.ends.items():
        last = f"{name}.loss" if name else "loss"
        first = f"{name}.embedding" if name else "embedding"
        kept += saved[last] if "head" in ends and last in saved else 0
        kept += saved[first] if "embedding" in ends else 0
    units = sum(count for _, _, count in stage.layers()) + len(stage.ends)
    return StageWork(layers, beside, attention, kept / tp, units, stage.index, (once, choosing))


def count_traffic(spec: Any, setup: Setup, stage: Stage) -> StageTraffic:
    """Count what a rank of a stage sends. Every kind but data parallelism grows in proportion to the sequences, above
    what is sent once a step; so two batches tell them apart."""
    one, two = (traffic(spec, replace(setup, batch=batch), stage) for batch in (1, 2))
    streams = {name: two[name]["bytes"] - one[name]["bytes"] for name in one if name != "dp"}
    fixed = {name: one[name]["bytes"] - streams[name] for name in streams}
    return StageTraffic(streams, fixed, *split_data(stage, setup))


class PassTime(NamedTuple):
    """Seconds that a stage computes for one microbatch: in the forward pass, and in the backward pass, with what is
    computed again, for the gradients of inputs and those of weights."""

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
    """Time the compute of one microbatch. Of a backward pass the gradients of weights are one product for each of the
    forward pass, but those of indexers."""
    setup = plan.setup
    sequences = setup.batch / setup.cp
    dtype = "fp32" if setup.precision == "fp32" else setup.dtype
    rate = device.flops(dtype) * share_of_peak(device) * REACHED
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
    """Time the attention of one sequence in the forward pass, of all its tokens."""
    flash = plan.attention or (FLASH2_A100 if device.name.startswith("a100") else FLASH2)
    return work.attention / (device.flops("fp32" if plan.setup.precision == "fp32" else plan.setup.dtype) * flash)


def share_of_peak(device: Hardware) -> float:
    """The share of a GPU's peak that its fastest product reaches."""
    return next((share for name, share in MATMUL.items() if device.name.startswith(name)), MATMUL["h100"])


def share_again(recompute: str) -> float:
    """The share of the layers' forward pass that is computed again whole, and whose collectives run again."""
    every = read_every(recompute)
    return 1.0 if recompute == "full" else 1 / every if every else 0.0


def exposed_seconds(sent: StageTraffic, plan: StepPlan, cluster: Cluster, attention: float) -> tuple[float, float]:
    """Time the collectives that layers wait for: in one microbatch, and once a step. `attention` is the time of a
    rank's attention in a microbatch's forward pass, beside which keys go round a ring."""
    setup = plan.setup
    again = 1 + share_again(setup.recompute) / 2  # half of what is sent is the forward pass'
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
    """Time what layers wait for keys of other ranks, which are sent in so many seconds in both passes together.

    Round a ring of n ranks (Liu et al., 2023) each of n − 1 turns takes as long as sending or attending, whichever is
    longer; the last one attends alone. Sending slows down attention meanwhile, as any collective does.
    """
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
    sent: StageTraffic, work: StageWork, plan: StepPlan, cluster: Cluster, compute: PassTime, held: Any
) -> float:
    """Time what data parallelism adds to a step: what is sent beyond what compute covers, and what sending takes from
    compute meanwhile. `compute` is a microbatch's, `held` what `states` counts.

    FSDP gathers weights for each microbatch and reduces gradients after each, also in a pipeline. With ZeRO 1 and 2,
    and in a pipeline that shards no weights or keeps those that it gathered, gradients are reduced once.
    """
    setup, passes = plan.setup, plan.microbatches
    size, copies = setup.dp * setup.cp, setup.replicas
    gather, reduce = (cluster.ring_seconds(each, setup.tp, size) for each in (sent.gathered, sent.reduced))
    reduce += cluster.ring_seconds(sent.replicated, setup.tp * size, copies)
    gathers = 1 if plan.keeps_gathered or setup.zero < 3 else passes
    reduces = 1 if setup.zero in (1, 2) or (setup.pp > 1 and gathers == 1) else passes

    def beyond(gather: float, reduce: float) -> float:
        """Half of the weights are gathered in the forward pass. The first unit's weights and the last one's gradients
        are covered by nothing."""
        waits = max(gather / 2 - compute.forward, 0) + max(gather / 2 + reduce - compute.backward, 0)
        return max(waits, (gather + reduce) / work.units)

    exposed = beyond(gather, reduce)
    exposed += (passes - 1) * beyond(gather if gathers > 1 else 0.0, reduce if reduces > 1 else 0.0)
    hidden = gather * gathers + reduce * reduces - exposed
    return exposed + cluster.usage(setup.tp, size * copies) * max(hidden, 0)


def bubble_seconds(schedule: Schedule, passes: PassTime) -> float:
    """Time what a stage of a pipeline waits in a step, whose own passes of one microbatch take so long: once for each
    other stage, in times of a chunk's passes

    - 1f1b, interleaved: F + I + W (Narayanan et al., 2021, §2.2);
    - zero_bubble: F + I − W (Qi et al., 2023, §2, ZB-H1), and I at least;
    - zero_bubble_v: F where all three are equal. torch's order waits as long as the longest of F, I and 2·(I − W)
      where W ≤ F ≤ I, as they are here.
    """
    forward, inputs, weights = passes
    each = passes.total
    if schedule.kind == "zero_bubble":
        each = max(forward + inputs - weights, inputs)
    elif schedule.kind == "zero_bubble_v":
        each = max(forward, inputs, 2 * (inputs - weights))
    return (schedule.stages - 1) * each / schedule.chunks


def bubble_share(schedule: Schedule, microbatches: int, passes: PassTime) -> float:
    """The share of a step in which a stage of a pipeline waits: of 1f1b and interleaved (p − 1)/(v·m + p − 1)
    (Narayanan et al., 2021, §2.2), whatever the passes take."""
    waits = bubble_seconds(schedule, passes)
    return waits / (microbatches * passes.total + waits)


def predict_step(
    work: StageWork, sent: StageTraffic, plan: StepPlan, cluster: Cluster, held: Mapping[str, Any]
) -> StepTime:
    """Predict a step from what the slowest stage computes and sends, and from the states that it holds."""
    passes = pass_seconds(work, plan, cluster.device)
    sequences = plan.setup.batch / plan.setup.cp
    attention = attention_seconds(work, plan, cluster.device) * sequences
    each, once = exposed_seconds(sent, plan, cluster, attention)
    waits = PassTime(passes.forward + each / 2, passes.inputs + each / 2, passes.weights)  # layers wait in both
    bubble = bubble_seconds(plan.setup.pipeline, waits)
    update = held["updated"] / (MEMORY_SHARE * cluster.device.bandwidth)
    data = data_seconds(sent, work, plan, cluster, passes, held)
    communication = each * plan.microbatches + once + data
    return StepTime(passes.total * plan.microbatches, communication, bubble, update)


def find_slowest(work: Mapping[int, StageWork], plan: StepPlan, device: Hardware) -> int:
    """Find the stage whose passes take longest, by its index."""
    return max(work, key=lambda index: pass_seconds(work[index], plan, device).total)


def hold_states(spec: Any, setup: Setup, pipeline: tuple[Stage, ...]) -> dict[str, Any]:
    """Count the states of the stage with most parameters."""
    return states(spec, setup, max(pipeline, key=lambda stage: stage.params))
