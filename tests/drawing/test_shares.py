"""What the boxes of a figure cost adds up to the model's price."""

from functools import reduce

import pytest

from support.packaged_specs import load
from zoo.analysis.axes import load_small
from zoo.costs.price import price
from zoo.costs.setup import Setup
from zoo.drawing.contents import plan_model
from zoo.drawing.cost_look import sum_shares
from zoo.drawing.shares import Share, price_boxes

VARIED = ["llama3-8b", "deepseek-v3.2", "longcat-flash", "zamba-7b", "falcon-h1-0.5b", "gemma-3n-e2b", "t5-base"]
VARIED += ["qwen3-next-80b-a3b", "rwkv7-0.1b", "bert-base", "zaya1-8b", "nemotron-h-8b"]


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("how", [{}, {"context": 300, "engine": "hf", "batch": 3}], ids=["plain", "hf"])
def test_the_boxes_add_up_to_the_price(name, how):
    spec, setup = load(name), Setup(**how)
    whole = reduce(Share.__add__, price_boxes(spec, setup).values())
    priced = price(spec, setup, ["params"])
    assert (whole.params, whole.active) == (priced["params"]["total"], priced["params"]["active"])
    assert whole.flops == pytest.approx(priced["flops"]["forward"], rel=1e-9)
    assert whole.cache == pytest.approx(priced["kv_cache"]["bytes"], rel=1e-9)


@pytest.mark.parametrize("name", VARIED)
def test_no_part_of_the_price_has_no_box(name):
    plan = plan_model(load(name), name)
    assert sum_shares(plan).params == plan.figures["params"]["total"]


def test_a_box_says_for_how_many_tokens_a_value_is_cached():
    *_, tower = load_small("attention", "csa")
    (element,) = (each for each in plan_model(tower, "").towers[0].layers[0].elements.values() if each.kept)
    rate = tower.blocks["layer"].attention.sight.rate
    assert rate > 1 and f" values every {rate} tokens" in element.kept


def test_a_cache_is_at_the_part_that_keeps_it():
    found = price_boxes(load("zamba-7b"), Setup(context=1000))
    keys = 2 * 16 * 464 * 2 * 1000 * 13
    assert found["", "hybrid", "shared"].cache == keys
    assert found["", "hybrid", "attention"].cache == found["", "recurrent", "attention"].cache / 63 * 13
