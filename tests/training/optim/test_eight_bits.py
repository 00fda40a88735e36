"""AdamW with moments of 8 bits: the states and the updates are torchao's to the bit."""

import pytest
import torch

from zoo.checkpoint.resume_states import restore_optimizer, take_apart
from zoo.training.optim.eight_bits import EightBitAdamW

torchao = pytest.importorskip("torchao.optim")

SHAPES = [(64, 64), (64, 65), (2, 32, 64), (10,)]
"""The first and the third have moments of 8 bits."""
OPTIONS = {"lr": 1.0, "betas": (0.9, 0.95), "eps": 1e-8}


def make_both(dtype):
    """Optimizers of equal weights, torchao's and Zoo's; half of the weights decay."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    for kind in (torchao.AdamW8bit, EightBitAdamW):
        own = [torch.nn.Parameter(each.clone()) for each in weights]
        yield own, kind([{"params": own[:2], "weight_decay": 0.1}, {"params": own[2:], "weight_decay": 0.0}], **OPTIONS)


def list_parts(optimizer, weights):
    """The plain tensors of all states, by name."""
    names = ("step", "exp_avg", "exp_avg_sq")
    pairs = [(number, name, optimizer.state[each][name]) for number, each in enumerate(weights) for name in names]
    return {(number, name + inner): part for number, name, value in pairs for inner, part in take_apart(value).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_update_is_torchaos_and_a_checkpoint_of_torchaos_states_is_gone_on_from(stance, dtype):
    """Of torchao's states three steps old, as a checkpoint has them."""
    generator = torch.Generator().manual_seed(1)
    (theirs, reference), (ours, optimizer) = make_both(dtype)
    with torch.compiler.set_stance(stance):
        for step in range(6):
            for each, other in zip(theirs, ours, strict=True):
                each.grad = torch.randn(each.shape, generator=generator).to(dtype) * 10.0 ** (step - 3)
                other.grad = each.grad.clone()
            for group, other in zip(reference.param_groups, optimizer.param_groups, strict=True):
                group["lr"].fill_(0.1 / (step + 1))
                other["lr"] = 0.1 / (step + 1)
            reference.step()
            if step != 2:
                optimizer.step()
            else:
                for (number, name), part in list_parts(reference, theirs).items():
                    restore_optimizer(optimizer, ours[number], name, part.clone())
                for each, other in zip(theirs, ours, strict=True):
                    other.data.copy_(each)
            found, expected = list_parts(optimizer, ours), list_parts(reference, theirs)
            assert found.keys() == expected.keys()
            assert all(part.dtype is found[name].dtype for name, part in expected.items())
            assert all(map(torch.equal, ours, theirs))
            assert all(torch.equal(part, found[name]) for name, part in expected.items())
    assert sum("codes" in name for _, name in found) == 4
