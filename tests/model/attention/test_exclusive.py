"""Exclusive self-attention: outputs without their part along a token's own value."""

import torch
from torch.testing import assert_close

from support.tiny_models import model_of
from zoo.model.attention.gqa import remove_along

IDS = torch.randint(67, (2, 11), generator=torch.Generator().manual_seed(2))


def test_each_heads_output_is_orthogonal_to_the_own_value_of_its_group_and_changed_along_it_alone():
    generator = torch.Generator().manual_seed(5)
    y, own = torch.randn(2, 3, 6, 8, generator=generator), torch.randn(2, 3, 2, 8, generator=generator)
    found = remove_along(y, own)
    for head in range(6):
        v = own[:, :, head // 3]
        assert_close((found[:, :, head] * v).sum(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
        unit = torch.nn.functional.normalize(v, dim=-1)
        along = torch.einsum("btv,btv->bt", y[:, :, head], unit)
        assert_close(found[:, :, head] + along[..., None] * unit, y[:, :, head], atol=1e-5, rtol=0)


def test_the_first_token_gets_nothing_as_it_sees_itself_alone():
    model, found = model_of(["attention.exclusive=true", "n_layers=1"]), {}
    model.blocks[0].attention.register_forward_hook(lambda _, args, output: found.update(y=output))
    with torch.no_grad():
        model(IDS)
    assert_close(found["y"][:, 0], torch.zeros_like(found["y"][:, 0]), atol=1e-5, rtol=0)
    assert found["y"][:, 1:].abs().max() > 1e-2
