"""Parts of training that need no run: schedules, clocks, the measured peak, the smoothed curve."""

import time
from typing import get_type_hints

import pytest
import torch

from zoo.data.settings import parse_node
from zoo.errors import ConfigError
from zoo.report.history import smooth
from zoo.spec.fields import find_axes
from zoo.spec.spec import Spec
from zoo.training import speed
from zoo.training.schedule import Schedule
from zoo.training.settings import Training

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
    peak = speed.find_peak(torch.device("cpu"), "fp32")
    assert 1e9 < peak.flops < 1e14 and "measured" in str(peak)
    higher, stated = speed.Peak(1e15, "", measured=True), speed.Peak(1.0, "data sheet")
    assert higher.again(torch.device("cpu"), "fp32") == higher
    assert stated.again(torch.device("cpu"), "fp32") == stated


def test_the_peak_in_bf16_is_that_of_float32_where_that_is_the_faster(monkeypatch):
    rates = {torch.float32: 3e11, torch.bfloat16: 4e9}
    monkeypatch.setattr(speed, "measure_product_rate", lambda device, dtype, shapes: rates[dtype])
    assert speed.find_peak(torch.device("cpu"), "bf16").flops == 3e11
    rates[torch.bfloat16] = 2e12
    assert speed.find_peak(torch.device("cpu"), "bf16").flops == 2e12
    assert speed.find_peak(torch.device("cpu"), "fp32").flops == 3e11


def test_a_rate_is_the_best_of_any_shape_and_ends_with_its_time(monkeypatch):
    seconds = {4: 1.0, 8: 0.5, 16: 100.0}  # a product of each size takes so long
    now, begun = [0.0], []

    def mm(a, b, out=None):
        begun.append(len(a))
        now[0] += seconds[len(a)]
        return torch.empty(len(a), b.shape[1])

    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(speed.torch, "mm", mm)
    shapes = [(size, size, size) for size in seconds]
    assert speed.measure_product_rate(torch.device("cpu"), torch.float32, shapes[:2], spend=1000) == 2 * 8**3 / 0.5
    begun.clear()
    now[0] = 0.0
    assert speed.measure_product_rate(torch.device("cpu"), torch.float32, shapes, spend=3.5) == 2 * 4**3 / 1.0
    assert set(begun) == {4}  # the next would not have been over in time


def test_no_share_is_told_of_a_peak_that_was_measured_too_low():
    assert speed.Peak(2e12, "", measured=True).share(1e12) == 0.5
    assert speed.Peak(2e12, "", measured=True).share(2.1e12) is None


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


def list_numbers(axis: type[Spec]) -> list[tuple[type[Spec], str]]:
    """List the fields of an axis's choices whose default is a number."""
    fields = [(kind, field) for kind in axis.kinds.values() for field in kind.fields()]
    return [(kind, each.name) for kind, each in fields if type(each.default) in (int, float)]


def test_true_is_no_number_in_any_setting_of_a_run():
    axes = {axis for hint in get_type_hints(Training).values() for axis in find_axes(hint)}
    numbers = [each for axis in (Training, *axes) for each in list_numbers(axis)]
    assert len(numbers) > 60
    for kind, name in numbers:
        with pytest.raises(ConfigError, match=rf"(?m)^{name}: "):
            parse_node(kind, {"kind": kind.kind, name: True})
