"""Derivatives that are written by hand, against autograd through the same formula in float64."""

import pytest
import torch
from torch.nn import functional as F

from zoo.kernels.score_bias import pick_last
from zoo.model.activation import Activation
from zoo.model.ffn import multiply_gate
from zoo.model.norm import divide_by_rms
from zoo.model.position.rotary import turn, turn_pairs


def gradients(function, *inputs):
    """The result, and the gradients of a random function of it, for those of the inputs that want one."""
    leaves = [each.detach().clone().requires_grad_(each.requires_grad) for each in inputs]
    y = function(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [each for each in leaves if each.requires_grad])]


@pytest.mark.parametrize("scaled", ["scale", "a fixed scale", "no scale"])
@pytest.mark.parametrize("spread", [1.0, 1e-4], ids=["vectors", "vectors near zero"])
def test_division_by_rms_has_the_gradients_of_the_formula(scaled, spread):
    x = (torch.randn(3, 5, 24, dtype=torch.float64) * spread).transpose(0, 1).requires_grad_()
    scale = None if scaled == "no scale" else torch.randn(24, dtype=torch.float64).requires_grad_(scaled == "scale")
    given = [x] if scale is None else [x, scale]

    def formula(x, scale=None):
        return F.rms_norm(x, (24,), scale, 1e-6)

    def ours(x, scale=None):
        return divide_by_rms(x, scale, 1e-6)

    for found, wanted in zip(gradients(ours, *given), gradients(formula, *given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_division_by_rms_of_vectors_that_stay_has_its_scales_gradient():
    x, scale = torch.randn(6, 24, dtype=torch.float64), torch.randn(24, dtype=torch.float64, requires_grad=True)
    found = gradients(lambda x, scale: divide_by_rms(x, scale, 1e-6), x, scale)
    wanted = gradients(lambda x, scale: F.rms_norm(x, (24,), scale, 1e-6), x, scale)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("magnitude", [1.0, 1.3])
def test_a_turn_has_the_gradient_of_the_turn_back(interleaved, magnitude):
    x = torch.randn(2, 7, 3, 16, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(2, 7, 1, 8, dtype=torch.float64)
    cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
    found = gradients(lambda x: turn(x, cos, sin, interleaved), x)
    torch.testing.assert_close(found, gradients(lambda x: turn_pairs(x, cos, sin, interleaved), x))


def test_a_turned_bfloat16_vector_gets_a_gradient_of_its_own_dtype():
    x = torch.randn(4, 16, dtype=torch.bfloat16, requires_grad=True)
    turned = turn(x, torch.ones(4, 8), torch.zeros(4, 8), interleaved=False)
    (gradient,) = torch.autograd.grad(turned.sum(), x)
    assert (turned.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(gradient, torch.ones_like(x))


PLAIN = {
    kind: each for kind, each in Activation.kinds.items() if not each.learned and each.__module__.startswith("zoo.")
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_gate_has_the_gradients_of_the_formula_and_keeps_its_two_inputs_alone(name):
    act = PLAIN[name]().apply
    given = [torch.randn(5, 24, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    found = gradients(lambda gate, up: multiply_gate(act, gate, up), *given)
    for mine, wanted in zip(found, gradients(lambda gate, up: act(gate) * up, *given), strict=True):
        torch.testing.assert_close(mine, wanted)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.data_ptr()) or each, lambda each: each):
        multiply_gate(act, *given)
    assert sorted(kept) == sorted(each.data_ptr() for each in given)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_gate_that_stays_or_an_input_that_stays_gets_no_gradient(frozen):
    given = [torch.randn(5, 24, dtype=torch.float64, requires_grad=number != frozen) for number in range(2)]
    found = gradients(lambda gate, up: multiply_gate(F.silu, gate, up), *given)
    wanted = gradients(lambda gate, up: F.silu(gate) * up, *given)
    assert len(found) == 2
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_gate_is_computed_again_under_the_autocast_of_the_forward_pass():
    given = [torch.randn(5, 24, requires_grad=True) for _ in range(2)]
    mixing = torch.randn(24, 24)

    def act(gate):
        return F.silu(gate) + torch.mm(gate, mixing)  # a product, which autocast rounds

    def under_autocast(multiply):
        def run(gate, up):
            with torch.autocast("cpu", torch.bfloat16):
                return multiply(gate, up)

        return run

    found = gradients(under_autocast(lambda gate, up: multiply_gate(act, gate, up)), *given)
    wanted = gradients(under_autocast(lambda gate, up: act(gate) * up), *given)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_is_picked_along_the_last_axis_has_the_gradient_of_a_gather_and_keeps_the_places_alone():
    x = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    places = torch.randint(9, (2, 3, 14))  # some more than once
    found = gradients(lambda x: pick_last(x, places), x)
    torch.testing.assert_close(found, gradients(lambda x: x.gather(-1, places), x))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        pick_last(x, places)
    assert [each.data_ptr() for each in kept] == [places.data_ptr()]
