"""Lay a model out on the processes of a mesh: replicas, shards, and parts of each layer's computation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.parallel_checkpoint import fill_pieces, hold_weights
from zoo.costs.layer_cut import cut_layers
from zoo.costs.rank_model import shard_model, spread_experts
from zoo.distributed.group import RankGroup
from zoo.distributed.mesh import Mesh
from zoo.distributed.sharded_tensors import Division, Shares, Stages
from zoo.distributed.world import World
from zoo.lazy import torch
from zoo.model.stage import reads_table, take_chunks
from zoo.run.builder import build
from zoo.spec import table
from zoo.spec.cuts import find_cuts
from zoo.training.gradient import Autocast, choose_autocast
from zoo.training.precision import MASTER

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

    from zoo.checkpoint.stored import StoredModel
    from zoo.model.tower import Topology
    from zoo.run.layer import Model
    from zoo.training.pipeline import Pipeline
    from zoo.training.settings import Training

PP, DP, SHARD, EP, TP = "pp", "dp", "shard", "ep", "tp"
"""Names of the mesh's dimensions in torch's DeviceMesh. Ranks along the last one are adjacent."""


@dataclass(frozen=True)
class ProcessGroups:
    """The process groups of a mesh.

    `world` has all processes, `rows` those with different rows (dp, shard), `tokens` those with different tokens (dp,
    shard, cp). `ranks` is the device mesh that FSDP spreads weights over, `context` the group of cp. `groups[n]` is the
    group of n adjacent tensor-parallel ranks, for each n above 1 that divides tp. `of_experts` is the device mesh of
    processes that hold the same experts, `experts` the group of ep. `stages` is the group of pp, `ends` the group of
    the stages with the first and the last layer if these are two stages. The pipeline's layers are cut into stages for
    rows of `row_tokens` tokens.
    """

    mesh: Mesh
    world: World
    rows: World
    tokens: World
    ranks: Any = None
    context: Any = None
    groups: dict[int, Any] = field(default_factory=dict)
    of_experts: Any = None
    experts: Any = None
    stages: Any = None
    ends: Any = None
    row_tokens: int = 0

    @classmethod
    def open(cls, mesh: Mesh, world: World, device: torch.device, row_tokens: int = 0) -> ProcessGroups:
        """Create the process groups of a mesh. All processes must call this together."""
        if mesh.size == 1:
            return cls(mesh, world, world, world)
        from torch.distributed.device_mesh import init_device_mesh

        def open_ranks(copies: int, parts: int, ep: int = 1) -> Any:
            """Open a device mesh. Dimensions of size 1 are left out, except FSDP's two: along such a dimension torch
            would open a process group for each process, and all processes would wait for each group."""
            sizes = {PP: mesh.pp, DP: copies, SHARD: parts, EP: ep, TP: mesh.tp}
            sizes = {name: size for name, size in sizes.items() if size > 1 or name in (DP, SHARD)}
            return init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))

        grid, ranks = Grid(mesh, world), open_ranks(*mesh.weights)
        rows = grid.open_world("dp", "shard")
        tokens = rows if mesh.cp == 1 else grid.open_world("dp", "shard", "cp")
        layout = cls(mesh, world, rows, tokens, ranks[DP, SHARD])
        if mesh.cp > 1:
            layout = replace(layout, context=grid.open("cp"))
        if mesh.tp > 1:
            divisors = [each for each in range(2, mesh.tp + 1) if mesh.tp % each == 0]
            layout = replace(layout, groups={size: grid.open("tp", size=size) for size in divisors})
        if mesh.ep > 1:
            experts = open_ranks(*mesh.experts, mesh.ep)
            layout = replace(layout, of_experts=experts[DP, SHARD], experts=experts.get_group(EP))
        if mesh.pp > 1:
            ends = sorted({mesh.pipeline.find_stage(each) for each in (0, mesh.pipeline.n_chunks - 1)})
            both = grid.open("pp", only=tuple(ends)) if len(ends) > 1 else None
            layout = replace(layout, stages=grid.open("pp"), ends=both, row_tokens=row_tokens)
        return layout

    @property
    def stage(self) -> int:
        """The pipeline stage of this process."""
        from torch import distributed

        return 0 if self.stages is None else distributed.get_rank(self.stages)

    def take_part(self, whole: Topology) -> Topology:
        """Return the Spec of this rank's part of a model."""
        return shard_model(spread_experts(self.take_section(whole), self.mesh.ep), self.mesh.tp)

    def take_section(self, whole: Any) -> Topology:
        """Return the Spec of the layers in this rank's pipeline stage."""
        if self.mesh.pp == 1:
            return whole
        schedule = self.mesh.pipeline
        cut = cut_layers(whole, self.row_tokens, schedule.n_chunks)
        return take_chunks(whole, [cut[each] for each in schedule.list_chunks(self.stage)])

    def divide(self, model: Any, whole: Topology) -> None:
        """Connect a model built from `take_part` to other ranks: cp's context, ep's groups, tp's seams, pp's stages."""
        from zoo.distributed.context_parallel import SpreadContext
        from zoo.run.layer import Layer
        from zoo.run.tensor_parallel import TensorSeam, divide_layers

        if self.context is not None:
            for path, _ in model.towers():
                model.get_submodule(path).context = SpreadContext(self.context, self.mesh.rings)
        model.whole = whole
        experts = tensor = None
        section = self.take_section(whole)
        spread = spread_experts(section, self.mesh.ep)
        if self.experts is not None:
            experts = Division(find_cuts(section, spread, self.mesh.ep), RankGroup(self.experts))
            for module in model.modules():
                if isinstance(module, Layer):
                    module.expert_group = experts.group
        if self.mesh.tp > 1:
            seam = TensorSeam(self.groups[self.mesh.tp])
            if self.mesh.async_tp:
                seam.group.overlap_products()
            tensor = Division(find_cuts(spread, model.spec, seam.size), seam.group)
            divide_layers(model, seam)
        stages = None if self.stages is None else self._find_stages(whole, section)
        model.shares = Shares(experts, tensor, self.groups, stages)

    def _find_stages(self, whole: Any, section: Any) -> Stages:
        """Find the weights of this stage that other stages hold too: a table tied to the head, and positions."""
        group, common = RankGroup(self.stages), {}
        for name in table(section, section.d_model):
            if name.startswith("position.") and whole.position.inside:
                common[name] = group
            elif name.startswith("embedding.") and reads_table(whole) and self.ends is not None:
                common[name] = RankGroup(self.ends)
        return Stages(group, common)

    def open_pipeline(self, model: Model, settings: Training, device: torch.device) -> Pipeline | None:
        """Make the pipeline of a model after `lay_out`; None without stages."""
        if self.stages is None:
            return None
        from zoo.training.pipeline import Pipeline

        tokens = -(-settings.seq_len // self.mesh.cp // self.mesh.tp)
        return Pipeline(
            model,
            RankGroup(self.stages),
            self.mesh.pipeline,
            settings.objective,
            self.autocast(device, settings),
            settings.accumulate,
            tokens,
            torch.bfloat16 if settings.arithmetic == "bf16" else torch.float32,
            holds=self.tokens.size > 1 and self.mesh.weights[1] == 1,
        )

    def casts_weights(self, settings: Training) -> bool:
        """Whether FSDP gathers weights in bfloat16 and reduces gradients in float32: in bf16_master, and for sharded
        weights in every precision that computes in bfloat16. Autocast would gather weights in float32, and make copies
        of them."""
        whole = self.mesh.weights[1] == 1
        return self.tokens.size > 1 and settings.arithmetic == "bf16" and (settings.precision == MASTER or not whole)

    def autocast(self, device: torch.device, settings: Training) -> Autocast:
        """Choose the context of forward passes: no autocast where FSDP casts every weight. FSDP does not handle experts
        that only one process holds."""
        whole = self.mesh.ep > 1 and math.prod(self.mesh.experts) == 1
        return choose_autocast(device, "fp32" if self.casts_weights(settings) and not whole else settings.autocast)

    def lay_out(self, model: Any, settings: Training) -> None:
        """Apply FSDP2 to a model in place, over the processes with different tokens: each layer is a unit, and all
        other weights form one unit. Gradients are summed, not averaged."""
        if self.tokens.size == 1:
            return
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        from zoo.run.layer import list_common

        policy = MixedPrecisionPolicy()
        if self.casts_weights(settings):
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        how: dict[str, Any] = {"mesh": self.ranks, "mp_policy": policy}
        how["shard_placement_fn"] = place_experts(model, self.mesh.weights[1])
        if self.of_experts is not None:
            self._lay_out_experts(model, how)
        for path, tower in model.towers():
            stack = model.get_submodule(path) if path else model
            if len(stack.blocks) == len(tower.pattern):  # a layer used several times stays in the common unit
                for layer in stack.blocks:
                    for part in list_common(layer):  # modules that other layers use too
                        fully_shard(part, **how)
                    fully_shard(layer, **how)
        fully_shard(model, **how)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo cannot average

    def spread_frozen(self, stored: StoredModel, settings: Training, device: torch.device) -> Model:
        """Build a frozen model, such as a teacher, in addition to the trained one: sharded in the same way and computed
        in its stored dtype. Each process reads only its shards. All processes must call this, and run its passes
        together."""
        model: Any = build(stored.spec, device="meta")
        self.lay_out(model.requires_grad_(False).eval(), replace(settings, precision="fp32"))
        fill_pieces(hold_weights(model.to_empty(device=device)), stored.tensors)
        return model

    def _lay_out_experts(self, model: Model, how: dict[str, Any]) -> None:
        """Apply FSDP2 to experts over the processes that hold the same experts. If that is one process, exclude the
        experts from FSDP2."""
        from torch.distributed.fsdp import fully_shard

        from zoo.run.layer import Layer

        found = [each for each in model.modules() if isinstance(each, Layer) and each.spec.kind == "moe"]
        if math.prod(self.mesh.experts) == 1:
            how["ignored_params"] = {each for layer in found for each in layer.experts.parameters()}  # type: ignore[union-attr]
            return
        for layer in found:
            placing = place_experts(layer, self.mesh.experts[1])
            own = {**how, "mesh": self.of_experts, "shard_placement_fn": placing}
            fully_shard(list(layer.experts.children()), **own)  # type: ignore[union-attr, call-overload]


class Grid:
    """The ranks of all processes by their coordinates in a mesh: pp outermost, tp innermost."""

    def __init__(self, mesh: Mesh, world: World) -> None:
        self.world = world
        self.dims = ["pp", "dp", "shard", "cp", "tp"]
        self.ranks = torch.arange(mesh.size).view([getattr(mesh, name) for name in self.dims])

    def list_runs(self, *along: str) -> list[list[int]]:
        """List the groups of ranks whose coordinates differ only along the dimensions `along`."""
        others = [self.dims.index(name) for name in self.dims if name not in along]
        moved = self.ranks.permute(*others, *(self.dims.index(name) for name in along))
        return moved.flatten(len(others)).flatten(0, len(others) - 1).tolist()

    def open(self, along: str, size: int | None = None, only: tuple[int, ...] | None = None) -> Any:
        """Create the process groups along a dimension: over all its coordinates, over the coordinates `only`, or of
        `size` adjacent ranks each. Returns this process's group, or None."""
        runs = self.list_runs(along)
        if only is not None:
            runs = [[run[place] for place in dict.fromkeys(only)] for run in runs]
        if size is not None:
            runs = [run[first : first + size] for run in runs for first in range(0, len(run), size)]
        return self._open(runs)

    def open_world(self, *along: str) -> World:
        """Create the worlds along some dimensions. Returns this process's world."""
        runs = self.list_runs(*along)
        run = next(run for run in runs if self.world.rank in run)
        if len(run) == self.world.size:
            return self.world
        if len(run) == 1:
            return World(local_rank=self.world.local_rank)
        return World(run.index(self.world.rank), len(run), self.world.local_rank, self._open(runs))

    def _open(self, runs: list[list[int]]) -> Any:
        from torch import distributed

        groups = [distributed.new_group(ranks) for ranks in runs]
        return next((group for ranks, group in zip(runs, groups, strict=True) if self.world.rank in ranks), None)


def place_experts(model: Module, ways: int) -> Any:
    """Make the function by which FSDP chooses the dimension to shard: the first, or the second for a stack of fewer
    than `ways` experts, as `zoo stats` prices it."""
    from torch.distributed.tensor import Shard

    from zoo.run.layer import StackedLinear

    stacks = [module for module in model.modules() if isinstance(module, StackedLinear)]
    stacked = {id(each) for module in stacks for each in module.parameters()}

    def choose(parameter: Parameter) -> Shard | None:
        few = id(parameter) in stacked and parameter.shape[0] < ways
        return Shard(1) if few and parameter.ndim > 1 else None

    return choose
