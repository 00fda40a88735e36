# S tokens of a sequence, B sequences, W window
"""Cache sizes while generating: the KV cache, cross-attention's keys and values, and recurrent states.

Engines cache different amounts for the same model, so a figure always names its engine:

- `ideal`: the keys and values that attention can still see, and no more.
- `zoo`: pages of PAGE tokens, as Zoo's engine allocates them. A window or chunk of W tokens takes the pages of W + PAGE
  − 1 tokens, because it need not begin at a page boundary. With `Setup.page`, as on a GPU, pages have that size, and
  every layer has room for one token more: the padding of a pass is written there.
- `hf`: transformers' DynamicCache, the default of `generate` (read and measured at 5.24). A window or chunk of W tokens
  keeps W − 1, because the newest token is joined before attention reads (W = 1 keeps all). MLA keeps its latent. A
  convolution of width n keeps n inputs, one more than it needs. Windows count even in a family whose config.json does
  not state them (GPT-Neo), although transformers keeps every token there.
- `paged`: pages of BLOCK tokens, as vLLM reserves them for one sequence (Kwon et al., 2023; read at its `v1` engine). A
  window holds W − 1 tokens, the MAX_BATCHED_TOKENS that one step may add, and one page because it need not begin at a
  page boundary; a chunk of W tokens holds W and MAX_BATCHED_TOKENS, without that page. Layers of different reach share
  one pool, in groups of equally many layers; vLLM fills the last group up with padding layers.

Where one key stands for several tokens, pages hold such keys, and the window of single tokens is a state. transformers
keeps this state in the cache's dtype, together with the values and gates of tokens that do not fill a key yet. `paged`
is taken to have Zoo's states of fixed size.

Cached values have the cache's dtype. Recurrent states are float32, but have the model's dtype in vLLM, and in
transformers if they are a convolution's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.costs.rows import Priced, count_values
from zoo.costs.setup import DTYPES, Setup
from zoo.kernels.view.page_tables import PAGE
from zoo.model.step import SECOND
from zoo.spec.parts import count_kinds

if TYPE_CHECKING:
    from zoo.model.block.base import Block
    from zoo.model.tower import Tower

STATE_BYTES = 4
"""Bytes of a value of a recurrent state: float32, whatever the model's dtype."""

BLOCK = 16
"""Tokens of a page in `paged`: vLLM's default."""

MAX_BATCHED_TOKENS = 2048
"""Tokens that one step of a paged engine may add: vLLM's fallback. Its server takes more on large GPUs."""


class CacheRow(NamedTuple):
    """The cache of a kind of layer. `layers` is the number of such layers; `room` also counts vLLM's padding layers
    (`padded_counts`) in the engine `paged`. Each layer caches `values` numbers for a token (or a key of several tokens)
    and `cross_values` for a token of the encoder. `state` is the bytes of a layer's recurrent states."""

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
    """List the cache of each kind of layer in each causal tower; an encoder caches nothing."""
    for where, tower in spec.towers().items():
        counts = {kind: count_kinds(tower.pattern)[kind] for kind in tower.blocks}
        room = padded_counts(tower.blocks, counts) if setup.engine == "paged" else counts
        for kind, block in tower.blocks.items() if tower.causal else ():
            crossed = 0 if block.cross is None else count_values(block.cross.cache())
            held = count_values(block.cache()), crossed, state_bytes(block, setup, setup.tokens(spec))
            yield CacheRow(where, tower, kind, block, counts[kind], room[kind], *held)


def kv_cache(spec: Priced, setup: Setup) -> dict[str, Any]:
    """Count the bytes of the KV cache and states for a set-up's sequences in its engine; 0 for an encoder.

    `bytes_per_token` is the bytes that one more token of a sequence takes while every layer still keeps all tokens.
    `bytes` is the total. Two parts of the total do not grow with a token: `cross_bytes` (cross-attention's keys and
    values of an encoder's `context` tokens) and `state_bytes` (recurrent states).
    """
    context, dtype = setup.tokens(spec), setup.cached
    width, rows = DTYPES[dtype], list(list_cache_rows(spec, setup))
    page = setup.page or PAGE
    tokens = sum(token_cache_bytes(row, setup, context) for row in rows)
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


def token_cache_bytes(row: CacheRow, setup: Setup, context: int) -> float:
    """Bytes of keys and values that all layers of a kind cache for one sequence of `context` tokens."""
    held = held_tokens(row.block.attention, context, setup.engine, setup.page or PAGE)
    return row.values * DTYPES[setup.cached] * held * row.room


def token_bytes(row: CacheRow, width: float) -> float:
    """Bytes that all layers of a kind cache for one more token. Where a key stands for several tokens, this is the
    token's share of the key."""
    size, rate = row.values * width * row.layers, row.block.attention.sight.rate
    return size / rate if rate > 1 else size


def padding_bytes(rows: list[CacheRow], setup: Setup) -> float:
    """Bytes for the padding of a pass: one token and one row's states in every layer. 0 unless rows are read by page
    table (`Setup.page`)."""
    width = DTYPES[setup.cached]
    kept = sum(((row.values + row.cross_values) * width + row.state) * row.layers for row in rows)
    return kept if setup.page else 0


def memory_tokens(context: int, engine: str, page: int = PAGE, more: int = 0) -> int:
    """Round a number of tokens (or of keys) up to whole pages of the engine, and add `more` pages. `ideal` and `hf`
    have no pages, so nothing is rounded."""
    size = {"paged": BLOCK, "zoo": page}.get(engine, 1)
    return (-(-context // size) + more) * size


def held_tokens(attention: Any, context: int, engine: str, page: int = PAGE) -> int:
    """Count the tokens (or keys of several tokens) that a layer caches or has pages for, when a sequence has
    `context` tokens. `page` is the page size of Zoo's own engine."""
    window, chunk, rate = attention.sight.window, attention.sight.chunk, attention.sight.rate
    if rate > 1:
        return memory_tokens(context // rate, engine, page)
    if reach := window or chunk:
        most = {
            "ideal": reach,
            "zoo": reach + page - 1,
            "hf": reach - 1 or context,  # transformers slices `[-W + 1 :]`, which for W = 1 keeps all
            "paged": (window - 1 if window else chunk) + MAX_BATCHED_TOKENS,
        }
        context = min(context, most[engine])
    return memory_tokens(context, engine, page, more=1 if engine == "paged" and window else 0)


def padded_counts(blocks: dict[str, Block], counts: dict[str, int]) -> dict[str, int]:
    """Count layers of each kind with vLLM's padding layers. vLLM puts layers of one reach (window, chunk) into groups,
    and pads the last group of each reach. A group has as many layers as the rarest reach, or as the most frequent reach
    if that has less than 1.5 times as many. Example: 22 layers with a window and 5 without make groups of 5, and get 3
    padding layers.

    Nothing is added if all layers have one reach, or if their pages differ in bytes.
    """
    reaches: dict[tuple[Any, Any], list[str]] = {}
    for kind, block in blocks.items():
        if counts[kind] and block.cache():
            reach = block.attention.sight.window, block.attention.sight.chunk
            reaches.setdefault(reach, []).append(kind)
    widths = {count_values(blocks[kind].cache()) for kinds in reaches.values() for kind in kinds}
    if len(reaches) < 2 or len(widths) > 1:
        return counts
    sizes = [sum(counts[kind] for kind in kinds) for kinds in reaches.values()]
    group = max(sizes) if max(sizes) < 1.5 * min(sizes) else min(sizes)
    missing = {kinds[0]: -size % group for kinds, size in zip(reaches.values(), sizes, strict=True)}
    return {kind: layers + missing.get(kind, 0) for kind, layers in counts.items()}


def state_bytes(block: Block, setup: Setup, context: int) -> int:
    """Bytes of a layer's states after `context` tokens. The token counts of a router with a capacity ("routed") are a
    state only in `ideal` and `zoo`."""
    if setup.engine in ("ideal", "zoo"):
        return count_values(block.state()) * STATE_BYTES
    held, others = 0, block.state()
    if setup.engine == "hf" and block.attention.sight.rate > 1:
        held = block.attention.count_loose(context)  # type: ignore[attr-defined]
        held *= DTYPES[setup.cached]
        others = {name: shape for name, shape in others.items() if name not in block.attention.state()}
    width = DTYPES[setup.dtype]
    widths = {"ngram": 8, "ngram_conv": width, "conv": width, f"{SECOND}conv": width}  # 8 bytes an id; others float32
    for name, shape in others.items():
        if setup.engine == "hf" and name.removeprefix(SECOND) == "conv":
            shape = (shape[0] + 1, *shape[1:])  # an input more than it needs
        values = 0 if name == "routed" else math.prod(shape)
        held += values * (width if setup.engine == "paged" else widths.get(name, STATE_BYTES))
    return held
