"""The training FLOPs of a model of which a part trains are those that torch counts of a real step."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.flop_counts import counted, forwarded
from support.tiny_models import needs, spec_of
from zoo.api import tune_setup
from zoo.costs import price
from zoo.costs.flops import count_flops
from zoo.costs.setup import Setup
from zoo.run.builder import build, load_spec
from zoo.training.start.begin import StartSettings
from zoo.training.start.lora import Lora

TOKENS = 12


def count_step(spec, lora=None, **start) -> int:
    """The FLOPs that torch counts of a forward and a backward pass."""
    model = build(spec, device="cpu", dtype="fp32").train()
    model.kernel = "eager"  # torch's counter gives sdpa on the CPU 0
    StartSettings(lora=None if lora is None else Lora(**lora), **start).restrict(model, None)
    with FlopCounterMode(display=False) as counter:
        forwarded(model, torch.arange(2, 2 + TOKENS)[None]).logits.float().sum().backward()
    return counter.get_total_flops()


def price_step(spec, lora=None, **start) -> int:
    setup = tune_setup(Setup(context=TOKENS), lora, start.get("freeze", ()), start.get("train", ()))
    return price(spec, setup, ["flops"])["flops"]["train"] * TOKENS


CASES = {
    "all below a frozen table": {"freeze": ("embedding*",)},
    "one layer": {"train": ("blocks.1.*",)},
    "the head": {"train": ("head*",)},
    "keys of one layer": {"train": ("blocks.1.attention.k*",)},
    "values of one layer": {"train": ("blocks.2.attention.v*",)},
    "adapters of attention": {"lora": {"rank": 2}},
    "adapters of the rest": {"lora": {"rank": 4, "on": ("ffn", "blocks.0.attention.o")}},
    "two adapters": {"lora": {"rank": 3, "on": ("blocks.2.attention.[qv]", "blocks.1.ffn.down")}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_an_encoder_costs_what_torch_counts(case):
    spec = load_spec("bert-tiny", ["n_layers=3", "vocab_size=64"])
    found = price_step(spec, **CASES[case])
    assert found == count_step(spec, **CASES[case]) < count_flops(spec, TOKENS)["train"] * TOKENS


@pytest.mark.parametrize(
    ("start", "passes"),  # through how much of the decoder's causal attention: forward 1, backward 2
    [
        ({"freeze": ("encoder.*",)}, 3),
        ({"train": ("decoder.blocks.1.*",)}, 2),
        ({"train": ("decoder.blocks.1.cross.q*",)}, 1),
        ({"lora": {"rank": 2}}, 3),
    ],
)
def test_a_step_of_an_encoder_decoder_costs_what_torch_counts_of_visible_pairs(start, passes):
    spec = load_spec("t5-tiny", ["decoder.n_layers=2"])
    model = build(spec, device="cpu", dtype="fp32")
    with counted(model) as forward:
        forwarded(model, torch.arange(2, 2 + TOKENS)[None])
    assert forward.hidden > 0
    assert price_step(spec, **start) == count_step(spec, **start) - passes * forward.hidden


@pytest.mark.parametrize("kind", ["gqa", "mla", "sliding", "dsa", "mamba2", "gated_delta", "rwkv7", "fourier", "cca"])
def test_a_frozen_norm_saves_no_product(kind):
    spec = spec_of(["vocab_size=300", "n_layers=2", f"attention={kind}", *needs(f"attention={kind}")])
    whole = count_flops(spec, 64)
    setup = tune_setup(Setup(context=64), None, ("norm.weight",), ())
    assert price(spec, setup, ["flops"])["flops"]["train"] == whole["train"]
    assert price(spec, setup, ["flops"])["flops"]["forward"] == whole["forward"]
