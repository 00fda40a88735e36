"""`zoo draw`: what it writes, and what it refuses."""

import json
import xml.etree.ElementTree as ET

import pytest

from zoo.cli import run


def draw(capsys, *words):
    code = run(["draw", *map(str, words)])
    return code, capsys.readouterr()


def test_a_model_is_drawn_in_the_terminal(capsys):
    code, said = draw(capsys, "llama-tiny", "attention=mqa")
    assert code == 0 and "llama-tiny attention=mqa" in said.out and "1 KV head" in said.out


@pytest.mark.parametrize("form", ["svg", "html", "txt", "png", "pdf"])
def test_a_figure_is_written_in_each_form(form, tmp_path, capsys):
    file = tmp_path / f"figure.{form}"
    assert draw(capsys, "llama-tiny", "--out", file)[0] == 0
    start = {"svg": b"<svg", "html": b"<!doctype", "txt": b"llama-tiny", "png": b"\x89PNG", "pdf": b"%PDF"}[form]
    assert file.read_bytes().startswith(start)


@pytest.mark.parametrize("how", [["--look", "cost", "--by", "cache"], ["--look", "strip"], ["--card"], ["--dark"]])
def test_each_look_is_a_picture_of_its_own(how, tmp_path, capsys):
    plain, other = tmp_path / "plain.svg", tmp_path / "other.svg"
    assert draw(capsys, "llama-tiny", "--out", plain)[0] == draw(capsys, "llama-tiny", *how, "--out", other)[0] == 0
    assert ET.parse(other).getroot().tag.endswith("svg") and plain.read_text() != other.read_text()


def test_a_terminal_shows_shares_and_the_pattern_over_depth(capsys):
    assert "GatedFFN  7" in draw(capsys, "llama3-8b", "--look", "cost")[1].out
    strip = draw(capsys, "gemma3-1b", "--look", "strip")[1].out
    assert "▒▒▒▒▒█" * 4 + "▒▒\n" in strip and "█" * 26 in strip


def test_an_override_is_drawn_beside_the_model_without_it(capsys):
    code, said = draw(capsys, "llama-tiny", "attention=mqa", "--diff")
    assert code == 0 and "parameters" in said.out and "\N{MINUS SIGN}" in said.out


def test_two_models_are_drawn_at_one_context(tmp_path, capsys):
    file = tmp_path / "two.svg"
    assert draw(capsys, "llama-tiny", "gpt2", "--context", "64", "--out", file)[0] == 0
    assert "cache of 64 tokens" in file.read_text(encoding="utf-8")


def test_drawn_numbers_are_those_of_stats(capsys):
    assert run(["stats", "llama-tiny", "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["params"]["total"]
    assert f"{total / 1e6:#.3g} M parameters" in draw(capsys, "llama-tiny")[1].out


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["llama-tiny", "--out", "figure.gif"], "out: figure.gif is not a drawing"),
        (["llama-tiny", "--out", "nowhere/figure.svg"], "out: nowhere is no folder"),
        (["llama-tiny", "--diff"], "diff: compares a model with and without overrides"),
        (["llama-tiny", "gpt2", "bert-tiny"], "draw: draws one model or compares two, found 3"),
        (["llama-tiny", "gpt2", "--card", "--out", "x.png"], "card: shows one model, and two were named"),
        (["llama-tiny", "--card"], "card: is of a picture"),
        (["llama-tiny", "--dark", "--out", "x.txt"], "dark: is of a picture, and x.txt is text (--out x.png)"),
        (["llama-tiny", "--axis", "ffn"], "axis: draws the choices of an axis"),
        (["--axis", "fnn"], "axis: there is no 'fnn'"),
        ([], "target: is missing"),
        (["bert-tiny", "--look", "cost", "--by", "cache", "--out", "x.svg"], "by: bert-tiny has no cache"),
        (["llama-tiny", "gpt2", "--look", "strip"], "look: shows one model, and two were named"),
        (["llama-tiny", "--look", "papper"], "look: there is no 'papper' (did you mean 'paper'?)"),
        (["llama-tiny", "--look", "cost", "--by", "flop"], "by: there is no 'flop' (did you mean 'flops'?)"),
        (["llama-tiny", "--look", "cost", "--card", "--out", "x.png"], "card: has a look of its own"),
        (["llama-tiny", "--by", "flops"], "by: only applies to the look `cost`"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(words, fault, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = draw(capsys, *words)
    assert code == 2 and fault in said.err and said.err.count("\n") == 1
