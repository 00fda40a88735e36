"""What is said of probes before they train: how long they take, and what `zoo explain` describes."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.cli import run
from zoo.probes import battery, training
from zoo.probes.all_probes import make_probe
from zoo.probes.card import FOUND
from zoo.probes.training import ProbeScore

DOCS = Path(__file__).parents[2] / "docs"


def test_the_predicted_seconds_of_a_probe_are_those_that_its_trainings_take(monkeypatch):
    """By a clock that runs 2 seconds a step, and 3 for each 1,024 rows that are scored."""
    now = [0.0]

    def run_steps(spec, probe, lr, seed, steps=None, check=None):
        steps = steps or probe.steps
        for step in range(steps):
            now[0] += 2
            if check is not None and (step + 1) * 20 // steps > step * 20 // steps:
                check(step + 1, None)

    def take_score(learner, probe, seed, stream, level=None, most=1024):
        now[0] += 3 * most / 1024
        return ProbeScore(0.5, 1.0)

    monkeypatch.setattr(battery, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(training, "train", run_steps)
    monkeypatch.setattr(training, "score", take_score)
    for rates, searched in ((None, 8), ([1e-3, 1e-2], 2)):
        taken = battery.run_probe("llama-tiny", "parity", rates=rates, seeds=3).seconds
        task = make_probe("parity")
        small, _ = battery.load_small("llama-tiny", task)
        assert battery.predict_seconds(small, task, searched, 3) == pytest.approx(taken)


def test_a_plan_of_a_card_trains_nothing_and_adds_up_what_its_probes_take(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(battery, "predict_seconds", lambda spec, probe, searched, seeds: 10.0 * (searched + seeds))
    words = ["probe", "-m", "llama-tiny", "attention=gqa,sliding", "--probe", "mqar,parity", "--plan"]
    assert run([*words, "--lrs", "1e-3,1e-2", "--jobs", "2", "--out", str(tmp_path / "probes")]) == 0
    said = capsys.readouterr().out
    assert said.count("50.0 s") == 4 and "about 100 s from the beginning, 2 at a time" in said
    assert (
        said.endswith("trained: 2 layers of 64 channels\n") and " time " in said and not (tmp_path / "probes").exists()
    )
    assert run([*words, "--lrs", "1e-3,1e-2", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [(each["probe"], each["trainings"], each["seconds"]) for each in planned[::2]] == [("mqar", 5, 50.0)] * 2


def test_a_page_names_every_probe_of_the_documentation_and_every_column_of_a_card(capsys):
    table = (
        (DOCS / "experiments.md").read_text(encoding="utf-8").split("\n| probe | what is asked |")[1].split("\n\n")[0]
    )
    rows = re.findall(r"^\| ([\w, ]+) \| .* \|$", table, re.M)
    named = {name for row in rows for name in row.split(", ")}
    assert run(["explain", "probe", "--json"]) == 0
    said = {line.partition(":")[0]: line for line in json.loads(capsys.readouterr().out)["values"]}
    assert len(named) == 18 and named < said.keys()
    columns = {name.partition(" (")[0] for name in FOUND[1:]} - {"lr"}
    assert columns < said.keys() and "(censored)" in said["steps"]
    for column in ("reaches", "guess", "state"):
        assert run(["explain", column]) == 0 and "hops:" in capsys.readouterr().out, column


def test_a_page_of_a_probe_has_what_its_sizes_train(capsys):
    for name in ("mqar", "probe.mqar"):
        assert run(["explain", name, "--json"]) == 0
        page = json.loads(capsys.readouterr().out)
        assert page["name"] == "mqar" and "right at 1/K" in page["text"]
        assert "levels: 2 to 16 (--size small: 2 to 8; --size paper: 4 to 64)" in page["values"]
        assert "vocab: 40 (--size small: 32; --size paper: 8,192)" in page["values"]
        assert "level: keys; reached if 90 % of the answers are right" in page["values"]
    for name in ("probe.mqa", "mqra"):
        assert run(["explain", name]) == 2, name
    assert run(["explain", "mqa", "--json"]) == 0 and '"attention.mqa"' in capsys.readouterr().out
