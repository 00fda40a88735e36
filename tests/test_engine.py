"""The engine: what a request gets beside others, cut into chunks, preempted or with its prompt reused is what it gets
alone, for every kind of layer. Its pools stay sound after every step.

Which mistake turns which test red is said in test_engine_mutants.py.
"""

import pytest
from kinds import HYBRIDS, KINDS, MIXED, PREFIX_LM, SEQ2SEQ, make
from schedules import check_alone, find_faults, make_schedule

from zoo.generation.engine import Engine
from zoo.generation.request import Request

SAME_CACHE = ("activation=", "norm=", "block=", "ffn=")
"""Choices that change nothing about what is kept: each gets fewer schedules."""


def vocabulary(model) -> int:
    """The tokens that every tower of a model has."""
    return min(tower.vocab_size for tower in model.spec.towers().values())


def run_many(kind: str, seeds, requests: int) -> tuple[int, int]:
    """Run schedules of a kind, none of which may go wrong; how many preemptions and reused tokens there were."""
    model, preemptions, hits = make(kind), 0, 0
    for seed in seeds:
        faults, outcome = find_faults(model, make_schedule(seed, vocabulary(model), requests))
        assert not faults, f"schedule {seed}: {faults[0]}"
        preemptions, hits = preemptions + outcome.preemptions, hits + outcome.hits
    return preemptions, hits


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_gets_in_any_schedule_what_it_gets_alone(kind):
    run_many(kind, [KINDS.index(kind)], 8)


@pytest.mark.parametrize(
    "kind", [*MIXED, *HYBRIDS, *PREFIX_LM, *SEQ2SEQ, "attention=mla", "attention=mamba position=none"]
)
def test_a_request_gets_in_a_crowded_schedule_what_it_gets_alone(kind):
    run_many(kind, [100 + KINDS.index(kind)], 12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_gets_in_two_hundred_schedules_what_it_gets_alone(kind):
    few = kind.startswith(SAME_CACHE)
    preemptions, hits = run_many(kind, range(1000, 1020 if few else 1200), 16)
    assert preemptions >= 3
    assert hits or kind in SEQ2SEQ or kind in PREFIX_LM or "rope_dynamic" in kind


# ---------------------------------------------------------------- single rules


@pytest.mark.parametrize("kind", ["attention=sliding window=1", "chunk", "chunks and full"])
def test_a_checkpoint_that_keeps_no_page_is_restored(kind):
    """After 16 tokens a window of one token, or the next chunk of 8, sees none of them."""
    model = make(kind)
    engine = Engine(model, rows=2, tokens=40)
    for reused in (0, 16):
        request = Request(ids=list(range(17)), max_new_tokens=12)
        tokens = [event.token for event in engine.run([request])]
        assert check_alone(model, request, 0, tokens) is None
        assert engine.prefixes.hits == reused
