"""The picture of an experiment: what its panels say, and that the lines in them are the runs'."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color

from support.packaged_specs import load
from zoo.report.arms import Arm
from zoo.report.verdict_plot import draw_rates, make_figure
from zoo.report.verdicts import Report

SEARCHES: dict[str, dict[str, Any]] = {
    "attention=gqa": {"best": 1e-2, "val_loss": 3.0, "losses": {"0.001": 3.4, "0.01": 3.0, "0.1": None, "1": 99.0}},
    "attention=mqa": {"best": 1e-3, "val_loss": 3.1, "losses": {"0.001": 3.1, "0.01": 3.2, "0.1": 3.3}},
}
MORE: dict[str, Any] = {"edge": False, "extended": False, "window": 0.5, "open": False}


def make_report(folder: Path, evaluated: int, searched: bool = False) -> Report:
    """Two arms of two seeds and four steps each, evaluated after the last `evaluated` steps."""

    def run_of(name: str, seed: int) -> Any:
        points = [{"tokens": step, "loss": 4 - 0.1 * step + 0.01 * seed} for step in range(1, 5)]
        for each in points[-evaluated:]:
            each["val_loss"] = each["loss"] + 0.5
        outcome = {"val_loss": points[-1]["val_loss"], "tokens": 4, "seconds": 1.0}
        settings = {"config": {"seq_len": 16}, "spec": load("llama-tiny"), "result": {}, "measured": {}}
        settings |= {"status": "done", "search": {**SEARCHES[name], **MORE} if searched else None}
        return SimpleNamespace(folder=folder / f"{name}-{seed}", outcome=outcome, points=lambda: points, **settings)

    arms = [Arm.of_runs(name, {seed: run_of(name, seed) for seed in (0, 1)}) for name in SEARCHES]
    return Report.make(arms, None, "val_loss")


def find_panel(axes: list[Axes], words: str) -> Axes:
    (found,) = (each for each in axes if words in each.get_title())
    return found


def test_without_evaluations_during_training_the_training_loss_is_drawn_and_the_title_says_so(tmp_path: Path) -> None:
    panel = find_panel(make_figure(make_report(tmp_path, 1)).axes, "Training loss over training")
    assert "validation loss was evaluated only at the end" in panel.get_title()
    assert [*panel.lines[0].get_xdata()] == [1, 2, 3, 4]
    assert [*panel.lines[0].get_ydata()] == pytest.approx([3.905, 3.805, 3.705, 3.605])  # the mean of two seeds
    panel = find_panel(make_figure(make_report(tmp_path, 2)).axes, "Validation loss over training")
    assert [*panel.lines[0].get_ydata()] == pytest.approx([4.205, 4.105])


def test_a_search_of_learning_rates_is_drawn_in_the_colors_of_its_arms(tmp_path: Path) -> None:
    figure = make_figure(make_report(tmp_path, 2, searched=True))
    panel = find_panel(figure.axes, "against learning rate")
    drawn = {line.get_label(): line.get_color() for line in panel.lines}
    below = figure.legends[0]
    of_arms = {text.get_text(): mark for text, mark in zip(below.texts, below.legend_handles, strict=True)}
    for name, label in {"attention=gqa": "attention=gqa: 0.01", "attention=mqa": "attention=mqa: 0.001"}.items():
        (handle,) = (each for arm, each in of_arms.items() if arm.startswith(name))
        assert same_color(drawn[label], handle.get_color())
    assert find_panel(figure.axes, "Difference in validation loss from\nattention=gqa, 95 % CI")


def test_rates_stand_at_their_losses_and_failed_ones_above(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw_rates(axes, SEARCHES, {"attention=gqa": "red", "attention=mqa": "blue"})
    line, best, chosen, lost, above, *_ = axes.lines
    assert axes.get_xscale() == "log"
    assert [*zip(line.get_xdata(), line.get_ydata(), strict=True)] == [(0.001, 3.4), (0.01, 3.0)]
    assert ([*best.get_xdata()], [*best.get_ydata()]) == ([0.01], [3.0])
    assert set(chosen.get_xdata()) == {0.01}
    assert [*lost.get_xdata()] == [0.1] and [*above.get_xdata()] == [1.0]
    assert lost.get_marker() == "x" and above.get_marker() == "^" and min(above.get_ydata()) > 3.4
    (said,) = axes.texts
    assert said.get_text() == "99.00", "which would flatten all other lines"


@pytest.mark.parametrize("panels", [1, 2, 3, 4, 5, 7])
def test_panels_fill_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, panels: int) -> None:
    report = make_report(tmp_path, 2)
    costs = {f"cost {at}": {} for at in range(panels - 1)}
    monkeypatch.setattr("zoo.report.verdict_plot.collect_curves", lambda _: {})
    monkeypatch.setattr("zoo.report.verdict_plot._draw_front", lambda *_, **__: None)
    monkeypatch.setattr(Report, "fronts", lambda _: costs)
    axes = make_figure(report).axes
    rows = Counter(each.get_subplotspec().rowspan.start for each in axes)
    assert len(axes) == panels and all(each.axison for each in axes)
    for row, count in rows.items():
        own = [each.get_position() for each in axes if each.get_subplotspec().rowspan.start == row]
        assert count <= 3 and max(each.x1 for each in own) == pytest.approx(
            max(each.get_position().x1 for each in axes)
        )
