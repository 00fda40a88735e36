# S tokens of a sequence, B sequences, W window
"""Cache sizes while generating: the KV cache, cross-attention's keys and values, and recurrent states.

Engines keep different amounts of the same model, so a figure always names its engine:

- `ideal`: what attention can still see, and no more.
- `zoo`: what Zoo allocates for it: pages of PAGE tokens. A window, or a chunk, need not begin where a page does. With
  `Setup.page`, as on a GPU, pages of that size; and in every layer room for one token more, of no sequence, which the
  padding of a pass is written to.
- `hf`: transformers' DynamicCache, which `generate` takes unless told otherwise (read and measured at 5.24). A window,
  or a chunk, of W tokens keeps W − 1, as the newest token's own is joined to them before it is seen; MLA keeps its
  latent; a convolution keeps as many inputs as it is wide, one more than it needs. That a layer has a window is taken
  from the model; a family whose config.json does not say so there keeps every token all the same (GPT-Neo).
- `paged`: pages of BLOCK tokens, as vLLM reserves them for one sequence (Kwon et al., 2023; read at its `v1` engine). A
  window must hold W − 1 tokens and the MAX_BATCHED_TOKENS that one step may add, and one page more, since it need not
  begin where a page does; a chunk the same without that page. Layers of different reach have pages from one pool, in
  groups of equally many layers, the last of which is filled up with layers that are not there.

Where keys are entries of several tokens (DeepSeek-V4), an entry stands for them in pages and windows are states, which
transformers keeps in the cache's dtype, with values and gates of each token that has no whole entry yet, and `paged`
takes to be of fixed size, as Zoo has them.

Values have the cache's dtype. The state of a recurrence is float32 in `ideal` and `hf`, in vLLM what the model is in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.costs.rows import Priced
from zoo.costs.setup import DTYPES, Setup
from zoo.kernels.view.paging import PAGE
from zoo.model.step import SECOND
from zoo.spec.parts import count_kinds

if TYPE_CHECKING:
    from zoo.model.block.base import Block
    from zoo.model.tower import Tower

STATE_BYTES = 4
"""Of a value of a recurrent state, which is float32 whatever the model's dtype."""

BLOCK = 16
"""Tokens of a page: vLLM's default."""

MAX_BATCHED_TOKENS = 2048
"""Tokens that one step of a paged engine may add: vLLM's fallback. Its server takes more on large GPUs."""


class CacheRow(NamedTuple):
    """The cache of a kind of layer. `layers` is the number of such layers, `room` the number of tokens that an engine
    allocates. Each layer caches `values` a token (or an entry of several tokens) and `cross_values` a token of the
    encoder's; `state` is the bytes of its recurrent states."""

    where: str
    tower: Tower
    kind: str
    block: Block
    layers: int
    room: int
    values: int
    cross_values: int
    state: int


def list_cache_rows(spec: Priced, setup: Setup) -> Iterator[CacheRow]:
    """List what each kind of layer keeps in each tower that writes; those of an encoder keep nothing."""
    for where, tower in spec.towers().items():
        counts = {kind: count_kinds(tower.pattern)[kind] for kind in tower.blocks}
        room = padded_counts(tower.blocks, counts) if setup.engine == "paged" else counts
        for kind, block in tower.blocks.items() if tower.causal else ():
            crossed = 0 if block.cross is None else _values(block.cross.cache())
            held = _values(block.cache()), crossed, state_bytes(block, setup, setup.tokens(spec))
            yield CacheRow(where, tower, kind, block, counts[kind], room[kind], *held)


def kv_cache(spec: Priced, setup: Setup) -> dict[str, Any]:
    """Count the bytes that generation keeps for a set-up's sequences in its engine; none for a model that writes
    nothing.

    `bytes_per_token` is what one more token costs while every layer still keeps all of them. `bytes` is everything:
    in it are `cross_bytes`, what cross-attention made of an encoder's `context` tokens, and `state_bytes`, the states
    of recurrent layers; no token adds to either.
    """
    context, dtype = setup.tokens(spec), setup.cache_dtype or setup.dtype
    width, rows = DTYPES[dtype], list(list_cache_rows(spec, setup))
    page = setup.page or PAGE
    tokens = sum(
        row.values * width * held_tokens(row.block.attention, context, setup.engine, page) * row.room for row in rows
    )
    memory = memory_tokens(context, setup.engine, page)
    crossed = sum(row.cross_values * width * memory * row.layers for row in rows)
    states = sum(row.state * row.layers for row in rows)
    return {
        "bytes_per_token": round(sum(token_bytes(row, width) for row in rows)),
        "bytes": round((tokens + crossed + states) * setup.batch + padding_bytes(rows, setup)),
        "tokens": context,
        "batch": setup.batch,
        "dtype": dtype,
        "engine": setup.engine,
        "cross_bytes": round(crossed * setup.batch),
        "state_bytes": round(states * setup.batch),
        **({"padding_bytes": round(padding_bytes(rows, setup))} if setup.page else {}),
        **({"block_size": page} if setup.engine == "zoo" else {}),
        **({"block_size": BLOCK, "max_batched_tokens": MAX_BATCHED_TOKENS} if setup.engine == "paged" else {}),
    }


def token_bytes(row: CacheRow, width: float) -> float:
    """Bytes that a kind of layer caches for one more token; of an entry of several, its share."""
    size, rate = row.values * width * row.layers, row.block.attention.sight.rate
    return size / rate if rate > 1 else size


def padding_bytes(rows: list[CacheRow], setup: Setup) -> float:
    """Bytes that a pass's padding is written to, where rows are read by page table: a token's and a row's states."""
    width = DTYPES[setup.cache_dtype or setup.dtype]
    kept = sum(((row.values + row.cross_values) * width + row.state) * row.layers for row in rows)
    return kept if setup.page else 0


def memory_tokens(context: int, engine: str, page: int = PAGE) -> int:
    """Tokens of an encoder's output that cross-attention keeps, or has pages for; or entries of several tokens."""
    size = {"paged": BLOCK, "zoo": page}.get(engine, 1)
    return -(-context // size) * size


def held_tokens(attention: Any, context: int, engine: str, page: int = PAGE) -> int:
    """Tokens whose keys and values a layer keeps, or has pages for, when a sequence has `context`; entries, where one
    is made of several tokens. `page` is the page size of Zoo's own engine."""
    if attention.sight.rate > 1:
        return memory_tokens(context // attention.sight.rate, engine, page)
    window, chunk = attention.sight.window, attention.sight.chunk
    reach = window or chunk
    if engine == "ideal":
        return min(context, reach or context)
    if engine == "zoo":
        most = context if reach is None else reach + page - 1
        return -(-min(context, most) // page) * page
    if engine == "hf":
        # The newest W - 1 are `[-W + 1 :]` there, which for a window of one token is all.
        return context if reach is None or reach == 1 else min(context, reach - 1)
    if reach is None:
        return _pages(context) * BLOCK
    before = window - 1 if window else chunk
    return (_pages(min(before + MAX_BATCHED_TOKENS, context)) + (1 if window else 0)) * BLOCK


def _pages(tokens: int) -> int:
    return -(-tokens // BLOCK)


def padded_counts(blocks: dict[str, Any], counts: dict[str, int]) -> dict[str, int]:
    """Layers of each kind once those of equal reach stand in groups of one size: that of the fewest, or of the most
    where these are less than half as many again.

    Where the layers' pages differ in bytes they have no common size, and nothing is added.
    """
    reaches: dict[tuple[Any, Any], list[str]] = {}
    for kind, block in blocks.items():
        if counts[kind] and block.cache():
            reach = block.attention.sight.window, block.attention.sight.chunk
            reaches.setdefault(reach, []).append(kind)
    widths = {_values(blocks[kind].cache()) for kinds in reaches.values() for kind in kinds}
    if len(reaches) < 2 or len(widths) > 1:
        return counts
    sizes = [sum(counts[kind] for kind in kinds) for kinds in reaches.values()]
    group = max(sizes) if max(sizes) < 1.5 * min(sizes) else min(sizes)
    missing = {kinds[0]: -size % group for kinds, size in zip(reaches.values(), sizes, strict=True)}
    return {kind: layers + missing.get(kind, 0) for kind, layers in counts.items()}


def state_bytes(block: Any, setup: Setup, context: int) -> int:
    """Bytes of a layer's states after `context` tokens. Only Zoo counts the tokens that a router with a capacity has
    sent to its experts."""
    if setup.engine in ("ideal", "zoo"):
        return _values(block.state()) * STATE_BYTES
    held, others = 0, block.state()
    if setup.engine == "hf" and block.attention.sight.rate > 1:
        held = block.attention.count_loose(context) * DTYPES[setup.cache_dtype or setup.dtype]
        others = {name: shape for name, shape in others.items() if name not in block.attention.state()}
    for name, shape in others.items():
        if name == "routed":
            continue
        if setup.engine == "paged":
            held += math.prod(shape) * DTYPES[setup.dtype]
        elif name == "ngram":
            held += math.prod(shape) * 8  # ids
        elif name == "ngram_conv":
            held += math.prod(shape) * DTYPES[setup.dtype]
        elif name.removeprefix(SECOND) == "conv":
            held += (shape[0] + 1) * math.prod(shape[1:]) * DTYPES[setup.dtype]
        else:
            held += math.prod(shape) * STATE_BYTES
    return held


def _values(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
