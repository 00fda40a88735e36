"""Find the mesh that trains a model fastest: price every legal mesh, and rank those that fit by predicted time.

Memory is the exact price. Time is predicted (`zoo.costs.step_time`): meshes a few per cent apart are as good as equal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from zoo.analysis.solve.largest_fit import Room
from zoo.analysis.solve.mesh_prices import MeshPrices
from zoo.costs import flops
from zoo.costs.again import RECOMPUTE
from zoo.costs.cluster import Cluster
from zoo.costs.rank_model import context_faults, expert_faults, pipeline_faults
from zoo.costs.rank_tensors import share_out
from zoo.costs.rows import Priced
from zoo.costs.setup import Setup
from zoo.costs.step_time import StepPlan
from zoo.distributed.mesh import Mesh
from zoo.distributed.pipeline_schedule import PipelineSchedule
from zoo.errors import ConfigError, refuse

STEP_TOKENS = 1 << 22
"""Default tokens of a step: 4 Mi, with which Llama 3 405B began (Dubey et al., 2024, §3.4.1)."""

LARGEST = 32
"""Largest microbatch that is tried, in sequences."""


class Candidate(NamedTuple):
    """A way to take a step: a mesh, the sequences of a microbatch (`batch`), the `microbatches`, the recomputation."""

    mesh: Mesh
    batch: int
    microbatches: int
    recompute: str

    def plan(self, base: Setup, float8: bool = False) -> StepPlan:
        """Give the StepPlan of the candidate; all other settings are those of `base`."""
        own = {"batch": self.batch, "accumulate": self.microbatches, "recompute": self.recompute}
        setup = dataclasses.replace(base.on_mesh(self.mesh), **own)  # type: ignore[arg-type]
        return StepPlan(setup=setup, microbatches=self.microbatches, float8=float8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSearch:
    """The space of a mesh search: `count` GPUs of a cluster, a step of `sequences` (None: about STEP_TOKENS tokens),
    and the kinds of recomputation. `setup` gives context, precision, optimizer and schedule; its ranks are solved
    for. With `float8` the products inside layers are in fp8. Raises ConfigError for invalid fields, and for GPUs that
    do not fill the nodes."""

    count: int
    cluster: Cluster
    setup: Setup = dataclasses.field(default_factory=Setup)
    sequences: int | None = None
    recompute: tuple[str, ...] = RECOMPUTE
    float8: bool = False

    def __post_init__(self) -> None:
        faults = [
            f"{name}: must be 1 or more, found {value}"
            for name, value in (("count", self.count), ("global-batch", self.sequences))
            if value is not None and value < 1
        ]
        if unknown := [each for each in self.recompute if each not in RECOMPUTE]:
            faults.append(f"recompute: unknown {unknown[0]!r} (some of: {', '.join(RECOMPUTE)})")
        if self.count > self.cluster.node and self.count % self.cluster.node:
            whole = self.count // self.cluster.node * self.cluster.node
            faults.append(f"count: {self.count} GPUs do not fill nodes of {self.cluster.node} (--count {whole}, say)")
        refuse(faults)

    def settle_sequences(self, spec: Priced) -> int:
        """Give the number of sequences of a step."""
        return self.sequences or round_sequences(STEP_TOKENS / self.setup.tokens(spec), self.count)


def round_sequences(sequences: float, count: int) -> int:
    """Round the sequences of a step to a number that many meshes divide: a power of two, times the odd factor of the
    number of GPUs. Example: 122 sequences on 64 GPUs are 128, on 24 GPUs 96."""
    odd = count // (count & -count)
    return odd * 2 ** max(0, round(math.log2(max(sequences, 1) / odd)))


def find_meshes(spec: Priced, search: MeshSearch, room: Room, *, top: int = 10) -> dict[str, Any]:
    """Rank the meshes that hold a model: the `top` fastest, each with its fastest candidate, as plain data.

    `candidates` is the number priced, `fitting` the number that fit. If none fits, `meshes` is empty and `nearest` is
    the candidate with the least memory. Raises ConfigError with the reasons if no mesh is legal.
    """
    sequences = search.settle_sequences(spec)
    prices = MeshPrices(spec, search.setup, search.cluster)
    plans = ((each, each.plan(search.setup, search.float8)) for each in list_candidates(spec, search))
    priced = [(prices.count_memory(plan.setup), candidate, plan) for candidate, plan in plans]
    if not priced:
        raise ConfigError(*explain_none(spec, search, sequences))
    fitting = [each for each in priced if each[0] <= room.bytes]
    fitting.sort(key=lambda each: (prices.predict(each[2]).total, each[0]))
    best: dict[Mesh, Any] = {}
    for each in fitting:
        best.setdefault(each[1].mesh, each)
    answer = {
        "gpu": search.cluster.device.name,
        "count": search.count,
        "node": search.cluster.node,
        "network_bytes_per_second": search.cluster.network,
        "context": search.setup.tokens(spec),
        "sequences": sequences,
        "tokens": sequences * search.setup.tokens(spec),
        "candidates": len(priced),
        "fitting": len(fitting),
        "room": room.as_dict(),
        "meshes": [describe(spec, prices, *each) for each in list(best.values())[:top]],
    }
    return answer if fitting else {**answer, "nearest": describe(spec, prices, *min(priced, key=lambda each: each[0]))}


def describe(spec: Priced, prices: MeshPrices, memory: int, candidate: Candidate, plan: StepPlan) -> dict[str, Any]:
    """Give a candidate's price as plain data. `mfu` is relative to the peak rate of the set-up's dtype, also with fp8
    products; FLOPs are the model's, without recomputation."""
    time, context = prices.predict(plan), prices.base.tokens(spec)
    tokens = plan.sequences * context
    speed = tokens / time.total / plan.gpus
    done = speed * flops.count_flops(spec, context)["train"]
    return {
        "mesh": candidate.mesh.as_dict(),
        "batch": candidate.batch,
        "microbatches": candidate.microbatches,
        "recompute": candidate.recompute,
        "memory": memory,
        "seconds": time.total,
        **time._asdict(),
        "tokens_per_second_per_gpu": speed,
        "flops_per_second_per_gpu": done,
        "mfu": done / prices.cluster.device.flops(plan.setup.computed),
    }


# ---------------------------------------------------------------- which are legal


def list_candidates(spec: Priced, search: MeshSearch) -> Iterator[Candidate]:
    """List every legal way to take a step: meshes, microbatches in powers of two, and recomputations. The KV exchange
    and the pipeline's schedule are the set-up's."""
    sequences = search.settle_sequences(spec)
    for mesh in list_meshes(spec, search.count, search.cluster.node, search.setup):
        ways = [each for each in search.recompute if mesh.pipeline.find_recompute_fault(each) is None]
        batch = 1
        while batch <= LARGEST and batch * mesh.rows <= sequences:
            passes, rest = divmod(sequences, batch * mesh.rows)
            if not rest and (mesh.pp == 1 or mesh.pipeline.find_microbatch_fault(passes) is None):
                yield from (Candidate(mesh, batch, passes, each) for each in ways)
            batch *= 2


def list_meshes(spec: Priced, count: int, node: int, setup: Setup) -> Iterator[Mesh]:
    """List the meshes of `count` GPUs on which a model can be trained, with tensor parallelism within a node of `node`
    GPUs. Context, KV exchange and pipeline schedule are the set-up's."""
    sizes, context = divisors(count), setup.tokens(spec)
    tensor = [tp for tp in sizes if tp <= node and not list_tensor_faults(spec, tp)]
    contexts = [cp for cp in sizes if not list_context_faults(spec, cp, context)]
    pipelines = [PipelineSchedule(setup.schedule, pp, setup.chunks) if pp > 1 else PipelineSchedule() for pp in sizes]
    pipelines = [each for each in pipelines if not pipeline_faults(spec, each)]
    experts = [ep for ep in sizes if ep == 1 or not list(expert_faults(spec, ep))]
    for tp in tensor:
        for pipeline in (each for each in pipelines if count % (tp * each.stages) == 0):
            pp = pipeline.stages
            how: Any = {"schedule": pipeline.kind, "chunks": pipeline.chunks, "cp_comm": setup.cp_comm}
            alone = pipeline.find_ring_fault(setup.cp_comm) is not None
            for cp in (each for each in contexts if count % (tp * pp * each) == 0 and (each == 1 or not alone)):
                rows = count // (tp * pp * cp)
                for shard in [1] if pipeline.splits_backward else divisors(rows):
                    parts = shard * cp if shard > 1 else rows * cp
                    for ep in (each for each in experts if rows * cp % each == 0):
                        if parts % ep == 0 or ep % parts == 0:
                            yield Mesh(dp=rows // shard, shard=shard, cp=cp, tp=tp, ep=ep, pp=pp, **how)


def divisors(count: int) -> list[int]:
    """List the divisors of a number, the smallest first."""
    low = [each for each in range(1, int(count**0.5) + 1) if count % each == 0]
    return sorted({*low, *(count // each for each in low)})


def list_tensor_faults(spec: Priced, tp: int) -> list[str]:
    """List why a model cannot be divided over `tp` ranks of tensor parallelism."""
    try:
        share_out(spec, Setup(tp=tp))
    except ConfigError as error:
        return list(error.faults)
    return []


def list_context_faults(spec: Priced, cp: int, context: int) -> list[str]:
    """List why rows cannot be divided over `cp` ranks, each of which has two runs of a row's tokens."""
    if cp == 1:
        return []
    if context % (2 * cp):
        return [f"cp: 2·cp={2 * cp} does not divide context={context}"]
    return context_faults(spec, cp)


def explain_none(spec: Priced, search: MeshSearch, sequences: int) -> list[str]:
    """Say why no mesh is legal: the GPUs do not divide the step's sequences, or the model refuses to be divided."""
    sizes, context = divisors(search.count), search.setup.tokens(spec)
    refused = [list_tensor_faults(spec, each) for each in sizes[1:2]]
    refused += [list_context_faults(spec, each, context) for each in sizes[1:2]]
    why = f"; {'; '.join(each[0] for each in refused if each)}" if any(refused) else ""
    return [
        f"global-batch: no mesh of {search.count} GPUs divides {sequences} sequences of {context} tokens"
        f"{why} (--global-batch {round_sequences(max(sequences, search.count), search.count)}, say)"
    ]
