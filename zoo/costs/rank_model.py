"""Cut a model into the part that one rank of tensor and expert parallelism holds.

Tensor parallelism (Shoeybi et al., 2019, Megatron-LM) gives each rank whole heads and a part of a feed-forward's inner
width: q, k, v, gate and up are cut by their outputs, o and down by their inputs, tables and heads by the vocabulary.
Each component gives a rank's part of itself (`Spec.shard`); a component without `shard` raises ConfigError. Parts that
all heads share (norms, routers, MLA's latents, the biases of o and down) are on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from zoo.costs.layer_cut import count_layers
from zoo.costs.rows import Priced, list_blocks, tabulate, trains_more
from zoo.distributed.pipeline_schedule import PipelineSchedule
from zoo.errors import ConfigError, collect_faults, refuse
from zoo.model.channels import Channel
from zoo.model.moe import MoE
from zoo.model.tower import Topology, Tower
from zoo.spec import Experts
from zoo.spec.sharding import divisors


def shard_tower(tower: Tower, tp: int) -> Tower:
    """Give a rank's part of a tower under tensor parallelism. Raises ConfigError with a line for each part that does
    not divide."""
    if tp == 1:
        return tower
    refuse(dict.fromkeys(tensor_faults(tower, tp)))
    blocks = {name: block.shard(tp) for name, block in tower.blocks.items()}
    return replace(tower, blocks=blocks, embedding=tower.embedding.shard(tp), head=tower.head.shard(tp))


def spread_experts(spec: Topology, ep: int) -> Any:
    """Give a rank's model, with its share of the experts of each mixture. Raises ConfigError if `ep` does not divide a
    number of experts, or the model has no experts."""
    if ep == 1:
        return spec
    refuse(expert_faults(spec, ep))
    spread = {}
    for name, tower in spec.towers().items():
        blocks = {}
        for kind, block in tower.blocks.items():
            ffn = getattr(block, "ffn", None)
            blocks[kind] = replace(block, ffn=ffn.spread(ep)) if isinstance(ffn, MoE) else block  # type: ignore[call-arg]
        spread[name] = replace(tower, blocks=blocks)
    return spread[""] if "" in spread else replace(spec, **spread)


def shard_model(spec: Topology, tp: int) -> Any:
    """Give a rank's model under tensor parallelism. Raises ConfigError with a line for each part that does not
    divide."""
    if tp == 1:
        return spec
    faults: list[str] = []
    shared = {name: collect_faults(faults, partial(shard_tower, each, tp)) for name, each in spec.towers().items()}
    refuse(dict.fromkeys(faults))
    return shared[""] if "" in shared else replace(spec, **shared)


def context_faults(spec: Priced, cp: int) -> list[str]:
    """List the parts that need all tokens of a row, and so refuse context parallelism, a line for each."""
    if cp == 1:
        return []
    blocks, some = list_blocks(spec), f"cp: {cp} ranks would each have some tokens, and"
    whole = [block.attention for block in blocks if not block.attention.passes.split]
    found = [f"{some} '{each.kind}' layers{_describe_reading(each)} need a row's (cp=1)" for each in whole]
    found += [f"{some} out_conv needs a row's (cp=1)" for block in blocks if getattr(block, "out_conv", None)]
    choosers = [block.attention.chooser for block in blocks if block.attention.chooser is not None]
    found += [f"cp: the {each.kind} indexer chooses among all of a row's keys (cp=1)" for each in choosers]
    ffns = [ffn for block in blocks if (ffn := getattr(block, "ffn", None)) is not None and ffn.state()]
    mixtures = [ffn for ffn in ffns if isinstance(ffn, MoE)]
    found += [f"{some} '{ffn.kind}' sees the token before (cp=1)" for ffn in ffns if not isinstance(ffn, MoE)]
    found += [f"cp: the {ffn.router.kind} router counts a row's tokens (cp=1)" for ffn in mixtures]
    joined = [block.cross for block in blocks if block.cross is not None and not block.crosses]
    found += [f"{some} {each.kind} attention sees an encoder's beside (cp=1)" for each in joined]
    found += [f"{some} mtp reads those after them (cp=1)"] if trains_more(spec) else []
    found += [f"{some} n-grams are of those before (cp=1)" for block in blocks if getattr(block, "ngrams", None)]
    return list(dict.fromkeys(found))


def _describe_reading(attention: Any) -> str:
    """Name the field that makes an attention need all tokens of a row; empty if not a field but the attention itself
    does."""
    scheme = attention.positioning
    if getattr(attention, "short_conv", None):
        return " with short_conv"
    return f" with position {scheme.kind}" if scheme is not None and scheme.reads_input else ""


def pipeline_faults(spec: Any, schedule: PipelineSchedule) -> list[str]:
    """List why a model cannot be cut into pipeline stages. A pipeline takes decoders whose layers share no weights."""
    if schedule.stages == 1:
        return []
    if spec.kind != "decoder" or spec.shared_layers:
        found = "shares its layers' weights" if spec.kind == "decoder" else f"is of kind {spec.kind}"
        return [f"pp: is {schedule.stages}, and the model {found} (pp=1)"]
    return layer_faults(spec, schedule)


def layer_faults(spec: Priced, schedule: PipelineSchedule) -> list[str]:
    """List why a model's layers cannot be cut into stages: several residual streams, a loop, a channel that must stay
    on one stage, or fewer layers than chunks."""
    layers, stages, chunks = count_layers(spec), schedule.stages, schedule.chunks
    blocks = list_blocks(spec)
    if stages > 1 and any(block.streams > 1 for block in blocks):
        return [f"pp: is {stages}, and the residual stream has several vectors a token (pp=1)"]
    if stages > 1 and any(tower.loop is not None for tower in spec.towers().values()):
        return [f"pp: is {stages}, and a loop runs layers again, which another stage may have (pp=1)"]
    read = next((name for tower in spec.towers().values() for name in tower.channels), None)
    if stages > 1 and read is not None:
        return [f"pp: is {stages}, and {Channel.named[read].staying} (pp=1)"]
    if stages > 1 and trains_more(spec):
        return [f"pp: is {stages}, and mtp reads the embedding on the last stage (pp=1)"]
    if layers >= schedule.n_chunks:
        return []
    found = f"pp: {stages} stages" + (f" of chunks={chunks}" if chunks > 1 else "")
    return [f"{found} for {layers} layers (at most {layers // chunks} would do)"]


def tensor_faults(tower: Tower, tp: int) -> Iterator[str]:
    """List a line for each component that cannot be divided over `tp` ranks."""
    for part in (*tower.blocks.values(), tower.embedding, tower.head):
        yield from _refusals(part, tp)
    if tp > 1 and trains_more(tower):
        yield f"tp: {tp} ranks, and mtp's modules are not divided over them (tp=1)"
    if tp > 1 and tower.output_vocab_size < tower.vocab_size:
        found = f"has {tower.output_vocab_size} tokens of {tower.vocab_size}, and ranks divide one vocabulary"
        yield f"tp: {tp} ranks, and the head {found} (tp=1)"


def expert_faults(spec: Priced, ep: int) -> Iterator[str]:
    """List a line for each number of experts that `ep` does not divide, or one line if the model has no experts."""
    if ep == 1:
        return
    experts = (row.part for row in tabulate(spec).parts if isinstance(row.part, Experts))
    counts = dict.fromkeys(part.count for part in experts if part.spread)
    for count in counts:
        if count % ep:
            yield f"ep: {ep} does not divide n_experts={count} ({divisors(count)} would do)"
    if not counts:
        yield f"ep: {ep} ranks for experts, of which this model has none (ep=1)"


def _refusals(part: Any, tp: int) -> Iterator[str]:
    """List why `part` refuses `shard`: the faults of an embedding or head, or those of each sub-layer of a block."""
    inner = [getattr(part, field.name) for field in part.fields()] if part.axis == "block" else []
    for each in [each for each in inner if hasattr(each, "shard")] or [part]:
        try:
            each.shard(tp)
        except ConfigError as error:
            yield from error.faults


def ceil_share(elements: int, ways: int) -> int:
    """Count the elements on the fullest of `ways` ranks."""
    return -(-elements // ways)


def dim0_share(shape: tuple[int, ...], ways: int, *, expert: bool) -> tuple[int, ...]:
    """Give the shape of a tensor's shard on rank 0 of `ways`. FSDP2 cuts the first dimension. A stack with fewer
    experts than ranks is cut along the second, as torchtitan does."""
    if ways == 1 or not shape:
        return shape
    dim = 1 if expert and shape[0] < ways and len(shape) > 1 else 0
    return (*shape[:dim], ceil_share(shape[dim], ways), *shape[dim + 1 :])
