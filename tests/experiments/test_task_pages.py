"""Pages of experiments of probes and ladders: what the terminal shows, in a file that loads nothing. Nothing trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from support.climbed_ladders import BASE, LATE, climb_laws
from support.page_reading import ReadPage
from zoo.cli import run

TEXT = ("data=text", "data.path=text.txt", "data.tokenizer.kind=byte")


def test_the_page_of_a_probe_has_its_verdicts_its_registration_and_its_card(here: Path, capsys, monkeypatch) -> None:
    def run_task(task) -> dict:
        convolved = task.spec.blocks["layer"].attention.short_conv is not None
        levels = {
            str(level): {"accuracy": 0.9 + task.seed / 100 if convolved else 0.2 / level, "loss": 1.0}
            for level in (2, 4)
        }
        return {"accuracy": 0.5, "loss": 1.0, "levels": levels, "curve": {"9": 0.95}, "seconds": 1.0}

    monkeypatch.setattr("zoo.probes.battery.run_task", run_task)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    node = {
        "claim": "One layer recalls with a convolution.",
        "arms": {"plain": "", "convolved": "attention.short_conv=3"},
        "probe": {"name": "mqar", "size": "small", "settings": {"levels": [2, 4]}, "rates": [1e-3]},
        "metric": "accuracy at 4",
        "higher": True,
        "seeds": 3,
    }
    file = here / "recall.yaml"
    for margin in (0.1, 0.2):
        file.write_text(yaml.safe_dump(node | {"margin": margin}, sort_keys=False))
        assert run(["experiment", str(file), "--run"]) == 0
    page = ReadPage.of(Path("sweeps/experiments/recall/report.html"))
    assert page.headings[0] == "recall. Claim: One layer recalls with a convolution." and page.pictures == 2
    assert "convolved − plain: better, +0.860 ± 0.025, p < 0.001" in page.said and "margin 0.1 → 0.2" in page.said
    said = " ".join(capsys.readouterr().out.split())
    (finding,) = json.loads(Path("sweeps/experiments/recall/verdict.json").read_text())["findings"]
    shown = [cell for cell in page.tables[0][1] if cell]
    assert finding["found"] == "better" and " ".join(shown) in said, "the terminal has the row, too"
    assert {"plain", "convolved"} < {row[0] for row in page.tables[1]} and "4 of 4 keys" in page.said


def test_the_page_of_a_ladder_has_the_speedups_that_its_verdict_keeps(here: Path, capsys, monkeypatch) -> None:
    laws = {"plain": (BASE, 6.0), "late": (LATE, 7.5)}
    monkeypatch.setattr("zoo.experiments.laddering.climb", climb_laws(laws))
    monkeypatch.setattr("zoo.experiments.laddering.BOOTSTRAP", 20)
    node = {
        "arms": {"late": "optim.lr=0.003", "plain": ""},
        "baseline": "plain",
        "shared": [*TEXT, "model.vocab_size=257", "model.head_dim=8", "seq_len=128", "compile=false"],
        "ladder": {"sizes": 4, "smallest": 1.8e4, "largest": 7.2e4, "tokens_per_param": 4.2},
        "metric": "loss of the largest",
        "seeds": 2,
    }
    file = here / "gain.yaml"
    file.write_text(yaml.safe_dump(node, sort_keys=False))
    assert run(["experiment", str(file), "--run"]) == 0
    kept = json.loads(Path("sweeps/experiments/gain/verdict.json").read_text())["speedups"]
    assert [each["factor"] for each in kept["late"]["speedups"]] == pytest.approx([1.6] * 4, rel=1e-3)
    assert "Compute-optimal speedup over plain" in capsys.readouterr().out
    page = ReadPage.of(Path("sweeps/experiments/gain/report.html"))
    assert page.pictures == 3 and page.said.count("×1.600") == 4 * 3 and "before its first run; unchanged" in page.said
