# B rows, T tokens, C channels, W width
"""Depthwise convolutions along tokens: each channel of x over the last few tokens, with its own filter.

Imported where models are built, not where they are priced, because registering an operator loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch  # noqa: TID253  (operators are registered as this file loads)
from torch import Tensor  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253
from torch.utils.flop_counter import register_flop_formula  # noqa: TID253

Shape = tuple[int, ...]


def convolve_tokens(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, dilation: int) -> Tensor:
    """Convolve x [B, T, d_in] with a weight [d_out, d_in / groups, W] to [B, T − (W − 1)·dilation, d_out], without
    padding.

    On a CPU in float32 or float64 a depthwise convolution is one product per tap, because oneDNN's convolution takes
    channels before tokens and gives a strided output. All other convolutions are torch's. Milliseconds, oneDNN's in
    brackets: forward and backward take 3.1 (4.7) for x [32, 64, 192] with W = 4, and 40 (104) for [1, 2048, 2048] with
    W = 3. The forward pass of the first shape takes 1.2 (0.9). One thread, AVX-512, torch 2.13, November 2026.
    """
    if _takes(x, weight):
        return torch.ops.zoo.depthwise_conv(x, weight, bias, dilation)
    return F.conv1d(x.transpose(1, 2), weight, bias, groups=groups, dilation=dilation).transpose(1, 2)


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the operator can compute this convolution, as precisely as torch's own."""
    if x.device.type != "cpu" or weight.shape[1] > 1 or torch.is_autocast_enabled("cpu"):
        return False
    return x.shape[2] == weight.shape[0] and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)


torch.library.define("zoo::depthwise_conv", "(Tensor x, Tensor weight, Tensor? bias, int dilation) -> Tensor")
torch.library.define(
    "zoo::depthwise_conv_backward",
    "(Tensor grad, Tensor x, Tensor weight, int dilation, bool[3] asked) -> (Tensor, Tensor, Tensor)",
)


def _taps(x: Tensor, weight: Tensor, dilation: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each tap the tokens of x [B, T, C] that it reads, and its weights [C]."""
    width = weight.shape[2]
    tokens = x.shape[1] - (width - 1) * dilation
    for tap in range(width):
        yield x[:, tap * dilation : tap * dilation + tokens], weight[:, 0, tap]


@torch.library.impl("zoo::depthwise_conv", "CompositeExplicitAutograd")
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    (read, factors), *others = _taps(x, weight, dilation)
    y = read * factors if bias is None else torch.addcmul(bias, read, factors)
    for read, factors in others:
        y.addcmul_(read, factors)
    return y


@torch.library.impl("zoo::depthwise_conv_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int, asked: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    of_x = torch.zeros_like(x) if asked[0] else x.new_empty(0)
    of_weight = torch.empty_like(weight) if asked[1] else x.new_empty(0)
    if asked[0]:
        for written, factors in _taps(of_x, weight, dilation):
            written.addcmul_(grad, factors)
    if asked[1]:
        for (read, _), found in zip(_taps(x, weight, dilation), of_weight.unbind(2), strict=True):
            torch.sum(read * grad, (0, 1), out=found[:, 0])
    return of_x, of_weight, grad.sum((0, 1)) if asked[2] else x.new_empty(0)


@torch.library.register_fake("zoo::depthwise_conv")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] - (weight.shape[2] - 1) * dilation, x.shape[2])


@torch.library.register_fake("zoo::depthwise_conv_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, dilation: int, asked: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, weight.shape, (x.shape[2],))
    of_x, of_weight, of_bias = (x.new_empty(s if a else (0,)) for s, a in zip(shapes, asked, strict=True))
    return of_x, of_weight, of_bias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    asked = list(ctx.needs_input_grad[:3])
    found = torch.ops.zoo.depthwise_conv_backward(grad, *ctx.saved_tensors, ctx.dilation, asked)
    return *(each if a else None for each, a in zip(found, asked, strict=True)), None


torch.library.register_autograd("zoo::depthwise_conv", _differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.zoo.depthwise_conv)
def _(x: Shape, weight: Shape, bias: Shape | None, dilation: int, *, out_shape: Shape, **_: Any) -> int:
    return 2 * out_shape[0] * out_shape[1] * out_shape[2] * weight[2]


@register_flop_formula(torch.ops.zoo.depthwise_conv_backward)
def _(grad: Shape, x: Shape, weight: Shape, dilation: int, asked: list[bool], **_: Any) -> int:
    return 2 * grad[0] * grad[1] * grad[2] * weight[2] * sum(asked[:2])
