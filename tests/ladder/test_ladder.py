"""Ladders: sizes keep the model's shape, runs give exact points, and the largest is predicted before it is trained."""

import json
import math
from dataclasses import replace

import pytest

from support.tiny_runs import write_corpus
from zoo.analysis.scaling.ladder_sizes import (
    EVAL_ROWS,
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
from zoo.ladder import LadderRequest, climb, plan_ladder
from zoo.ladder.ladder_plan import plan_run
from zoo.training.schedule import WSDS

TINY = ["model.head_dim=8", "model.vocab_size=257"]
RUNS = [*TINY, "data=text", "data.tokenizer.kind=byte", "seq_len=16", "compile=false"]
SIZES = {"sizes": 4, "smallest": 4e3, "largest": 20e3, "tokens_per_param": 0.4}


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
        assert abs(dims["n_layers"] - layers) <= 1
        if "d_ff" in size.dims:
            multiple = recipe.own["d_ff"] / recipe.own["d_model"]
            assert abs(dims["d_ff"] - multiple * dims["d_model"]) <= 128


def test_the_rules_are_those_of_olmo_core_up_to_the_highest_rate():
    """The batch of the 190M ladder and its halved rate; at 108M they are the constants themselves."""
    assert compute_rate(108e6) == pytest.approx(0.00235)
    assert compute_rate(190e6) == pytest.approx(0.0047 * (190 / 108) ** (-1 / 3) / 2)
    assert compute_rate(1e5) == compute_rate(1e3) == 0.006
    assert choose_rows(108e6, 2048) == 160 or abs(math.log(choose_rows(108e6, 2048) / 160)) < 0.13
    for params in (1e4, 1e5, 3e6, 1e7):
        assert EVAL_ROWS % choose_rows(params, 256) == 0


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
    for end, trained, multiple in zip(lengths.ends, lengths.trained, (0.5, 1, 2, 4), strict=True):
        assert end - schedule.count_left_behind(end, lengths.updates) == trained
        assert trained * 1024 == pytest.approx(multiple * 20 * 50_000, abs=512)


@pytest.mark.slow
def test_a_ladder_is_climbed_and_its_largest_size_predicted_before_it_is_trained(asked, tmp_path, monkeypatch, capsys):
    from zoo.ladder import climbing as module

    folder, train, seen = tmp_path / "ladder", module._train, []

    def watch(ladder, rung, where, say):
        seen.append((rung.name, (where / "prediction.json").is_file()))
        train(ladder, rung, where, say)

    monkeypatch.setattr(module, "_train", watch)
    ladder = plan_ladder(asked)
    outcome = climb(ladder, folder, lambda line: None, bootstrap=20)
    assert [before for _, before in seen] == [False, False, False, True]
    points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    assert [(each["params"], each["tokens"]) for each in points] == [
        (rung.params, tokens) for rung in ladder.rungs for tokens in rung.tokens
    ]
    for rung, result in zip(ladder.rungs, outcome["runs"], strict=True):
        assert result["flops"] == rung.flops
        assert count_parameters(store.load_spec(folder / rung.name))["total"] == rung.params
    assert collect_points([folder / "points.jsonl"], {}).rows() == collect_points([folder], {}).rows()
    predicted = json.loads((folder / "prediction.json").read_text())["losses"]
    assert [each["loss"] for each in predicted] == [each["predicted"] for each in outcome["held_out"]]
    assert [each["measured"] for each in outcome["held_out"]] == [each["loss"] for each in points[-4:]]

    assert (folder / "ladder.svg").read_text().count("<path") > 4 * 4

    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    again = climb(ladder, folder, lambda line: None, bootstrap=20)  # all is done
    assert again == outcome
    assert files == {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}

    with pytest.raises(ConfigError, match=r"has another ladder, of llama-tiny"):
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
    options = ["--sizes", "4", "--smallest", "4K", "--largest", "20K", "--tokens-per-param", "0.4", "--out", "ladder"]
    assert run(["ladder", asked.model, *asked.overrides, *options, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rungs"][0]["flops"] == plan_ladder(asked).rungs[0].flops
    assert all(each["timed"] and each["seconds"] > 0 and each["evaluating"] > 0 for each in plan["rungs"])
    assert not (tmp_path / "ladder").exists()
    planned = plan_run(asked.model, plan["rungs"][0]["overrides"])
    assert Timing(0.0, 1.0, 0.0, batches=3, flops=None).predict_whole(planned) == 3 * 4  # at each decay's end


@pytest.mark.slow
def test_a_rate_and_a_batch_that_are_given_hold_for_all_sizes(asked):
    given = (
        "optim=muon",
        "optim.lr=0.0123456789",
        "batch_size=7",
        "schedule.decay=2",
        "schedule.continue_from=decayed",
    )
    ladder = plan_ladder(LadderRequest(asked.model, (*asked.overrides, *given), **SIZES))
    assert {(rung.rate, rung.batch_tokens) for rung in ladder.rungs} == {(0.0123456789, 7 * 16)}
    assert all(rung.lengths.ends == rung.lengths.trained for rung in ladder.rungs)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["steps=100"], "steps: is set for each size by the ladder (leave it out)"),
        (["optim=muon"], "optim.lr: the rule for it is adamw's, found optim=muon"),
        (["model.d_model=64", "model.n_layers=2"], "model: its d_model and n_layers are both given"),
        (["--smallest", "30K"], "smallest: is 30,000, not below the largest of 20,000 parameters"),
        (["model.head_dim=32"], "head_dim or vocabulary: model.head_dim=16)"),
        (["objective=mlm"], "objective: "),
        (["freeze=[embedding*]"], "train: a ladder trains all weights"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused_in_one_line(options, fault, asked, refused):
    lines = refused("ladder", "llama-tiny", *asked.overrides, "--largest", "20K", "--smallest", "4K", *options)
    assert fault in lines[0]
