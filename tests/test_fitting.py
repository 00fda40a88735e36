"""What fits into memory is said before a run starts, by the price of the run itself."""

import pytest
from tinyrun import compose_run, write_corpus

from zoo.costs import price
from zoo.errors import ConfigError, ZooError
from zoo.training import task
from zoo.training.fitting import advise, check_memory, price_training, price_training_peak
from zoo.training.planning import plan_training
from zoo.training.task import start_run

LARGE = ["batch_size=8", "seq_len=32", "model.n_layers=8"]


@pytest.fixture
def plan(tmp_path):
    def make(*overrides):
        return plan_training(compose_run(tmp_path, *LARGE, *overrides))

    return make


def test_a_run_that_fits_is_not_talked_about(plan):
    found = plan()
    peak = price_training_peak(found.settings, found.spec, 8)
    assert check_memory(found.settings, found.spec, peak) is None
    assert check_memory(found.settings, found.spec, None) is None
    assert "a step takes about" in check_memory(found.settings, found.spec, peak - 1)


def test_the_price_is_that_of_stats_with_the_average_beside_it(plan):
    found = plan("ema=0.99", "recompute=full", "accumulate=2")
    how = {"precision": "fp32", "fused_optimizer": True, "chunked_loss": True, "recompute": "full"}
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
    peaks = {rows: price_training_peak(settings, spec, rows) for rows in (1, 2, 4, 8)}
    full = {rows: price_training_peak(settings, spec, rows, "full") for rows in (1, 2, 4, 8)}
    assert full[8] < peaks[8] and full[1] < peaks[1]
    by_parts = advise(settings, spec, peaks[2])
    assert by_parts.startswith("accumulate=4 fits: 2 of 8 rows at a time need ")
    assert advise(settings, spec, peaks[8] - 1).split(" ")[0] == "accumulate=2"
    assert advise(settings, spec, full[8]).endswith("; so does recompute=full")
    both = advise(settings, spec, full[1])
    assert both.startswith("accumulate=8, recompute=full fit: 1 of 8 rows")
    assert "one row of 32 tokens does not fit either" in advise(settings, spec, full[1] - 1)


def test_a_way_that_is_taken_already_is_not_advised(plan):
    found = plan("recompute=full")
    peak = price_training_peak(found.settings, found.spec, 8)
    assert "recompute" not in advise(found.settings, found.spec, peak - 1)
    compiled = plan("compile=true")
    peaks = [price_training_peak(compiled.settings, compiled.spec, 8, what) for what in ("none", "selective", "full")]
    assert all("selective" not in advise(compiled.settings, compiled.spec, peak - 1) for peak in peaks)


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    config = compose_run(write_corpus(tmp_path / "corpus"), *LARGE)
    planned = plan_training(config)
    states = price_training(planned.settings, planned.spec, 8)["states"]
    monkeypatch.setattr(task, "read_free_memory", lambda device: states - 1)
    with pytest.raises(ConfigError, match=r"model: does not fit into memory, weights, gradients and states take"):
        start_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_says_before_it_starts_that_it_may_not_fit_and_what_would(tmp_path, monkeypatch, capfd):
    (tmp_path / "corpus").mkdir()
    config = compose_run(write_corpus(tmp_path / "corpus"), *LARGE, "steps=1")
    planned = plan_training(config)
    free = price_training_peak(planned.settings, planned.spec, 4)
    monkeypatch.setattr(task, "read_free_memory", lambda device: free)
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
    with pytest.raises(ZooError, match=r"memory: ran out, found MemoryError \((recompute=|a shorter seq_len)"):
        start_run(config, tmp_path / "run")
