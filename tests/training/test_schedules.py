"""Schedules of the learning rate: what holds for each of any length, and the reference of transformers."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.training.schedule import Schedule

STEPS = 200
PLAIN = sorted(set(Schedule.kinds) - {"wsd_s"})


@given(
    kind=st.sampled_from(PLAIN),
    steps=st.integers(1, STEPS),
    warmup=st.one_of(st.floats(0, 0.99), st.integers(1, STEPS).map(float)),
)
@settings(deadline=None)
def test_the_factor_is_within_0_and_1_and_peaks_where_the_warm_up_ends(kind, steps, warmup):
    schedule = Schedule.parse({"kind": kind, "warmup": warmup})
    factors = [schedule.factor(step, steps) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    until = round(warmup * steps) if warmup < 1 else int(warmup)
    decay = round(0.2 * steps) if kind == "wsd" else 0
    if until <= steps - decay:
        assert factors[max(until - 1, 0)] == 1.0
        rising, falling = factors[:until], factors[max(until - 1, 0) :]
        assert rising == sorted(rising) and falling == sorted(falling, reverse=True)


@given(kind=st.sampled_from(PLAIN), steps=st.integers(50, STEPS), warmup=st.integers(0, 10))
@settings(deadline=None)
def test_the_factor_has_no_jumps(kind, steps, warmup):
    schedule = Schedule.parse({"kind": kind, "warmup": float(warmup)})
    factors = [schedule.factor(step, steps) for step in range(steps)]
    steepest = max(1 / max(warmup, 1), math.sqrt(1 / (0.2 * steps)), 4 / steps)  # of warm-up, of a root, of a cosine
    if kind == "inverse_sqrt" and warmup == 0:
        steepest = 1 - math.sqrt(1 / 2)
    ups = [abs(after - before) for before, after in pairwise(factors)]
    assert max(ups) <= steepest * 1.1 + 1e-9


@given(
    steps=st.integers(60, STEPS),
    warmup=st.integers(1, 5),
    decay=st.integers(1, 8),
    shape=st.sampled_from(["linear", "cosine", "sqrt"]),
)
@settings(deadline=None)
def test_several_decays_fall_only_within_them_and_return_to_the_peak(steps, warmup, decay, shape):
    schedule = Schedule.parse(
        {"kind": "wsd_s", "warmup": warmup, "points": [0.3, 0.6], "decay": decay, "shape": shape, "min_ratio": 0.1}
    )
    assert schedule.fault(steps) is None
    spans = [range(end - decay, end) for end in (round(0.3 * steps), round(0.6 * steps), steps)]
    for step in range(steps):
        factor = schedule.factor(step, steps)
        if step < warmup - 1:
            assert factor == (step + 1) / warmup
        elif not any(step in span for span in spans):
            assert factor == 1.0
        assert 0.1 <= factor <= 1.0
    wsd = Schedule.parse({"kind": "wsd", "warmup": warmup, "decay": decay, "shape": shape, "min_ratio": 0.1})
    assert [schedule.factor(step, steps) for step in spans[-1]] == [wsd.factor(step, steps) for step in spans[-1]]


def test_points_are_parts_of_the_run_or_steps():
    schedule = Schedule.parse({"kind": "wsd_s", "points": [0.25, 60], "decay": 0.1})
    assert schedule.decays(100) == [(23, 25), (54, 60), (90, 100)]
    assert [step for step in range(101) if schedule.is_milestone(step, 100)] == [23, 25, 54, 60, 90, 100]
    assert {step: schedule.goes_back_to(step, 100) for step in (23, 25, 60, 100)} == {
        23: None,
        25: 23,
        60: 54,
        100: None,
    }


def test_the_inverse_square_root_is_that_of_transformers():
    optimization = pytest.importorskip("transformers.optimization")
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = optimization.get_inverse_sqrt_schedule(optimizer, num_warmup_steps=7)
    ours = Schedule.parse({"kind": "inverse_sqrt", "warmup": 7})
    for step in range(50):  # theirs begins at 0, which would waste a step
        optimizer.step()
        theirs.step()
        assert ours.factor(step, 1000) == pytest.approx(theirs.get_last_lr()[0])
