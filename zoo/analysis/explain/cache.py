"""Explain the KV cache and recurrent states from each component's `cache` and `state`."""

from __future__ import annotations

from typing import Any

from zoo.analysis.explain.line import Line, Sheet, cite, count_layers, name_component
from zoo.analysis.explain.terms import Term, Traced, call, name_number, symbol, term, total
from zoo.costs.cache_sizes import BLOCK, CacheRow, held_tokens, list_cache_rows, memory_tokens, padding_bytes
from zoo.costs.rows import Priced
from zoo.costs.setup import DTYPES, Setup
from zoo.kernels.view.page_tables import PAGE
from zoo.model.attention.base import Attention

ENGINES = {
    "ideal": "what attention can still see",
    "zoo": f"Zoo's own engine: pages of {PAGE} tokens",
    "hf": "transformers' DynamicCache: a window or chunk keeps one token less",
    "paged": f"vLLM: pages of {BLOCK} tokens (Kwon et al., 2023)",
}

PER_TOKEN = "bytes a token and layer"


def list_cache_lines(model: Priced, setup: Setup) -> list[Line]:
    """List the lines of a traced model's cache rows; none for an encoder."""
    sheet = Sheet("KV cache")
    context, batch = name_number("context", setup.tokens(model)), symbol("batch", setup.batch)
    width = symbol("bytes a value", DTYPES[setup.cached])
    page = setup.page or PAGE
    memory = term(memory_tokens(context, setup.engine, page))
    token, tokens, crossed, states = [], [], [], []
    for row in list_cache_rows(model, setup):
        count = count_layers(row.tower, row.kind)
        if row.values:
            rate = row.block.attention.sight.rate
            unit = PER_TOKEN if rate == 1 else "bytes an entry and layer"
            kept = sheet.add(_name(row, "layer"), term(row.values) * width, unit, cite(row.block.attention))
            token.append(count * kept if rate == 1 else count * kept / term(rate))
            room = count + (row.room - row.layers)
            tokens.append(room * kept * _held(row.block.attention, context, setup.engine, page))
        if row.block.cross:
            each = term(row.cross_values) * width
            crossed.append(count * sheet.add(_name(row, "cross"), each, PER_TOKEN, cite(row.block.cross)) * memory)
        if row.state:
            kept = sheet.add(_name(row, "states"), _integer(row.state), "bytes a layer", cite(row.block.attention))
            states.append(count * kept)
    if not sheet.lines:
        return []
    sheet.sum("a token", token, "bytes", "while every layer keeps all tokens", "kv_cache.bytes_per_token")
    source = f"Zoo's own engine: pages of {page} tokens" if setup.page else ENGINES[setup.engine]
    parts = [sheet.add("tokens", batch * total(tokens), "bytes", source)] if tokens else []
    for name, held, figure, why in (
        ("cross-attention", crossed, "kv_cache.cross_bytes", "made once of the encoder's output"),
        ("states", states, "kv_cache.state_bytes", "of recurrent layers, however many tokens"),
    ):
        parts += [sheet.add(name, batch * total(held), "bytes", why, figure)] if held else []
    if setup.page:
        spare = _integer(padding_bytes(list(list_cache_rows(model, setup)), setup))
        parts += [
            sheet.add("padding", term(spare), "bytes", "a token and states of no sequence", "kv_cache.padding_bytes")
        ]
    sheet.sum("all", parts, "bytes", source, "kv_cache.bytes")
    return sheet.lines


def _name(row: CacheRow, what: str) -> str:
    return name_component(row.where, what, row.tower, row.kind)


def _held(attention: Attention, context: Traced, engine: str, page: int) -> Term:
    window = attention.sight.window
    if engine == "ideal" and window is not None:
        return call("min", context, window)
    return term(held_tokens(attention, context, engine, page))


def _integer(value: object) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
