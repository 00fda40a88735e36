"""What fits into memory is said before a run starts, by the price of the run itself."""

import pytest

from support.tiny_runs import compose_run, write_corpus
from zoo.costs import price
from zoo.errors import ConfigError, ZooError
from zoo.jobs.train import start_run
from zoo.training import building
from zoo.training.memory_fit import advise, check_memory, list_finer, price_training
from zoo.training.planning import plan_training

LARGE = ["batch_size=8", "seq_len=32", "model.n_layers=8"]


@pytest.fixture
def plan(tmp_path):
    def make(*overrides):
        return plan_training(compose_run(tmp_path, *LARGE, *overrides))

    return make


def test_a_run_that_fits_is_not_talked_about(plan):
    found = plan()
    peak = price_training(found.settings, found.spec, 8)["peak"]
    assert check_memory(found.settings, found.spec, peak) is None
    assert check_memory(found.settings, found.spec, None) is None
    assert "a step takes about" in check_memory(found.settings, found.spec, peak - 1)


def test_the_price_is_that_of_stats_with_the_average_beside_it(plan):
    found = plan("ema=0.99", "recompute=full", "accumulate=2")
    how = {"precision": "fp32", "fused_optimizer": True, "chunked_loss": True, "recompute": "full", "accumulate": 2}
    told = price(found.spec, context=32, batch=4, **how)
    ema = 4 * told["params"]["total"]
    kept = sum(told["memory"][name] for name in ("weights", "gradients", "optimizer"))
    assert price_training(found.settings, found.spec, 4) == {
        "peak": told["memory"]["train_peak"] + ema,
        "states": kept + ema,
    }


def test_what_is_advised_fits_and_nothing_less_does(plan):
    found = plan()
    settings, spec = found.settings, found.spec
    peaks = {rows: price_training(settings, spec, rows)["peak"] for rows in (1, 2, 4, 8)}
    full = {rows: price_training(settings, spec, rows, recompute="full")["peak"] for rows in (1, 2, 4, 8)}
    assert full[8] < peaks[8] and full[1] < peaks[1]
    by_parts = advise(settings, spec, peaks[2])
    assert by_parts.startswith("accumulate=4 fits: 2 of 8 rows at a time need ")
    assert advise(settings, spec, peaks[8] - 1).split(" ")[0] == "accumulate=2"
    assert "recompute=full" in advise(settings, spec, full[8]).split("; so do")[1]
    both = advise(settings, spec, full[1])
    assert both.startswith("accumulate=8, recompute=full fit: 1 of 8 rows")


def test_the_least_recomputation_that_fits_is_advised(plan):
    found = plan("accumulate=8")  # no finer parts
    ways = ["selective", "every_4", "every_2", "full"]
    peaks = {what: price_training(found.settings, found.spec, 1, recompute=what)["peak"] for what in ways}
    assert peaks["every_4"] > peaks["every_2"] > peaks["full"]
    for what in ways[1:]:
        assert advise(found.settings, found.spec, peaks[what]).startswith(f"recompute={what} fits: 1 of 1 rows")
    second = plan("accumulate=8", "recompute=every_2")
    assert advise(second.settings, second.spec, peaks["full"]).startswith("recompute=full fits")
    few = plan("accumulate=8", "model.n_layers=2")
    full = price_training(few.settings, few.spec, 1, recompute="full")["peak"]
    assert "every_3" not in advise(few.settings, few.spec, full)


def test_lighter_states_are_advised_where_they_fit_and_can_be(plan):
    found = plan("accumulate=8", "recompute=full")
    settings, spec = found.settings, found.spec
    away, pure = (
        price_training(settings, spec, 1, **change)["peak"]
        for change in ({"offload": "states"}, {"precision": "bf16_pure"})
    )
    assert advise(settings, spec, away).startswith("offload=states fits: 1 of 1 rows at a time need")
    assert "precision=bf16_pure" in advise(settings, spec, pure)
    assert "offload" not in advise(settings, spec, away, cuda=False)  # the states of a CPU are there already
    least = price_training(settings, spec, 1, offload="states", precision="bf16_pure")["peak"]
    assert advise(settings, spec, least).startswith("offload=states, precision=bf16_pure fit")
    assert "one row of 32 tokens does not fit either" in advise(settings, spec, least - 1)
    packed = plan("accumulate=8", "recompute=full", "optim=adamw8bit")
    assert "one row of 32 tokens does not fit either" in advise(packed.settings, packed.spec, least)


def test_states_that_do_not_fit_are_refused_with_what_would_do(plan):
    found = plan()
    states = {
        name: price_training(found.settings, found.spec, 8, **change)["states"] for name, change in LIGHTER.items()
    }
    for free, cuda, advice in (
        (states["plain"] - 1, True, "offload=states takes"),
        (states["plain"] - 1, False, "precision=bf16_pure takes"),
        (states["both"], True, "offload=states, precision=bf16_pure takes"),
        (states["both"] - 1, True, "(a smaller model, or an optimizer with fewer)"),
    ):
        with pytest.raises(ConfigError) as error:
            check_memory(found.settings, found.spec, free, cuda=cuda)
        assert advice in str(error.value)


LIGHTER = {
    "plain": {},
    "both": {"offload": "states", "precision": "bf16_pure"},
}


def test_parts_that_float8_cannot_take_are_not_advised(plan):
    found = plan("precision=fp8_rowwise", "model.d_model=64", "model.d_ff=64", "seq_len=8")
    assert list_finer(found.settings) == [2, 4]  # eight parts would be of 8 tokens, no multiple of 16


def test_a_way_that_is_taken_already_is_not_advised(plan):
    found = plan("recompute=full")
    peak = price_training(found.settings, found.spec, 8)["peak"]
    assert "recompute" not in advise(found.settings, found.spec, peak - 1)
    compiled = plan("compile=true")
    peaks = [
        price_training(compiled.settings, compiled.spec, 8, recompute=what)["peak"]
        for what in ("none", "selective", "full")
    ]
    assert all("selective" not in advise(compiled.settings, compiled.spec, peak - 1) for peak in peaks)


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    config = compose_run(write_corpus(tmp_path / "corpus"), *LARGE)
    planned = plan_training(config)
    states = price_training(planned.settings, planned.spec, 8, cuda=False)["states"]
    monkeypatch.setattr(building, "read_free_memory", lambda device: states - 1)
    with pytest.raises(ConfigError, match=r"model: does not fit into memory, weights, gradients and states take"):
        start_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_says_before_it_starts_that_it_may_not_fit_and_what_would(tmp_path, monkeypatch, capfd):
    (tmp_path / "corpus").mkdir()
    config = compose_run(write_corpus(tmp_path / "corpus"), *LARGE, "steps=1")
    planned = plan_training(config)
    free = price_training(planned.settings, planned.spec, 4, cuda=False)["peak"]
    monkeypatch.setattr(building, "read_free_memory", lambda device: free)
    start_run(config, tmp_path / "run")
    said = capfd.readouterr().err.splitlines()
    line = next(number for number, text in enumerate(said) if text.startswith("memory: a step takes about"))
    assert "(accumulate=2 fits: 4 of 8 rows at a time need" in said[line]
    assert line < next(number for number, text in enumerate(said) if text.startswith("step 1"))


def test_memory_that_runs_out_in_a_run_is_told_with_what_fits(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    config = compose_run(write_corpus(tmp_path / "corpus"), *LARGE, "accumulate=8")

    def run_out(*args):
        raise MemoryError

    monkeypatch.setattr("zoo.training.loop.update", run_out)
    with pytest.raises(ZooError, match=r"memory: ran out, found too little memory \((recompute=|a shorter seq_len)"):
        start_run(config, tmp_path / "run")
