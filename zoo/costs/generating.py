# S tokens of a sequence, B sequences, t = tp, p = pp
"""Count one GPU's memory in generation: weights, cache, and the peak of a pass's other tensors."""

from __future__ import annotations

from dataclasses import replace

from zoo.costs.cache_sizes import kv_cache
from zoo.costs.rank_tensors import Stage, stages
from zoo.costs.rows import Priced, generates
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.transient import GenerationShape, Peaks, measure_peaks
from zoo.errors import ConfigError


def generating(spec: Priced, setup: Setup, *, prefill: bool = True, fused: bool = True) -> dict[str, int]:
    """Count bytes on the rank that needs most: `weights`, `kv_cache`, `prefill`, and `total`, their sum.

    The figure `prefill` is the peak of all other tensors: while an encoder reads the prompts, while all prompts are
    read up to the first logits, or while a token is decoded, whichever is largest. These passes are traced
    (`zoo.costs.transient`) with Zoo's own cache, whatever the engine. With the argument `prefill=False` nothing is
    traced, and the figure is absent. `fused` is true for a CUDA device, false for a CPU. A rank of tensor parallelism
    has some heads, a part of each feed-forward and of the vocabulary, and all of MLA's latent; a rank of a pipeline has
    some layers; a rank of context parallelism has some tokens.

    Raises ConfigError for a model that generates nothing, for dimensions that the ranks do not divide, and for more
    tokens than the model can read; UnknownOperation for a pass that shadows cannot follow.
    """
    if not generates(spec):
        raise ConfigError("train: this model generates nothing, so only training it can be fitted (--train)")
    run = GenerationShape(-(-setup.tokens(spec) // setup.cp), setup.batch, setup.dtype, setup.cache_dtype, fused)
    traced: dict[tuple[object, ...], Peaks] = {}
    found = []
    for stage in stages(spec, setup):
        kinds = tuple((name, *dict.fromkeys(tower.pattern)) for name, tower in stage.towers().items())
        if prefill and kinds not in traced:  # stages with the same kinds of layers have equal peaks
            traced[kinds] = measure_peaks(stage, run)
        found.append(_on(stage, setup, traced.get(kinds)))
    return max(found, key=lambda rank: rank["total"])


def _on(stage: Stage, setup: Setup, peaks: Peaks | None) -> dict[str, int]:
    cache = kv_cache(stage, replace(setup, context=-(-setup.tokens(stage) // setup.cp)))
    parts = {"weights": round(stage.params * DTYPES[setup.dtype]), "kv_cache": cache["bytes"]}
    if peaks is not None:  # while an encoder runs, cross-attention's keys and values do not exist yet
        parts["prefill"] = max(peaks.encode - cache["cross_bytes"], peaks.prefill, peaks.decode)
    return {**parts, "total": sum(parts.values())}
