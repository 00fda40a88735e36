"""`zoo bench engine`: each scenario gives figures, and measures what it says."""

import json

import pytest
import torch

from pages.bench_page import PLACE, replace_section
from zoo.bench import engine_gains
from zoo.bench.race_model import parse_shape
from zoo.cli import run

TINY = "n_layers=2,d_model=64,n_heads=4,n_kv_heads=2,d_ff=96,max_seq_len=256,vocab_size=8200"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(engine_gains, "LONG", 320)
    monkeypatch.setattr(engine_gains, "NEW", 24)


def test_a_chain_has_no_token_twice_and_is_what_the_model_writes(short):
    model, chain = engine_gains._chained(parse_shape(TINY.split(",")))
    assert len(set(chain)) == len(chain) >= 2
    with torch.inference_mode():
        logits = model(torch.tensor([chain[:-1]])).logits[0]
    assert logits.argmax(-1).tolist() == chain[1:]


def test_a_long_prompt_comes_while_others_wait(short, monkeypatch):
    shape = parse_shape(TINY.split(","))
    rest, beside = engine_gains._wait(engine_gains._build(shape, max_seq_len=640), shape.vocab_size)
    assert len(beside) == engine_gains.LONG // engine_gains.BESIDE - 1 and len(rest) == 24


@pytest.mark.slow
def test_every_scenario_is_shown_and_written_for_the_page(short, tmp_path):
    assert run(["bench", "engine", "--seconds", "0", "--threads", "1", "--shape", TINY, "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*-engine-fp32-32.json")
    report = json.loads(file.read_text())
    assert len(report["scenarios"]) == len(engine_gains.SCENARIOS)
    for row in report["scenarios"]:
        assert row["own"] > 0 and row["base"] > 0 and len(row["ratios"]) == 1
        assert row["met"] == (row["ratio"] >= row["goal"] if row["least"] else row["ratio"] <= row["goal"])
    page = replace_section(f"# Page\n\n{PLACE}\n", report["processor"]["isa"], [report])
    assert all(row["name"] in page for row in report["scenarios"])


def test_options_of_races_are_refused(capsys):
    assert run(["bench", "engine", "--against", "hf"]) == 2
    assert "--against: races have it" in capsys.readouterr().err
