"""Recipes: the packaged ones are matched as they say, verdicts follow from the runs, and a short form runs."""

import json
import math
import os
import re

import numpy as np
import pytest
import yaml

import zoo
from pages import findings_page
from support.packaged_specs import one_in
from support.page_reading import ReadPage
from support.parallel_runs import here  # noqa: F401  (a fixture)
from zoo.analysis.verdict.rate_optimum import find_good_window
from zoo.cli import run
from zoo.errors import ConfigError
from zoo.experiments import probing
from zoo.experiments.experiment import Expectation, ExperimentForm, find_recipe, list_recipes, read_recipe
from zoo.experiments.judging import ExperimentOutcome, Ran, find_file, find_outcome, weigh
from zoo.experiments.laddering import climb_recipe, measure, plan_ladders
from zoo.experiments.pricing import check_matched, price_arms
from zoo.gallery.finding_facts import list_effects, read_kept
from zoo.paths import recipes_dir
from zoo.probes.all_probes import make_probe
from zoo.report.forest_plot import make_forest
from zoo.report.rate_table import read_losses


@pytest.mark.parametrize("name", one_in(4, list_recipes()))
def test_the_arms_of_a_recipe_cost_what_it_says_they_do(name):
    _, recipe = find_recipe(name)
    if recipe.matched:
        check_matched(recipe, price_arms(recipe))
    assert recipe.short.expect, "--check has nothing to hold"


def test_every_verdict_that_is_kept_is_of_a_recipe_as_it_stands():
    kept = {file.stem: ExperimentOutcome.read(file) for file in (recipes_dir() / "verdicts").glob("*.json")}
    assert kept.keys() <= set(list_recipes())
    for name, outcome in kept.items():
        _, recipe = find_recipe(name)
        if recipe.withdrawn and outcome.key != recipe.key():  # the recipe was changed for what was wrong
            continue
        assert outcome.key == recipe.key() and outcome.form == "whole"
        assert len(outcome.findings) == len(recipe.expect) and find_file(name).is_file()
        values = {
            metric: {arm: {int(seed): value for seed, value in own.items()} for arm, own in by_arm.items()}
            for metric, by_arm in outcome.values.items()
        }
        for each in outcome.searches.values():
            assert each["window"] == pytest.approx(find_good_window(read_losses(each)).width, abs=2e-3), name
        ran = Ran(values, outcome.costs, outcome.seconds, outcome.machine, outcome.searches)
        assert outcome.findings == weigh(ran, recipe, recipe.expect, outcome.level)


def test_the_page_of_findings_is_what_its_command_writes():
    assert findings_page.PAGE.read_text(encoding="utf-8") == findings_page.page(), "python tests/pages findings"


def split_page():
    """The sections of the page of findings by their titles."""
    text = findings_page.PAGE.read_text(encoding="utf-8")
    return dict(each.split("\n", 1) for each in re.split(r"^## ", text, flags=re.M)[1:])


def test_no_row_of_a_withdrawn_finding_says_that_it_holds():
    held = {
        name: re.findall(r"\| ([^|]*) \|$", section.split("| p | holds |\n", 1)[1].split("\n\n", 1)[0], re.M)[1:]
        for name, section in split_page().items()
        if "| p | holds |" in section
    }
    withdrawn = {name for name, section in split_page().items() if "**Withdrawn.**" in section}
    assert len(withdrawn) >= 8 and len(held) == len(read_kept())
    assert {name for name, words in held.items() if set(words) == {"withdrawn"}} == withdrawn
    assert not any("withdrawn" in words for name, words in held.items() if name not in withdrawn)


def test_a_row_of_the_page_has_the_p_value_of_the_test_that_decided():
    """So that it is below 5 % at every verdict, also where arms are equivalent, and above where nothing was shown."""
    text = findings_page.PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"\| (better|worse|equivalent|inconclusive)[^|]*\| [^|]* \| (?:< )?([\d.]+) \| ", text)
    assert len(rows) > 80
    for found, p in rows:
        assert (float(p) < 0.05) == (found != "inconclusive")
    said = split_page()["windows"]
    assert "| 0.030 | no |" in said and "a difference is shown too (p = 0.010), and it is within the margin" in said


def test_findings_that_changed_subtract_the_same_way_round_at_fixed_and_at_searched_rates():
    sides = {"post, lr ×10": "after", "after, on the stream": "after", "swiglu": "gated", "tied": "tied"}
    cells = re.findall(
        r"\[([\w-]+)\]\(#\1\): (.+?) − (.+?): ([+−][\d.]+) ±[^,]*, (\w+)", split_page()["Findings that changed"]
    )
    assert [sides[arm] for _, arm, *_ in cells] == ["after", "after", "gated", "gated", "tied", "tied"]
    for name, arm, against, value, verdict in cells:
        own = json.loads(find_file(name).read_text(encoding="utf-8"))["values"]["val_loss"]
        apart = np.mean([*own[arm].values()]) - np.mean([*own[against].values()])
        assert float(value.replace("\N{MINUS SIGN}", "-")) == pytest.approx(apart, abs=6e-3), name
        assert verdict in ("inconclusive", "equivalent", "better" if apart < 0 else "worse")


def test_norms_of_queries_and_keys_cost_four_operations_for_each_of_their_elements():
    plain, normed = (find_outcome("qk-norm").costs[arm] for arm in ("plain", "qk-norm"))
    layers, channels = 4, 64 + 64
    assert normed["elementwise"] - plain["elementwise"] == plain["tokens"] * layers * channels * 4
    assert normed["flops"] == plain["flops"]


def test_a_stated_effect_is_the_number_in_the_text_of_its_source():
    read = 0
    for name in list_recipes():
        for each in (e for e in find_recipe(name)[1].expect if e.effect is not None):
            said = each.paper.replace("\N{MINUS SIGN}", "-")
            if apart := re.search(r"^(ln )?([\d.]+) - (?:ln )?([\d.]+)( %)?", said):
                a, b = (math.log(float(x)) if apart[1] else float(x) for x in apart.group(2, 3))
                read += 1
                assert each.effect == pytest.approx((a - b) / (100 if apart[4] else 1), abs=6e-4), (name, said)
    assert read >= 12


def test_the_forest_plot_marks_fixed_rates_and_effects_of_sources():
    panels = list_effects(read_kept())
    effects = {each.label: each for _, own in panels for each in own}
    hollow = {label.partition(":")[0] for label, each in effects.items() if each.fixed_rate}
    assert hollow == {
        *("cached-heads", "experts", "norm-placement", "parallel-blocks", "positions"),
        *("spans", "tied-head", "tiny-four", "windows"),
    }
    assert effects["head-outputs: gated − plain"].source == -0.045
    figure = make_forest(panels)
    losses, lines = panels[0][1], figure.axes[0].lines
    diamonds = [float(line.get_xdata()[0]) for line in lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert diamonds == [each.source for each in losses if each.source is not None]
    white = [line for line in lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert len(white) == sum(each.fixed_rate for each in losses)


# ---------------------------------------------------------------- judging


def hold(values, expected, costs=None, **changed):
    """Findings on one metric of a recipe that is about nothing else."""
    recipe = find_recipe("glu")[1].model_copy(update=changed)
    return weigh(Ran({"val_loss": values}, costs or {}, 1.0, "somewhere"), recipe, expected)


def make_values(**means):
    """Losses of five seeds, which arms have in common but for little noise."""
    drawn = np.random.default_rng(0)
    common = 0.3 * drawn.standard_normal(5)
    return {
        arm: dict(enumerate((middle + common + 0.01 * drawn.standard_normal(5)).tolist()))
        for arm, middle in means.items()
    }


@pytest.mark.parametrize("higher", [False, True])
def test_a_verdict_is_better_where_the_metric_moved_the_right_way(higher):
    values = make_values(base=3.0, up=3.2, down=2.8, same=3.0)
    expected = [Expectation(arm=arm, against="base", verdict="better") for arm in ("up", "down", "same")]
    up, down, same = hold(values, expected, higher=higher)
    assert (up.found, down.found) == (("better", "worse") if higher else ("worse", "better"))
    assert same.found == "inconclusive" and not same.holds
    assert up.holds is higher and down.holds is not higher
    assert up.value == pytest.approx(0.2, abs=0.02) and up.interval[0] < 0.2 < up.interval[1]


def test_a_bound_holds_in_every_run_or_not_at_all():
    values = {"good": {0: 0.95, 1: 0.99}, "mixed": {0: 0.2, 1: 0.99}}
    found = hold(values, [Expectation(arm=arm, at_least=0.9) for arm in values])
    assert [each.holds for each in found] == [True, False]
    assert found[1].value == pytest.approx(0.595) and found[1].interval == (0.2, 0.99)
    (apart,) = hold(values, [Expectation(arm="mixed", against="good", at_most=-0.1)])
    assert not apart.holds and apart.interval == pytest.approx((-0.75, 0.0))


def test_a_cost_is_held_to_a_multiple_of_another_arms():
    costs = {"dense": {"seconds": 10.0}, "experts": {"seconds": 13.0}}
    about = {"arm": "experts", "against": "dense", "cost": "seconds"}
    expected = [Expectation(**about, at_least=1.1), Expectation(**about, at_most=1.2)]
    found = hold({"dense": {}, "experts": {}}, expected, costs)
    assert [each.holds for each in found] == [True, False] and found[0].value == pytest.approx(1.3)


# ---------------------------------------------------------------- files


def write(folder, **changed):
    node = {
        "claim": "One layer more is better.",
        "source": "nobody",
        "minutes": 1,
        "config": "small",
        "shared": ["data=text", "data.path=text.txt", "data.max_bytes=null", "model.d_model=32", "batch_size=4"],
        "arms": {"two": ["model.n_layers=2"], "three": ["model.n_layers=3"]},
        "matched": ["tokens"],
        "measure": {"loss in windows of 8": {"context": 8, "stride": 8}},
        "expect": [{"arm": "three", "against": "two", "verdict": "better"}],
        "short": {
            "overrides": ["steps=3", "eval_every=3", "eval_batches=2", "seq_len=32"],
            "seeds": 2,
            "expect": [
                {"arm": "three", "against": "two", "cost": "params", "at_least": 1.2},
                {"arm": "three", "metric": "loss in windows of 8", "at_least": 1},
            ],
        },
    }
    file = folder / "deeper.yaml"
    file.write_text(yaml.safe_dump({**node, **changed}, allow_unicode=True, sort_keys=False))
    return file


@pytest.mark.parametrize("short_form", [False, True])
def test_a_recipe_of_a_probe_compares_levels_that_its_form_has(short_form):
    for name in list_recipes():
        _, recipe = find_recipe(name)
        if (asked := recipe.form(short_form).probe) is not None:
            levels = make_probe(asked.name, asked.size, asked.settings).levels
            known = {f"{what} at {level}" for what in ("accuracy", "loss", "scaled") for level in levels} | {"reach"}
            assert set(recipe.list_metrics(short_form)) <= known, name


@pytest.mark.slow
def test_a_short_form_runs_once_and_says_whether_it_holds(here, capsys):  # noqa: F811
    file = write(here)
    asked = ["recipes", str(file), "--check", "--out", "kept"]
    assert run(asked) == 0
    said = capsys.readouterr().out
    assert "One layer more is better." in said and "three ÷ two" in said
    folder = here / "kept" / "short" / "deeper"
    outcome = ExperimentOutcome.read(folder / "verdict.json")
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    three = [folder / name for name, job in jobs.items() if job["label"] == "three"]
    losses = [json.loads((own / "result.json").read_text())["val_loss"] for own in three]
    assert sorted(outcome.values["val_loss"]["three"].values()) == sorted(losses) and len(losses) == 2
    found, measured = outcome.findings
    again = zoo.evaluate(three[0], context=8, stride=8)["results"][0]["loss"]
    assert again in outcome.values["loss in windows of 8"]["three"].values() and measured.value > 1
    assert "<svg" in (folder / "report.html").read_text() and (folder / "verdict.png").is_file()
    assert found.holds and found.value == outcome.costs["three"]["params"] / outcome.costs["two"]["params"]
    times = {file: file.stat().st_mtime_ns for file in folder.glob("*/result.json")}
    short = {"overrides": ["steps=3", "eval_every=3", "eval_batches=2", "seq_len=32"], "seeds": 2}
    stricter = {**short, "expect": [{"arm": "three", "at_most": 0.1}]}
    write(here, short=stricter)
    assert run(asked) == 1, "the losses are above 0.1"
    assert times == {file: file.stat().st_mtime_ns for file in folder.glob("*/result.json")}, "nothing ran again"
    assert len(times) == 4
    write(here, arms={"two": ["model.n_layers=2"], "three": ["model.n_layers=4"]}, short=stricter)
    assert run(asked) == 1
    again = ExperimentOutcome.read(folder / "verdict.json")
    assert again.costs["three"]["params"] > outcome.costs["three"]["params"], "runs of the older recipe are not taken"
    assert again.values["val_loss"]["two"] == outcome.values["val_loss"]["two"]


def test_each_faulty_key_of_a_recipe_is_one_line_with_what_would_do(here, refused):  # noqa: F811
    file = write(here, margin="abc", seeds="x", expect=[{"arm": "two", "agains": "three", "verdict": "same"}])
    lines = [re.sub(rf"^{file}:\d+: ", "", line) for line in refused("recipes", str(file))]
    assert sorted(lines) == [
        "expect.0.agains: no such key (did you mean 'against'?)",
        "expect.0.verdict: is 'same' (one of: better, worse, equivalent, inconclusive, any)",
        "margin: is 'abc' (a number)",
        "seeds: is 'x' (a whole number, or a list)",
    ]


def test_a_mistake_in_an_arm_is_blamed_on_the_arm_and_not_on_the_file_of_its_model(here, refused):  # noqa: F811
    layers = {"near": {"attention": {"kind": "sliding", "window": 4}}}
    model = {"defaults": ["/model/llama-tiny@_here_"], "layers": layers, "pattern": ["near", "layer"]}
    (here / "mine.yaml").write_text(yaml.safe_dump(model))
    arms = {"near": [], "wide": ["model.layers.nearr.attention.window=8"]}
    file = write(here, shared=["model=mine.yaml"], arms=arms, expect=[], config=None, short={})
    said = refused("experiment", str(file), "--plan", "--no-measure")
    assert said == ["model.layers.nearr: no layer is of this kind (did you mean 'near'?) [arm wide]"]


def test_a_recipe_says_what_is_wrong_with_it(here, refused):  # noqa: F811
    file = write(here, matched=["params"])
    (line,) = refused("recipes", str(file), "--run")
    assert re.fullmatch(r"matched: params of three is [\d,]+, that of two [\d,]+ \(within 1 %\)", line)
    write(here, expect=[{"arm": "four", "against": "two", "verdict": "better"}], metrics="loss", config="large")
    lines = refused("recipes", str(file))
    assert any(re.fullmatch(rf"{file}:\d+: metrics: no such key \(did you mean 'metric'\?\)", line) for line in lines)
    write(here, expect=[{"arm": "four", "against": "two", "verdict": "better"}])
    assert "names four, and the arms are two, three" in refused("recipes", str(file))[0]
    write(here, config="large")
    assert "there is no 'large' (a path, or one of: " in refused("recipes", str(file))[0]
    assert refused("recipes", "glue") == ["recipe: there is no 'glue' (did you mean 'glu'?)"]
    assert refused("recipes", "--run")[0].startswith("recipes: --run needs names")


def test_the_hash_of_a_recipe_changes_with_what_runs_and_with_nothing_else(here):  # noqa: F811
    first = read_recipe(write(here))
    assert read_recipe(write(here, claim="Another.")).key() == first.key()
    assert (
        read_recipe(write(here, arms={"two": ["model.n_layers=2"], "three": ["model.n_layers=4"]})).key() != first.key()
    )
    assert first.form(True).seeds == 2 and first.form(False) == ExperimentForm(seeds=3, expect=list(first.expect))


def test_at_80_columns_the_list_has_every_name_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(" " * 2)[0].strip() for line in lines} >= set(list_recipes()) and max(map(len, lines)) <= 80
    assert "zoo recipes NAME" in lines[-1]


def test_recipes_are_listed_and_shown(capsys):
    assert run(["recipes", "--json"]) == 0
    listed = {each["recipe"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed.keys() == set(list_recipes()) and listed["glu"]["arms"]["swiglu"] == [
        "ffn=gated",
        "activation=silu",
        "model.d_ff=171",
    ]
    assert run(["recipes"]) == 0 and run(["recipes", "glu"]) == 0
    said = capsys.readouterr().out
    assert "A gated feed-forward" in said and "1.942 − 1.983" in said and " ran on: " in said


def test_a_plan_of_a_probe_has_its_trainings_and_their_cost(capsys, monkeypatch):
    monkeypatch.setattr(probing, "predict_seconds", lambda spec, task, searched, seeds: 60.0 * searched / 4)
    assert run(["experiment", "short-convolution", "--plan", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["arms"]
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, crowded in ((5.0, True), (1.9, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert run(["experiment", "short-convolution", "--plan"]) == 0
        said = capsys.readouterr().out
        assert "about 2.00 min on 2 CPUs" in said, "four arms of a minute"
        assert ("the machine's load is 2.5 times its CPUs" in said) is crowded
    assert run(["experiment", "short-convolution", "--plan", "--no-measure"]) == 0
    said = capsys.readouterr().out
    assert "seconds are unknown, as no step was timed" in said and "detectable with 3 seeds" in said
    assert "worse: the published effect is −0.97, and this design detects none" in said
    kept = find_outcome("short-convolution").costs
    assert {arm: each["trainings"] for arm, each in planned.items()} == dict.fromkeys(kept, 4 + 3)  # rates, seeds
    for arm, each in planned.items():
        assert each["seconds"] == 60
        assert each["flops"] == pytest.approx(7 * kept[arm]["flops"]) and each["params"] == kept[arm]["params"]


@pytest.mark.slow
def test_a_plan_of_a_ladder_has_the_sizes_of_each_arm(capsys):
    assert run(["experiment", "ladder", "--no-measure"]) == 0
    said = capsys.readouterr().out
    assert said.count("16 runs, 4 seeds per size") == 2 and "61.7K" in said
    assert "all 2 arms: 32 runs" in said and said.count("Rule: ") == 1 and "times its CPUs" not in said


@pytest.mark.slow
def test_a_recipe_of_a_probe_runs_and_is_judged(here, capsys):  # noqa: F811
    write(
        here,
        config=None,
        shared=["n_layers=1"],
        arms={"two": ["attention=mha"], "three": ["attention=mha", "attention.short_conv=3"]},
        probe={"name": "mqar"},
        measure={},
        metric="accuracy at 2",
        higher=True,
        short={
            "probe": {"name": "mqar", "size": "small", "settings": {"steps": 2, "rows": 4}, "rates": [1e-3]},
            "expect": [
                {"arm": "three", "metric": "reach", "at_most": 8},
                {"arm": "three", "against": "two", "cost": "params", "at_least": 1.001},
            ],
        },
    )
    assert run(["recipes", "deeper.yaml", "--check", "--out", "kept"]) == 0
    folder = here / "kept" / "short" / "deeper"
    outcome = ExperimentOutcome.read(folder / "verdict.json")
    (probed,) = (json.loads(file.read_text()) for file in folder.glob("three/probe.json"))
    assert list(outcome.values["reach"]["three"].values()) == probed["reaches"]
    assert outcome.costs["three"]["params"] == probed["params"] and (folder / "verdict.png").is_file()
    assert ReadPage.of(folder / "report.html").pictures == 1, "a card, as the first metric is reach"
    capsys.readouterr()


@pytest.mark.slow
def test_a_recipe_of_a_ladder_is_judged_by_what_was_predicted_of_its_largest_size(monkeypatch, tmp_path):
    _, recipe = find_recipe("ladder")
    asked = []

    def climb(ladder, folder, say, bootstrap):
        asked.append((ladder.model, ladder.tune, len(ladder.rungs), folder))
        folder.mkdir(parents=True)
        runs = [
            {"run": each.name, "params": each.params, "val_loss": 3 - at / 10, "flops": each.flops, "seconds": 2.0}
            for at, each in enumerate(ladder.rungs)
        ]
        held = [{"predicted": 2.2, "losses": [2.0, 2.1]}, {"predicted": 1.9, "losses": [2.0, 1.9 + len(asked)]}]
        return {"folder": str(folder), "runs": runs, "held_out": held, "fit": {"law": {"alpha": 0.3, "beta": 0.4}}}

    monkeypatch.setattr("zoo.experiments.laddering.climb", climb)
    monkeypatch.setattr("zoo.experiments.laddering.follow_arms", lambda outcomes: {})
    ran, outcomes = climb_recipe(recipe, plan_ladders(recipe, True), tmp_path, short_form=True)
    assert [each[:3] for each in asked] == [("llama-tiny", False, 8), ("gpt-tiny", False, 8)]
    assert len({folder for *_, folder in asked}) == 2 == len(list(tmp_path.glob("*/outcome.json"))) == len(outcomes)
    assert ran.values["held-out error"]["llama"] == pytest.approx({0: 0.1, 1: 1 - 1.9 / 2.9})
    assert ran.values["held-out error"]["gpt"] == pytest.approx({0: 0.1, 1: 1 - 1.9 / 3.9})
    measured = measure(outcomes["llama"])
    assert measured["loss of the largest"] == pytest.approx([2.4, 2.3])
    assert measured["loss at a quarter"] == pytest.approx([3.0, 2.9]) and measured["beta"] == [0.4]
    assert ran.costs["gpt"]["seconds"] == 16 and ran.costs["gpt"]["flops"] > 1e9 and ran.seconds == 32
    wrong = recipe.model_copy(update={"metric": "error"})
    with pytest.raises(ConfigError, match="a ladder has no 'error' \\(one of: held-out error, "):
        plan_ladders(wrong, short_form=False)
