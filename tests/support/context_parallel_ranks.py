"""Compares models whose ranks have some of a row's tokens each with whole ones, in the ranks that
forked_processes.py starts, with the arguments CASES OUT. The largest differences go to OUT/RANK.json, by case."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from support.sent_bytes import Sent
from support.tensor_parallel_ranks import randomise
from zoo.compose import load
from zoo.distributed.context_parallel import SpreadContext
from zoo.distributed.meeting import join_processes
from zoo.distributed.world import read_world
from zoo.run.builder import build
from zoo.run.recompute import set_recompute

ROWS = 2


def make_inputs(spec: Any, tokens: int, documents: bool) -> dict[str, Any]:
    """Random rows, of several documents where asked, and targets of which some are left out."""
    draw = torch.Generator().manual_seed(tokens)
    ids, targets = torch.randint(3, spec.vocab_size, (2, ROWS, tokens), generator=draw)
    found: dict[str, Any] = {"input_ids": ids}
    found["targets"] = targets.masked_fill(torch.rand(targets.shape, generator=draw) < 0.3, -100)
    if documents:
        found["documents"] = (torch.rand((ROWS, tokens), generator=draw) < 0.15).long().cumsum(1)
    return found


def run(
    model: Any, inputs: dict[str, Any], autocast: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss and gradients of a training pass, and the bytes of the tensors that autograd keeps for it."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    model.zero_grad()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each),
    ):
        out = model.train()(**inputs)
    held = sum(each.nbytes() for each in kept.values())
    out.loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return out.loss.detach(), gradients, held


def compare(case: dict[str, Any], group: Any) -> dict[str, Any]:
    """Compare one case: overrides of a tiny model, tokens, whether keys travel (`rings`), documents, kernel, dtype and
    what is computed again."""
    spec = load(case.get("model", "llama-tiny"), ["n_layers=2", "d_model=48", "d_ff=64", *case["overrides"]])
    inputs = make_inputs(spec, case["tokens"], case.get("documents", False))
    torch.manual_seed(0)
    model = build(spec, kernel=case.get("kernel", "auto"), seed=0)
    randomise(model)
    model = model.to(getattr(torch, case.get("dtype", "float64")))
    loss, gradients, _ = run(model, inputs, case.get("autocast", False))
    gradients = {name: each.clone() for name, each in gradients.items()}
    set_recompute(model, case.get("recompute", "none"))
    model.context = SpreadContext(group, rings=case["rings"])
    with Sent() as sent:
        mine, own, kept = run(model, inputs, case.get("autocast", False))
    distributed.all_reduce(mine)
    worst, at = 0.0, ""
    norm = torch.stack([each.norm() for each in gradients.values()]).norm()
    for name, each in gradients.items():
        distributed.all_reduce(own[name])
        worst, at = max((worst, at), (float((own[name] - each).norm() / max(each.norm(), 1e-3 * norm)), name))
    loss_off = abs(float(mine / loss) - 1)
    return {"loss": loss_off, "gradient": worst, "at": at, "sent": sent.total, "kept": kept}


def main(cases: str, out: str) -> None:
    world = read_world()
    join_processes(world, "cpu")
    group = distributed.group.WORLD
    found = {name: compare(case, group) for name, case in json.loads(Path(cases).read_text()).items()}
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(found))
