"""The bases of attentions and blocks: how many names a kind has to know."""

import pytest

from zoo.model.attention.base import Attention
from zoo.model.block.base import Block

MOST = {Attention: 18, Block: 14}
"""Hooks of a base: what serves one family belongs to a channel, a node, or an object that the component returns."""


def list_hooks(base):
    return [name for name in vars(base) if not name.startswith("_") and name not in ("axis", "default", "kinds")]


@pytest.mark.parametrize("base", MOST)
def test_a_base_has_few_hooks(base):
    base.complete()
    assert len(list_hooks(base)) <= MOST[base], sorted(list_hooks(base))
