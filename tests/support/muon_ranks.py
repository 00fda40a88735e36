"""Steps Muon, NorMuon and NorMuon on a hyperball on sharded and replicated matrices in the ranks that
forked_processes.py starts, with the arguments OUT REPLICAS SHARDS. OUT/RANK.json has the largest difference from one
process' steps, and how many matrices the rank has orthogonalised."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from zoo.distributed.meeting import join_processes
from zoo.distributed.world import read_world
from zoo.training.optim import orthogonal
from zoo.training.optim.decay import HyperballOptimizer

SHAPES = [(24, 16), (16, 24), (24, 16), (10, 10), (24, 16), (24, 16), (3, 8, 6), (6, 12, 8)]
CUT = {(3, 8, 6): 1}
"""Dimensions along which stacks of few experts are cut, in place of the first."""


OPTIONS: dict[str, Any] = {
    **{"lr": 0.1, "momentum": 0.95, "nesterov": True, "iterations": 5, "dtype": torch.float32},
    **{"betas": (0.9, 0.95), "eps": 1e-8},
}


def make_rules(parameters: list[Any]) -> Iterator[torch.optim.Optimizer]:
    """One after another over the same parameters."""
    groups = [{"params": parameters, "weight_decay": 0.1}]
    yield orthogonal.MuonOptimizer(groups, **OPTIONS)
    yield orthogonal.NorMuonOptimizer([{**groups[0]}], **OPTIONS, beta2=0.9)
    yield HyperballOptimizer(orthogonal.NorMuonOptimizer([{**groups[0]}], **OPTIONS, beta2=0.9))


def main(folder: str, replicas: str, shards: str) -> None:
    join_processes(read_world(), "cpu")
    mesh = init_device_mesh("cpu", (int(replicas), int(shards)), mesh_dim_names=("dp", "shard"))
    torch.manual_seed(0)
    whole = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]

    def place(value: torch.Tensor) -> Any:
        return distribute_tensor(value.detach(), mesh, [Replicate(), Shard(CUT.get(tuple(value.shape), 0))])

    parts = [torch.nn.Parameter(place(each)) for each in whole]
    counted, plain = [0], orthogonal.orthogonalise

    def count(x: torch.Tensor, iterations: int) -> torch.Tensor:
        counted[0] += len(x)
        return plain(x, iterations)

    for rule, shared in zip(make_rules(whole), make_rules(parts), strict=True):
        for _ in range(2):
            for one, part in zip(whole, parts, strict=True):
                one.grad = torch.randn(one.shape)
                part.grad = place(one.grad)
            rule.step()
            orthogonal.orthogonalise = count
            shared.step()
            orthogonal.orthogonalise = plain
    apart = max(float((one - part.full_tensor()).abs().max()) for one, part in zip(whole, parts, strict=True))  # type: ignore[attr-defined]
    found = {"apart": apart, "matrices": counted[0]}
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
