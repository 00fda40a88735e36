# B batch, T queries, S keys, H heads, K kv heads, C head width
"""Compute attention (`attend`), and choose its kernel: which one runs, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zoo.errors import KernelError, name_options
from zoo.kernels.base import AttentionQuery, Call, Kernel, Machine, Scores
from zoo.kernels.eager import Eager
from zoo.kernels.flash2 import Flash2, Flash2Hub
from zoo.kernels.flash3 import Flash3, Flash3Hub
from zoo.kernels.flash4 import Flash4
from zoo.kernels.flash_torch import FlashTorch
from zoo.kernels.flex import Flex
from zoo.kernels.found import machine_of
from zoo.kernels.packed import join_rows
from zoo.kernels.score_bias import describe_bias
from zoo.kernels.sdpa import SDPA, plain
from zoo.kernels.triton_split import TritonSplit
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.drop import AttentionDropout
    from zoo.kernels.mask import Mask
    from zoo.kernels.score_bias import Bias

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        *(Flash3(), Flash4(), Flash2(), FlashTorch(), SDPA(), Flex(), TritonSplit(), Eager()),
        *(Flash3Hub(), Flash2Hub()),
    )
}


class KernelChoice(NamedTuple):
    """The chosen kernel, the call that it will make, and the refusals of the kernels tried before."""

    kernel: Kernel
    call: Call
    refusals: dict[str, str]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    bias: Bias | Tensor | None = None,
    pages: Tensor | None = None,
    dropout: AttentionDropout | None = None,
    kernel: str = "auto",
    chosen: list[Kernel] | None = None,
    again: bool = False,
) -> Tensor:
    """Compute attention: q [B, T, H, C] over k [B, S, K, C] and v [B, S, K, Cv], H a multiple of K → [B, T, H, Cv].

    Scores are scaled, softcapped (c·tanh(s/c)), biased and masked, in this order; the softmax is computed in float32.
    `bias` is a Bias, or a tensor that broadcasts to [B, H, T, S]. `sinks` add a logit without a value to the softmax:
    [H] one for each head (gpt-oss), [B, T, H] one for each query. A query that sees no key gives 0; the output of
    padding is undefined. K and V are cast to q's dtype. With `pages` [B, P] int32, k and v are pools of pages [N, page,
    K, C]: row b's keys are the first `mask.lengths[b]` in its pages, and mask.n_keys is P·page. If `mask.cu_seqlens_q`
    is also given, rows of any number of queries are concatenated: q [1, N, H, C] → [1, N, H, Cv]. `dropout` determines
    which probabilities are dropped (training only, without a cache). `chosen` caches the kernel: an empty list receives
    the choice; later calls with other tensors and equal arguments reuse it. With `again` only q, k and v are saved for
    the backward pass, which recomputes the rest (Korthikanti et al., 2022). With `auto`, a flash kernel whose first
    call fails is skipped with a warning (`Kernel.give_up`). Code that torch.compile traces cannot catch the failure:
    there `prepare` makes the first call. Raises KernelError if the named kernel refuses.
    """
    how = Scores(mask, scale, softcap, sinks, describe_bias(bias), pages, dropout)
    chosen = [] if chosen is None else chosen
    while kernel == "auto" and not torch.compiler.is_compiling():
        try:
            return _compute(q, k, v, how, kernel, chosen, again)
        except Exception as error:  # a package's own code: it may raise anything
            if not chosen or not chosen.pop().give_up(_ask(q, k, v, how), error):
                raise
    return _compute(q, k, v, how, kernel, chosen, again)


def _compute(q: Tensor, k: Tensor, v: Tensor, how: Scores, kernel: str, chosen: list[Kernel], again: bool) -> Tensor:
    """Compute attention as `attend` does, by the kernel in `chosen`. If that list is empty, choose a kernel first."""
    mask, total = how.mask, q.shape[1]
    if not k.dtype == v.dtype == q.dtype:  # so that only the rows' keys are cast, not whole pools
        q, k, v, how = how.gather_pages(q, k, v)
    if not chosen:
        chosen.append(choose_kernel(q, k, v, how, kernel))
    if not chosen[0].pages_in_place:
        q, k, v, how = how.gather_pages(q, k, v)
    if k.dtype != q.dtype or v.dtype != q.dtype:
        k, v = k.to(q.dtype), v.to(q.dtype)  # a cache may be in another dtype
    if again and torch.is_grad_enabled():
        from torch.utils.checkpoint import checkpoint

        mine = copy(mask)  # keeps the tensors of this layer's bias until its backward pass
        chosen[0].prepare(mine, _ask(q, k, v, how), q.device, q.dtype, how.bias)
        how = replace(how, mask=mine)
        return checkpoint(partial(chosen[0], how=how), q, k, v, use_reentrant=False)  # type: ignore[return-value]
    y = chosen[0](q, k, v, how)
    if how.mask is mask or mask.cu_seqlens_q is None:
        return y
    return join_rows(y, mask.cu_seqlens_q, total)


def choose_kernel(q: Tensor, k: Tensor, v: Tensor, how: Scores, kernel: str = "auto") -> Kernel:
    """Choose the kernel for these tensors. Raises KernelError if the named kernel refuses."""
    return select(_ask(q, k, v, how), machine_of(q.device), kernel)


@contextmanager
def replace_kernel(name: str, kernel: Kernel) -> Iterator[None]:
    """Replace the kernel called `name` inside a `with` block, for example by one that also records its results."""
    before = KERNELS[name]
    KERNELS[name] = kernel
    try:
        yield
    finally:
        KERNELS[name] = before


def order(ask: AttentionQuery, machine: Machine) -> Iterator[Kernel]:
    """Yield the kernels in the order in which `auto` tries them.

    The flash-attn packages come first, then torch's own kernels. On CUDA scaled_dot_product_attention is the first of
    these if it needs no mask tensor, because it chooses among several fused kernels itself; else flash_torch, which
    skips hidden blocks, comes before it. For keys in pages the split-KV kernel comes first, because torch's kernels
    would copy the keys. Without CUDA flex is last: it takes seconds to compile, and eager serves the same calls.
    """
    yield from (KERNELS[name] for name in ("flash3", "flash4", "flash2"))
    if machine.device != "cuda":
        last = ("sdpa", "eager", "flex")
    elif ask.page is not None:
        last = ("triton", "sdpa", "flex", "eager")
    else:
        fused = ("sdpa", "flash_torch") if plain(ask) else ("flash_torch", "sdpa")
        last = (*fused, "flex", "triton", "eager")
    yield from (KERNELS[name] for name in last)


def select(ask: AttentionQuery, machine: Machine, kernel: str = "auto") -> Kernel:
    """Choose the kernel on this machine as `pick` does, without collecting the refusals. `auto` skips a kernel if its
    package cannot be loaded, or if its first call failed (`attend`). Decoding calls this once per layer. Raises
    KernelError if the named kernel refuses."""
    if kernel != "auto":
        return _check_named(ask, machine, kernel)
    return next(each for each in order(ask, machine) if each.refuses(ask, machine) is None and each.can_load())


def pick(ask: AttentionQuery, machine: Machine, kernel: str = "auto") -> KernelChoice:
    """Choose the first kernel that does not refuse, or the named one. Pure: the machine need not be present.

    Raises KernelError with the reason if the named kernel refuses.
    """
    if kernel != "auto":
        forced = _check_named(ask, machine, kernel)
        return KernelChoice(forced, forced.call(ask), {})
    refusals: dict[str, str] = {}
    for candidate in order(ask, machine):
        reason = candidate.refuses(ask, machine)
        if reason is None:
            return KernelChoice(candidate, candidate.call(ask), refusals)
        refusals[candidate.name] = reason
    raise AssertionError("eager refuses nothing")


def _check_named(ask: AttentionQuery, machine: Machine, kernel: str) -> Kernel:
    """Return the kernel of this name. Raises KernelError if it is unknown or refuses."""
    if kernel not in KERNELS:
        raise KernelError(f"kernel: there is no {kernel!r}{name_options(kernel, ('auto', *KERNELS))}")
    reason = KERNELS[kernel].refuses(ask, machine)
    if reason is not None:
        others = (each for each in KERNELS.values() if not each.on_request)
        able = [each.name for each in others if each.refuses(ask, machine) is None]
        would = " or ".join(f"kernel={name}" for name in ("auto", *able))
        raise KernelError(f"kernel: {kernel} was asked for, but {reason} ({would} would do)")
    return KERNELS[kernel]


def prepare(
    mask: Mask,
    ask: AttentionQuery,
    device: torch.device,
    dtype: torch.dtype,
    *,
    bias: Bias | None = None,
    kernel: str = "auto",
) -> None:
    """Compute the tensors that the kernel for `ask` will read, and store them on the mask. Call this before the layers
    that share the mask run, and outside compiled code, because `auto` tries a new kernel here. If each layer chooses
    its own keys (`ask.chosen`), only the mask to choose from and the bias are computed.

    `dtype` is q's, `bias` the one that the layers will pass. Raises KernelError if the named kernel refuses.
    """
    chosen = select(ask, machine_of(device), kernel)
    while kernel == "auto" and not chosen.runs(ask, device, dtype):
        chosen = select(ask, machine_of(device))
    if ask.chosen and mask.only is None:  # each layer will narrow the mask
        mask.dense(device)
        if bias is not None:
            bias.dense()
    else:
        chosen.prepare(mask, ask, device, dtype, bias)


def _ask(q: Tensor, k: Tensor, v: Tensor, how: Scores) -> AttentionQuery:
    sinks, bias = how.sinks, how.bias
    wanted = any(each is not None and each.requires_grad for each in (q, k, v, sinks))
    wanted = wanted or (bias is not None and bias.learned)
    _, _, n_heads, width = q.shape
    return AttentionQuery(
        dtype=str(q.dtype).removeprefix("torch."),
        head_dim=width,
        v_head_dim=v.shape[3],
        n_heads=n_heads,
        n_kv_heads=k.shape[2],
        needs_grad=wanted and torch.is_grad_enabled(),
        softcap=how.softcap,
        sinks=sinks is not None,
        token_sinks=sinks is not None and sinks.ndim > 1,
        bias="none" if bias is None else bias.kind,
        page=None if how.pages is None else k.shape[1],
        dropout=how.dropout is not None,
        **how.mask.features,
    )
