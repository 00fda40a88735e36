"""Value residuals: the values of the first layer, mixed into those of later ones."""

import pytest
import torch
from torch.testing import assert_close

from support.tiny_models import model_of
from zoo.errors import ConfigError

IDS = torch.randint(67, (2, 11), generator=torch.Generator().manual_seed(2))


def test_later_layers_attend_to_their_own_values_mixed_with_the_first_ones():
    mixed, plain = model_of(["attention.value_residual=0.3"]), model_of([])
    plain.load_state_dict(mixed.state_dict())
    first = {}

    def mix(index):
        def hook(_, given, v):
            return first.setdefault("v", v) if index == 0 else 0.7 * v + 0.3 * first["v"]

        return hook

    with torch.no_grad():
        before = plain(IDS).logits
        for index, block in enumerate(plain.blocks):
            block.attention.v.register_forward_hook(mix(index))
        assert_close(mixed(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=1e-5)
    assert (mixed(IDS).logits - before).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["n_layers=1"], "no other layer has"),
        (["pattern=[layer,wide]", "layers={wide:{attention:{n_kv_heads:4}}}"], "is of 4 heads of 8 channels"),
        (["pattern=[layer*2,reader]", "layers={reader:{attention:{kv_from:layer}}}"], "is of values that 'layer'"),
    ],
)
def test_values_that_cannot_be_mixed_are_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        model_of(["attention.value_residual=0.5", *overrides])
