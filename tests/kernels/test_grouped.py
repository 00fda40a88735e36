"""Grouped products against one product a row."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo.errors import KernelError
from zoo.kernels.grouped_products import grouped_linear, refuses

SIZES = [3, 0, 5, 0, 1, 7]  # rows of each expert; some get none
OFFSETS = torch.tensor(SIZES).cumsum(0).to(torch.int32)
EXPERTS = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))


def rows_and_weights(d_in=16, d_out=8, dtype=torch.float32):
    x, weight = torch.randn(sum(SIZES), d_in), torch.randn(len(SIZES), d_out, d_in)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def row_by_row(x, weight, bias=None):
    y = torch.stack([weight[expert] @ row for expert, row in zip(EXPERTS, x, strict=True)])
    return y if bias is None else y + torch.stack([bias[expert] for expert in EXPERTS])


@pytest.mark.parametrize("method", ["auto", "grouped_mm", "loop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_meets_the_weight_of_its_own_expert(method, dtype, device):
    x, weight = rows_and_weights(dtype=dtype)
    if method == "grouped_mm" and (reason := refuses(device.type, str(dtype).removeprefix("torch."), 16, 8)):
        pytest.skip(reason)
    offsets, experts = OFFSETS.to(device), EXPERTS.to(device)
    bias = torch.randn(len(SIZES), 8, dtype=dtype, requires_grad=True)
    inputs = (x, weight, bias)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = row_by_row(*exact)
    grad = torch.randn_like(expected).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 6e-2}[dtype]
    for expert_of_row in (None, experts):
        y = grouped_linear(x, weight, offsets, bias=bias, expert_of_row=expert_of_row, method=method)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)
        got = torch.autograd.grad(y, inputs, grad)
        wanted = torch.autograd.grad(expected, exact, grad.double(), retain_graph=True)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


def test_an_expert_without_rows_gets_a_gradient_of_zero():
    x, weight = rows_and_weights()
    for method in ("grouped_mm", "loop"):
        grad = torch.autograd.grad(grouped_linear(x, weight, OFFSETS, method=method).square().sum(), weight)[0]
        assert grad[torch.tensor(SIZES) == 0].abs().max() == 0
        assert grad[torch.tensor(SIZES) > 0].abs().amin((1, 2)).min() > 0


def test_the_expanded_gradient_of_a_sum_is_taken():
    x, weight = rows_and_weights()
    grouped_linear(x, weight, OFFSETS, method="grouped_mm").sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().sum(1)[EXPERTS])


@pytest.mark.parametrize(("d_in", "d_out"), [(6, 8), (8, 6)])
def test_widths_that_grouped_mm_refuses_go_through_the_loop(d_in, d_out):
    x, weight = rows_and_weights(d_in, d_out)
    torch.testing.assert_close(grouped_linear(x, weight, OFFSETS), row_by_row(x, weight), atol=1e-5, rtol=1e-5)
    with pytest.raises(KernelError, match=r"multiples of 16 bytes, d_(in|out)=6 in float32 is 24 \(method=loop or"):
        grouped_linear(x, weight, OFFSETS, method="grouped_mm")


def test_refusals_name_what_grouped_mm_lacks():
    assert refuses("cpu", "float32", 8, 12) is None
    assert refuses("cuda", "bfloat16", 64, 128) is None
    assert "bfloat16 on cuda" in refuses("cuda", "float32", 64, 64)
    assert "not float64" in refuses("cpu", "float64", 8, 8)
    assert "d_in=12 in bfloat16 is 24" in refuses("cpu", "bfloat16", 12, 8)
    x, weight = rows_and_weights()
    with pytest.raises(KernelError, match="there is no 'lop' \\(did you mean 'loop'\\?\\)"):
        grouped_linear(x, weight, OFFSETS, method="lop")


def test_gradients_are_right_in_float64():
    x, weight = rows_and_weights(3, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x, weight: grouped_linear(x, weight, OFFSETS), (x, weight))


@pytest.mark.parametrize("method", ["grouped_mm", "loop"])
def test_flops_are_counted_forward_and_backward(method):
    x, weight = rows_and_weights()
    product = 2 * sum(SIZES) * 16 * 8
    with FlopCounterMode(display=False) as counter:
        y = grouped_linear(x, weight, OFFSETS, method=method)
        assert counter.get_total_flops() == product
        y.sum().backward()
    assert counter.get_total_flops() == 3 * product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["grouped_mm", "loop"])
def test_both_ways_compile_into_one_graph_with_their_backward(method, dtype):
    torch._dynamo.reset()
    x, weight = rows_and_weights(dtype=dtype)

    def run(x, weight):
        return torch.tanh(grouped_linear(x, weight, OFFSETS, method=method))

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        y = function(x, weight)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), (x, weight))])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_autocast_casts_both_operands_and_gives_gradients_in_their_own_dtype():
    x, weight = rows_and_weights()
    with torch.autocast("cpu", torch.bfloat16):
        y = grouped_linear(x, weight, OFFSETS)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_shapes_are_known_without_memory():
    x, weight = torch.empty(16, 8, device="meta"), torch.empty(4, 12, 8, device="meta")
    offsets = torch.empty(4, dtype=torch.int32, device="meta")
    assert grouped_linear(x, weight, offsets).shape == (16, 12)


@pytest.mark.parametrize("method", ["grouped_mm", "loop"])
def test_rows_of_experts_that_compute_nothing_give_zeros_whatever_they_are(method):
    weight = rows_and_weights()[1].detach()[:4].requires_grad_()
    x, ends = torch.randn(sum(SIZES), 16), OFFSETS[:4]
    x[ends[-1] :] = torch.nan  # read by no product
    x.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        y = grouped_linear(x, weight, ends, method=method, computing=(4, 8))
        of_x, of_weight = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    count = int(ends[-1])
    torch.testing.assert_close(y[:count], row_by_row(x, torch.cat((weight, weight[:2])))[:count])
    assert (y[count:] == 0).all() and (of_x[count:] == 0).all() and of_weight.isfinite().all()
    torch.testing.assert_close(of_x[:count], weight.sum(1)[EXPERTS[:count]])
    assert counter.get_total_flops() == 3 * 2 * sum(SIZES) * 16 * 8 * 4 // 8  # of rows that choose all equally often


@pytest.mark.parametrize("native", [True, False])
def test_torch_finds_no_fault_in_the_operator(native):
    x, weight = rows_and_weights()
    torch.library.opcheck(torch.ops.zoo.grouped_linear, (x, weight, OFFSETS, native))
    torch.library.opcheck(torch.ops.zoo.grouped_linear, (x, weight, OFFSETS - 2, native, 6, 8))
