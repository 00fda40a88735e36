"""Learning rates far above the usual one are described, by the weights that a run trains."""

from __future__ import annotations

import pytest

from zoo.data.settings import parse_node
from zoo.training.packaged import read_packaged
from zoo.training.settings import Training
from zoo.training.usual_rate import describe_high_rate

ONE_B, EIGHT_B = 1_235_814_400, 8_030_261_248  # parameters of Llama 3.2 1B and Llama 3.1 8B, as published

ADAPTERS = {"weights": "DIR", "lora": {"rank": 8, "on": ["attention"]}}


def describe(params: int = 100_000, optim: str = "adamw", lr: float | None = None, objective="chat", **more: object):
    """Describe the rate of a run with a packaged optimizer, at its own rate unless another is given."""
    node = {**read_packaged("optim", optim), **({} if lr is None else {"lr": lr})}
    size = {"steps": 100, "batch_size": 1, "seq_len": 128}
    parts = {"objective": {"kind": objective}, "optim": node, "schedule": read_packaged("schedule", "cosine")}
    return describe_high_rate(parse_node(Training, {**size, **parts, **more}), params)


@pytest.mark.quick
@pytest.mark.parametrize(("params", "rate"), [(ONE_B, "0.00104"), (EIGHT_B, "0.000559")])
@pytest.mark.parametrize("optim", ["adamw", "adamw8bit", "muon", "normuon"])
def test_the_default_rate_is_described_for_large_new_models_with_the_rate_of_olmo_core_s_rule(params, rate, optim):
    """The rule has 0.00235 at 108 M parameters, and divides by the cube root of the multiple: of 11.44 and 74.35."""
    usual = f"AdamW's usual rate for {params:,} new parameters is {rate} (OLMo-core's rule; optim.lr={rate})"
    assert describe(params, optim) == f"optim.lr: is 0.002; {usual}"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("objective", "all_weights", "adapters"),
    [("next_token", "2e-05", "0.0002"), ("chat", "2e-05", "0.0002"), ("dpo", "1e-06", "1e-05")],
)
def test_trained_weights_and_adapters_have_usual_rates_of_their_own(objective, all_weights, adapters):
    """SFTConfig and DPOConfig of TRL 1.16; ten times that for adapters (Schulman et al., 2025)."""
    assert f"usual rate from trained weights for {objective} is {all_weights} " in describe(
        objective=objective, weights="DIR"
    )
    assert f"usual rate for adapters and {objective} is {adapters} " in describe(objective=objective, **ADAPTERS)


@pytest.mark.quick
@pytest.mark.parametrize(
    "run",
    [
        {"params": 124_000_000},
        {"params": 500_000_000},  # 0.00141 by the rule, less than 1.5 times below the default
        {"params": ONE_B, "lr": 4e-3},
        {"params": ONE_B, "optim": "lion"},
        {"params": ONE_B, "optim": "sgd"},
        {"params": ONE_B, "parametrisation": {"kind": "mup", "base_width": 64}},
        {"weights": "DIR", "lr": 2e-4},
        {"weights": "DIR", "freeze": ["*"]},
        {**ADAPTERS, "lr": 2e-3 - 1e-5},
    ],
)
def test_a_usual_rate_a_chosen_one_and_one_without_a_rule_are_not(run):
    assert describe(**run) is None
