"""Count elementwise operations of a forward pass approximately: norms, activations, rotations, residual sums, the
mixing of experts, the decay of states. No convention's FLOPs include them. They are counted separately so that
operations without a matrix product, such as QK-norm, do not look free."""

from __future__ import annotations

from functools import partial

from zoo.costs.activations import PassShape, trace_towers
from zoo.costs.rows import Priced, change_towers
from zoo.costs.shadow.tape import Tape, UnknownOperation, taping
from zoo.spec.parts import count_kinds

TOKENS = 256
"""Largest number of tokens of the traced pass. The operations per token hardly depend on it."""

OPERATIONS = {
    **dict.fromkeys(("abs", "add", "clamp", "compare", "cos", "cumsum", "div", "exp", "expm1", "extreme", "gelu"), 1),
    **dict.fromkeys(
        ("hardswish", "hypot", "leaky_relu", "log", "log1p", "logaddexp", "masked_fill", "mean", "mish"), 1
    ),
    **dict.fromkeys(("mul", "neg", "pow", "reciprocal", "relu", "relu6", "rsqrt", "sigmoid", "silu", "sin", "sqrt"), 1),
    **dict.fromkeys(("softplus", "square", "sum", "tanh", "vector_norm", "where"), 1),
    **{"addcmul": 2, "rms_norm": 4, "divide_by_rms": 4, "logsumexp": 4, "softmax": 5, "layer_norm": 7},
}
"""Elementwise operations by the name of a torch operation, per element of the largest tensor that it reads or makes. An
activation or a root counts 1, like a sum; RMSNorm counts 4 (a square, a sum, two products). Not counted: matrix
products, look-ups, moves and casts, the loss, and the scores inside an attention kernel."""


def count_elementwise(spec: Priced) -> float | None:
    """Count the elementwise operations per token of training's forward pass; None for a pass that cannot be traced."""
    context, spec = min(TOKENS, int(spec.max_seq_len)), change_towers(spec, lambda tower: tower.unrolled)
    try:
        with taping("cuda") as tape:
            trace_towers(tape, spec, PassShape(context))
    except UnknownOperation:
        return None
    return sum(map(partial(_weigh, spec, tape), tape.elements)) / context


def _weigh(spec: Priced, tape: Tape, key: tuple[tuple[str, str | None], str]) -> int:
    (where, kind), name = key
    layers = 1 if kind is None else count_kinds(spec.towers()[where].pattern).get(kind, 0)
    return OPERATIONS.get(name, 0) * tape.elements[key] * layers
