"""`zoo new`: files that are complete, plain, and what they say they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import zoo
from zoo.analysis.pages import key_sentence
from zoo.analysis.writing import TOUR, write_model
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
    assert f"# {count:,} parameters, as written" in text


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
    assert "n_kv_heads" not in yaml.safe_load(file.read_text())  # which MLA does not read


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
