# b sequences, s tokens, d model width, t = tp, N = ranks that hold the same weights
"""Count the bytes that one rank sends in a training step of one micro-batch, by kind of parallelism.

A ring sends (n − 1)/n of the bytes for an all-gather or a reduce-scatter among n ranks, and an all-reduce is both
(Patarasuk and Yuan, 2009): 2·(n − 1)/n.
"""

import math
from typing import Any, NamedTuple

from zoo.costs.rank_tensors import RankTensor, Stage, fullest
from zoo.costs.rows import Priced, count_values, tabulate
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.zero_shards import shard_shape, widths
from zoo.model.attention.base import Attention
from zoo.model.ffn import FFN
from zoo.spec import LOGITS, Buffer, Experts, Tied, components
from zoo.spec.cuts import compare_parts


def traffic(spec: Priced, setup: Setup, stage: Stage | None = None) -> dict[str, dict[str, Any]]:
    """Count for each kind of parallelism in use the `bytes` that a rank of `stage` (None: the stage with most
    parameters) sends in a step, and name the `collective`.

    Context parallelism sends the keys and values that attention caches. Routing is taken to be even. Raises ConfigError
    for dimensions that the ranks do not divide.
    """
    stage = fullest(spec, setup) if stage is None else stage
    kinds = {"tp": _tensor, "ep": _experts, "cp": _context, "pp": _pipeline, "dp": _data}
    sent = {name: kind(stage, setup) for name, kind in kinds.items()}
    return {name: {"bytes": round(size), "collective": collective} for name, (size, collective) in sent.items() if size}


def _stream(stage: Stage, setup: Setup) -> float:
    """Count the bytes of the residual stream of a rank's tokens: b·s·d, divided by context parallelism."""
    return setup.batch * setup.tokens(stage) / setup.cp * stage.d_model * DTYPES[setup.computed]


def _tensor(stage: Stage, setup: Setup) -> tuple[float, str]:
    """Count the traffic of tensor parallelism. With sequence parallelism the stream is all-gathered before each divided
    sub-layer and reduce-scattered after it, the other way round in the backward pass (Korthikanti et al., 2022,
    §4.2.2). The embedding's output is reduce-scattered too, and the head's input gathered. In addition ranks exchange
    two numbers a token for the loss (Shoeybi et al., 2019, §3), sums inside some mixers, and the gradients of weights
    that several ranks hold."""
    ring, vectors, amid = (setup.tp - 1) / setup.tp, 0, 0
    for name, kind, count in stage.layers():
        tower = stage.held[name]
        block = tower.blocks[kind]
        vectors += count * (block.gathers + block.reductions)
        parts = components(block, tower.d_model)
        amid += count * sum(used * each.summed for _, each, used in parts if isinstance(each, Attention | FFN))
    vectors += sum("embedding" in ends for ends in stage.ends.values())
    ended = [stage.held[name] for name, ends in stage.ends.items() if "head" in ends]
    vectors += len(ended)
    sent = 2 * ring * vectors * _stream(stage, setup)
    tokens = setup.batch * setup.tokens(stage) / setup.cp
    sent += 2 * 2 * ring * amid * tokens * DTYPES[setup.computed]
    sent += (setup.tp - 1) * 2 * 4 * tokens * sum(tower.head.predicts_tokens for tower in ended)
    return sent + _common_gradients(stage, setup), "all-gather, reduce-scatter"


def _common_gradients(stage: Stage, setup: Setup) -> float:
    """Count the bytes of all-reducing the gradients of weights that several ranks of tensor parallelism hold."""
    sent, gradient = 0.0, widths(setup)[1]
    if setup.tp == 1:
        return sent
    whole = {(row.where, row.path): row.part for row in tabulate(stage.spec).parts}
    here = {(piece.where, piece.path) for piece in stage.pieces}
    for row in tabulate(stage).parts:
        if isinstance(row.part, Buffer) or not row.learns:
            continue
        for leaf, shape in row.part.shapes().items():
            path = f"{row.path}.{leaf}" if leaf else row.path
            copies = compare_parts(whole[row.where, row.path], row.part, leaf, setup.tp).copies
            if (row.where, path) in here:
                shape = shard_shape(shape, setup, isinstance(row.part, Experts) and row.part.spread)
                sent += 2 * (copies - 1) / copies * math.prod(shape) * row.stored * gradient
    return sent


def _experts(stage: Stage, setup: Setup) -> tuple[float, str]:
    """Count the traffic of expert parallelism. Tokens go to their experts and back, forward and backward (Lepikhin et
    al., 2020, GShard): four times top_k vectors a token, of which 1/ep stay with the rank's own experts. Every rank of
    tp sends as many, for its part of each expert. Vectors for experts that compute nothing are not sent."""
    chosen = sum(row.expected * row.used * row.width for row in tabulate(stage).routers) / stage.d_model
    away = (setup.ep - 1) / setup.ep
    return 4 * away * chosen * _stream(stage, setup), "all-to-all"


def _context(stage: Stage, setup: Setup) -> tuple[float, str]:
    """Count the traffic of context parallelism. Keys and values are all-gathered in the forward pass, and their
    gradients reduce-scattered in the backward pass (Dubey et al., 2024, Llama 3, §3.3.2). A ring sends keys and values
    in both passes, and their gradients in float32 in the backward pass (Liu et al., 2023)."""
    rows = (row for row in tabulate(stage).attentions if not row.look.cross)
    ring = setup.cp_comm == "ring"  # a ring sends keys again for each layer that reads them
    lent = ((row.attention, row.used if ring or getattr(row.attention, "loan", None) is None else 0) for row in rows)
    values = sum(count_values(attention.attended()) * used for attention, used in lent)
    own = (setup.cp - 1) * setup.batch * setup.tokens(stage) / setup.cp * values
    if ring:
        return own * (2 * DTYPES[setup.computed] + 4), "send"
    return 2 * own * DTYPES[setup.computed], "all-gather, reduce-scatter"


def ring_forward_share(setup: Setup) -> float:
    """Give the share of a ring's bytes that the forward pass sends."""
    return DTYPES[setup.computed] / (2 * DTYPES[setup.computed] + 4)


def _pipeline(stage: Stage, setup: Setup) -> tuple[float, str]:
    """Count the traffic of a pipeline. Each chunk sends the residual stream to the next chunk and the stream's gradient
    to the chunk before; nothing is sent within a stage. Each rank of tp sends its part (Narayanan et al., 2021, §4.1).
    The stage with the embedding and the stage with a head tied to it all-reduce the table's gradient."""
    sent = stage.schedule.count_sends(stage.index) * _stream(stage, setup) / setup.tp
    if stage.begins != stage.finishes and any(
        isinstance(row.part, Tied) and row.part.role == LOGITS for row in tabulate(stage.spec).parts
    ):
        table = sum(_sharded(piece, setup) for piece in stage.pieces if piece.slot == "embedding")
        sent += table * widths(setup)[1]
    return sent, "send"


def _sharded(piece: RankTensor, setup: Setup) -> int:
    return math.prod(shard_shape(piece.shape, setup, piece.expert)) * piece.copies


def _data(stage: Stage, setup: Setup) -> tuple[float, str]:
    shared = "reduce-scatter, all-gather" + ", all-reduce" * (setup.replicas > 1)
    return sum(split_data(stage, setup)), "all-reduce" if setup.zero == 0 else shared


class DataTraffic(NamedTuple):
    """Bytes that a rank sends to ranks with the same weights: weights `gathered`, gradients `reduced`, and gradients
    that replicas sum up (`replicated`)."""

    gathered: float
    reduced: float
    replicated: float


def split_data(stage: Stage, setup: Setup) -> DataTraffic:
    """Count the bytes that a rank sends to ranks with the same weights.

    Without ZeRO, gradients are all-reduced. Stages 1 and 2 reduce-scatter them and all-gather the new weights: as many
    bytes. Stage 3 gathers weights in both passes: 1.5 times the bytes (Rajbhandari et al., 2020, §7). FSDP2 gathers
    weights outside the layers once for both passes. Replicas all-reduce each gradient shard. Weights without a
    gradient (an indexer's) are gathered with their layer by stage 3, and not sent otherwise."""
    gathered, reduced, replicated, (weight, gradient, _, _) = 0.0, 0.0, 0.0, widths(setup)
    for piece in stage.pieces:
        ranks, replicas = setup.count_holders(piece.expert)
        if setup.zero == 3:
            gathered += (ranks - 1) * _sharded(piece, setup) * (1 if piece.kind is None else 2) * DTYPES[setup.computed]
        if not piece.learns:
            continue
        replicated += 2 * (replicas - 1) / replicas * _sharded(piece, setup) * gradient
        if setup.zero == 3:
            reduced += (ranks - 1) * _sharded(piece, setup) * gradient
        else:
            sent = piece.params * (ranks - 1) / ranks
            gathered += sent * (weight if setup.zero else 0)
            reduced += sent * gradient * (2 if setup.zero == 0 else 1)
    return DataTraffic(gathered, reduced, replicated)
