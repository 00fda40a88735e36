"""The check on a GPU runs its parts in processes: one that crashes, hangs or loses the device takes nothing with it."""

import os
import time
from functools import partial

import torch

from zoo.bench.kernels import processes
from zoo.bench.kernels.checking import Settings
from zoo.bench.kernels.processes import CheckPart, Measurement

CPU = Settings("cpu", quick=True)


def fine():
    return {"figure": 1}


def raises():
    raise NotImplementedError("not\nthis one")


def crashes():
    os._exit(7)


def hangs():
    time.sleep(60)


def threads():
    return {"figure": torch._inductor.config.compile_threads}


def chatty():
    print("a kernel's own words", flush=True)
    return {"figure": 2}


def jobs(settings, *, runs):
    return [Measurement(run.__name__, run) for run in runs]


def rows_of(*runs, seconds=60.0):
    return processes.run_together(
        [CheckPart("part", partial(jobs, runs=runs), seconds)], CPU, time.monotonic() + seconds
    )


def test_what_raises_is_a_finding_and_the_rest_goes_on():
    first, second = rows_of(raises, fine)
    assert first == {"name": "raises", "raised": "NotImplementedError: not"}
    assert second == {"name": "fine", "figure": 1}


def test_what_crashes_takes_none_of_the_others_figures_with_it():
    before, crashed, after = rows_of(fine, crashes, fine)
    assert before["figure"] == 1
    assert crashed == {"name": "crashes", "raised": "its process ended with exit code 7"}
    assert after["left_out"] == "its process ended with exit code 7"


def test_what_hangs_is_stopped_in_time():
    rows_of(fine)  # from here on a process starts in no time
    before, hung = rows_of(fine, hangs, seconds=4.0)
    assert before["figure"] == 1
    assert hung == {"name": "hangs", "left_out": "its 4 s, or the check's, were over"}


def test_parts_beside_each_other_are_all_told_and_start_no_processes_of_their_own():
    group = [CheckPart("part", partial(jobs, runs=(run, threads)), 60.0, beside=True) for run in (fine, raises)]
    rows = processes.run_together(group, CPU, time.monotonic() + 60)
    assert [row["name"] for row in rows] == ["fine", "threads", "raises", "threads"]
    assert [row["figure"] for row in rows if row["name"] == "threads"] == [1, 1]


def test_what_a_job_prints_is_not_on_standard_output(capfd):
    assert rows_of(chatty)[0]["figure"] == 2
    assert capfd.readouterr().out == ""


def test_nothing_is_begun_when_the_time_is_over():
    assert rows_of(fine, seconds=0.5) == [{"name": "part", "left_out": "the check's time was over"}]


def test_a_lost_device_leaves_the_rest_out(monkeypatch):
    def lost(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(processes, "synchronize", lost)
    row = {"name": "one", **processes.attempt_job(raises, "cpu")}
    assert row["lost"]
    told = processes.collect_rows("part", [["one", "two"], row], "its process ended with exit code 0")
    assert told == [
        {"name": "one", "raised": "NotImplementedError: not"},
        {"name": "two", "left_out": "the device was lost in 'one'"},
    ]


def test_a_process_that_says_nothing_is_a_failure():
    assert processes.collect_rows("part", [], "why") == [{"name": "part", "raised": "nothing was measured: why"}]
