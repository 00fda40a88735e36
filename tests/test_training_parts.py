"""Parts of training that need no run: schedules, clocks, the measured peak, the smoothed curve."""

import time

import pytest
import torch

from zoo.training import speed
from zoo.training.log import smooth
from zoo.training.schedule import Schedule

SCHEDULES = {
    "constant": ({"warmup": 4}, {0: 1 / 4, 3: 1.0, 50: 1.0, 99: 1.0}),
    "linear": ({"warmup": 0, "min_ratio": 0.2}, {0: 1.0, 50: 0.6, 75: 0.4, 99: 1 - 0.8 * 0.99}),
    "cosine": (
        {"warmup": 0.2, "min_ratio": 0.1},
        {9: 0.5, 19: 1.0, 20: 1.0, 40: 0.1 + 0.9 * (1 + 2**-0.5) / 2, 60: 0.55},
    ),
    "wsd": ({"warmup": 10, "decay": 0.2, "shape": "sqrt"}, {4: 0.5, 10: 1.0, 80: 1.0, 85: 0.5, 99: 1 - 0.95**0.5}),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_has_the_values_of_its_closed_form(kind):
    fields, expected = SCHEDULES[kind]
    schedule = Schedule.parse({"kind": kind, **fields})
    assert {step: schedule.factor(step, 100) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize("shape, middle", [("linear", 0.55), ("cosine", 0.55), ("sqrt", 1 - 0.9 * 0.5**0.5)])
def test_the_decay_of_wsd_has_the_shape_it_names(shape, middle):
    schedule = Schedule.parse({"kind": "wsd", "decay": 10, "shape": shape, "min_ratio": 0.1})
    assert schedule.factor(95, 100) == pytest.approx(middle)


def test_the_measured_peak_is_a_plausible_rate_and_only_ever_grows():
    peak = speed.peak(torch.device("cpu"), "fp32")
    assert 1e9 < peak.flops < 1e14 and "measured" in str(peak)
    higher, stated = speed.Peak(1e15, "", measured=True), speed.Peak(1.0, "data sheet")
    assert higher.again(torch.device("cpu"), "fp32") == higher
    assert stated.again(torch.device("cpu"), "fp32") == stated


def test_a_clock_leaves_pauses_out():
    clock = speed.Clock()
    clock.start(0)
    with clock.pause():
        time.sleep(0.2)
    clock.lap(100)
    assert clock.seconds < 0.1


def test_the_moving_average_does_not_lag_and_evens_out_noise():
    line = [9.0 - step / 50 for step in range(200)]
    assert smooth(line)[:-10] == pytest.approx(line[:-10])
    assert smooth(line)[-10:] == pytest.approx(line[-10:], abs=0.1)
    noisy = [value + (-1) ** step for step, value in enumerate(line)]
    assert max(abs(a - b) for a, b in zip(smooth(noisy)[10:], line[10:], strict=True)) < 0.3
