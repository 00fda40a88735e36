"""Build small mixtures of experts with every weight random, for the tests."""

import itertools

import torch

from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.ffn import FFN
from zoo.model.step import Step
from zoo.run.layer import Layer

D, F, E = 24, 16, 8
TIGHT = {"atol": 5e-5, "rtol": 1e-5}


def filled(module, seed):
    """Fill the module's parameters and buffers with random values, and put it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
    return module.eval()


def layer(spec, seed=0):
    return filled(Layer(spec, D), seed)


def moe(router, **fields):
    expert = {"kind": "gated", "d_ff": F, "activation": {"kind": "silu"}}
    return FFN.parse({"kind": "moe", "expert": expert, "router": router, **fields})


def step(length, **fields):
    return Step(KeyView(Mask(length, length)), **fields)


def tokens(seed, batch=3, length=11):
    return torch.randn(batch, length, D, generator=torch.Generator().manual_seed(100 + seed))


def load(module, tensors):
    """Fills exactly the tensors there are."""
    module.load_state_dict(tensors, strict=True)
    return module


def halves(fused):
    """gate_up_proj [E, 2F, D] as gate and up."""
    gate, up = fused.chunk(2, 1)
    return {"experts.gate.weight": gate, "experts.up.weight": up}
