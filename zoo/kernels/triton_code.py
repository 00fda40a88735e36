# B rows, T queries, S keys, H heads, K kv heads, G = H/K query heads to a kv head, C and Cv widths of keys and values
# pyright: reportPossiblyUnboundVariable=false
"""The Triton code of `zoo.kernels.triton_split`: attention to a part of the keys, and the join of parts.

Only the launcher imports this module, because it needs Triton. A tile's rows are the T·G queries of one kv head (GQA
packing): row m is query m // G of query head m % G, so that each key is read once for all heads that share it. Scores
are in the base-2 domain, so that exp2 serves both the softmax and the join. Products take the inputs' dtype, everything
else is float32. A width is cut into a power of two and a rest (576 = 512 + 64, 80 = 64 + 16), each padded with zeros.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_part(
    q, k, v, y, lse, table, lengths, ends, sinks, slopes,
    scale, softcap, n_queries, n_keys, n_kv_heads, tiles, splits, lines, left, right,
    q_row, q_token, q_head, k_page, k_slot, k_head, v_page, v_slot, v_head,
    table_row, sink_row, sink_token, slope_row,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, PAGE: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, V_MAIN: tl.constexpr, V_REST: tl.constexpr,
    TILE: tl.constexpr, KEYS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SHARED: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Attend with one tile of one kv head's queries to part `tl.program_id(1)` of the keys that the tile sees.

    q [B, T, H, C], pools k [N, page, K, C] and v [N, page, K, Cv] with `table` [B, P] (None: k [B, S, K, C]), `lengths`
    [B] (None: n_keys), `sinks` [B, T, H] or None, `slopes` [B, H] or None. With `ends` [B + 1] the rows of q, sinks and
    y are concatenated to [1, N, H, C], and row b begins at ends[b]. A query sees at most `left` keys before itself and
    `right` after it, if LEFT and RIGHT are set. Writes y [B, T, H, Cv] or, with SPLIT, y [splits, lines, Cv] and lse
    [splits, lines] in float32; `lines` is B·T·H. With SHARED the values are the first V_MAIN channels of the keys
    (MLA's latents), and are not read again.
    """
    tile = tl.program_id(0) % tiles
    kv_head = tl.program_id(0) // tiles % n_kv_heads
    row = (tl.program_id(0) // tiles // n_kv_heads).to(tl.int64)
    m = tile * TILE + tl.arange(0, TILE)
    query, head = m // GROUP, kv_head * GROUP + m % GROUP
    held, place = n_keys, row
    at = query.to(tl.int64)  # the query's place in row `place` of q
    if lengths is not None:
        held = tl.load(lengths + row).to(tl.int32)
    line = row * n_queries
    if ends is not None:
        line = tl.load(ends + row).to(tl.int64)
        n_queries = (tl.load(ends + row + 1) - line).to(tl.int32)
        at, place = at + line, row * 0
    real = m < n_queries * GROUP
    token = query + held - n_queries  # aligned at the bottom right
    held = tl.where(tile * TILE < n_queries * GROUP, held, 0)  # the tiles are those of the longest row
    first, begin, end = find_part(tile, held, n_queries, splits, left, right, GROUP, TILE, KEYS, LEFT, RIGHT)

    q_at = q + place * q_row + at * q_token + head * q_head
    q_main = load_channels(q_at, real, 0, MAIN, WIDTH)
    if REST:
        q_rest = load_channels(q_at, real, MAIN, REST, WIDTH)
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    main = tl.zeros([TILE, V_MAIN], tl.float32)
    if V_REST:
        rest = tl.zeros([TILE, V_REST], tl.float32)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        there = (key >= first) & (key < end)  # nothing else is read: what lies in other slots may be NaN
        page, slot = row, key
        if table is not None:
            page = tl.load(table + row * table_row + key // PAGE, mask=there, other=0).to(tl.int64)
            slot = key % PAGE
        k_at = k + page * k_page + slot * k_slot + kv_head * k_head
        k_main = load_channels(k_at, there, 0, MAIN, WIDTH)
        s = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST:
            k_rest = load_channels(k_at, there, MAIN, REST, WIDTH)
            s = tl.dot(q_rest, tl.trans(k_rest), s, input_precision="ieee")
        behind = token[:, None] - key[None, :]
        s = bend_scores(s * scale, softcap) * LOG2E
        if slopes is not None:
            slope = tl.load(slopes + row * slope_row + head, mask=real, other=0.0).to(tl.float32) * LOG2E
            s -= slope[:, None] * tl.abs(behind).to(tl.float32)
        seen = there[None, :] & real[:, None]
        if LEFT:
            seen = seen & (behind <= left)
        if RIGHT:
            seen = seen & (behind >= -right)
        s = tl.where(seen, s, float("-inf"))

        above = tl.maximum(top, tl.max(s, 1))
        safe = tl.where(above == float("-inf"), 0.0, above)  # a query that has seen no key yet
        p, shrink = tl.exp2(s - safe[:, None]), tl.exp2(top - safe)
        total, top = total * shrink + tl.sum(p, 1), above
        p = p.to(k_main.dtype)
        v_at = v + page * v_page + slot * v_slot + kv_head * v_head
        v_main = k_main
        if not SHARED:
            v_main = load_channels(v_at, there, 0, V_MAIN, V_WIDTH)
        main = tl.dot(p, v_main, main * shrink[:, None], input_precision="ieee")
        if V_REST:
            v_rest = load_channels(v_at, there, V_MAIN, V_REST, V_WIDTH)
            rest = tl.dot(p, v_rest, rest * shrink[:, None], input_precision="ieee")

    share = tl.where(total > 0, 1.0 / total, 0.0)  # 0 for a query that sees no key
    line = (line + query) * (n_kv_heads * GROUP) + head  # of B·T·H
    if SPLIT:
        line += tl.program_id(1).to(tl.int64) * lines
        tl.store(lse + line, tl.where(total > 0, top + tl.log2(total), float("-inf")), mask=real)
    elif sinks is not None:
        sink = tl.load(sinks + place * sink_row + at * sink_token + head, mask=real, other=0.0).to(tl.float32) * LOG2E
        above = tl.maximum(top, sink)
        shrink = tl.exp2(top - above)
        share = shrink / (total * shrink + tl.exp2(sink - above))
    store_channels(y + line * V_WIDTH, main * share[:, None], real, 0, V_MAIN, V_WIDTH)
    if V_REST:
        store_channels(y + line * V_WIDTH, rest * share[:, None], real, V_MAIN, V_REST, V_WIDTH)


@triton.jit
def find_part(
    tile, held, n_queries, splits, left, right,
    GROUP: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """Find the keys that a program reads: the keys of its part that any query of its tile sees. Returns the first key
    that the tile sees, the start of the part (a multiple of KEYS), and its end."""
    first, stop = 0, held
    if LEFT:
        first = tl.maximum(tile * TILE // GROUP + held - n_queries - left, 0)
    if RIGHT:
        last = tl.minimum((tile * TILE + TILE - 1) // GROUP, n_queries - 1)
        stop = tl.minimum(last + held - n_queries + right + 1, held)
    begin = first // KEYS * KEYS
    each = tl.cdiv(tl.cdiv(tl.maximum(stop - begin, 0), KEYS), splits) * KEYS
    begin += tl.program_id(1) * each
    return first, begin, tl.minimum(begin + each, stop)


@triton.jit
def bend_scores(s, softcap):
    """Apply a softcap, c·tanh(s/c), if there is one."""
    if softcap is not None:
        fall = tl.exp2(tl.abs(s) * (-2.0 * LOG2E / softcap))
        s = tl.where(s < 0, -softcap, softcap) * ((1.0 - fall) / (1.0 + fall))
    return s


@triton.jit
def load_channels(at, real, FIRST: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Load COUNT channels from channel FIRST on. Lines that are not `real`, and channels from WIDTH on, are 0."""
    c = FIRST + tl.arange(0, COUNT)
    return tl.load(at[:, None] + c[None, :], mask=real[:, None] & (c < WIDTH)[None, :], other=0.0)


@triton.jit
def store_channels(at, x, real, FIRST: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Store channels: the inverse of `load_channels`."""
    c = FIRST + tl.arange(0, COUNT)
    tl.store(at[:, None] + c[None, :], x.to(at.dtype.element_ty), mask=real[:, None] & (c < WIDTH)[None, :])


@triton.jit
def join_parts(
    parts, lse, y, sinks, n_queries, n_heads, splits, sink_row, sink_token,
    V_WIDTH: tl.constexpr, V_PADDED: tl.constexpr,
):  # fmt: skip
    """Join the parts [splits, B·T·H, Cv] of one query's output by their logsumexps, and with its sink: y [B·T·H,
    Cv]."""
    line = tl.program_id(0).to(tl.int64)
    lines = tl.num_programs(0).to(tl.int64)
    c = tl.arange(0, V_PADDED)
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    if sinks is not None:
        head, token, row = line % n_heads, line // n_heads % n_queries, line // n_heads // n_queries
        top = tl.load(sinks + row * sink_row + token * sink_token + head).to(tl.float32) * LOG2E
        total += 1.0
    joined = tl.zeros([V_PADDED], tl.float32)
    for part in range(splits):
        own = tl.load(lse + part * lines + line)
        above = tl.maximum(top, own)
        safe = tl.where(above == float("-inf"), 0.0, above)
        shrink, weight = tl.exp2(top - safe), tl.exp2(own - safe)
        values = tl.load(parts + (part * lines + line) * V_WIDTH + c, mask=c < V_WIDTH, other=0.0)
        joined = joined * shrink + values * weight
        total, top = total * shrink + weight, above
    share = tl.where(total > 0, 1.0 / total, 0.0)
    tl.store(y + line * V_WIDTH + c, (joined * share).to(y.dtype.element_ty), mask=c < V_WIDTH)
