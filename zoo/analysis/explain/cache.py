"""What generation keeps, explained from each component's `cache` and `state`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zoo.analysis.explain.line import Line, Sheet, cited, layers, place, times
from zoo.analysis.explain.terms import Term, Traced, call, named, symbol, term, total
from zoo.costs.cache import BLOCK, held_tokens, padded_counts, state_bytes
from zoo.costs.setup import DTYPES, Setup

ENGINES = {
    "ideal": "what attention can still see",
    "hf": "transformers' DynamicCache: a window or chunk keeps one token less",
    "paged": f"vLLM: pages of {BLOCK} tokens (Kwon et al., 2023)",
}


class Layers(NamedTuple):
    """The layers of a kind that generate."""

    where: str
    tower: Any
    kind: str
    block: Any
    count: Term
    stored: Term  # that an engine keeps room for

    def name(self, what: str) -> str:
        return place(self.where, what, self.tower, self.kind)


def kv_cache(model: Any, setup: Setup) -> list[Line]:
    """Lines of a traced model; of one that writes nothing, none."""
    sheet = Sheet("KV cache")
    context, batch = named("context", setup.tokens(model)), symbol("batch", setup.batch)
    width = symbol("bytes a value", DTYPES[setup.cache_dtype or setup.dtype])
    token, tokens, crossed, states = [], [], [], []
    for own in _layers(model, setup):
        if (each := _values(own.block.attention.cache())).value:
            kept = sheet.add(own.name("layer"), each * width, "bytes a token and layer", cited(own.block.attention))
            token.append(own.count * kept)
            tokens.append(own.stored * kept * _held(own.block.attention, context, setup.engine))
        if own.block.cross:
            each = _values(own.block.cross.cache()) * width
            kept = sheet.add(own.name("cross"), each, "bytes a token and layer", cited(own.block.cross))
            crossed.append(own.count * kept * _paged(context, setup.engine))
        if (each := state_bytes(own.block, setup)) != 0:
            kept = sheet.add(own.name("states"), _integer(each), "bytes a layer", cited(own.block.attention))
            states.append(own.count * kept)
    if not sheet.lines:
        return []
    sheet.sum("a token", token, "bytes", "while every layer keeps all tokens", "kv_cache.bytes_per_token")
    source = ENGINES[setup.engine]
    parts = [sheet.add("tokens", times(batch, total(tokens)), "bytes", source)] if tokens else []
    for name, held, figure, why in (
        ("cross-attention", crossed, "kv_cache.cross_bytes", "made once of the encoder's output"),
        ("states", states, "kv_cache.state_bytes", "of recurrent layers, however many tokens"),
    ):
        parts += [sheet.add(name, times(batch, total(held)), "bytes", why, figure)] if held else []
    sheet.sum("all", parts, "bytes", source, "kv_cache.bytes")
    return sheet.lines


def _layers(model: Any, setup: Setup) -> Iterator[Layers]:
    for where, tower in model.towers().items():
        counts = {kind: tower.pattern.count(kind) for kind in tower.blocks}
        stored = padded_counts(tower.blocks, counts) if setup.engine == "paged" else counts
        for kind, block in tower.blocks.items() if tower.causal else ():
            count = layers(tower, kind)
            room = count + (stored[kind] - counts[kind])
            yield Layers(where, tower, kind, block, count, room)


def _held(attention: Any, context: Traced, engine: str) -> Term:
    """Tokens that a layer keeps."""
    window = attention.visible_window
    if engine == "ideal" and window is not None:
        return call("min", context, window)
    return term(held_tokens(attention, context, engine))


def _paged(context: Traced, engine: str) -> Term:
    return term(-(-context // BLOCK) * BLOCK if engine == "paged" else context)


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _values(shapes: Mapping[str, tuple[int, ...]]) -> Term:
    return term(sum(math.prod(shape) for shape in shapes.values()))
