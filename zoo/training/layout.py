"""Lay a model out on the processes of a mesh: replicas, their parts, and the parts of each layer's computation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zoo.costs.shards import shard_model, spread_experts
from zoo.lazy import torch
from zoo.ranks.cuts import find_cuts
from zoo.ranks.shards import Division, Shares
from zoo.ranks.world import World
from zoo.spec import Experts, Linear, placed_tensors
from zoo.training.parallel import Mesh

if TYPE_CHECKING:
    from collections.abc import Iterator

DP, SHARD, EP, TP = "dp", "shard", "ep", "tp"
"""The dimensions of a mesh, by torch's names for them here; the ranks of the last are next to each other."""


@dataclass(frozen=True)
class Layout:
    """The processes of a mesh as torch has them: `ranks` is the device mesh, `rows` those that train on rows of their
    own, `tokens` on tokens of their own, `context` those with rows in common and tokens of their own. `groups` are the
    ranks of tensor parallelism that have the same values, by how many they are. `of_experts` is the device mesh of the
    processes that hold the same experts, and `experts` those that have others."""

    mesh: Mesh
    rows: World
    tokens: World
    ranks: Any = None
    context: Any = None
    groups: dict[int, Any] = field(default_factory=dict)
    of_experts: Any = None
    experts: Any = None

    @classmethod
    def open(cls, mesh: Mesh, world: World, device: Any) -> Layout:
        """Make the process groups of a mesh, which all processes must do together."""
        if mesh.size == 1:
            return cls(mesh, world, world)
        from torch.distributed.device_mesh import init_device_mesh

        ranks = init_device_mesh(device.type, (*mesh.weights, mesh.tp), mesh_dim_names=(DP, SHARD, TP))
        tokens = _open_world(world, mesh.tp, range(mesh.tp)) if mesh.tp > 1 else world
        rows = _open_world(world, mesh.tp * mesh.cp, range(mesh.tp * mesh.cp)) if mesh.cp > 1 else tokens
        context = None
        if mesh.cp > 1:
            size = mesh.tp * mesh.cp
            firsts = [row + rank for row in range(0, world.size, size) for rank in range(mesh.tp)]
            context = _open_groups(world, [list(range(first, first + size, mesh.tp)) for first in firsts])
        groups = {mesh.tp: ranks.get_group(TP)}
        for copies in (each for each in range(2, mesh.tp) if mesh.tp % each == 0):
            runs = [list(range(first, first + copies)) for first in range(0, world.size, copies)]
            groups[copies] = _open_groups(world, runs)
        layout = cls(mesh, rows, tokens, ranks, context, groups)
        if mesh.ep == 1:
            return layout
        shape, names = (*mesh.experts, mesh.ep, mesh.tp), (DP, SHARD, EP, TP)
        of_experts = init_device_mesh(device.type, shape, mesh_dim_names=names)
        return replace(layout, of_experts=of_experts[DP, SHARD], experts=of_experts.get_group(EP))

    def take_part(self, whole: Any) -> Any:
        """Give the Spec of what a rank computes of a model."""
        return shard_model(spread_experts(whole, self.mesh.ep), self.mesh.tp)

    def divide(self, model: Any, whole: Any) -> None:
        """Let a model that was built of a rank's part compute as a part of the whole one: with the others of its group,
        at the seams."""
        from zoo.ranks.context import SpreadContext
        from zoo.ranks.group import Group
        from zoo.ranks.tensor import TensorSeam
        from zoo.run.layer import Layer

        if self.context is not None:
            for path, _ in model.towers():
                model.get_submodule(path).context = SpreadContext(self.context)
        model.set_whole(whole)
        experts = tensor = None
        spread = spread_experts(whole, self.mesh.ep)
        if self.experts is not None:
            experts = Division(find_cuts(whole, spread, self.mesh.ep), Group(self.experts))
            for module in model.modules():
                if isinstance(module, Layer):
                    module.expert_group = experts.group
        if self.mesh.tp > 1:
            seam = TensorSeam(self.groups[self.mesh.tp])
            tensor = Division(find_cuts(spread, model.spec, seam.size), seam.group)
            self._divide_layers(model, seam)
        model.shares = Shares(experts, tensor, self.groups)

    def _divide_layers(self, model: Any, seam: Any) -> None:
        """Put a seam on both sides of every sub-layer that the ranks of tensor parallelism divide."""
        from zoo.run.layer import Layer

        for module in model.modules():
            if isinstance(module, Layer):
                module.seam = seam
                if module.spec.axis == "block":
                    for name in module.spec.divided:  # type: ignore[attr-defined]
                        if (part := getattr(module, name, None)) is not None:
                            part.divided = True
        if seam.rank:
            for name in list_summed_biases(model.spec):
                model.get_submodule(name).adds_bias = False

    def lay_out(self, model: Any, precision: str) -> None:
        """Spread a model over the processes that have rows of their own, in place: each layer's weights by themselves,
        and the others together. Gradients are summed up over all of them, not averaged."""
        if self.tokens.size == 1:
            return
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy()
        if precision == "bf16_master":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        how: dict[str, Any] = {"mesh": self.ranks[DP, SHARD], "mp_policy": policy}
        how["shard_placement_fn"] = place_experts(model, self.mesh.weights[1])
        if self.of_experts is not None:
            self._lay_out_experts(model, how)
        for path, tower in model.towers():
            stack = model.get_submodule(path) if path else model
            if len(stack.blocks) == len(tower.pattern):  # one that is used several times stays with the others
                for layer in stack.blocks:
                    fully_shard(layer, **how)
        fully_shard(model, **how)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no other

    def _lay_out_experts(self, model: Any, how: dict[str, Any]) -> None:
        """Spread each mixture's experts over the processes that hold the same; where there is one, they stay as they
        are."""
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


def _open_world(world: World, every: int, firsts: range) -> World:
    """Make the worlds of every so manieth process, from each first one on; returns the one that this process is in."""
    group = _open_groups(world, [list(range(first, world.size, every)) for first in firsts])
    return World(world.rank // every, world.size // every, world.local_rank, group)


def _open_groups(world: World, runs: list[list[int]]) -> Any:
    """Make a process group of each run of ranks; returns the one that this process is in."""
    from torch import distributed

    groups = [distributed.new_group(ranks) for ranks in runs]
    return next(group for ranks, group in zip(runs, groups, strict=True) if world.rank in ranks)


def list_summed_biases(spec: Any) -> Iterator[str]:
    """List the modules whose bias joins a sum over ranks, so that one of these alone adds it."""
    for where, tower in spec.towers().items():
        for name, row, leaf in placed_tensors(tower, tower.d_model, where):
            linear = row.part.of if isinstance(row.part, Experts) else row.part
            if leaf == "bias" and isinstance(linear, Linear) and linear.residual:
                yield name.rpartition(".")[0]


def place_experts(model: Any, ways: int) -> Any:
    """Make the choice of the dimension that a parameter is cut along: the first, and of a stack of fewer experts than
    ways its second, as `zoo stats` prices it."""
    from torch.distributed.tensor import Shard

    from zoo.run.layer import StackedLinear

    stacks = [module for module in model.modules() if isinstance(module, StackedLinear)]
    stacked = {id(each) for module in stacks for each in module.parameters()}

    def choose(parameter: Any) -> Shard | None:
        few = id(parameter) in stacked and parameter.shape[0] < ways
        return Shard(1) if few and parameter.ndim > 1 else None

    return choose
