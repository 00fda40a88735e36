"""Compares models of which each process computes a part with whole ones, in the ranks that
forked_processes.py starts, with the arguments OUT DTYPE MODEL…. The largest differences go to OUT/RANK.json, by
model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from zoo.costs.rank_model import shard_model
from zoo.distributed.gradients import measure_gradient, sum_common_gradients
from zoo.distributed.meeting import join_processes
from zoo.distributed.mesh import Mesh
from zoo.distributed.world import read_world
from zoo.errors import ZooError
from zoo.grammar.plain import from_dict
from zoo.model.init import initialise
from zoo.run.builder import build, load_spec
from zoo.spec.cuts import find_cut_faults, find_cuts
from zoo.training.layout import ProcessGroups
from zoo.training.mesh_settings import find_wide_norms

ROWS, TOKENS, SOURCE = 2, 21, 13


def make_inputs(spec: Any) -> dict[str, torch.Tensor]:
    """Random ids, with padding in the rows of an encoder, and targets of which some are left out."""
    draw = torch.Generator().manual_seed(1)
    towers = spec.towers()
    decoder = list(towers.values())[-1]

    def ids(tower: Any, tokens: int) -> torch.Tensor:
        return torch.randint(3, tower.vocab_size, (ROWS, tokens), generator=draw)

    found: dict[str, Any] = {}
    if len(towers) > 1:
        found = {"input_ids": ids(towers["encoder"], SOURCE), "decoder_input_ids": ids(decoder, TOKENS)}
        found["attention_mask"] = torch.ones(ROWS, SOURCE).index_fill(1, torch.tensor([SOURCE - 1]), 0)
    else:
        found = {"input_ids": ids(decoder, TOKENS)}
        if not decoder.causal:
            found["attention_mask"] = torch.ones(ROWS, TOKENS).index_fill(1, torch.tensor([TOKENS - 1]), 0)
        if getattr(decoder.embedding, "n_types", None):
            found["token_type_ids"] = torch.randint(0, decoder.embedding.n_types, (ROWS, TOKENS), generator=draw)
    if decoder.head.predicts_tokens:
        targets = ids(decoder, TOKENS)
        found["targets"] = targets.masked_fill(torch.rand(targets.shape, generator=draw) < 0.3, -100)
    return found


def weigh(hidden: torch.Tensor) -> torch.Tensor:
    """A loss of hidden states [B, T, D], each channel's square with a weight of its own: their plain mean is constant
    behind a norm without weights."""
    return (hidden.square() * torch.linspace(0.5, 1.5, hidden.shape[-1])).mean()


def run(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
    """Loss, gradients by name and the norm, of a training pass; and the logits or hidden states of another."""
    torch.manual_seed(0)  # some routers draw
    model.train()
    out = model(**inputs)
    total = weigh(out.hidden.float()) if out.loss is None else out.loss
    if out.loss is None:
        total = model.seam.own_share(total)
    total = total + sum(out.losses.values())
    total.backward()
    sum_common_gradients(model)
    model.eval()
    with torch.no_grad():
        found = model(**{name: each for name, each in inputs.items() if name != "targets"})
    gradients = {name: each.grad for name, each in model.named_parameters()}
    return float(total.detach()), gradients, found.hidden if found.logits is None else found.logits


def randomise(model: Any) -> None:
    """Give scales, biases and sinks values that show."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape, generator=draw) * 0.05)


def compare(name: Any, layout: ProcessGroups, dtype: torch.dtype) -> dict[str, Any]:
    ranks = layout.mesh.tp
    spec = load_spec(name) if isinstance(name, str) else from_dict(name)
    try:
        part = shard_model(spec, ranks)
    except ZooError as error:
        return {"refused": str(error)}
    faults = [*find_cut_faults(find_cuts(spec, part, ranks)), *find_wide_norms(spec)]
    if faults:
        return {"refused": "; ".join(faults)}
    whole = build(spec).to(dtype)
    randomise(whole)
    mine = build(part, device="meta").to(dtype)
    layout.divide(mine, spec)
    mine.to_empty(device="cpu")
    initialise(mine, 0)
    take = mine.shares.take_part
    held = mine.state_dict()
    mine.load_state_dict({key: take(key, each, held[key]) for key, each in whole.state_dict().items()})
    inputs = make_inputs(spec)
    loss, gradients, logits = run(whole, inputs)
    loss_here, mine_gradients, mine_logits = run(mine, inputs)
    worst, at = 0.0, ""
    norm = torch.stack([each.double().norm() for each in gradients.values() if each is not None]).norm()
    for key, each in gradients.items():
        if each is None:
            continue
        own = mine_gradients[key]
        expected = take(key, each, own)
        off = float((own - expected).norm() / max(each.norm(), 1e-3 * norm))
        worst, at = max((worst, at), (off, key))
    return {
        "loss": abs(loss - loss_here),
        "gradient": worst,
        "at": at,
        "logits": float((logits - mine_logits).abs().max()),
        "norm": abs(float(measure_gradient(mine.double()) / norm) - 1),
    }


def main(out: str, dtype: str, *names: str) -> None:
    world = read_world()
    join_processes(world, "cpu")
    layout = ProcessGroups.open(Mesh(tp=world.size), world, torch.device("cpu"))
    found = {}
    models = json.loads(Path(names[0]).read_text()) if names[0].endswith(".json") else {name: name for name in names}
    for name, spec in models.items():
        torch.manual_seed(0)
        found[name] = compare(spec, layout, getattr(torch, dtype))
        if world.main:
            print(name, found[name], flush=True)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(found))
