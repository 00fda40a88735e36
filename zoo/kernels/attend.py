# B batch, T queries, S keys, H heads, K kv heads, C head width
"""Attention with one meaning and several kernels: which of them runs, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from zoo.errors import KernelError, did_you_mean
from zoo.kernels.base import Ask, Call, Kernel, Machine
from zoo.kernels.bias import biased
from zoo.kernels.eager import Eager
from zoo.kernels.flash2 import Flash2, Flash2Hub
from zoo.kernels.flash3 import Flash3, Flash3Hub
from zoo.kernels.flash4 import Flash4
from zoo.kernels.flash_torch import FlashTorch
from zoo.kernels.flex import Flex
from zoo.kernels.found import machine_of
from zoo.kernels.sdpa import SDPA, plain
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.bias import Bias
    from zoo.kernels.mask import Mask

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        *(Flash3(), Flash4(), Flash2(), FlashTorch(), SDPA(), Flex(), Eager()),
        *(Flash3Hub(), Flash2Hub()),
    )
}


class Choice(NamedTuple):
    """The kernel that attention runs by, what it will call, and why those tried before it would not do."""

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
    kernel: str = "auto",
) -> Tensor:
    """q [B, T, H, C] reads k [B, S, K, C] and v [B, S, K, Cv], H a multiple of K: [B, T, H, Cv].

    Scores are scaled, softcapped (c·tanh(s/c)), biased, masked; their softmax is taken in float32. `bias` is a Bias, or
    a tensor that broadcasts to [B, H, T, S]. `sinks` [H] adds a column to the softmax that no value stands behind
    (gpt-oss). A query that sees no key gives 0; what one gives that is padding itself is not specified. K and V are
    taken in q's dtype. With `pages` [B, P] int32, k and v are pools of pages [N, page, K, C]: row b's keys are those of
    its pages in order, as many as `mask.lengths` says, and mask.n_keys is P·page. Raises KernelError when the kernel
    named cannot do it.
    """
    bias = biased(bias)
    ask = _ask(q, k, v, mask, softcap, sinks, bias, pages)
    chosen = select(ask, machine_of(q.device), kernel)
    if k.dtype != q.dtype or v.dtype != q.dtype:
        k, v = k.to(q.dtype), v.to(q.dtype)  # a cache may hold another
    return chosen(q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks, bias=bias, pages=pages)


def order(ask: Ask, machine: Machine) -> Iterator[Kernel]:
    """The kernels as `auto` tries them.

    On CUDA the newest flash-attn first, then torch's own: scaled_dot_product_attention where it needs no mask, as it
    picks among several fused kernels by itself; otherwise whatever skips what is hidden before what reads a mask. Where
    there is no CUDA, flex comes last: its compiling takes seconds, and eager does all that it can.
    """
    yield from (KERNELS[name] for name in ("flash3", "flash4", "flash2"))
    if machine.device != "cuda" or plain(ask):
        last = ("sdpa", "flash_torch", "flex", "eager") if machine.device == "cuda" else ("sdpa", "eager", "flex")
    else:
        last = ("flash_torch", "sdpa", "flex", "eager")
    yield from (KERNELS[name] for name in last)


def select(ask: Ask, machine: Machine, kernel: str = "auto") -> Kernel:
    """The kernel that `pick` gives, without the reasons: what decoding asks once a layer."""
    if kernel != "auto":
        return _forced(ask, machine, kernel)
    return next(each for each in order(ask, machine) if each.refuses(ask, machine) is None)


def pick(ask: Ask, machine: Machine, kernel: str = "auto") -> Choice:
    """The first kernel that does not refuse, or the one named. Pure: the machine need not be at hand.

    Raises KernelError with the reason when the one named refuses.
    """
    if kernel != "auto":
        forced = _forced(ask, machine, kernel)
        return Choice(forced, forced.call(ask), {})
    refusals: dict[str, str] = {}
    for candidate in order(ask, machine):
        reason = candidate.refuses(ask, machine)
        if reason is None:
            return Choice(candidate, candidate.call(ask), refusals)
        refusals[candidate.name] = reason
    raise AssertionError("eager refuses nothing")


def _forced(ask: Ask, machine: Machine, kernel: str) -> Kernel:
    if kernel not in KERNELS:
        known = ", ".join(("auto", *KERNELS))
        raise KernelError(
            f"kernel: there is no {kernel!r}{did_you_mean(kernel, ('auto', *KERNELS))} (there are {known})"
        )
    reason = KERNELS[kernel].refuses(ask, machine)
    if reason is not None:
        others = (each for each in KERNELS.values() if not each.on_request)
        able = [each.name for each in others if each.refuses(ask, machine) is None]
        would = " or ".join(f"kernel={name}" for name in ("auto", *able))
        raise KernelError(f"kernel: {kernel} was asked for, but {reason} ({would} would do)")
    return KERNELS[kernel]


def prepare(
    mask: Mask,
    ask: Ask,
    device: torch.device,
    dtype: torch.dtype,
    *,
    bias: Bias | None = None,
    kernel: str = "auto",
) -> None:
    """Draws on the mask what the kernel for `ask` will read, so that the layers that share it change nothing.

    `dtype` is q's, `bias` the one that the layers will pass.
    """
    select(ask, machine_of(device), kernel).prepare(mask, ask, device, dtype, bias)


def _ask(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    softcap: float | None,
    sinks: Tensor | None,
    bias: Bias | None,
    pages: Tensor | None,
) -> Ask:
    wanted = any(each is not None and each.requires_grad for each in (q, k, v, sinks))
    wanted = wanted or (bias is not None and bias.learned)
    _, _, n_heads, width = q.shape
    return Ask(
        dtype=str(q.dtype).removeprefix("torch."),
        head_dim=width,
        v_head_dim=v.shape[3],
        n_heads=n_heads,
        n_kv_heads=k.shape[2],
        needs_grad=wanted and torch.is_grad_enabled(),
        softcap=softcap,
        sinks=sinks is not None,
        bias="none" if bias is None else bias.kind,
        page=None if pages is None else k.shape[1],
        **mask.features,
    )
