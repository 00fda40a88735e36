"""The table of searched learning rates, where the losses are a parabola of known minimum and curvature."""

import math

import pytest

from zoo.analysis.verdict.difference import UNKNOWN, LossNoise
from zoo.report.rate_table import HEADER, list_rows, list_shifts

AT, BEND = -2.1, 0.5
NOISE = LossNoise(0.005, 8)


def make_search(ran: float) -> dict:
    """A search whose losses are least at 10^AT, and an arm that ran `ran` decades from there."""
    rates = [f"{10 ** (AT + apart):.6g}" for apart in (-0.6, -0.35, -0.1, 0.15, 0.4, 0.55)]
    losses = {rate: 2 + BEND * (math.log10(float(rate)) - AT) ** 2 for rate in rates}
    about = {"val_loss": min(losses.values()), "edge": False, "extended": False, "losses": losses}
    return {"best": 10 ** (AT + ran), **about}


def test_the_rate_that_ran_stands_beside_the_minimum_of_the_parabola():
    searches = {"off": make_search(-0.3), "on": make_search(0.0)}
    rows = [dict(zip(HEADER, row, strict=True)) for row in list_rows(searches, NOISE)]
    assert [float(row["lr"]) for row in rows] == pytest.approx([10**-2.4, 10**-2.1], rel=1e-4)
    assert {row["best lr"].partition(" ×/÷ ")[0] for row in rows} == {f"{10**AT:.3g}"}
    assert {row[2] for row in list_rows(searches)} == {f"{10**AT:.3g}"}, "without noise there is no error"


@pytest.mark.parametrize(("ran", "side"), [(-0.3, "below"), (0.2, "above")])
def test_a_rate_that_ran_off_the_best_is_said_with_its_cost_by_the_parabola(ran, side):
    (line,) = list_shifts({"on": make_search(0.001), "off": make_search(ran)}, NOISE)
    assert line.endswith(f"includes: off: {abs(ran):.2f} decades {side}, at a cost of {BEND * ran**2:.3f}")
    arms = {"on": make_search(0.0), "too": make_search(0.0), "off": make_search(ran), "half": make_search(ran / 2)}
    assert list_shifts(arms, NOISE, [("on", "too")])[1:] == []
    _, added = list_shifts(arms, NOISE, [("off", "half"), ("on", "too"), ("half", "off")])
    apart = BEND * (ran**2 - (ran / 2) ** 2)
    assert added.endswith(f"arms: off − half: +{apart:.3f}; half − off: −{apart:.3f}")
    further = {**make_search(0.0), "further": {"optim.weight_decay": make_search(ran)}}
    assert "includes: arm, optim.weight_decay: " in list_shifts({"arm": further}, NOISE)[0]


def test_a_rate_within_two_standard_errors_is_not_off_the_best_one():
    off = {"arm": make_search(-0.3)}
    assert list_shifts(off, NOISE) and not list_shifts(off, LossNoise(0.5, 8))
    assert not list_shifts(off, UNKNOWN), "without noise there is no error"
