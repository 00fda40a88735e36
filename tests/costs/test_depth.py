"""Depth: prices do not grow with it, and what no memory would hold is refused before it is allocated."""

import tracemalloc

import pytest

from support.tiny_models import spec_of
from zoo.compose import load
from zoo.compose.sweep_specs import read_points
from zoo.costs import Setup, memory, price, train_peak
from zoo.errors import ConfigError
from zoo.grammar.pattern import MOST_LAYERS

DEEP = {
    "one kind": [],
    "two kinds": ["pattern=[near*5,layer*4]", "layers={near:{attention:{window:4},position:{kind:none}}}"],
    "a pattern that repeats": ["pattern=[near*2,layer]", "layers={near:{attention:{window:4}}}"],
    "a bias that layers share": ["position=t5"],
    "shared weights": ["shared_layers=true"],
    "two towers": ["kind=encoder_decoder", "cross=mha"],
    "recurrent": ["attention=mamba2", "position=none"],
}


@pytest.mark.parametrize("setup", [{}, {"recompute": "full"}, {"chunked_loss": True}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("overrides", DEEP.values(), ids=DEEP)
def test_the_peak_of_runs_of_layers_is_that_of_the_layers_one_by_one(overrides, setup, monkeypatch):
    spec = spec_of([*overrides, "n_layers=13"])
    setup = Setup(context=48, batch=2, **setup)
    by_runs = memory.training(spec, setup)
    seen = []

    def one_by_one(run):
        seen.append(len(run.pieces) * run.times)
        return [*reversed(run.pieces)] * run.times

    monkeypatch.setattr(train_peak, "list_decisive", one_by_one)
    assert by_runs == memory.training(spec, setup)
    assert max(seen) > 3  # or nothing was left out
    assert sum(seen) >= 13 + 2


def test_a_price_of_many_layers_takes_the_calls_and_the_memory_of_few():
    """Kinds of layer are counted, not layers: what a price allocates at most is the pattern itself, a pointer a
    layer."""
    few, many = (load("llama3-8b", [f"n_layers={layers}"]) for layers in (32, MOST_LAYERS))
    assert price(many)["params"]["total"] - price(few)["params"]["total"] == (MOST_LAYERS - 32) * 218_112_000
    peaks = []
    for spec in (few, many):
        tracemalloc.start()
        price(spec)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4 * 8 * MOST_LAYERS


TOO_DEEP = [
    (["n_layers=100000000"], "n_layers: is 100,000,000"),
    (["n_layers=5", "pattern=[layer*1000000000]"], "pattern: 'layer\\*1000000000' makes too many layers"),
    (["n_layers=5", f"pattern=[layer*{'9' * 30}]"], "makes too many layers"),
    (["n_layers=5", "pattern=[layer*60000,layer*60000]"], "makes too many layers"),
]


@pytest.mark.parametrize(("overrides", "fault"), TOO_DEEP)
def test_more_layers_than_memory_would_hold_are_refused_in_one_line_and_not_allocated(overrides, fault):
    load("llama3-8b")
    tracemalloc.start()
    with pytest.raises(ConfigError, match=fault) as error:
        load("llama3-8b", overrides)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(error.value.faults) == 1 and most < 8 * MOST_LAYERS * 10
    assert "at most 100,000 would do" in str(error.value)


def test_a_tower_and_a_point_of_a_sweep_are_held_to_the_same_limit():
    with pytest.raises(ConfigError, match=r"encoder\.n_layers: is 100,000,000"):
        load("t5-small", ["encoder.n_layers=100000000"])
    *fine, refused = read_points("llama3-8b", ["n_layers=2,3,4,5,6,100000000"])
    assert [point.spec.n_layers for point in fine] == [2, 3, 4, 5, 6]
    assert refused.faults == ["n_layers: is 100,000,000 (at most 100,000 would do)"]
