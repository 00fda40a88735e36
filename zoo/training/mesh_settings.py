"""Read from the config how a run is spread over processes: its mesh."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, PositiveInt

from zoo.costs.rank_model import context_faults, expert_faults, pipeline_faults, shard_model
from zoo.distributed.mesh import Mesh
from zoo.distributed.pipeline_schedule import WHOLE_BACKWARD, PipelineSchedule
from zoo.distributed.world import World, read_world
from zoo.errors import ConfigError
from zoo.kernels.ring import PART_KERNELS
from zoo.spec import Spec
from zoo.spec.cuts import find_cut_faults, find_cuts
from zoo.training.packaged import make_count_check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zoo.model.tower import Topology
    from zoo.training.settings import Training


Ways = Annotated[int | Literal["auto"], BeforeValidator(make_count_check(1))]


class ParallelSettings(Spec, axis="parallel", kind="mesh", default="mesh"):
    """The mesh of a run's processes: the number of processes along each dimension of parallelism. One of `dp`, `shard`,
    `cp`, `tp` and `pp` may be `auto`: the number of processes divided by the product of the other four."""

    dp: Ways = 1
    """Replicas of the model, each with its own rows; gradients are summed (DDP; Li et al., 2020)."""
    shard: Ways = 1  # type: ignore[override]  # overrides Spec.shard, which cuts a model's Spec
    """Processes of a replica, each with its own rows and a part of every weight, gradient and optimizer state; the
    weights of a layer are gathered when it computes (ZeRO-3; Rajbhandari et al., 2020; torch's FSDP2)."""
    cp: Ways = 1
    """Context parallelism: processes that each have their own tokens of the same rows (Llama 3; Dubey et al., 2024)."""
    tp: Ways = 1
    """Tensor parallelism: processes that each have their own heads, hidden units and part of the vocabulary
    (Megatron-LM; Shoeybi et al., 2019), with sequence parallelism between sub-layers (Korthikanti et al., 2022)."""
    async_tp: bool = False
    """Whether compiled layers overlap the exchanges of tp with their matrix products (Wang et al., 2022), over
    symmetric memory. Needs CUDA and NVLink; not yet run on a GPU."""
    ep: Ways = 1
    """Expert parallelism: size of the groups of dp, shard and cp processes that divide a mixture's experts and send
    tokens to them (GShard; Lepikhin et al., 2020); `auto` is one group of all."""
    pp: Ways = 1
    """Pipeline stages, each with some of the layers (Narayanan et al., 2021)."""
    cp_comm: Literal["all_gather", "ring"] = "all_gather"
    """How the processes of cp exchange keys and values: `all_gather` before each layer's attention, or around a `ring`
    during it (Liu et al., 2023)."""
    schedule: Literal["1f1b", "interleaved", "zero_bubble", "zero_bubble_v"] = "1f1b"
    """The order in which `accumulate` microbatches pass the stages of pp (`zoo.distributed.pipeline_schedule`)."""
    chunks: PositiveInt = 1
    """The number of chunks of layers that each stage of pp has."""

    def __post_init__(self) -> None:
        if self.cp_comm == "ring" and self.cp == 1:
            raise ValueError("cp_comm: is ring, and cp=1 has no keys to send (cp from 2 up, or cp_comm=all_gather)")
        if self.async_tp and self.tp == 1:
            raise ValueError("async_tp: is true, and tp=1 exchanges nothing (tp from 2 up, or async_tp=false)")
        open_ = [name for name, ways in self.ways.items() if ways == "auto"]
        if len(open_) > 1:
            raise ValueError(f"{' and '.join(open_)} are both auto (a number for one of them)")
        if (fault := PipelineSchedule(self.schedule, chunks=self.chunks).find_chunk_fault()) is not None:
            raise ValueError(fault)

    @property
    def ways(self) -> dict[str, int | str]:
        return {"dp": self.dp, "shard": self.shard, "cp": self.cp, "tp": self.tp, "pp": self.pp}

    def settle(self, world: World) -> Mesh:
        """Make the mesh of a world's processes. Raises ConfigError if the dimensions do not multiply to the number of
        processes, if `ep` does not fit dp, shard and cp, or if a schedule other than 1f1b has no stages."""
        stated = math.prod(each for each in self.ways.values() if isinstance(each, int))
        left, rest = divmod(world.size, stated)
        open_ = "auto" in self.ways.values()
        if rest or (left > 1 and not open_):
            told = {name: ways for name, ways in self.ways.items() if ways != 1 or name in ("dp", "shard")}
            said = " ".join(f"{name}={ways}" for name, ways in told.items())
            if world.size > 1 and stated == 1:
                raise ConfigError(f"parallel: {said} uses one process, found {world.size} (parallel=ddp or fsdp)")
            needs = f"{'a multiple of ' if open_ else ''}{stated} processes"
            would = f"torchrun --nproc-per-node {stated} -m zoo train …"
            raise ConfigError(f"parallel: {said} needs {needs}, found {world.size} ({would})")
        ways = {name: left if each == "auto" else int(each) for name, each in self.ways.items()}
        mesh = Mesh(**ways, async_tp=self.async_tp, cp_comm=self.cp_comm, schedule=self.schedule, chunks=self.chunks)
        ep = mesh.tokens if self.ep == "auto" else self.ep
        if mesh.tokens % ep or (mesh.weights[1] % ep and ep % mesh.weights[1]):
            found = f"ep={ep} divides neither the {mesh.tokens} processes of dp, shard and cp nor their parts"
            raise ConfigError(f"parallel: {found} (a divisor of {mesh.tokens})")
        if mesh.pp == 1 and self.schedule != "1f1b":
            found = f"schedule: is {self.schedule}, and pp=1 leaves no stages to order"
            raise ConfigError(f"parallel: {found} (pp of 2 or more, or schedule=1f1b)")
        return replace(mesh, ep=ep)


def find_world(settings: Training) -> World:
    """Return the processes that exist, or that a launcher will start."""
    world = read_world()
    return World(size=settings.nproc * settings.nodes) if settings.nproc and world.size == 1 else world


def find_parallel_faults(settings: Training, world: World, spec: Topology) -> list[str]:
    """List the settings that conflict with running over these processes."""
    try:
        mesh = settings.parallel.settle(world)
    except ConfigError as error:
        return list(error.faults)
    if mesh.size == 1:
        return []
    faults = []
    if settings.batch_size % (parts := mesh.rows * settings.accumulate):
        by = f"{mesh.rows} processes × accumulate={settings.accumulate}"
        found = f"is {settings.batch_size}, which {by} do not divide"
        faults.append(f"batch_size: {found} (a multiple of {parts})")
    for name, value, would in (
        ("precision", settings.precision, ("auto", "fp32", "bf16", "bf16_master", "fp8_tensorwise", "fp8_rowwise")),
        ("offload", settings.offload, ("none",)),
        ("lawa", settings.lawa, (None,)),
    ):
        if value not in would:
            instead = ", ".join("null" if each is None else each for each in would)
            faults.append(f"{name}: is {value}, which one process alone does (one of: {instead}; or parallel=none)")
    whole = mesh.tp == mesh.ep == 1
    if (needs := settings.optim.needs) != "parts" and not (needs == "matrices" and whole):
        would = "tp=1 and ep=1" if needs == "matrices" else "parallel=none"
        kind = f"{settings.optim.kind} with decay=hyperball" if settings.optim.by_part else settings.optim.kind
        found = f"{kind} needs whole tensors, of which each process has a part"
        faults.append(f"optim: {found} (optim=adamw, or {would})")
    if settings.lora is not None and not (whole and mesh.pp == 1):
        found = "adapts whole products, of which each process of tp, ep and pp has a part"
        faults.append(f"lora: {found} (lora=null, or parallel=fsdp)")
    elif settings.lora is not None and settings.lora.quantise and mesh.shard > 1:
        found = f"is {settings.lora.quantise}, and each process holds a part of every weight"
        faults.append(f"lora.quantise: {found} (null, or parallel=ddp)")
    elif settings.lora is not None and settings.lora.dropout:
        found = f"is {settings.lora.dropout}, and each process would draw for itself what it drops"
        faults.append(f"lora.dropout: {found} (0, or parallel=none)")
    if mesh.tokens == 1 and settings.precision == "bf16_master":
        faults.append("precision: is bf16_master, whose copies are those of dp, shard or cp processes (fp32, bf16)")
    faults += expert_faults(spec, mesh.ep)
    faults += find_pipeline_faults(settings, mesh, spec) if mesh.pp > 1 else []
    faults += find_context_faults(settings, mesh, spec) if mesh.cp > 1 else []
    return faults + (find_tensor_faults(settings, mesh, spec) if mesh.tp > 1 else [])


def find_pipeline_faults(settings: Training, mesh: Mesh, spec: Topology) -> list[str]:
    """List the settings that conflict with a pipeline. A schedule that splits the backward pass goes through each
    microbatch's graph twice, which excludes recomputation, a ring's exchange of keys and FSDP's sharded weights."""
    faults = []
    if settings.objective.kind != "next_token":
        faults.append(f"objective: is {settings.objective.kind}, and a pipeline takes rows of text (next_token)")
    schedule = mesh.pipeline
    faults += [
        each
        for each in (
            schedule.find_microbatch_fault(settings.accumulate),
            schedule.find_recompute_fault(settings.recompute),
            schedule.find_ring_fault(mesh.cp_comm),
        )
        if each is not None
    ]
    if schedule.splits_backward and mesh.shard > 1:
        found = (
            f"is {mesh.shard}, and schedule={schedule.kind} keeps weights whole between the halves of a backward pass"
        )
        faults.append(f"parallel.shard: {found} (shard=1, or {WHOLE_BACKWARD})")
    faults += pipeline_faults(spec, schedule)
    if settings.compile is True and schedule.splits_backward:
        found = f"goes with no backward pass in halves, which schedule={schedule.kind} takes"
        faults.append(f"compile: {found} (compile=false, or {WHOLE_BACKWARD})")
    return faults


def find_context_faults(settings: Training, mesh: Mesh, spec: Topology) -> list[str]:
    """List the settings that conflict with context parallelism."""
    faults = []
    if settings.objective.kind != "next_token":
        faults.append(f"objective: is {settings.objective.kind}, and cp={mesh.cp} cuts rows of text (next_token)")
    if settings.seq_len % (parts := 2 * mesh.cp):
        faults.append(f"seq_len: is {settings.seq_len}, which 2·cp={parts} do not divide (a multiple of {parts})")
    return faults + context_faults(spec, mesh.cp) + (find_ring_faults(settings) if mesh.rings else [])


def find_ring_faults(settings: Training) -> list[str]:
    """List the settings that conflict with a ring of keys."""
    instead, drops = "or parallel.cp_comm=all_gather", settings.dropout is not None and settings.dropout.attention > 0
    return [
        f"{name}: {found}, found parallel.cp_comm=ring ({would}, {instead})"
        for name, found, would, is_on in (
            ("kernel", "computes whole rows of keys", "kernel=auto", settings.kernel not in PART_KERNELS),
            ("dropout.attention", "drops of whole rows of probabilities", "dropout.attention=0", drops),
            ("compile", "compiles no layer whose ranks wait for each other", "compile=false", settings.compile is True),
        )
        if is_on
    ]


def find_tensor_faults(settings: Training, mesh: Mesh, spec: Topology) -> list[str]:
    """List the settings that conflict with tensor parallelism."""
    try:
        faults = list(find_cut_faults(find_cuts(spec, shard_model(spec, mesh.tp), mesh.tp)))
    except ConfigError as error:
        faults = list(error.faults)
    faults += [f"tp: {line}" for line in find_wide_norms(spec)]
    if not settings.objective.divides:
        found = f"is {settings.objective.kind}, which goes with no tensor parallelism yet, found tp={mesh.tp}"
        faults.append(f"objective: {found} (objective=next_token, or parallel.tp=1)")
    return faults


def find_wide_norms(spec: Topology) -> Iterator[str]:
    """List norms over channels of several ranks, except RMS norms: ranks reduce only the mean of squares."""
    for tower in spec.towers().values():
        for block in tower.blocks.values():
            for name in ("qk_norm", "out_norm"):
                node = getattr(block.attention, name, None)
                if node is not None and getattr(node, "over", "") == "whole" and node.norm.kind != "rmsnorm":
                    yield f"attention.{name} is a {node.norm.kind} over the heads of all ranks (tp=1, or rmsnorm)"
            for place in ("ffn", "dense"):
                norm = getattr(getattr(block, place, None), "inner_norm", None)
                if norm is not None and norm.kind != "rmsnorm":
                    yield f"{place}.inner_norm is a {norm.kind} over the channels of all ranks (tp=1, or rmsnorm)"
