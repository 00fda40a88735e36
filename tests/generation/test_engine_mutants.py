"""The inverse of test_engine.py: an engine with one mistake in it (engine_mutants.py) must fail the same schedules."""

import re

import pytest
from test_engine import vocabulary

from support.engine_mutants import MUTANTS
from support.request_schedules import find_faults, make_schedule
from support.tiny_generators import make, make_draft, make_guides
from zoo.errors import ZooError

SEEDS = range(40)


def first_fault(kind: str) -> str | None:
    """The first thing that is wrong in the schedules of a kind."""
    model = make(kind)
    for seed in SEEDS:
        try:
            schedule = make_schedule(seed, vocabulary(model), 12, make_guides(vocabulary(model)))
            faults, _ = find_faults(model, schedule, make_draft(kind))
        except (ZooError, RuntimeError, IndexError, ValueError, AssertionError, KeyError, TypeError) as error:
            return f"raised {type(error).__name__}: {error}"
        if faults:
            return faults[0]
    return None


TRIED = [
    pytest.param(name, kind, marks=() if kind == kinds[0] and number % 12 == 0 else pytest.mark.slow)
    for number, (name, (_, kinds, _)) in enumerate(MUTANTS.items())
    for kind in kinds
]


@pytest.mark.parametrize(("name", "kind"), TRIED)
def test_a_mistake_is_caught(name, kind, monkeypatch):
    patch, _, caught = MUTANTS[name]
    patch(monkeypatch)
    fault = first_fault(kind)
    assert fault is not None, f"{name} goes unnoticed"
    assert re.search(caught, fault), fault


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({kind for _, kinds, _ in MUTANTS.values() for kind in kinds}))
def test_without_a_mistake_nothing_is_caught(kind):
    assert first_fault(kind) is None
