"""Channel mix, a feed-forward that sees the token before its own, is refused where tokens have none."""

import pytest

from support.packaged_specs import load
from zoo.costs.rank_model import context_faults
from zoo.errors import ConfigError


def test_context_parallelism_needs_whole_rows():
    (fault,) = context_faults(load("llama-tiny", ["ffn=channel_mix"]), 2)
    assert fault == "cp: 2 ranks would each have some tokens, and 'channel_mix' sees the token before (cp=1)"


def test_an_encoder_cannot_have_it():
    with pytest.raises(ConfigError, match="ffn 'channel_mix' reads only what came before, and this is of kind"):
        load("llama-tiny", ["ffn=channel_mix", "kind=encoder"])


@pytest.mark.parametrize("choice", ["ffn=channel_mix", "attention=rwkv"])
def test_a_width_that_is_not_the_streams_is_refused(choice):
    axis = choice.split("=")[0]
    with pytest.raises(ConfigError, match="d_model=24, where the stream is 192 wide"):
        load("llama-tiny", [choice, f"{axis}.d_model=24", *(["position=none"] if axis == "attention" else [])])
