# b sequences, s tokens, d model width, t = tp, N = ranks that hold the same weights
"""What one rank sends in a training step of one micro-batch, by kind of parallelism.

A ring sends (n − 1)/n of the bytes for an all-gather or a reduce-scatter among n ranks, and an all-reduce is both
(Patarasuk and Yuan, 2009): 2·(n − 1)/n.
"""

import math
from typing import Any

from zoo.costs.parallel import Stage, fullest
from zoo.costs.rows import Priced, tabulate
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.states import ways, widths


def traffic(spec: Priced, setup: Setup, stage: Stage | None = None) -> dict[str, dict[str, Any]]:
    """For each kind of parallelism at work: the `bytes` that a rank of `stage` (that with most parameters) sends in a
    step, and the `collective` it sends them by.

    Keys and values of context parallelism are what attention caches. Routing is taken to be even. Raises ConfigError
    for dimensions that the ranks do not divide.
    """
    stage = fullest(spec, setup) if stage is None else stage
    kinds = {"tp": _tensor, "ep": _experts, "cp": _context, "pp": _pipeline, "dp": _data}
    sent = {name: kind(stage, setup) for name, kind in kinds.items()}
    return {name: {"bytes": round(size), "collective": collective} for name, (size, collective) in sent.items() if size}


def _stream(stage: Stage, setup: Setup) -> float:
    """Count the bytes of the residual stream of a rank's tokens: b·s·d, divided by context parallelism."""
    return setup.batch * setup.tokens(stage) / setup.cp * stage.d_model * _width(setup)


def _width(setup: Setup) -> int:
    return 4 if setup.precision == "fp32" else DTYPES[setup.dtype]


def _tensor(stage: Stage, setup: Setup) -> tuple[float, str]:
    """Each of a block's reductions is made once forward and once backward (Shoeybi et al., 2019, §3). Sequence
    parallelism sends as much in two halves (Korthikanti et al., 2022, §4.2.2). The tables reduce once each."""
    times = sum(2 * stage.held[name].blocks[kind].reductions * count for name, kind, count in stage.layers())
    for name, tower in stage.held.items():
        times += "embedding" in stage.ends[name]
        times += "head" in stage.ends[name] and tower.head.kind != "none"
    return times * 2 * (setup.tp - 1) / setup.tp * _stream(stage, setup), "all-reduce"


def _experts(stage: Stage, setup: Setup) -> tuple[float, str]:
    """Tokens go to their experts and back, forward and backward (Lepikhin et al., 2020, GShard): four times top_k
    vectors a token, of which the rank's own experts take 1/ep. With sequence parallelism a rank has 1/t of the
    tokens."""
    chosen = sum(row.router.top_k * row.used for row in tabulate(stage).routers)
    away = (setup.ep - 1) / setup.ep
    return 4 * away * chosen * _stream(stage, setup) / setup.tp, "all-to-all"


def _context(stage: Stage, setup: Setup) -> tuple[float, str]:
    """Keys and values pass round the ring in both passes, and their gradients in the second (Liu et al., 2023, Ring
    Attention)."""
    rows = (row for row in tabulate(stage).attentions if not row.look.cross)
    values = sum(sum(map(math.prod, row.attention.cache().values())) * row.used for row in rows)
    own = setup.batch * setup.tokens(stage) / setup.cp * values * _width(setup)
    return 3 * (setup.cp - 1) * own, "ring"


def _pipeline(stage: Stage, setup: Setup) -> tuple[float, str]:
    """The stream to the next stage and its gradient to the one before, each rank of tp its part (Narayanan et al.,
    2021, §4.1)."""
    neighbours = (stage.index < stage.of - 1) + (stage.index > 0)
    return neighbours * _stream(stage, setup) / setup.tp, "send"


def _data(stage: Stage, setup: Setup) -> tuple[float, str]:
    """Without ZeRO gradients are all-reduced; 1 and 2 reduce-scatter them and gather the new weights, which is as much;
    3 gathers weights in both passes besides, half as much again (Rajbhandari et al., 2020, §7)."""
    total, (weight, gradient, _, _) = 0.0, widths(setup)
    weight = _width(setup) if setup.zero == 3 else weight
    for expert in (False, True):
        params = sum(piece.params for piece in stage.pieces if piece.expert is expert)
        ranks = ways(setup, expert)
        gathers = {0: 0, 1: 1, 2: 1, 3: 2}[setup.zero]
        reduced = gradient * (2 if setup.zero == 0 else 1)
        total += params * (ranks - 1) / ranks * (reduced + gathers * weight)
    return total, "all-reduce" if setup.zero == 0 else "reduce-scatter, all-gather"
