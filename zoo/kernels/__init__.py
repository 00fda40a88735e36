# B batch, T queries, S keys, H heads, K kv heads, C head width
"""Attention with one meaning and several kernels: which of them runs, and why not the others."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from zoo.errors import KernelError, did_you_mean
from zoo.kernels.base import Ask, Kernel
from zoo.kernels.eager import Eager
from zoo.kernels.sdpa import SDPA
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.mask import Mask

KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in (SDPA(), Eager())}  # in the order auto tries them


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """q [B, T, H, C] reads k [B, S, K, C] and v [B, S, K, Cv], H a multiple of K: [B, T, H, Cv].

    Scores are scaled, softcapped (c·tanh(s/c)), biased, masked; their softmax is taken in float32. `bias` broadcasts to
    [B, H, T, S]. `sinks` [H] adds a column to the softmax that no value stands behind (gpt-oss). A query that sees no
    key gives 0. K and V are taken in q's dtype. Raises KernelError when the kernel named cannot do it.
    """
    chosen, _ = pick(_ask(q, k, v, mask, softcap, sinks, bias), kernel)
    if k.dtype != q.dtype or v.dtype != q.dtype:
        k, v = k.to(q.dtype), v.to(q.dtype)  # a cache may hold another
    return chosen(q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks, bias=bias)


def pick(ask: Ask, kernel: str = "auto") -> tuple[Kernel, dict[str, str]]:
    """The first kernel that does not refuse, or the one named; and the reasons of those tried before it.

    Raises KernelError with the reason when the one named refuses.
    """
    if kernel != "auto":
        return _forced(ask, kernel), {}
    refusals: dict[str, str] = {}
    for name, candidate in KERNELS.items():
        reason = candidate.refuses(ask)
        if reason is None:
            return candidate, refusals
        refusals[name] = reason
    raise KernelError("kernel: none can do this attention; " + "; ".join(f"{n}: {why}" for n, why in refusals.items()))


def _forced(ask: Ask, kernel: str) -> Kernel:
    if kernel not in KERNELS:
        known = ", ".join(("auto", *KERNELS))
        raise KernelError(
            f"kernel: there is no {kernel!r}{did_you_mean(kernel, ('auto', *KERNELS))} (there are {known})"
        )
    reason = KERNELS[kernel].refuses(ask)
    if reason is not None:
        others = [name for name, other in KERNELS.items() if other.refuses(ask) is None]
        would = " or ".join(f"kernel={name}" for name in ("auto", *others))
        raise KernelError(f"kernel: {kernel} was asked for, but {reason} ({would} would do)")
    return KERNELS[kernel]


def explain(ask: Ask, kernel: str = "auto") -> tuple[str, dict[str, str]]:
    """The name of the kernel that `pick` takes, and the reason of every kernel that refuses. No device is touched."""
    chosen, _ = pick(ask, kernel)
    reasons = {name: candidate.refuses(ask) for name, candidate in KERNELS.items()}
    return chosen.name, {name: reason for name, reason in reasons.items() if reason is not None}


def prepare(
    mask: Mask, ask: Ask, device: torch.device, dtype: torch.dtype, *, bias: Tensor | None = None, kernel: str = "auto"
) -> None:
    """Draws on the mask what the kernel for `ask` will read, so that the layers that share it change nothing.

    `dtype` is q's, `bias` the one that the layers will pass: the very tensor.
    """
    chosen, _ = pick(ask, kernel)
    chosen.prepare(mask, device, dtype, bias)


class Row(NamedTuple):
    """A kernel on this machine: whether it can run at all, and what there is to say for or against it."""

    kernel: str
    usable: bool
    reason: str


def report() -> list[Row]:
    """What this machine can run, for `zoo doctor`. Looks for flash-attn without importing it."""
    cuda = torch.cuda.is_available()
    against = ["not used by this version yet"]
    against += [] if find_spec("flash_attn") else ["not installed"]
    against += [] if cuda else ["no CUDA device"]
    experts = "experts' products in one call; in bfloat16 only" if cuda else "experts' products in one call"
    return [
        *(Row(kernel.name, True, kernel.about) for kernel in KERNELS.values()),
        Row("grouped_mm", True, experts),
        Row("flash-attn", False, "; ".join(against)),
    ]


def _ask(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, softcap: float | None, sinks: Tensor | None, bias: Tensor | None
) -> Ask:
    grad = torch.is_grad_enabled()
    kind = "none" if bias is None else "learned" if grad and bias.requires_grad else "fixed"
    _, _, n_heads, width = q.shape
    return Ask(
        device=q.device.type,
        dtype=str(q.dtype).removeprefix("torch."),
        head_dim=width,
        v_head_dim=v.shape[3],
        n_heads=n_heads,
        n_kv_heads=k.shape[2],
        needs_grad=grad and (q.requires_grad or k.requires_grad or v.requires_grad),
        softcap=softcap is not None,
        sinks=sinks is not None,
        bias=kind,
        window=mask.window is not None,
        padding=mask.padding is not None,
        documents=mask.documents is not None,
    )
