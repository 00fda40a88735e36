"""A run's lines of metrics: means since the line before, memory in use, and how they are shown."""

from __future__ import annotations

import io
import resource
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from support.tiny_runs import compose_run, read_metrics
from zoo.jobs.train import resume_run, start_run
from zoo.report.history import RunRecord
from zoo.report.progress import Show
from zoo.training.log import Means

NO_EVAL = ("eval_every=null", "steps=8")


def losses_of(folder: Path) -> dict[int, dict]:
    return {line["step"]: line for line in read_metrics(folder) if "loss" in line}


def test_a_line_has_the_means_since_the_line_before_also_where_the_run_was_cut_off_between(corpus, tmp_path) -> None:
    start_run(compose_run(corpus, *NO_EVAL, "save_every=null"), tmp_path / "each")
    start_run(compose_run(corpus, *NO_EVAL, "log_every=3", "save_every=2"), tmp_path / "some")
    each, some = losses_of(tmp_path / "each"), losses_of(tmp_path / "some")
    assert list(some) == [1, 3, 6, 8]
    for step, since in {1: (1,), 3: (2, 3), 6: (4, 5, 6), 8: (7, 8)}.items():
        for name in ("loss", "grad_norm"):
            assert some[step][name] == pytest.approx(sum(each[at][name] for at in since) / len(since), rel=1e-6)
        assert some[step]["lr"] == each[step]["lr"]
    kept = (tmp_path / "some" / "checkpoints").glob("step-*")
    assert sorted(folder.name for folder in kept) == ["step-000006", "step-000008"]


def test_a_resumed_run_writes_the_same_mean_as_one_that_was_not_cut_off(corpus, tmp_path) -> None:
    start_run(compose_run(corpus, *NO_EVAL, "log_every=3", "save_every=4"), tmp_path)
    whole = read_metrics(tmp_path)
    (tmp_path / "checkpoints" / "latest").write_text("step-000004\n")
    resume_run(tmp_path)
    assert read_metrics(tmp_path) == whole


def test_sums_are_kept_in_float64_and_survive_a_checkpoint_to_the_bit() -> None:
    values = [torch.rand(()) for _ in range(7)]
    whole, parts = Means(), Means()
    for at, value in enumerate(values):
        for means in (whole, parts):
            means.add({"loss": value, "lr": 0.1 * at})
        state = parts.state()
        parts = Means()
        parts.restore(state)
    means = whole.take()()
    assert means == parts.take()()
    assert means["loss"] == torch.stack(values).double().sum().item() / 7 and means["lr"] == 0.1 * 6
    assert whole.state() == {}


def test_a_step_that_is_no_number_is_left_out_of_the_mean() -> None:
    means = Means()
    for loss, norm in ((4.0, float("inf")), (float("nan"), float("inf")), (2.0, float("inf"))):
        means.add({"loss": torch.tensor(loss), "grad_norm": torch.tensor(norm), "lr": 0.5})
    assert means.take()() == {"loss": 3.0, "lr": 0.5}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is in kilobytes there")
def test_the_memory_of_a_line_is_what_the_process_has_resident(corpus, tmp_path) -> None:
    start_run(compose_run(corpus, "steps=2"), tmp_path)
    found = [line["memory"] for line in RunRecord(tmp_path).lines if "memory" in line]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert len(found) == 2 and all(100e6 < each <= 1.01 * peak for each in found)


METRICS = {
    **{"loss": 4.25, "grad_norm": 1.5, "lr": 3e-4, "load_max": 1.25, "load_min": 0.5},
    **{"tokens_per_second": 1234.5, "mfu": None, "memory": 2_500_000_000},
}


def show_steps(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False, legacy_windows=False)
    with Show(10, console) as show:
        show.step(1, METRICS, 83)
        show.evaluation(5, 3.5, 1.25)
        show.step(5, METRICS, 5)
        show.step(10, {**METRICS, "mfu": 0.5}, 0)
    return out.getvalue()


def test_the_live_view_has_a_bar_and_every_figure_and_elsewhere_there_are_plain_lines() -> None:
    live = show_steps(terminal=True)
    for text in ("10/10", "━", "4.250", "3.00e-04", "1.50", "1,23", "50.0%", "2.50 GB", "1.25 loads", "0.50", "3.5000"):
        assert text in live
    assert show_steps(terminal=False).splitlines() == [
        "step 1/10  loss 4.250  1,234 tok/s  ETA 1:23",
        "step 5/10  validation loss 3.5000, 1.2500 bits per byte",
        "step 10/10  loss 4.250  1,234 tok/s  MFU 50.0%  ETA 0:00",
    ]
