"""`zoo solve` as its users meet it: what it prints, and how it ends."""

from __future__ import annotations

import json
import shlex

import pytest

from support.packaged_specs import load
from zoo.analysis.solve import Room, ShapeBudget, find_largest_batch, solve_shapes
from zoo.cli import run
from zoo.costs import Setup
from zoo.costs.hardware import hardware


def answered(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert run(["solve", *args]) == 0
    return capsys.readouterr().out


def failed(capsys: pytest.CaptureFixture[str], code: int, *args: str) -> str:
    assert run(["solve", *args]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_json_is_the_answer_of_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    room = Room(memory=hardware("h100").memory, gpu="h100")
    out = answered(capsys, "batch", "llama3-8b", "attention=mqa", "--gpu", "h100", "--context", "4096", "--json")
    expected = find_largest_batch(load("llama3-8b", ["attention=mqa"]), Setup(gpu="h100", context=4096), room)
    assert json.loads(out) == expected
    out = answered(capsys, "shape", "--params", "1B", "--json")
    assert json.loads(out) == solve_shapes("llama", [], ShapeBudget(params=1e9))


def test_a_shape_is_of_the_model_named_first_and_of_llama_where_none_is(capsys: pytest.CaptureFixture[str]) -> None:
    budget = ShapeBudget(params=3e8)
    out = answered(capsys, "shape", "gpt2", "d_model=768", "--params", "300M", "--json")
    assert json.loads(out) == solve_shapes("gpt2", ["d_model=768"], budget)
    out = answered(capsys, "shape", "d_model=768", "--params", "300M", "--json")
    assert json.loads(out) == solve_shapes("llama", ["d_model=768"], budget)


def test_a_batch_says_which_phase_binds_with_both_figures(capsys: pytest.CaptureFixture[str]) -> None:
    out = " ".join(answered(capsys, "batch", "llama3-8b", "--gpu", "h100").split())
    read, cached = (
        json.loads(answered(capsys, "batch", "llama3-8b", "--gpu", "h100", "--json", *more))["batch"]
        for more in ((), ("--cache-only",))
    )
    assert read < cached
    assert f"limited by prefill of all prompts at once, which has room for batch {read}." in out
    assert f"Decoding has room for {cached}:" in out


def test_the_printed_command_reproduces_the_printed_count(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answered(capsys, "shape", "gpt2", "n_layers=24", "--params", "1e9").splitlines()
    first = lines[1].split()
    command = shlex.split(lines[-1].removeprefix("zoo "))
    assert run([*command, "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["params"]["total"]
    assert f"{total:,}" in first


@pytest.mark.parametrize(
    "args",
    [
        ("batch", "llama3-8b", "--gpu", "h100"),
        ("context", "gemma2-9b", "--memory", "48GiB", "--batch", "4"),
        ("context", "gpt2", "--gpu", "l4", "--train"),
        ("gpu", "llama3-8b"),
        ("gpu", "gpt2", "--train", "--batch", "8"),
        ("shape", "--params", "1e9", "--kv-bytes-per-token", "40KB"),
        ("cache", "llama3-8b", "--bytes", "500MB"),
    ],
    ids=" ".join,
)
def test_answers_fit_80_columns(args, capsys: pytest.CaptureFixture[str]) -> None:
    out = answered(capsys, *args)
    assert max(len(line) for line in out.splitlines() if not line.startswith("zoo stats")) <= 80


def test_what_does_not_fit_ends_with_1_and_says_how_much_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    line = failed(capsys, 1, "batch", "llama3-70b", "--gpu", "h100")
    assert "does not fit at batch 1" in line and " short: " in line and "weights" in line
    line = failed(capsys, 1, "cache", "llama3-8b", "--bytes", "1KB")
    assert "neither" in line


@pytest.mark.parametrize(
    ("question", "solved", "fixed"),
    [
        ("batch", ["--batch"], "--context"),
        ("context", ["--context"], "--batch"),
        ("mesh", ["--tp", "--dp"], "--chunks"),
    ],
)
def test_the_help_leaves_out_the_options_that_are_solved_for(question, solved, fixed, capsys) -> None:
    options = {words[0] for line in answered(capsys, question, "--help").splitlines() if (words := line.split())}
    assert options.isdisjoint(solved) and fixed in options


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("batch", "llama3-8b", "--gpu", "h10"), "did you mean 'h100'?"),
        (("batch", "llama3-8b"), "found neither"),
        (("batch", "llama3-8b", "--gpu", "h100", "--memory", "80GB"), "found both"),
        (("batch", "llama3-8b", "--gpu", "h100", "--batch", "2"), "batch: is what is solved for"),
        (("context", "llama3-8b", "--gpu", "h100", "--context", "2"), "context: is what is solved for"),
        (("gpu", "llama3-8b", "--tp", "2"), "tp: is what is solved for"),
        (("batch", "llama3-8b", "--memory", "lots"), "memory: cannot read 'lots'"),
        (("shape", "--params", "many"), "budget: cannot read 'many'"),
        (("shape", "--params", "1e9", "--aspect", "9"), "aspect: cannot read '9'"),
        (("shape",), "no budget is given"),
        (("shape", "gpt22", "--params", "1e9"), "did you mean 'gpt2'?"),
        (("batch", "lama3-8b", "--gpu", "h100"), "did you mean 'llama3-8b'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_input_at_fault_ends_with_2_and_one_line(args, said, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in failed(capsys, 2, *args)
