"""docs/scale.md says what the code predicts."""

import pytest

from pages import scale_page
from support.published_step_times import RUNS, predict
from zoo.costs import step_time


@pytest.mark.slow
def test_the_page_is_what_its_command_writes() -> None:
    written = scale_page.PAGE.read_text(encoding="utf-8")
    assert written == scale_page.page(), "docs/scale.md is old (python tests/pages scale)"


def test_the_calibrated_constant_is_the_best_of_its_grid(monkeypatch) -> None:
    def median_error(reached: float) -> float:
        monkeypatch.setattr(step_time, "REACHED", reached)
        sizes = sorted(abs(predict(run) / run.speed - 1) for run in RUNS if not scale_page.is_mixture(run))
        return sizes[len(sizes) // 2]

    chosen = step_time.REACHED
    assert min((0.65, 0.7, 0.75, 0.8, 0.85), key=median_error) == chosen


def test_every_run_names_a_source_with_an_address() -> None:
    assert {run.source for run in RUNS} == set(scale_page.SOURCES)
    assert all(address.startswith("https://github.com/") for _, address in scale_page.SOURCES.values())
