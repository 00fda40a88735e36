# B sequences, T tokens of each, D model width
"""Measure the peak memory of a prefill and of a decoding step, without gradients; weights and cache are not counted.

The model's own forward pass runs on shadows, without gradients, each kind of layer once. Nothing is saved for a
backward pass, so a tensor lives as long as the code refers to it, and the tape's peak is that of the pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from zoo.costs.activations import make_memory
from zoo.costs.again import split_by_reads
from zoo.costs.rows import Priced, change_copy
from zoo.costs.setup import COMPUTED
from zoo.costs.shadow.dtypes import INT64
from zoo.costs.shadow.names import DTYPES
from zoo.costs.shadow.replay import replace_torch
from zoo.costs.shadow.shadow_cache import ShadowCache
from zoo.costs.shadow.shadow_layer import ShadowLayer
from zoo.costs.shadow.tape import named_failures, taping
from zoo.costs.shadow.tensor import make_shadow
from zoo.costs.shorter_passes import extrapolate, trace_shorter
from zoo.model.position.none import NoPosition
from zoo.model.tower import Tower


class GenerationShape(NamedTuple):
    """A generation of `batch` sequences with `context` tokens each. `dtype` is the weights' dtype, `cache` the cache's
    dtype (None: the weights'). `fused` is true for a CUDA device, false for a CPU."""

    context: int
    batch: int = 1
    dtype: str = "bf16"
    cache: str | None = None
    fused: bool = True
    kernel: str = "auto"


class Peaks(NamedTuple):
    """Peak bytes without weights and cache. `encode`: while an encoder reads the prompts (0 without an encoder).
    `prefill`: while a decoder reads the prompts (after an encoder, its own first token) up to the first logits.
    `decode`: while a token is decoded."""

    encode: int
    prefill: int
    decode: int


def measure_peaks(spec: Priced, run: GenerationShape) -> Peaks:
    """Measure the peak bytes of a prefill and of a decoding step of `spec`, a model or a rank's part of one.

    Raises UnknownOperation for a pass that shadows cannot follow, ConfigError for more tokens than a model can read.
    """
    towers = {name: _each_kind_once(split_by_reads(tower)) for name, tower in spec.towers().items()}
    looping = {name: _only(tower, loops=True) for name, tower in towers.items()}
    shorter = trace_shorter(towers.values(), run, partial(_traced, looping))
    return _traced(towers, run) if shorter is None else _extended(towers, run, *shorter)


def _each_kind_once(tower: Tower) -> Any:
    """Cut a tower to one layer of each kind, in the order of each kind's last layer. Kinds whose keys others read are
    also put first."""
    kinds = tuple(reversed(dict.fromkeys(reversed(tower.pattern))))
    lenders = {loan.lender for kind in kinds if (loan := tower.blocks[kind].attention.loan)}
    first = tuple(kind for kind in kinds if kind in lenders)  # before those that read their keys
    return change_copy(tower, pattern=first + kinds, blocks={kind: tower.blocks[kind] for kind in kinds}, loop=None)


def _extended(towers: dict[str, Any], run: GenerationShape, traces: list[Peaks], far: int) -> Peaks:
    """Extrapolate the peaks of a long pass from `traces` of shorter passes through the looping layers only. The other
    layers are traced at full length."""
    encode, prefill = (extrapolate([each[place] for each in traces], far) for place in range(2))
    decode = _decode(towers, run)
    if any(not block.attention.passes.loops for tower in towers.values() for block in tower.blocks.values()):
        others = _prefill({name: _only(tower, loops=False) for name, tower in towers.items()}, run)
        encode, prefill = max(encode, others[0]), max(prefill, others[1])
    return Peaks(encode, prefill, decode)


def _only(tower: Tower, *, loops: bool) -> Any:
    kept = {kind: block for kind, block in tower.blocks.items() if block.attention.passes.loops == loops}
    if not kept:
        return tower
    taken = any(block.attention.positioning is not None for block in kept.values())
    idle = tower.position.inside and not taken  # a position that only the omitted attention uses
    position = NoPosition() if idle else tower.position
    pattern = tuple(kind for kind in tower.pattern if kind in kept)
    return change_copy(tower, blocks=kept, pattern=pattern, position=position)


def _traced(towers: dict[str, Any], run: GenerationShape) -> Peaks:
    return Peaks(*_prefill(towers, run), _decode(towers, run))


def _tape(run: GenerationShape) -> Any:
    return taping("cuda" if run.fused else "cpu", training=False, recording=False)


def _prefill(towers: dict[str, Any], run: GenerationShape) -> tuple[int, int]:
    """Trace the prefill: a decoder reads the prompts, or an encoder reads them and the decoder its first token."""
    with _tape(run) as tape:
        encode, memory = 0, None
        for tower in towers.values():
            if not tower.causal:
                memory = _run(tower, run, run.context, None, None).hidden
                encode = tape.most
                tape.begin()
            else:
                memory = make_memory(tower, run) if memory is None else memory
                new = 1 if len(towers) > 1 else run.context
                _run(tower, run, new, _cache(tower, run, 0), memory)
    return encode, tape.most


def _decode(towers: dict[str, Any], run: GenerationShape) -> int:
    """Trace decoding the last of `context` tokens. Without a cache, all tokens are read again."""
    with _tape(run) as tape:
        for tower in towers.values():
            if tower.causal:
                cache = _cache(tower, run, run.context - 1)
                _run(tower, run, 1 if cache is not None else run.context, cache, make_memory(tower, run))
    return tape.most


def _cache(tower: Tower, run: GenerationShape, length: int) -> Any:
    """Make a cache with `length` tokens in it; None if the model cannot use one at this context (dynamic NTK)."""
    until = tower.cacheable_until
    if until is not None and run.context > until:
        return None
    kind = run.cache or run.dtype
    return ShadowCache(tower, run.batch, length, run.context, run.context, DTYPES[CACHED.get(kind, COMPUTED[kind])])


CACHED = {"fp8": "float8_e4m3fn"}
"""The dtype of cached values if it differs from that of activations."""


def _run(tower: Tower, run: GenerationShape, new: int, cache: Any, memory: Any) -> Any:
    """Trace a tower's pass over `new` tokens of each row, up to the logits of the last one."""
    from zoo.model.context import ForwardContext
    from zoo.model.step import Inputs

    with named_failures(f"{tower.axis}={tower.kind}"):
        m = ShadowLayer(tower, tower.d_model, DTYPES[COMPUTED[run.dtype]], kernel=run.kernel)
        m.blocks = [
            ShadowLayer(tower.blocks[kind], tower.d_model, m.dtype, "", run.kernel) for kind in tower.stack.stored()
        ]
        ids = make_shadow((run.batch, new), INT64, "ids")
        causal = bool(tower.causal)
        drawn = replace_torch(tower)
        inputs = Inputs(ids, cache=cache, memory=memory if causal else None, logits_to_keep=1 if causal else None)
        return drawn.run(m, inputs, replace_torch(ForwardContext)(drawn, inputs))
