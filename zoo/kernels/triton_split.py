# B rows, T queries, S keys, P pages of a row, H heads, K kv heads, G = H/K query heads to a kv head, C head width
"""Split-KV attention in Triton: few queries of each row over many keys, read from pages in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.kernels.base import AttentionQuery, Call, FallibleKernel, Machine, Scores
from zoo.kernels.blocks import round_to_power
from zoo.kernels.found import explain_missing
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.mask import Mask
    from zoo.kernels.score_bias import Bias

WIDEST = 512
"""Maximum width of values in channels, because a program holds their sums in registers. The larger part of a key's
width (`split_width`) has the same limit."""

OLDEST = (8, 0)
"""Oldest compute capability for which the kernel has been compiled."""

LEAST = 256
"""Minimum number of keys in a part, because the join costs 4 bytes per channel for each part, against 2 or 4 bytes per
channel for each key."""

MOST = 64
"""Maximum number of parts, which a program of the join reads one after another."""

PER_PROCESSOR = 2
"""Number of programs for each multiprocessor, so that one multiplies while another waits for memory."""

BLOCK = 40 * 1024
"""Maximum bytes of a block of keys and values. One block is in flight. With the queries and Triton's scratch memory a
program then fits the 99 KiB of shared memory that every GPU since Ampere has (tests/oracle/triton_split.py)."""

EMULATED = 8
"""Number of multiprocessors assumed for a CPU, which runs Triton's interpreter."""


class TritonSplit(FallibleKernel):
    """Flash-Decoding (Dao et al., 2023): each program attends to a part of a row's keys, and a second kernel joins the
    parts by their logsumexps. Sums and softmax are in float32, products in the inputs' dtype (float32 without TF32)."""

    name = "triton"
    package = "triton"
    about = "Zoo's own in Triton: split-KV, pages, sinks, softcap, ALiBi, MLA's latents; forward only"
    pages_in_place = True

    def refuses(self, ask: AttentionQuery, machine: Machine) -> str | None:
        if machine.device != "cuda":
            return f"it runs on CUDA devices, this is {machine.device}"
        if missing := explain_missing("compiler", machine):
            return missing
        if machine.capability is not None and machine.capability < OLDEST:
            return "it is compiled for compute capability 8.0 and later, this is {}.{}".format(*machine.capability)
        return _refuse_ask(ask)

    def call(self, ask: AttentionQuery) -> Call:
        sides = find_sides(ask.causal, ask.window, ask.ahead)
        return Call("attend_part", {"sides": sides, **({"softcap": ask.softcap} if ask.softcap else {})})

    def prepare(
        self, mask: Mask, ask: AttentionQuery, device: torch.device, dtype: torch.dtype, bias: Bias | None
    ) -> None:
        self.load()  # before the layers run

    def module(self) -> Any:
        from zoo.kernels import triton_code

        return triton_code

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, how: Scores) -> Tensor:
        code = self.load()
        q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))
        launch = lay_launch(q, k, v, how, _count_processors(q.device))
        y = q.new_empty(*q.shape[:3], v.shape[3])
        if not y.numel():
            return y
        splits, lines = launch.grid[1], y.numel() // y.shape[3]
        parts = y if splits == 1 else q.new_empty(splits, lines, y.shape[3], dtype=torch.float32)
        lse = None if splits == 1 else q.new_empty(splits, lines, dtype=torch.float32)
        with torch.cuda.device_of(q):
            attend_part = code.attend_part[launch.grid]
            attend_part(q=q, k=k, v=v, y=parts, lse=lse, **launch.arguments, **launch.options)
            if splits > 1:
                code.join_parts[(lines,)](parts, lse, y, **launch.join)
        self.prove("attend_part")
        return y


def _refuse_ask(ask: AttentionQuery) -> str | None:
    """Return a sentence on the first feature of `ask` that the kernel lacks; None if it has all."""
    if ask.dtype not in ("float16", "bfloat16", "float32"):
        return f"the split-KV kernel takes float16, bfloat16 and float32, not {ask.dtype}"
    if ask.needs_grad:
        return "the split-KV kernel has no gradient"
    if ask.bias not in ("none", "alibi"):
        return f"the split-KV kernel has no {ask.bias} bias"
    hides = {"padding": ask.padding, "documents": ask.documents, "single pairs": ask.pairs, "chosen keys": ask.chosen}
    if found := [name for name, here in hides.items() if here]:
        return f"the split-KV kernel masks by distance and length, not {found[0]}"
    if ask.dropout:
        return "the split-KV kernel drops no probabilities"
    if ask.v_head_dim > WIDEST or ask.head_dim >= 2 * WIDEST:
        found = f"{ask.head_dim} and {ask.v_head_dim}"
        return f"keys are less than {2 * WIDEST} wide and values at most {WIDEST}, found {found}"
    return None


def find_sides(causal: bool, window: int | None, ahead: int | None) -> tuple[int | None, int | None]:
    """Return how many tokens a query sees before itself and after itself, None for all: a causal window of 4 is
    (3, 0)."""
    if causal:
        return None if window is None else window - 1, 0
    return window, window if ahead is None else ahead


# ---------------------------------------------------------------- the launch


class TileSize(NamedTuple):
    """A program's size: its tile of queries, the keys in one block of its loop, its warps, and the stages of its
    pipeline. Two stages load a block while the previous one is multiplied; three also load the page numbers of the next
    block."""

    tile: int
    keys: int
    warps: int
    stages: int


class KernelLaunch(NamedTuple):
    """The launch of `attend_part`: its grid (programs, splits), its arguments except the tensors q, k, v, y and lse,
    and Triton's options. `join` are the arguments of `join_parts` after its first three tensors."""

    grid: tuple[int, int]
    arguments: dict[str, Any]
    options: dict[str, int]
    join: dict[str, Any]


def lay_launch(q: Tensor, k: Tensor, v: Tensor, how: Scores, processors: int) -> KernelLaunch:
    """Lay out the launch for q [B, T, H, C], or concatenated rows [1, N, H, C], over k and v [B, S, K, C] or pools of
    pages. The grid depends on shapes only, not on the rows' lengths, so a CUDA graph can record it."""
    (rows, tokens, n_heads, width), n_kv_heads, mask = q.shape, k.shape[2], how.mask
    n_queries, lines = tokens, rows * tokens * n_heads
    if mask.cu_seqlens_q is not None:  # rows end to end: tiles for the longest one, of which others leave some empty
        rows, n_queries = len(mask.cu_seqlens_q) - 1, mask.n_queries
    group, features = n_heads // n_kv_heads, mask.features
    left, right = find_sides(features["causal"], features["window"], features["ahead"])
    (main, rest), (v_main, v_rest) = split_width(width), split_width(v.shape[3])
    shared = v_main == main == v.shape[3] and k.stride() == v.stride() and not torch.compiler.is_compiling()
    shared = shared and k.data_ptr() == v.data_ptr()  # Dynamo's tensors have no address
    channels = main + rest + (0 if shared else v_main + v_rest)
    item, paged = q.element_size(), how.pages is not None
    size = choose_tile(n_queries * group, channels * item, v_main + v_rest, item, paged)
    tiles = -(-n_queries * group // size.tile)
    reach = mask.n_keys if left is None or right is None else min(mask.n_keys, left + right + n_queries)
    programs = rows * n_kv_heads * tiles
    splits = count_splits(programs, reach, processors)
    sinks = _expand_sinks(how.sinks)
    lengths, slopes, pages = (
        each if each is None else each.contiguous()
        for each in (mask.lengths, None if how.bias is None else how.bias.slopes, how.pages)
    )
    ends = {"sinks": sinks, "sink_row": 0 if sinks is None else sinks.stride(0) * (sinks.shape[0] > 1)}
    ends["sink_token"] = 0 if sinks is None else sinks.stride(1) * (sinks.shape[1] > 1)
    arguments = {
        **ends,
        **{"table": pages, "table_row": 0 if pages is None else pages.stride(0), "lengths": lengths},
        **{"ends": mask.cu_seqlens_q, "lines": lines},
        **{"slopes": slopes, "slope_row": slopes.stride(0) if slopes is not None and slopes.ndim > 1 else 0},
        **{"scale": how.scale, "softcap": how.softcap, "n_queries": n_queries, "n_keys": mask.n_keys},
        **{"n_kv_heads": n_kv_heads, "tiles": tiles, "splits": splits, "left": left or 0, "right": right or 0},
        **dict(zip(("q_row", "q_token", "q_head"), q.stride(), strict=False)),
        **dict(zip(("k_page", "k_slot", "k_head"), k.stride(), strict=False)),
        **dict(zip(("v_page", "v_slot", "v_head"), v.stride(), strict=False)),
        **{"GROUP": group, "WIDTH": width, "V_WIDTH": v.shape[3], "PAGE": k.shape[1] if paged else 1},
        **{"MAIN": main, "REST": rest, "V_MAIN": v_main, "V_REST": v_rest, "TILE": size.tile, "KEYS": size.keys},
        **{"LEFT": left is not None, "RIGHT": right is not None, "SHARED": shared, "SPLIT": splits > 1},
    }
    join = {**ends, "n_queries": tokens, "n_heads": n_heads, "splits": splits}
    join |= {"V_WIDTH": v.shape[3], "V_PADDED": round_to_power(v.shape[3])}
    return KernelLaunch((programs, splits), arguments, {"num_warps": size.warps, "num_stages": size.stages}, join)


def split_width(width: int) -> tuple[int, int]:
    """Cut a width into a power of two and a padded rest, each 0 or at least 16: 128 is (128, 0), 576 is (512, 64)."""
    main = max(16, 1 << (width.bit_length() - 1))
    return main, 0 if width <= main else max(16, round_to_power(width - main))


def choose_tile(rows: int, key_bytes: int, v_width: int, itemsize: int, paged: bool = True) -> TileSize:
    """Choose a program's size for `rows` queries of a kv head, `key_bytes` bytes of a key and its value together,
    values `v_width` channels wide and a dtype of `itemsize` bytes. These sizes compile without spilled registers.

    For 32 query heads over 8 kv heads of 128 channels in bfloat16, a step of decoding has 4 queries of a kv head in a
    tile of 16, and blocks of 64 keys, 32 KiB each.
    """
    half = itemsize == 2
    tile = min(round_to_power(max(rows, 16)), (64 if v_width <= 128 else 32) if half else 16)
    keys = 64
    while keys > 16 and keys * key_bytes > BLOCK:
        keys //= 2
    stages = (3 if paged else 2) if keys * key_bytes <= BLOCK else 1
    return TileSize(tile, keys, 4 if half and tile * v_width <= 4096 else 8, stages)


def count_splits(programs: int, n_keys: int, processors: int) -> int:
    """Count the parts into which each row's keys are split: enough to occupy the device, but with at least LEAST keys
    each. 8 programs over 8,192 keys on 132 multiprocessors give 32 parts."""
    return max(1, min(PER_PROCESSOR * processors // programs, n_keys // LEAST, MOST)) if programs else 1


def _expand_sinks(sinks: Tensor | None) -> Tensor | None:
    """Return sinks [H] or [B, T, H] as [B|1, T|1, H] with contiguous heads."""
    if sinks is None:
        return None
    sinks = sinks[None, None] if sinks.ndim == 1 else sinks
    return sinks if sinks.stride(-1) == 1 else sinks.contiguous()


def _count_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else EMULATED
