"""Probes: any model at a probe's size keeps its own kinds of layer, and what was asked of it."""

import pytest
import torch

from zoo.compose import load
from zoo.compose.targets import list_packaged
from zoo.errors import ConfigError
from zoo.probes.all_probes import make_probe
from zoo.probes.battery import load_small
from zoo.probes.shrink import SizeDemand, find_idle_windows, shrink
from zoo.run.builder import build


def sized(name, *overrides, alone=True, kept=()):
    return shrink(load(name, overrides), SizeDemand(97, 48, alone), kept, name)


@pytest.mark.parametrize("name", ["llama3-8b", "deepseek-v3", "gemma-3n-e2b", "granite-4.0-h-tiny", "rwkv7-0.1b"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_large_model_runs_at_a_probes_size_with_its_own_kinds_of_layer(name, alone):
    check_small(name, alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_packaged())
def test_every_packaged_decoder_has_a_probes_size_and_all_others_are_refused(name):
    for alone in (True, False):
        if load(name).kind == "decoder":
            check_small(name, alone)
        else:
            with pytest.raises(ConfigError, match="is an encoder"):
                sized(name, alone=alone)


def check_small(name, alone):
    whole, small = load(name), sized(name, alone=alone)
    mixers = [block.attention.kind for block in whole.blocks.values() if block.attention.kind != "none"]
    assert {block.attention.kind for block in small.blocks.values()} - {"none"} == set(mixers)
    assert small.d_model == 64 and len(small.pattern) >= 2
    ids = torch.randint(0, 97, (2, 48), generator=torch.Generator().manual_seed(0))
    logits = build(small, device="cpu")(ids).logits
    assert logits.shape == (2, 48, 97) and logits.isfinite().all()


def test_what_overrides_set_is_kept_and_all_else_is_made_small():
    probe = make_probe("mqar")
    spec, _ = load_small("llama-tiny", probe, ("n_layers=3", "attention=sliding", "window=7", "rope_theta=500.0"))
    attention = spec.blocks["layer"].attention
    assert (len(spec.pattern), attention.window, attention.position.theta) == (3, 7, 500.0)
    assert (spec.d_model, attention.head_dim, attention.n_heads, spec.vocab_size) == (64, 32, 2, 40)
    wide, _ = load_small("llama-tiny", probe, ("d_model=128",))
    assert (wide.d_model, wide.blocks["layer"].attention.n_heads) == (128, 4)
    steep, _ = load_small(
        "llama-tiny", make_probe("parity"), ("attention=gated_delta", "position=none", "attention.beta_scale=2.0")
    )
    assert steep.blocks["layer"].attention.beta_scale == 2.0


def test_recall_leaves_the_feed_forward_out_unless_it_is_what_was_changed():
    kinds = [
        load_small("llama-tiny", make_probe("mqar"), given)[0].blocks["layer"].kind for given in ((), ("ffn=moe",))
    ]
    assert kinds == ["mixer", "pre"]
    assert load_small("llama-tiny", make_probe("parity"))[0].blocks["layer"].kind == "pre"


def test_layers_that_differ_in_their_feed_forward_alone_are_one_kind_without_it():
    assert sized("deepseek-v3").pattern == ("dense", "dense")
    assert sized("deepseek-v3", alone=False).pattern == ("dense", "sparse")


def test_a_window_that_hides_nothing_in_a_row_of_training_is_told():
    probe = make_probe("mqar")
    wide, narrow = (load_small("mistral-tiny", probe, given)[0] for given in ((), ("window=16",)))
    assert (find_idle_windows(wide, probe.seq_len), find_idle_windows(narrow, probe.seq_len)) == ([64], [])


def test_a_partial_rotation_stays_the_same_part_of_a_head():
    whole, small = load("pythia-160m"), sized("pythia-160m")
    own, made = (spec.blocks["layer"].attention for spec in (whole, small))
    assert made.position.rotary_dim / made.head_dim == own.position.rotary_dim / own.head_dim
