"""Probes: what small models learn, and the card."""

import json
import math
from dataclasses import replace

import pytest
import torch

from support.page_reading import ReadPage
from zoo.cli import run
from zoo.probes import battery
from zoo.probes.all_probes import make_probe
from zoo.probes.battery import choose_rate, load_small, open_pool, run_probe
from zoo.probes.card import draw_card, draw_cell, format_card_markdown, format_reach, make_bars, print_card
from zoo.probes.control_pair import ControlPair, run_controls
from zoo.probes.outcome import ProbeOutcome, SeedReport, find_reach, find_window
from zoo.probes.outcome_store import name_folder
from zoo.probes.training import Learner, score, train
from zoo.report.price_plot import make_axes, write_figure
from zoo.run.builder import build

EASY = {"context": 16, "levels": (2,), "vocab": 16, "steps": 80, "rows": 32}
"""An mqar that attention with a short convolution learns in a second or two."""
CONVOLVED = ("attention.short_conv=3", "n_layers=1")


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def sees():
    return run_probe("llama-tiny", "mqar", CONVOLVED, settings=EASY, seeds=1, rates=[1e-2])


@pytest.fixture(scope="module")
def blind():
    alone = (*CONVOLVED[1:], "attention=sliding", "window=1")
    return run_probe("llama-tiny", "mqar", alone, settings=EASY, seeds=1, rates=[1e-2])


def test_attention_behind_a_short_convolution_learns_recall_and_blind_attention_stays_at_a_guess(sees, blind):
    assert sees.reach == 2 and sees.accuracy(2)[0] > 0.95 and sees.learned
    assert blind.reach == 0 and blind.accuracy(2)[0] < 2 * blind.chances[2] and not blind.learned
    assert blind.window is None
    assert blind.state_bytes == 4 * 2 * 32  # one key and one value of one head of 32, in float32


def test_controls_separate_where_one_model_recalls_and_one_is_blind_and_not_where_both_are_alike(sees, blind):
    assert ControlPair(sees, blind).separates and ControlPair(sees, blind).describe() == (
        "separates: the positive control reaches 2 keys, a model without token mixing none"
    )
    assert "neither control reaches a level" in ControlPair(blind, blind).describe()
    assert "a model without token mixing reaches 2 keys, too" in ControlPair(sees, sees).describe()


def test_the_steps_to_solve_are_those_after_which_the_model_answers_nine_in_ten(sees, blind):
    steps = int(sees.seeds[0].steps_to_solve)
    probe, seen = make_probe("mqar", settings=EASY), {}
    spec, _ = load_small("llama-tiny", probe, CONVOLVED)

    def check(step, learner):
        seen[step] = score(learner, probe, 0, "report", 2).accuracy

    train(spec, probe, 1e-2, 0, check=check)
    assert list(seen) == list(range(4, 81, 4)) and 4 < steps < 80
    assert seen[steps] > 0.85 and seen[steps - 4] < 0.95  # on other rows
    assert seen[80] == pytest.approx(sees.accuracy(2)[0])  # a look at the model changes nothing of its training
    assert len(blind.seeds[0].curve) == 20 and math.isinf(blind.seeds[0].steps_to_solve)


def test_a_training_follows_from_its_seed_whatever_runs_beside_it(tmp_path):
    how = {"settings": {**EASY, "steps": 6}, "seeds": 2}
    together = run_probe("llama-tiny", "mqar", CONVOLVED, rates=[1e-3, 1e-2], **how)
    alone = run_probe("llama-tiny", "mqar", CONVOLVED, rates=[together.lr], **how)
    assert together.seeds == alone.seeds and together.chosen[together.lr] == alone.chosen[alone.lr]
    assert together.seeds[0].levels != together.seeds[1].levels


def test_the_seed_that_chooses_the_rate_is_none_of_those_reported(monkeypatch):
    trained = []

    def run(task):
        trained.append(task)
        levels = {"2": {"accuracy": 0.5, "loss": 1.0}}
        return {"accuracy": task.lr, "loss": 1.0, "levels": levels, "curve": {}, "seconds": 0.0}

    monkeypatch.setattr(battery, "run_task", run)
    found = run_probe("llama-tiny", "mqar", CONVOLVED, rates=[1e-3, 1e-2], settings=EASY, seeds=2)
    assert found.lr == 1e-2 and [each.seed for each in trained if each.report] == [0, 1]
    assert not {each.seed for each in trained if not each.report} & {0, 1}


def test_the_reported_rate_is_in_the_middle_of_those_as_good_as_the_best():
    def choose(*accuracies):
        return choose_rate({10**-at: {"accuracy": each, "loss": 1 - each} for at, each in enumerate(accuracies)}, 0.1)

    assert choose(0.1, 1.0, 0.999, 0.998, 0.2) == 1e-2  # and not the rate before the one that diverged
    assert choose(0.3, 0.9, 0.7, 0.3, 0.2) == 1e-1
    assert choose(0.11, 0.1, 0.1, 0.1, 0.09) == 1  # no more than a guess: the best, whatever it is


@pytest.mark.slow
def test_trainings_in_other_processes_give_the_same_numbers():
    how = {"settings": {**EASY, "steps": 6}, "seeds": 2, "rates": [1e-3, 1e-2]}
    one = run_probe("llama-tiny", "mqar", CONVOLVED, **how)
    with open_pool(2) as pool:
        two = run_probe("llama-tiny", "mqar", CONVOLVED, pool=pool, **how)
    assert replace(one, seconds=0.0) == replace(two, seconds=0.0)


def test_the_head_runs_on_answers_alone_and_gives_the_loss_of_all_logits():
    probe = make_probe("mqar", settings=EASY)
    spec, _ = load_small("llama-tiny", probe)
    model, examples = build(spec, device="cpu", seed=3), probe.examples(3, "report", 0, 1024, 2)
    with torch.no_grad():
        logits = model(torch.from_numpy(examples.tokens)).logits
    labels = torch.from_numpy(examples.labels)
    found = score(Learner(model.eval()), probe, 3, "report", 2)
    assert found.loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item(), rel=1e-5
    )
    assert found.accuracy == pytest.approx((logits.argmax(-1) == labels)[labels >= 0].float().mean().item())


def test_a_row_of_an_exact_probe_counts_only_where_all_of_it_is_right():
    probe = make_probe("word_z6", settings={"context": 3, "levels": (3,)})
    spec, _ = load_small("llama-tiny", probe)
    model, examples = build(spec, device="cpu", seed=0).eval(), probe.examples(0, "report", 0, 1024, 3)
    with torch.no_grad():
        hit = model(torch.from_numpy(examples.tokens)).logits.argmax(-1) == torch.from_numpy(examples.labels)
    found = score(Learner(model), probe, 0, "report", 3).accuracy
    assert found == pytest.approx(hit.all(1).float().mean().item())
    assert found < hit.float().mean().item()


def test_a_training_that_diverges_scores_what_a_guess_does():
    probe = make_probe("mqar", settings={**EASY, "steps": 3})
    assert score(None, probe, 0, "choose").accuracy == 2 / 16
    assert score(None, make_probe("parity"), 0, "choose").accuracy == 0.5


@pytest.mark.slow
def test_a_row_is_told_from_its_last_vector_where_that_has_seen_it_and_not_where_it_is_blind():
    easy = {"context": 3, "levels": (2,), "vocab": 6, "steps": 120}
    how = {"settings": easy, "seeds": 1, "rates": [1e-2]}
    sees = run_probe("llama-tiny", "compress", ("n_layers=1", "attention=mamba", "position=none"), **how)
    blind = run_probe("llama-tiny", "compress", ("n_layers=1", "attention=sliding", "window=1"), **how)
    assert sees.accuracy(2)[0] > 0.95
    assert blind.accuracy(2)[0] < 0.35  # of two letters in four, both of them in the row before the last vector


@pytest.mark.slow
def test_a_delta_rule_that_changes_signs_extrapolates_parity_and_one_that_does_not_fails():
    settings = {"steps": 400, "rows": 32, "levels": (8, 16, 32)}
    base = ("attention=gated_delta", "position=none")
    both, one = (
        run_probe("llama-tiny", "parity", (*base, *more), settings=settings, seeds=1, rates=[3e-3])
        for more in (("attention.beta_scale=2.0",), ())
    )
    assert both.accuracy(32)[0] > 0.9 > 0.65 > one.accuracy(32)[0]


# ---------------------------------------------------------------- what is made of it


def test_the_window_of_learning_rates_ends_where_accuracy_falls_below_nine_tenths_of_the_best():
    found = find_window({1e-4: 0.1, 1e-3: 0.8, 1e-2: 1.0, 1e-1: 0.0}, 0.0)
    assert found is not None and not found.open_low and not found.open_high
    assert found.low == pytest.approx(-2 - 0.5**0.5)  # half of what is lost at 1e-3, by a parabola around 1e-2
    assert found.high == pytest.approx(-2 + 0.1**0.5)
    assert found.width == pytest.approx(0.5**0.5 + 0.1**0.5)
    edge = find_window({1e-3: 0.95, 1e-2: 1.0}, 0.0)
    assert edge is not None and edge.open_low and edge.open_high and edge.width == pytest.approx(1)
    assert find_window({1e-3: 0.51, 1e-2: 0.53}, 0.5) is None


def test_what_an_informed_guess_does_is_not_learned_though_it_is_far_above_a_blind_one():
    guessed = make_outcome(reach=(0.52, 0.3, 0.1), chosen={1e-3: 0.38, 1e-2: 0.4})  # a guess: 0.375 over two levels
    assert not guessed.learned and guessed.window is None
    assert format_reach(guessed) == "none of 8 keys, no better than a guess"
    assert make_outcome(reach=(0.6, 0.3, 0.1)).learned


def test_reach_ends_at_the_first_level_that_fails():
    assert find_reach({2: 1.0, 4: 0.9, 8: 0.5, 16: 0.95}) == 4
    assert find_reach({2: 0.89, 4: 1.0}) == 0
    assert find_reach({0: 0.5, 20: 0.4}) == -1 and find_reach({0: 0.95, 20: 0.4}) == 0


def make_outcome(probe="mqar", model="llama-tiny", reach=(1.0, 0.95, 0.2), chosen=None):
    levels = {level: {"accuracy": found, "loss": 1.0} for level, found in zip((2, 4, 8), reach, strict=True)}
    worse = {**levels, 4: {"accuracy": min(0.5, reach[1]), "loss": 1.0}}
    given = {
        "model": model,
        "overrides": (),
        "probe": probe,
        "size": "card",
        "settings": {"steps": 60},
        "level_is": "keys",
    }
    figures = {
        "chances": dict.fromkeys((2, 4, 8), 0.03),
        "baselines": {2: 0.5, 4: 0.25, 8: 0.125},
        "layers": ("mixer, gqa",),
        "params": 40_000,
        "flops": 9e4,
    }
    curves = ({30: 0.5, 60: 0.95}, {30: 0.92}, {30: 0.4, 60: 0.6})
    seeds = tuple(
        SeedReport(seed, *found) for seed, found in enumerate(zip((levels, levels, worse), curves, strict=True))
    )
    rest = {
        "state_bytes": 65536,
        "baseline": 0.375,
        "chosen": chosen or {1e-3: 0.2, 1e-2: 0.7},
        "lr": 1e-2,
        "trained": (2, 4),
    }
    return ProbeOutcome(**given, **figures, **rest, seeds=seeds)


def test_a_probe_is_extended_until_its_positive_control_falls_short(monkeypatch):
    asked = []

    def run(model, probe, overrides, *, settings, **how):
        asked.append((overrides, settings["levels"]))
        passes = 0 if "window=1" in overrides else 16
        levels = {level: {"accuracy": float(level <= passes), "loss": 1.0} for level in settings["levels"]}
        figures = {"chances": dict.fromkeys(levels, 0.1), "baselines": dict.fromkeys(levels, 0.2), "settings": settings}
        return replace(make_outcome(), **figures, seeds=(SeedReport(0, levels),))

    monkeypatch.setattr("zoo.probes.control_pair.run_probe", run)
    pair = run_controls("mqar", size="small")
    assert [max(levels) for _, levels in asked] == [8, 16, 32, 32]
    assert pair.extended and pair.separates and pair.positive.settings["context"] == 128
    assert [pair.positive.model, pair.negative.model] == ["positive control", "negative control"]
    assert pair.positive.notes[-1] == pair.describe() and "window=1" in pair.negative.notes[-1]


def test_an_outcome_is_read_back_as_it_was_written():
    made = make_outcome()
    data = json.loads(json.dumps(made.to_dict()))
    assert ProbeOutcome.from_dict(data) == made
    assert (data["reach"], data["reaches"], data["on_edge"]) == (4, [4, 4, 2], True)
    assert data["levels"]["4"]["accuracy"]["mean"] == pytest.approx(0.8)
    assert data["levels"]["4"]["accuracy"]["deviation"] == pytest.approx(0.2598, abs=1e-4)


def test_a_card_has_a_row_for_each_probe_and_model_and_a_picture(tmp_path, capsys):
    found = [make_outcome(), make_outcome("parity"), make_outcome(model="b", reach=(0.1, 0.1, 0.1))]
    lines = format_card_markdown(found).splitlines()[2:5]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:2] for row in cells] == [["llama-tiny", "mqar"], ["b", "mqar"], ["llama-tiny", "parity"]]
    assert cells[0][2:] == [
        "4 (2 to 4) of 8 keys",
        "60 (30 to > 60)",
        "0.800 ± 0.260 (0.25)",
        "1.0e-2!",
        "≥ 0.37",
        "65.5 KB",
        "40.0 K",
        "90.0 K",
    ]
    print_card(found)
    assert all(len(line) <= 120 for line in capsys.readouterr().out.splitlines())
    draw_card(found, tmp_path / "card.svg")
    drawn = (tmp_path / "card.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("4", "2 to 4", "none", "not tested", "mqar", "of 8 keys"))
    assert drawn.count(">not tested<") == 1  # parity, on b


def test_a_cell_is_the_darker_the_more_levels_are_passed_white_for_a_guess_and_hatched_where_nothing_ran():
    axes = make_axes(3, 3)
    for column, reach in enumerate(((0.1, 0.1, 0.1), (1.0, 0.95, 0.2), (1.0, 1.0, 1.0))):
        draw_cell(axes, column, 0, make_outcome(reach=reach))
    draw_cell(axes, 3, 0, None)
    none, some, most, untested = axes.patches
    assert none.get_facecolor() == (1, 1, 1, 1)
    assert sum(none.get_facecolor()) > sum(some.get_facecolor()) > sum(most.get_facecolor())
    assert untested.get_hatch() and not some.get_hatch()
    assert [text.get_text() for text in axes.texts][-1] == "not tested"


def test_a_battery_that_was_killed_goes_on_and_trains_nothing_twice(tmp_path, capsys, monkeypatch):
    import zoo.probes.battery as battery

    trained, whole = [], battery.run_task

    def stops(task):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append((task.lr, task.seed, task.report))
        return whole(task)

    monkeypatch.setattr(battery, "run_task", stops)
    command = [
        "probe",
        "llama-tiny",
        *CONVOLVED,
        "--probe",
        "mqar",
        "--size",
        "small",
        "--steps",
        "2",
        "--lrs",
        "1e-3,1e-2",
    ]
    command += ["--seeds", "1", "--jobs", "1", "--out", str(tmp_path)]
    assert run(command) == 130
    monkeypatch.setattr(
        battery, "run_task", lambda task: trained.append((task.lr, task.seed, task.report)) or whole(task)
    )
    assert run([*command, "--json"]) == 0
    assert len(trained) == len(set(trained)) == 3
    shown = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / name_folder("llama-tiny", CONVOLVED) / "mqar-small" / "probe.json").read_text())
    assert shown == [stored] and stored["seeds"][0]["seed"] == 0
    assert run(command) == 0 and len(trained) == 3
    assert run([*command[:-6], "--steps", "3", *command[-6:]]) == 0 and len(trained) == 6  # other settings


def test_a_card_with_controls_has_the_levels_at_which_they_separate(tmp_path, capsys, monkeypatch):
    def run_task(task):
        blind = task.spec.blocks["layer"].attention.sight.window == 1
        if not task.report:
            return {"accuracy": 0.5, "loss": 1.0, "seconds": 0.0}
        levels = {str(level): {"accuracy": float(level <= 8 and not blind), "loss": 1.0} for level in task.probe.levels}
        return {"levels": levels, "curve": {"400": 0.8}, "seconds": 0.0}

    monkeypatch.setattr("zoo.probes.battery.run_task", run_task)
    command = ["probe", "llama-tiny", "--controls", "--probe", "mqar", "--size", "small", "--jobs", "1"]
    assert run([*command, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["model"], each["reach"]) for each in found] == [
        ("positive control", 8),
        ("negative control", 0),
        ("llama-tiny", 8),
    ]
    assert all(max(map(int, each["levels"])) == 16 and each["steps_to_solve"][0] is None for each in found)
    assert (tmp_path / "llama-tiny" / "mqar-small-to-16" / "probe.json").is_file()
    assert run([*command, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "mqar: separates: the positive control reaches 8 keys, a model without token mixing none." in told
    assert "> 400" in told and "vocab 34 (8,192)" in " ".join(told.split())
    page = ReadPage.of(tmp_path / "report.html")
    assert page.headings[1:] == ["positive control", "negative control", "llama-tiny"] and page.pictures == 1
    assert [table[1][1] for table in page.tables[::2]] == [
        "8 of 16 keys",
        "none of 16 keys, no better than a guess",
        "8 of 16 keys",
    ]
    assert "mqar: separates: the positive control reaches 8 keys" in page.said and "lr window" in page.said


@pytest.mark.parametrize(
    "words, fault",
    [
        (["bert-base"], "is an encoder"),
        (["llama-tiny", "--probe", "mqra"], "did you mean 'mqar'"),
        (["llama-tiny", "vocab_size=99"], "vocab_size is what the probe's rows need"),
        (["llama-tiny", "n_kv_heads=3"], "n_heads=2 is not a multiple of n_kv_heads=3"),
        (["llama-tiny", "--lrs", "fast"], "cannot read 'fast' as learning rates"),
        (["llama-tiny", "attention=mha", "atention.window=3"], "atention"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, fault, tmp_path, capsys):
    assert run(["probe", *words, "--out", str(tmp_path / "probes")]) == 2
    said = capsys.readouterr().err
    assert fault in said and len(said.splitlines()) == 1
    assert not (tmp_path / "probes").exists()


def test_variants_of_one_model_stand_in_one_card_and_are_kept_apart(tmp_path, capsys):
    asked = [
        "llama-tiny",
        "d_model=64,128",
        "--probe",
        "mqar",
        "--size",
        "small",
        "--steps",
        "1",
        "--seeds",
        "1",
    ]
    quick = ["--jobs", "1", "--lrs", "1e-3", "--out", str(tmp_path)]
    assert run(["probe", "-m", *asked, *quick, "--md"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| llama-tiny")]
    assert [row.split(" | ")[0] for row in rows] == ["| llama-tiny d_model=64", "| llama-tiny d_model=128"]
    params = [
        json.loads((tmp_path / f"llama-tiny,d_model={each}/mqar-small/probe.json").read_text())["params"]
        for each in (64, 128)
    ]
    assert params[0] < params[1]
    assert run(["probe", *asked, *quick]) == 2
    assert "several values are a sweep, for train, stats and probe -m" in capsys.readouterr().err


def test_the_picture_of_a_metric_names_each_arm_and_its_mean(tmp_path):
    write_figure(
        make_bars({"one": {0: 0.25, 1: 0.75}, "other": {0: -0.2, 1: 0.0}}, "scaled at 40"), tmp_path / "values.svg"
    )
    drawn = (tmp_path / "values.svg").read_text()
    told = (">one<", ">other<", ">0.500<", ">-0.100<", ">mean scaled at 40 (points: single seeds)<")
    assert all(each in drawn for each in told)
