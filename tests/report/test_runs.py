"""`zoo runs`, `zoo plot` and `zoo diff` of runs: what they tell is what training left in the folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import zoo
from support.tiny_runs import compose_run, read_metrics, write_corpus
from zoo import runs
from zoo.cli import run
from zoo.errors import CheckpointError, ConfigError, ZooError
from zoo.jobs.train import start_run
from zoo.report.history import RunRecord, collect_runs, list_rows, read_curve, sort_rows
from zoo.report.runplot import draw_runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder of three runs: two that are done, and one whose loss became no number."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = tmp_path_factory.mktemp("corpus")
    write_corpus(corpus)
    start_run(compose_run(corpus), folder / "sweep" / "one")
    start_run(compose_run(corpus, "optim.lr=0.02", "seed=1", "model.n_kv_heads=4", "steps=9"), folder / "sweep" / "two")
    with pytest.raises(ZooError):
        start_run(compose_run(corpus, "skip_nonfinite=0", "optim.lr=1e30", "clip=null", "save_every=1"), folder / "bad")
    return folder


def test_runs_lists_what_each_result_says_and_sorts_it(trained: Path, capsys) -> None:
    assert run(["runs", str(trained), "--json", "--sort", "val_loss", "--reverse"]) == 0
    rows = json.loads(capsys.readouterr().out)
    results = {name: json.loads((trained / name / "result.json").read_text()) for name in ("sweep/one", "sweep/two")}
    order = sorted(results, key=lambda name: results[name]["val_loss"], reverse=True)
    assert [row["name"] for row in rows] == [*order, "bad"]  # one without a figure comes last either way
    for row in rows[:2]:
        assert {key: row[key] for key in ("params", "val_loss", "train_loss", "tokens", "seconds")} == {
            key: results[row["name"]][key] for key in ("params", "val_loss", "train_loss", "tokens", "seconds")
        }
        assert Path(row["path"]) == trained / row["name"]
    assert rows[2]["status"] == "diverged" and rows[2]["params"] == results["sweep/one"]["params"]
    assert run(["runs", str(trained)]) == 0
    table = capsys.readouterr().out
    assert "sweep/two" in table and f"{results['sweep/one']['val_loss']:.4f}" in table


def test_a_run_is_running_while_its_folder_is_held_and_cut_off_when_it_ended_without_a_word(trained: Path, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained / "sweep" / "one", folder)
    assert RunRecord(folder).status == "done"
    with runs.locked(folder, print):
        assert RunRecord(folder).status == "running"
    (folder / "result.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tok')  # the line that a process was writing when it was killed
    record, whole = RunRecord(folder), RunRecord(trained / "sweep" / "one")
    assert record.status == "cut off"
    assert record.lines == whole.lines
    told = record.outcome
    assert (told["steps"], told["tokens"], told["params"]) == (6, 6 * 64, whole.result["params"])
    assert (told["val_loss"], told["train_loss"]) == (whole.result["val_loss"], whole.result["train_loss"])
    (folder / "metrics.jsonl").write_text("no json\n{}\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:1: is no line of metrics"):
        _ = RunRecord(folder).lines


def test_the_axes_of_a_curve_agree_with_the_clock_and_with_the_price(trained: Path) -> None:
    record = RunRecord(trained / "sweep" / "one")
    last = record.points()[-1]
    assert last["seconds"] == pytest.approx(record.result["seconds"], rel=0.02)
    priced = zoo.stats(record.folder, context=16)["flops"]["train"]
    assert (last["steps"], last["flops"]) == (6, priced * 6 * 4 * 16)


def test_a_plot_of_runs_shows_each_by_name_and_its_last_validation_loss(trained: Path, tmp_path: Path, capsys) -> None:
    for axis, label in {"tokens": "tokens seen", "flops": "training FLOPs", "steps": "steps"}.items():
        file = tmp_path / f"{axis}.svg"
        folders = [str(trained / "sweep" / name) for name in ("one", "two")]
        assert run(["plot", *folders, "--x", axis, "--out", str(file)]) == 0
        body = file.read_text()
        losses = [json.loads((Path(each) / "result.json").read_text())["val_loss"] for each in folders]
        named = [f"{name}: {loss:.3f}" for name, loss in zip(("one", "two"), losses, strict=True)]
        for text in (label, "validation (last value after the name)", *named):
            assert f">{text}<" in body, text
    assert run(["plot", str(trained / "sweep"), "-o", str(tmp_path / "both.png"), "--smooth", "0"]) == 0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def swept(trained: Path, tmp_path: Path) -> Path:
    """The folder of a sweep: two runs that differ in an axis and in their seeds, and one that only tried a rate."""
    folder = tmp_path / "sweep"
    shutil.copytree(trained / "sweep", folder)
    shutil.copytree(folder / "two", folder / "tried")
    shared = ["model=llama-tiny", "steps=6", "hydra.verbose=false"]
    typed = {
        "one": ["seed=0", "attention@model.attention=gqa"],
        "two": ["seed=1", "attention@model.attention=mqa"],
        "tried": ["seed=1", "optim.lr=1e-3"],
    }
    jobs: dict[str, dict[str, Any]] = {name: {"overrides": [*shared, *words]} for name, words in typed.items()}
    jobs["tried"] |= {"search": True}
    (folder / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    return folder


def test_the_runs_of_a_sweep_are_named_by_what_was_typed(swept: Path, trained: Path, capsys) -> None:
    tmp_path = swept.parent
    shutil.copytree(trained / "bad", tmp_path / "bad")  # a run beside the sweep, which shares nothing with it
    assert run(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in ("seed=0 attention=gqa", "seed=1 attention=mqa", "seed=1 optim.lr=0.001"):
        assert words in shown
    assert "steps=6" not in shown and "verbose" not in shown  # all have these, or they are Hydra's
    file = tmp_path / "sweep.svg"
    assert run(["plot", str(swept), "-o", str(file)]) == 0
    assert "not drawn: 1" in capsys.readouterr().err
    body = file.read_text()
    assert ">seed=0 attention=gqa: " in body and ">seed=1 attention=mqa: " in body and "optim.lr" not in body
    assert run(["plot", str(swept / "one"), str(swept / "tried"), "-o", str(file)]) == 0
    assert ">seed=1 optim.lr=0.001: " in file.read_text()  # a run that is named is drawn


def test_a_curve_has_a_point_for_each_line_with_the_metric(trained: Path) -> None:
    record = RunRecord(trained / "sweep" / "two")
    steps, losses = read_curve(record.points(), "val_loss", "steps")
    assert steps == [3, 6, 9]
    assert losses == [line["val_loss"] for line in read_metrics(record.folder) if "val_loss" in line]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["plot", "RUNS", "-o", "x.pdf"], "plot: x.pdf is not a picture"),
        (["plot", "RUNS", "--y", "lss"], "y: no run has a metric 'lss' (did you mean 'loss'?)"),
        (["plot", "RUNS", "--smooth", "1.5"], "smooth: is 1.5, not a share of a run"),
        (["plot", "nowhere"], "nowhere: is no folder"),
        (["runs", "RUNS", "--sort", "vall"], "sort: there is no column 'vall' (did you mean 'val_loss'?)"),
        (["runs", "EMPTY"], "has no run in it"),
        (["runs"], "folder: there are no runs here"),
    ],
)
def test_what_cannot_be_listed_or_drawn_costs_one_line(trained, tmp_path, monkeypatch, capsys, words, fault) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    places = {"RUNS": str(trained / "sweep"), "EMPTY": "empty"}
    assert run([places.get(word, word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fault in line


def test_diff_of_runs_tells_their_configs_results_and_models(trained: Path, capsys) -> None:
    one, two = (str(trained / "sweep" / name) for name in ("one", "two"))
    assert run(["diff", one, two, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rate = RunRecord(Path(one)).config["optim"]["lr"]
    assert found["config"] == {
        "optim.lr": {"a": rate, "b": 0.02},
        "steps": {"a": 6, "b": 9},
        "seed": {"a": 0, "b": 1},
    }
    values = [json.loads((Path(each) / "result.json").read_text())["val_loss"] for each in (one, two)]
    row = found["results"]["val_loss"]
    assert [row["a"], row["b"], row["delta"]] == [*values, values[1] - values[0]]
    both = found["results"]["val_loss_at_equal_tokens"]
    assert both["tokens"] == 6 * 64 and both["a"] == values[0] and both["b"] != values[1]
    assert "blocks.layer.attention.n_kv_heads" in found["architecture"]
    assert found["figures"]["params.total"]["delta"] > 0
    assert run(["diff", one, two]) == 0
    text = capsys.readouterr().out
    assert "training config" in text and "val loss at 384 tokens" in text and "architecture" in text
    for form in ("--csv", "--md"):
        assert run(["diff", one, two, form]) == 0
        assert "optim.lr" in capsys.readouterr().out
    assert run(["diff", one, one]) == 0
    assert "the same in every field and figure" in capsys.readouterr().out


def test_rows_are_sorted_by_a_column_and_never_by_an_unknown_one(trained: Path) -> None:
    rows, faults = list_rows(collect_runs([trained]), trained)
    assert not faults
    assert [row["name"] for row in sort_rows(rows, "name")] == ["bad", "sweep/one", "sweep/two"]
    with pytest.raises(ConfigError, match="no column 'losss'"):
        sort_rows(rows, "losss")


def test_a_run_without_metrics_is_not_drawn(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no run has a line of metrics yet"):
        draw_runs({"new": RunRecord(tmp_path / "new")}, tmp_path / "x.png")
