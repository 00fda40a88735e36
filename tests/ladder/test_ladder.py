"""Ladders: sizes keep the model's shape, runs give exact points, and the largest is predicted before it is trained."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support.climbed_ladders import BASE, LATE, climb_laws
from support.page_reading import ReadPage
from support.tiny_runs import write_corpus
from zoo.analysis.scaling.ladder_sizes import (
    LEAST_LAYERS,
    choose_lengths,
    choose_rows,
    choose_sizes,
    compute_rate,
    space_sizes,
)
from zoo.analysis.solve.proportions import ComposedModel
from zoo.checkpoint import store
from zoo.cli import run
from zoo.cli.fit import collect_points
from zoo.costs.params import count_parameters
from zoo.errors import ConfigError
from zoo.jobs.forecast import Timing
from zoo.ladder import LadderRequest, climb, plan_ladder, plan_together
from zoo.ladder.ladder_plan import plan_run
from zoo.ladder.rate_tuning import find_error_growth, interpolate_rate, tune_rates
from zoo.training.schedule import WSDS

TINY = ["model.head_dim=8", "model.vocab_size=257"]
RUNS = [*TINY, "data=text", "data.tokenizer.kind=byte", "seq_len=16", "compile=false"]
SIZES = {"sizes": 4, "smallest": 9e3, "largest": 45e3, "tokens_per_param": 0.06, "least_updates": 30}
SHELL = ["--sizes", "4", "--smallest", "9K", "--largest", "45K"]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    corpus = write_corpus(tmp_path / "texts")
    return LadderRequest("llama-tiny", (*RUNS, f"data.path={corpus}"), **SIZES)


@pytest.mark.parametrize(
    ("model", "overrides", "smallest", "largest"),
    [
        ("llama3-8b", [], 5e8, 8.03e9),
        ("llama-tiny", ["head_dim=16", "vocab_size=257"], 2e4, 6e5),
        pytest.param("mamba2-130m", [], 8e6, 1.29e8, marks=pytest.mark.slow),
        pytest.param("deepseek-v2-lite", [], 1e9, 1.6e10, marks=pytest.mark.slow),
    ],
)
def test_sizes_keep_the_proportions_and_come_near_to_what_is_asked(model, overrides, smallest, largest):
    recipe = ComposedModel(model, overrides)
    targets = space_sizes(smallest, largest, 5)
    assert targets[0] == smallest and targets[-1] == pytest.approx(largest)
    sizes = choose_sizes(recipe, targets)
    assert [size.params for size in sizes] == sorted({size.params for size in sizes})
    for size, target in zip(sizes, targets, strict=True):
        spec, dims = recipe.spec(size.dims), {**recipe.dims, **size.dims}
        assert count_parameters(spec)["total"] == size.params and 0.6 < size.params / target < 1.6
        layers = dims["d_model"] * recipe.own["n_layers"] / recipe.own["d_model"]
        assert dims["n_layers"] >= LEAST_LAYERS and abs(dims["n_layers"] - max(layers, LEAST_LAYERS)) <= 1
        if "d_ff" in size.dims:
            multiple = recipe.own["d_ff"] / recipe.own["d_model"]
            assert abs(dims["d_ff"] - multiple * dims["d_model"]) <= 128


def test_the_rules_are_those_of_olmo_core_up_to_the_highest_rate():
    """The batch of the 190M ladder and its halved rate; at 108M they are the constants themselves."""
    assert compute_rate(108e6) == pytest.approx(0.00235)
    assert compute_rate(190e6) == pytest.approx(0.0047 * (190 / 108) ** (-1 / 3) / 2)
    assert compute_rate(1e5) == compute_rate(1e3) == 0.006
    assert choose_rows(108_000_000, 2048, 20) == 160


def test_the_batch_leaves_300_updates_before_the_first_point_of_the_smallest_size():
    rows = choose_rows(20_000, 128, 5)
    assert 5 * 20_000 // (rows * 128) >= 300 > 5 * 20_000 // ((rows + 1) * 128)


@pytest.mark.parametrize("goes_back", [True, False])
@pytest.mark.parametrize("decay", [0.1, 0.25, 3])
def test_weights_at_each_decays_end_are_trained_on_the_multiple(goes_back, decay):
    """The schedule itself says where decays begin, and what its weights have nothing of."""
    lengths = choose_lengths(50_000, 1024, 20, decay, goes_back)
    schedule = WSDS(
        points=lengths.ends[:-1], decay=decay, continue_from="before" if goes_back else "decayed", warmup=lengths.warmup
    )
    assert schedule.fault(lengths.updates) is None
    assert schedule.list_points(lengths.updates) == list(lengths.ends)
    for end, trained, multiple in zip(lengths.ends, lengths.trained, (1, 2, 4), strict=True):
        assert end - schedule.count_left_behind(end, lengths.updates) == trained
        assert trained * 1024 == pytest.approx(multiple * 20 * 50_000, abs=512)


@pytest.mark.slow
def test_a_ladder_is_climbed_and_its_largest_size_predicted_before_it_is_trained(asked, tmp_path, monkeypatch):
    from zoo.ladder import climbing as module

    folder, train, seen = tmp_path / "ladder", module._train, []

    def watch(model, rung, *, folder, say):
        seen.append((rung.name, (folder / "prediction.json").is_file()))
        return train(model, rung, folder=folder, say=say)

    monkeypatch.setattr(module, "_train", watch)
    ladder = plan_ladder(replace(asked, seeds=2))
    outcome = climb(ladder, folder, lambda line: None, bootstrap=20)
    assert [before for _, before in seen] == [False] * 6 + [True] * 2
    points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    assert [(each["params"], each["tokens"]) for each in points] == [
        (rung.params, tokens) for rung in ladder.rungs for tokens in rung.tokens
    ]
    assert len({each["loss"] for each in points}) == len(points) == 4 * 2 * 3
    for rung, result in zip(ladder.rungs, outcome["runs"], strict=True):
        assert result["flops"] == rung.flops
        assert count_parameters(store.load_spec(folder / rung.name))["total"] == rung.params
    assert collect_points([folder / "points.jsonl"], {}).rows() == collect_points([folder], {}).rows()
    predicted = json.loads((folder / "prediction.json").read_text())["losses"]
    assert [each["loss"] for each in predicted] == [each["predicted"] for each in outcome["held_out"]]
    assert [each["losses"] for each in outcome["held_out"]] == [
        [first["loss"], second["loss"]] for first, second in zip(points[-6:-3], points[-3:], strict=True)
    ]
    assert (folder / "ladder.svg").read_text().count("<path") > 4 * 3
    page = ReadPage.of(folder / "report.html")
    assert page.pictures == 1 and page.tables[0][0] == [
        "parameters",
        "tokens",
        "predicted",
        "95 % interval",
        "measured",
        "error",
    ]
    assert [float(row[2]) for row in page.tables[0][1:]] == pytest.approx(
        [each["loss"] for each in predicted], abs=1e-4
    )

    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    again = climb(ladder, folder, lambda line: None, bootstrap=20)  # all is done
    assert again == outcome
    assert files == {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}

    with pytest.raises(ConfigError, match=r"has another ladder, of 'llama-tiny'"):
        climb(replace(ladder, tokens_per_param=20), folder, print)
    (folder / "prediction.json").unlink()
    with pytest.raises(Exception, match=r"was trained before prediction\.json was written"):
        climb(ladder, folder, lambda line: None, bootstrap=20)


@pytest.mark.slow
def test_a_ladder_that_was_stopped_goes_on_where_it_was(asked, tmp_path, monkeypatch):
    from zoo.training import loop

    update, made = loop.update, []

    def stop(run):
        made.append((run.folder.name, run.step))
        if run.folder.name.startswith("02") and run.step == 20 and made.count(made[-1]) == 1:
            raise KeyboardInterrupt
        return update(run)

    monkeypatch.setattr(loop, "update", stop)
    ladder = plan_ladder(LadderRequest(asked.model, (*asked.overrides, "save_every=7"), **SIZES))
    with pytest.raises(KeyboardInterrupt):
        climb(ladder, tmp_path / "stopped", lambda line: None, bootstrap=20)
    first = (tmp_path / "stopped" / ladder.rungs[0].name / "metrics.jsonl").read_bytes()
    before = len(made)
    climb(ladder, tmp_path / "stopped", lambda line: None, bootstrap=20)
    assert made[before][0].startswith("02") and made[before][1] > 0
    assert (tmp_path / "stopped" / ladder.rungs[0].name / "metrics.jsonl").read_bytes() == first
    climb(ladder, tmp_path / "whole", lambda line: None, bootstrap=20)
    points = [(tmp_path / name / "points.jsonl").read_text() for name in ("stopped", "whole")]
    assert points[0] == points[1]


@pytest.mark.slow
def test_a_plan_says_what_a_ladder_costs_and_trains_nothing(asked, tmp_path, capsys):
    options = [*SHELL, "--tokens-per-param", "0.6", "--out", "ladder"]
    assert run(["ladder", asked.model, *asked.overrides, *options, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    same = replace(asked, tokens_per_param=0.6, least_updates=LadderRequest.least_updates)
    assert plan["rungs"][0]["flops"] == plan_ladder(same).rungs[0].flops
    assert all(each["timed"] and each["seconds"] > 0 and each["evaluating"] > 0 for each in plan["rungs"])
    assert not (tmp_path / "ladder").exists()
    planned = plan_run(asked.model, plan["rungs"][0]["overrides"])
    assert Timing(0.0, 1.0, 0.0, batches=3, flops=None).predict_whole(planned) == 3 * 3  # at each decay's end


@pytest.mark.slow
def test_a_rate_and_a_batch_that_are_given_hold_for_all_sizes(asked):
    given = (
        "optim=muon",
        "optim.lr=0.0123456789",
        "batch_size=1",
        "schedule.decay=2",
        "schedule.continue_from=decayed",
    )
    ladder = plan_ladder(LadderRequest(asked.model, (*asked.overrides, *given), **SIZES))
    assert {(rung.rate, rung.batch_tokens) for rung in ladder.rungs} == {(0.0123456789, 16)}
    assert all(rung.lengths.ends == rung.lengths.trained for rung in ladder.rungs)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            ["--tokens-per-param", "0.3"],
            "smallest: the first point of 9,568 parameters comes after 179 updates of 16 tok",
        ),
        (["--seeds", "2", "seed=3"], "seed: is set for each size by the ladder (leave it out)"),
        (["--tune", "eval_part=all"], "eval_part: is set for each size by the ladder (leave it out)"),
        (["--arm", "plain=", "--tune"], "arm: plain is the only one (two at least, or none)"),
        (["steps=100"], "steps: is set for each size by the ladder (leave it out)"),
        (["optim=muon"], "optim.lr: the rule for it is adamw's, found optim=muon"),
        (["model.d_model=64", "model.n_layers=2"], "model: its d_model and n_layers are both given"),
        (["--smallest", "60K"], "smallest: is 60,000, not below the largest of 45,000 parameters"),
        (["model.head_dim=32"], "head_dim or vocabulary: model.head_dim=16)"),
        (["objective=mlm"], "objective: "),
        (["freeze=[embedding*]"], "train: a ladder trains all weights"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused_in_one_line(options, fault, asked, refused):
    lines = refused("ladder", "llama-tiny", *asked.overrides, *SHELL, *options)
    assert fault in lines[0]


def test_the_rate_of_a_size_is_on_the_line_through_two_in_logarithms():
    rates = {20_000: 0.008, 80_000: 0.004}
    assert interpolate_rate(rates, 40_000) == pytest.approx(0.008 / math.sqrt(2), rel=1e-2)
    assert interpolate_rate(rates, 320_000) == 0.002 and interpolate_rate(rates, 20_000) == 0.008


def test_rates_are_searched_on_a_seed_and_rows_that_the_ladder_does_not_report(asked, tmp_path):
    """Losses that are a parabola of log lr, with an optimum that halves as parameters grow fourfold."""
    ladder, trained = plan_ladder(replace(asked, tune=True)), []

    def train(rung):
        trained.append(rung)
        best = 0.006 * (rung.params / ladder.rungs[0].params) ** -0.5
        loss = math.inf if rung.rate > 0.05 else 3 + math.log10(rung.rate / best) ** 2
        return SimpleNamespace(result={"val_loss": loss})

    tuned = tune_rates(ladder, tmp_path, train)
    assert {rung.params for rung in trained} == {ladder.rungs[0].params, ladder.rungs[1].params}
    searched, settings = trained[-1], plan_run(asked.model, trained[-1].overrides).settings
    assert (settings.seed, settings.eval_part, settings.optim.lr) == (1000, "tuning", searched.rate)
    assert settings.steps == searched.lengths.trained[0] == searched.lengths.updates
    for rung in tuned.rungs[::3]:
        settings = plan_run(asked.model, rung.overrides).settings
        assert settings.eval_part == "reporting" and settings.seed == 0 and settings.steps == rung.lengths.updates
        wanted = 0.006 * (rung.params / ladder.rungs[0].params) ** -0.5
        assert settings.optim.lr == rung.rate == pytest.approx(wanted, rel=0.01)
    assert set(json.loads((tmp_path / "rates.json").read_text())) == {str(rung.params) for rung in trained}


def test_arms_have_the_smallest_batch_of_those_that_the_rule_gives_them(asked):
    plain = replace(asked, tokens_per_param=1.0)
    convolved = replace(plain, overrides=(*plain.overrides, "model.attention.short_conv=3"))
    found = plan_together({"convolved": convolved, "plain": plain})
    batches = [{rung.batch_tokens for rung in each.rungs} for each in found.values()]
    assert batches[0] == batches[1] and plan_ladder(convolved).rungs[0].batch_tokens > max(batches[1])


def test_the_speedup_of_an_arm_is_given_at_each_size_with_its_slope(asked, monkeypatch, capsys):
    """Nothing trains: the losses are of laws of which the second needs half the tokens, at 1.25 times the FLOPs."""
    climb = climb_laws({"plain": (BASE, 6.0), "late": (LATE, 7.5)})
    monkeypatch.setattr("zoo.ladder.climbing.climb", climb)
    monkeypatch.setattr("zoo.ladder.predict_seconds", lambda ladder: ladder)
    arms = ["--arm", "plain=", "--arm", "late=optim.lr=0.003", "--bootstrap", "20", "--seeds", "2"]
    assert run(["ladder", asked.model, *asked.overrides, *SHELL, *arms]) == 0
    table = capsys.readouterr().out.split("Compute-optimal speedup over plain")[1]
    assert table.count("×1.600 ") == 3 * 4  # the intervals have no width, as nothing is noisy
    assert re.search(r"slope +[+−]0\.000 ", table)
    page = ReadPage.of(Path("ladders/llama-tiny/report.html"))
    assert page.headings[:2] == [
        "Ladders: plain, late",
        "Compute-optimal speedup over plain; slope: d ln speedup / d ln FLOPs",
    ]
    assert [row[2] for row in page.tables[0][1:]] == ["×1.600"] * 4 + [page.tables[0][-1][2]] and page.pictures == 3
    assert page.said.count("The largest size, predicted from the others before its run") == 2


def test_the_error_of_an_extrapolated_rate_is_that_of_rates_drawn_with_errors():
    drawn = np.random.default_rng(0).normal(0, 0.1, (4_000, 2))
    for params, growth in ((18_576, 3.2), (6_216, 1.0), (7_608, 2**-0.5)):
        at = [math.log10(interpolate_rate({6_216: 10**a, 9_312: 10**b}, params)) for a, b in drawn]
        assert np.std(at) / 0.1 == pytest.approx(find_error_growth([6_216, 9_312], params), rel=0.04)
        assert np.std(at) / 0.1 == pytest.approx(growth, rel=0.05)
