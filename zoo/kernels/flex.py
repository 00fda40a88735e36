# B batch, T queries, S keys, H heads, K kv heads, C head width, M and N blocks of queries and of keys
"""torch's flex_attention: attention that torch.compile compiles for each kind of mask and bias."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.kernels.base import AttentionQuery, Call, Kernel, Machine, Scores
from zoo.kernels.blocks import options, too_large
from zoo.kernels.found import machine_of
from zoo.kernels.mask import Mask
from zoo.kernels.score_bias import Bias, ByDistance, Given, Placed
from zoo.lazy import F, Tensor, load, torch

if TYPE_CHECKING:
    from collections.abc import Callable


BLOCK = 128  # queries and keys per block; a block without a visible pair is skipped
WHOLE = 1 << 30  # block size that means a single block, as torch itself uses without a block mask
AT_ONCE = 1 << 22  # (query, key) pairs evaluated at once to find the blocks
OPTIONS = {
    "automatic_dynamic_shapes": False,
    "specialize_float": True,
    "recompile_limit": 256,
    "accumulated_recompile_limit": 4096,
}
"""Dynamo's settings: sizes not marked as dynamic are constants, and many versions may be compiled."""


class Flex(Kernel):
    """FlexAttention (Dong et al., 2024). `mask.sees` and `bias.at` are traced into the kernel, so that masks and biases
    have one definition for all kernels.

    Lengths are dynamic, so one more token does not recompile. The batch size is dynamic too, unless the mask differs by
    row. Numbers and widths of heads, window, scale and softcap are constants of the compiled code. The kernel is
    compiled at first use, and Inductor caches it on disk. Up to BLOCK queries form one block, so that decoding needs no
    search for blocks.

    Sinks are applied after the kernel, from each query's logsumexp. On a CPU the kernel does not return the logsumexp,
    so an additional first key gets the sink as its score and 0 as its value.
    """

    name = "flex"
    about = "torch's flex_attention, compiled: every feature; on a CPU forward only"

    def refuses(self, ask: AttentionQuery, machine: Machine) -> str | None:
        if machine.device not in ("cpu", "cuda"):
            return f"flex_attention is compiled for CPUs and CUDA, not for {machine.device}"
        if ask.dropout:
            return "flex_attention has no dropout"
        if ask.chosen:
            return "flex_attention would draw the blocks of a mask anew in every layer that chooses keys"
        if "compiler" not in machine.packages:
            return f"torch.compile finds no {'triton' if machine.device == 'cuda' else 'C++ compiler'}"
        if ask.dtype not in ("float32", "bfloat16", "float16"):
            return f"flex_attention takes float32, bfloat16 and float16, not {ask.dtype}"
        if machine.device == "cuda":
            return _refused_on_cuda(ask, machine.capability)
        if "avx2" not in machine.packages:
            return "flex_attention on a CPU is for x86-64 with AVX2, not on macOS"
        return "flex_attention has no gradient on a CPU" if ask.needs_grad else None

    def call(self, ask: AttentionQuery) -> Call:
        added = {"softcap": ask.softcap is not None, ask.bias: ask.bias != "none"}
        hides = ("causal", "window", "padding", "documents", "pairs", "lengths")
        shown = {name: getattr(ask, name) for name in hides}
        return Call(
            "flex_attention",
            {
                "score_mod": "+".join(name for name, here in added.items() if here) or None,
                "block_mask": "+".join(name for name, here in shown.items() if here) or None,
                "enable_gqa": ask.n_heads != ask.n_kv_heads,
                **({"return_aux": "lse"} if ask.sinks else {}),
            },
        )

    def prepare(
        self, mask: Mask, ask: AttentionQuery, device: torch.device, dtype: torch.dtype, bias: Bias | None
    ) -> None:
        _drawn(mask, ask.sinks and not _gives_sums(device), device)
        _spacious(bias, mask)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, how: Scores) -> Tensor:
        drawn = _drawn(how.mask, how.sinks is not None and not _gives_sums(q.device), q.device)
        if torch.compiler.is_compiling():  # inlined into the surrounding compiled code, with its lengths
            return _attend(q, k, v, drawn, how)
        sinks = _vary_sinks(how.sinks, not _gives_sums(q.device))
        how = replace(how, mask=drawn.mask, bias=_spacious(how.bias, how.mask), sinks=sinks)
        _vary(q, k, v, axes=(0, 1))
        with torch.compiler.set_stance("default"), torch._dynamo.config.patch(OPTIONS):
            return _compiled()(q, k, v, drawn, how)


def _refused_on_cuda(ask: AttentionQuery, capability: tuple[int, int] | None) -> str | None:
    """Return which limit of triton, or of torch's triton kernels, the query exceeds; None if it exceeds none."""
    needed = (8, 0) if ask.dtype == "bfloat16" else (7, 0)
    if capability is not None and capability < needed:
        found = "{}.{}".format(*capability)
        return f"triton takes {ask.dtype} from compute capability {needed[0]}.{needed[1]} on, found {found}"
    widths = ask.head_dim, ask.v_head_dim
    if min(widths) < 16:
        return f"flex_attention on CUDA is for heads of 16 channels or more, not {min(widths)}"
    return too_large(ask.dtype, widths, ask.needs_grad, capability)


class Drawn(NamedTuple):
    """A mask prepared for flex, shared by its layers. `mask` has its lengths as tensors. `blocks` are BlockMask's
    arguments [B|1, 1, M, N] for the blocks that are not skipped, of `size` queries and `size` keys each."""

    mask: Mask
    blocks: tuple[Any, ...]
    size: int


def _drawn(mask: Mask, column: bool, device: torch.device) -> Drawn:
    """Prepare a mask once, and keep the result on the mask. With `column` a first key for sinks is added."""
    kept = mask.kept.get(("flex", column))
    if kept is not None and kept.blocks[0].device == device:
        return kept
    like = mask if torch.compiler.is_compiling() else _measured(mask, device)
    if mask.n_queries <= BLOCK:
        drawn = Drawn(like, _once(_whole, device), WHOLE)
    elif not mask.row_tensors:
        numbers = (mask.n_queries, mask.n_keys, mask.causal, mask.window, mask.ahead)
        drawn = Drawn(like, _once(_blocks_of_numbers, *numbers, column, device), BLOCK)
    else:
        drawn = Drawn(like, _blocks(mask, column, device), BLOCK)
    _vary(*drawn.blocks)
    mask.kept["flex", column] = drawn
    return drawn


def _measured(mask: Mask, device: torch.device) -> Mask:
    """Copy the mask for compiled code. Lengths become tensors, because ints would be constants; padding, pairs and
    documents become padded tensors (`_roomy`)."""
    like = copy(mask)
    like.kept = {}
    for name in ("n_queries", "n_keys"):
        setattr(like, name, torch.full((), getattr(mask, name), device=device))
    for name, axes in {"padding": 1, "also": 2}.items():
        setattr(like, name, _roomy(getattr(mask, name), axes))
    if mask.documents is not None:
        queries, keys = mask.documents
        like.documents = _roomy(queries, 1), _roomy(keys, 1)
    return like


def _spacious(bias: Bias | None, mask: Mask) -> Bias | None:
    """Copy a bias with padded tensors (`_roomy`); kept on the mask for the layers that share both."""
    kept, like = mask.kept.get("flex bias", (None, None))
    if bias is None or kept is bias:
        return like if bias is not None else None
    like = copy(bias)
    if isinstance(like, Placed):
        like.queries, like.keys = _roomy(like.queries, 1), _roomy(like.keys, 1)
        if isinstance(like, ByDistance):
            like.logits = _roomy(like.logits.movedim(1, -1), 1).movedim(-1, 1)
            _vary(like.logits, axes=(0,))
    elif isinstance(like, Given):
        like.tensor = _roomy(like.tensor, 2)
    mask.kept["flex bias"] = bias, like
    return like


def _vary_sinks(sinks: Tensor | None, column: bool) -> Tensor | None:
    """Mark per-query sinks [B, T, H] as dynamic in T, padded if the kernel reads them (`column`)."""
    if sinks is None or sinks.ndim == 1:
        return sinks
    sinks = _roomy(sinks.movedim(1, -1), 1).movedim(-1, 1) if column else sinks
    _vary(sinks, axes=(0, 1))
    return sinks


def _roomy(tensor: Tensor, axes: int) -> Any:
    """Pad the last `axes` axes of a tensor to one of a few sizes; None stays None. The padding is never read.

    Strides must be constants in compiled code: Inductor's CPU template may confuse variable ones (torch 2.13 replaces
    ks3 inside ks38). To compile seldom, an axis has one of few sizes: 1 stays 1, otherwise 1024, 8192, 65536, … if one
    axis is padded, and 128, 256, 512, … if two are.
    """
    if tensor is None:
        return None
    least, power = (1024, 3) if axes == 1 else (BLOCK, 1)
    widths = []
    for length in reversed(tensor.shape[-axes:]):
        size = 1 if length == 1 else least
        while size < length:
            size <<= power
        widths += [0, size - length]
    return F.pad(tensor, widths) if any(widths) else tensor


def _vary(*parts: Any, axes: tuple[int, ...] = ()) -> None:
    """Mark the tensors among `parts` as dynamic along `axes` (default: all), because later tensors have other
    lengths."""
    if torch.compiler.is_compiling():
        return
    for part in parts:
        if isinstance(part, torch.Tensor):
            for axis in axes or range(part.ndim):
                if part.shape[axis] > 1:
                    torch._dynamo.maybe_mark_dynamic(part, axis)


def _once(make: Any, *arguments: Any) -> tuple[Any, ...]:
    """Call a cached function outside inference mode: later passes may need gradients, which inference tensors lack."""
    if torch.compiler.is_compiling():
        return make.__wrapped__(*arguments)
    with torch.inference_mode(False):
        return make(*arguments)


@lru_cache(maxsize=16)
def _whole(device: torch.device) -> tuple[Any, ...]:
    """Make a block mask of a single block, in which every pair is evaluated."""
    count = torch.ones(1, 1, 1, dtype=torch.int32, device=device)
    index = torch.zeros(1, 1, 1, 1, dtype=torch.int32, device=device)
    return count, index, None, None, count, index, None, None


@lru_cache(maxsize=64)
def _blocks_of_numbers(
    n_queries: int,
    n_keys: int,
    causal: bool,
    window: int | None,
    ahead: int | None,
    column: bool,
    device: torch.device,
) -> tuple[Any, ...]:
    """Find the blocks of a mask without tensors; cached by its numbers."""
    return _blocks(Mask(n_queries, n_keys, causal=causal, window=window, ahead=ahead), column, device)


def _blocks(mask: Mask, column: bool, device: torch.device) -> tuple[Any, ...]:
    """Find the blocks with a visible pair, and those without a hidden one. torch's create_block_mask does the same, but
    evaluates all pairs of all rows at once, in several int64 tensors of that size."""
    from torch.nn.attention.flex_attention import BlockMask

    shows, n_keys = _shows(mask, column), mask.n_keys + column
    n_rows = max([1, *(each.shape[0] for each in mask.row_tensors)])
    row, key = torch.arange(n_rows, device=device)[:, None, None], torch.arange(n_keys, device=device)
    step = max(AT_ONCE // (n_rows * n_keys * BLOCK), 1) * BLOCK
    counts = []
    for first in range(0, mask.n_queries, step):
        query = torch.arange(first, min(first + step, mask.n_queries), device=device)[:, None]
        seen = shows(row, row, query, key).expand(n_rows, -1, -1)
        seen = F.pad(seen, (0, -n_keys % BLOCK, 0, -query.shape[0] % BLOCK))
        counts.append(seen.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).sum((2, 4)))
    count = torch.cat(counts, 1)[:, None]  # B|1 1 M N
    full = count == BLOCK * BLOCK
    made = BlockMask.from_kv_blocks(*_listed((count > 0) & ~full), *_listed(full), BLOCK_SIZE=BLOCK)
    keys = made.kv_num_blocks, made.kv_indices, made.full_kv_num_blocks, made.full_kv_indices
    return *keys, made.q_num_blocks, made.q_indices, made.full_q_num_blocks, made.full_q_indices


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Count the chosen key blocks of each query block [B|1, 1, M], and list block numbers, the chosen first
    [B|1, 1, M, N]: [0, 1, 1] has 2 chosen blocks, listed as [1, 2, 0]."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32).contiguous()


def _shows(mask: Mask, column: bool) -> Callable[..., Tensor]:
    """Return the mask as flex_attention's mask_mod. With `column` there is a first key for sinks, which every query
    sees."""

    def shows(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key == 0) | mask.sees(row, query, (key - 1).clamp(min=0)) if column else mask.sees(row, query, key)

    return shows


@cache
def _compiled() -> Callable[..., Tensor]:
    load()
    # A bias that rounds to bfloat16 must stay rounded; without this option fusion would skip the rounding.
    return torch.compile(_attend, fullgraph=True, options={"emulate_precision_casts": True})


def _attend(q: Tensor, k: Tensor, v: Tensor, drawn: Drawn, how: Scores) -> Tensor:
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

    softcap, sinks, bias = how.softcap, how.sinks, how.bias
    column = sinks is not None and not _gives_sums(q.device)
    if column:
        k, v = F.pad(k, (0, 0, 0, 0, 1, 0)), F.pad(v, (0, 0, 0, 0, 1, 0))

    def scored(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if bias is not None:
            score = score + bias.at(row, head, query, (key - 1).clamp(min=0) if column else key)
        if not column:
            return score
        sink = sinks[head] if sinks.ndim == 1 else sinks[row, query, head]  # type: ignore[union-attr, index]
        return torch.where(key == 0, sink.float(), score)

    lengths, size = (q.shape[1], k.shape[1]), (drawn.size, drawn.size)
    block_mask = BlockMask(lengths, *drawn.blocks, BLOCK_SIZE=size, mask_mod=_shows(how.mask, column))
    aux = AuxRequest(lse=True) if sinks is not None and not column else None
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # B H T C, B K S C
    shared = q.shape[1] != k.shape[1]
    attention: Any = flex_attention
    y = attention(q, k, v, scored, block_mask, how.scale, shared, kernel_options=_options(q, k, v), return_aux=aux)
    if aux is not None:
        y, sums = y
        assert sinks is not None
        each = sinks[None, None] if sinks.ndim == 1 else sinks  # B|1 T|1 H
        y = (y * torch.sigmoid(sums.lse - each.float().mT)[..., None]).to(y.dtype)
    return y.transpose(1, 2)  # B T H Cv


def _options(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Any] | None:
    """Return `kernel_options` for q [B, H, T, C], k [B, K, S, C] and v [B, K, S, Cv] on CUDA; None elsewhere."""
    machine = machine_of(q.device)
    if machine.device != "cuda":
        return None
    widths, group, one = (q.shape[3], v.shape[3]), q.shape[1] // k.shape[1], q.shape[0] == q.shape[2] == 1
    return options(str(q.dtype).removeprefix("torch."), widths, group, one, torch.is_grad_enabled(), machine.capability)


def _gives_sums(device: torch.device) -> bool:
    """Whether the kernel on this device returns each query's logsumexp."""
    return device.type != "cpu"
