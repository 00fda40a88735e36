"""A run's page: one file that is well formed, asks nothing of a network, and shows what the run's files say."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from support.page_reading import ReadPage
from support.tiny_runs import compose_run, read_metrics, write_corpus
from zoo.errors import ZooError
from zoo.jobs import train
from zoo.jobs.train import resume_run, start_run
from zoo.report.history import RunRecord
from zoo.report.run_page import draw_curves, make_page, read_samples, thin, write_page
from zoo.report.svg import Curve, draw_panel
from zoo.run.environment import describe_environment, read_commit
from zoo.runs import PAGE


def panels_of(page: str) -> dict[str, ElementTree.Element]:
    """The panels of a page, each well-formed XML, by title."""
    found = [ElementTree.fromstring(each) for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return {each.get("aria-label", ""): each for each in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    corpus, folder = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("run")
    start_run(compose_run(write_corpus(corpus), "sample={prompt: '<script>a</script> & ', tokens: 3}"), folder)
    return folder


def test_the_page_of_a_run_is_well_formed_and_shows_figures_samples_config_and_environment(folder: Path) -> None:
    page = (folder / PAGE).read_text()
    shown = ReadPage.of(folder / PAGE).text
    result = json.loads((folder / "result.json").read_text())
    assert "done" in shown and f"{result['val_loss']:,.4g}" in shown
    for text in ("<script>a</script> & ", (folder / "config.yaml").read_text(), (folder / "model.yaml").read_text()):
        assert text.strip() in shown
    assert torch.__version__ in shown
    assert re.findall(r"(?:https?:)?//[\w.]+/[^\"]*", page) == ["http://www.w3.org/2000/svg"] * len(panels_of(page))
    assert "url(" not in page and "@import" not in page
    titles = {"loss (nats per target)", "learning rate", "gradient norm", "validation bits per byte"}
    assert titles <= set(panels_of(page))


def test_the_page_draws_the_model_with_its_price(folder: Path) -> None:
    page = make_page(RunRecord(folder))
    (drawing,) = re.findall(r'<svg[^>]*class="zoo-drawing light".*?</svg>', page, re.DOTALL)
    texts = [each.text for each in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert {"parameters", "layers", "GQA", "RMSNorm"} <= set(texts)
    assert "data:font" not in page


def test_skipped_updates_are_drawn_where_there_are_some(folder: Path) -> None:
    points = RunRecord(folder).points()
    assert not any('aria-label="skipped updates"' in each for each in draw_curves(points))
    points[-1]["skipped"] = 1
    assert any('aria-label="skipped updates"' in each for each in draw_curves(points))


def test_the_curves_of_the_page_are_those_of_the_metrics(folder: Path) -> None:
    (curves,) = [each for each in draw_curves(RunRecord(folder).points()) if 'aria-label="learning rate"' in each]
    drawn = path_of(curves, "#1f77b4")
    lines = [line for line in read_metrics(folder) if "lr" in line]
    for pixels, values in zip(
        drawn.T, zip(*((line["tokens"], line["lr"]) for line in lines), strict=True), strict=True
    ):
        slope, offset = np.polyfit(values, pixels, 1)
        assert np.abs(slope * np.array(values) + offset - pixels).max() < 0.1  # pixels are written with one digit
    assert np.polyfit([line["lr"] for line in lines], drawn[:, 1], 1)[0] < 0  # SVG counts downwards


def path_of(panel: str, color: str) -> np.ndarray:
    """The points of the curves of a colour, in pixels."""
    root = ElementTree.fromstring(panel)
    paths = [each.get("d", "") for each in root.iter() if each.get("stroke") == color]
    return np.array([[float(x), float(y)] for path in paths for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)])


def test_values_that_are_not_finite_break_a_curve_and_move_no_axis() -> None:
    whole = draw_panel("a < b", [Curve([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0])], "x")
    broken = draw_panel("a < b", [Curve([0, 1, 2, 3], [1.0, float("nan"), float("inf"), 4.0])], "x")
    assert (path_of(broken, "#1f77b4") == path_of(whole, "#1f77b4")[[0, 3]]).all()
    assert ElementTree.fromstring(whole).get("aria-label") == "a < b"
    assert draw_panel("none", [Curve([], [])], "x") == "" == draw_panel("none", [Curve([1], [float("nan")])], "x")
    assert path_of(draw_panel("one", [Curve([5], [0.0])], "x"), "#1f77b4").shape == (1, 2)


@pytest.mark.parametrize("count", [0, 1, 1499, 1500, 1501, 40000])
def test_a_long_curve_is_thinned_evenly_and_keeps_its_last_point(count: int) -> None:
    at = [float(each) for each in range(count)]
    kept, values = thin(at, at)
    assert kept == values and len(kept) <= 1500 and kept[-1:] == at[-1:]
    assert len({b - a for a, b in itertools.pairwise(kept)}) <= 1


def test_a_run_that_fails_leaves_a_page_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    cfg = compose_run(
        write_corpus(tmp_path / "corpus"), "optim.lr=1e30", "clip=null", "skip_nonfinite=0", "save_every=1"
    )
    with pytest.raises(ZooError) as failed:
        start_run(cfg, tmp_path / "run")
    shown = ReadPage.of(tmp_path / "run" / PAGE).text
    assert "diverged" in shown and str(failed.value) in shown


def test_the_page_is_written_at_evaluations_and_a_resumed_run_says_where_each_part_ran(tmp_path, monkeypatch) -> None:
    (tmp_path / "corpus").mkdir()
    states, draw = [], train.draw_page

    def look(run):
        draw(run)
        states.append((run.step, "running" in ReadPage.of(run.folder / PAGE).text))

    monkeypatch.setitem(train.DRAWINGS, "page", look)
    start_run(compose_run(write_corpus(tmp_path / "corpus")), tmp_path / "run")
    resume_run(tmp_path / "run", ["steps=9"])
    assert states == [(3, True), (6, True), (9, True)]
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())) == 2
    page = (tmp_path / "run" / PAGE).read_text()
    assert "Before, when the run was started or resumed" in page and "running" not in page


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    from zoo.training.log import RunLog

    records = RunLog(tmp_path)
    texts = ["one\n\n\nline", "──── step x ────\n", ""]
    for step, text in enumerate(texts):
        records.write_sample(step, text)
    records.close()
    assert read_samples(tmp_path / "samples.txt") == [(str(step), text) for step, text in enumerate(texts)]


def test_a_folder_with_little_in_it_still_gets_a_page(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"status": "failed", "error": "a < b"}')
    assert "a < b" in ReadPage.of(write_page(RunRecord(tmp_path))).text
    assert "failed" in make_page(RunRecord(tmp_path))


def test_the_environment_names_the_commit_and_says_when_files_differ_from_it(tmp_path, monkeypatch) -> None:
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "a")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert read_commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    monkeypatch.chdir(tmp_path)
    assert describe_environment(torch.device("cpu"))["commit"] == head.stdout.strip()
    (tmp_path / "a").write_text("2")
    assert read_commit(tmp_path) == head.stdout.strip() + "+changes"
    monkeypatch.setenv("PATH", "")
    assert read_commit(tmp_path) is None
