"""`zoo new`: files that are complete, plain, and what they say they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import zoo
from zoo.analysis.grammar_names import key_sentence
from zoo.analysis.model_file import TOUR, write_model
from zoo.cli import run
from zoo.compose import load
from zoo.costs.params import count_parameters


@pytest.mark.quick
@pytest.mark.parametrize("stop", TOUR, ids=lambda stop: stop.name)
def test_each_model_of_the_tour_is_plain_and_priced_and_built(stop, tmp_path: Path) -> None:
    text = write_model("mine.yaml", stop.like, stop.overrides, about=stop.shows)
    assert "${" not in text and "defaults" not in text
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    spec = load(tmp_path / "mine.yaml")
    assert spec == load(stop.like, list(stop.overrides))
    built = zoo.build(tmp_path / "mine.yaml", device="meta")
    count = count_parameters(spec)["total"]
    assert sum(each.numel() for each in built.parameters()) == count
    assert f"# {count:,} parameters when this file was written" in text
    assert (stop.name == "09-state-space") == ("n_heads" not in yaml.safe_load(text))


@pytest.mark.slow
@pytest.mark.parametrize("stop", TOUR, ids=lambda stop: stop.name)
def test_each_model_of_the_tour_trains(stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(write_model("mine.yaml", stop.like, stop.overrides), encoding="utf-8")
    Path("text.txt").write_text("It was the best of times, it was the worst of times. " * 200)
    data = ["data=text", "data.path=text.txt", "data.tokenizer.kind=byte", "eval_every=null", "sample=null"]
    assert run(["train", "mine.yaml", "steps=2", "batch_size=2", "seq_len=32", *data]) == 0


@pytest.mark.quick
def test_a_file_has_the_choices_and_the_size_that_were_asked_for(tmp_path: Path, capsys) -> None:
    file = tmp_path / "mine.yaml"
    assert run(["new", str(file), "--with", "moe,mla", "--size", "8M", "n_layers=6"]) == 0
    spec = load(file)
    assert (
        spec.n_layers == 6 and spec.blocks["layer"].attention.kind == "mla" and spec.blocks["layer"].ffn.kind == "moe"
    )
    assert abs(count_parameters(spec)["total"] / 8e6 - 1) < 0.1
    stated = yaml.safe_load(file.read_text())
    assert "n_kv_heads" not in stated  # which MLA does not read
    assert stated["kv_lora_rank"] == spec.blocks["layer"].attention.kv_lora_rank == 512
    assert (stated["n_experts"], stated["top_k"]) == (8, 2)
    assert capsys.readouterr().out == f"written: {file}, {count_parameters(spec)['total']:,} parameters\n"


@pytest.mark.quick
def test_a_size_that_a_vocabulary_does_not_leave_room_for_is_told(tmp_path: Path, capsys, refused) -> None:
    few, some = tmp_path / "few.yaml", tmp_path / "some.yaml"
    (line,) = refused("new", str(few), "--like", "qwen3-0.6b", "--size", "5M")
    assert line == (
        "shape: 5,000,000 parameters are too few for the table of 151,936 tokens, which has 9,723,904 at d_model 64, "
        "the narrowest (vocab_size=32768 would do)"
    )
    assert run(["new", str(few), "--like", "qwen3-0.6b", "--size", "5M", "vocab_size=32768"]) == 0
    capsys.readouterr()
    assert run(["new", str(some), "--like", "qwen3-0.6b", "--size", "10M"]) == 0
    assert capsys.readouterr().out == f"written: {some}, 9,983,168 parameters, 97 % of them the table of tokens\n"


@pytest.mark.quick
def test_nothing_is_replaced_and_mistakes_are_a_line(tmp_path: Path, monkeypatch, capsys, refused) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["new", "mine.yaml"]) == 0
    capsys.readouterr()
    before = Path("mine.yaml").read_text()
    assert refused("new", "mine.yaml") == ["mine.yaml: is there already (choose another name; nothing is replaced)"]
    assert Path("mine.yaml").read_text() == before
    assert refused("new", "b.yaml", "--with", "moee")[0].startswith(
        "with: no axis has a choice 'moee' (did you mean 'moe'?)"
    )
    assert refused("new")[0].startswith("file: is missing")
    assert refused("new", "x.yaml", "--tour", "t")[0].startswith("tour: writes models of its own")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.quick
def test_a_comment_says_what_the_description_of_its_field_says() -> None:
    lines = write_model("mine.yaml", "mistral-tiny").splitlines()
    stated = {line.partition(":")[0]: line.partition("  # ")[2] for line in lines}
    for key in ("attention", "n_layers", "vocab_size", "window"):
        assert stated[key] == re.sub(r" \([^()]*\d{4}[^()]*\)", "", key_sentence(key)).removesuffix(".")
    assert stated["n_layers"] == "Number of layers"
