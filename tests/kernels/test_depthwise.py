"""Depthwise convolutions over tokens against torch's own."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from zoo.kernels.depthwise import convolve_tokens


def inputs(rows=3, tokens=11, channels=6, width=4, *, bias=True, dtype=torch.float64):
    shapes = [(rows, tokens, channels), (channels, 1, width), *([(channels,)] if bias else [])]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def torchs(x, weight, bias=None, dilation=1):
    return F.conv1d(x.mT, weight, bias, groups=x.shape[2], dilation=dilation).mT


def ours(x, weight, bias=None, dilation=1):
    return convolve_tokens(x, weight, bias, x.shape[2], dilation)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width, dilation, tokens", [(4, 1, 11), (3, 2, 9), (4, 1, 4), (1, 1, 5)])
def test_values_and_gradients_are_those_of_torchs_convolution(width, dilation, tokens, bias):
    given = inputs(tokens=tokens, width=width, bias=bias)
    mine, theirs = (each(*given, dilation=dilation) for each in (ours, torchs))
    torch.testing.assert_close(mine, theirs)
    above = torch.randn_like(mine)
    for found, wanted in zip(*(torch.autograd.grad(y, given, above) for y in (mine, theirs)), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (1, 2)])
def test_a_gradient_comes_alone_where_the_others_are_not_asked_for(asked):
    given = [each.detach().requires_grad_(at in asked) for at, each in enumerate(inputs())]
    wanted = torch.autograd.grad(torchs(*given).sum(), [given[at] for at in asked])
    found = torch.autograd.grad(ours(*given).sum(), [given[at] for at in asked])
    torch.testing.assert_close(found, wanted)


def test_the_operator_is_sound_for_fake_tensors_and_for_autograd():
    torch.library.opcheck(torch.ops.zoo.depthwise_conv, (*inputs(tokens=6), 1))


def test_it_counts_the_flops_that_torchs_convolution_counts():
    counts = []
    for each in (ours, torchs):
        with FlopCounterMode(display=False) as counter:
            each(*inputs())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 3 * 8 * 6 * 4


@pytest.mark.parametrize("dtype, autocast", [(torch.bfloat16, False), (torch.float32, True)])
def test_a_narrow_dtype_is_left_to_torch_which_sums_in_float32(dtype, autocast):
    given = inputs(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mine, theirs = ours(*given), torchs(*given)
    assert mine.dtype == torch.bfloat16 and torch.equal(mine, theirs)
