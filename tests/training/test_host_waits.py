"""The processes of a run wait for one another on the host no more often than they must: each time costs the slowest's
time, during which no GPU gets new work."""

import signal
from types import SimpleNamespace

import pytest
import torch

from zoo.data.tokens import Batch
from zoo.errors import Terminated
from zoo.training import loop
from zoo.training.objective.causal import NextToken, PrefixLM
from zoo.training.update import count_batch

ROWS, LENGTH, PROCESSES = 2, 8, 4


def make_run(objective, asked):
    """One of four processes, whose sums over all of them are noted."""

    def sum_all(*values):
        asked.append(values)
        return [PROCESSES * each for each in values]

    world = SimpleNamespace(size=PROCESSES, sum=sum_all)
    counter = SimpleNamespace(count=lambda batch: 100)
    settings = SimpleNamespace(objective=objective, seq_len=LENGTH, steps=1000)
    layout = SimpleNamespace(rows=world)
    return SimpleNamespace(
        settings=settings, layout=layout, world=world, counter=counter, tokens=0, flops=0, step=0, asked=None
    )


def make_batch(**fields):
    ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
    return Batch(ids, ids, **fields)


def test_a_step_whose_counts_are_known_asks_no_other_process():
    asked = []
    run = make_run(NextToken(), asked)
    assert count_batch(run, make_batch()) == PROCESSES * ROWS * LENGTH
    assert (run.tokens, run.flops) == (PROCESSES * ROWS * LENGTH, PROCESSES * 100)
    assert asked == []


@pytest.mark.parametrize(
    ("objective", "fields"),
    [(PrefixLM(), {}), (NextToken(), {"documents": torch.zeros(ROWS, LENGTH, dtype=torch.long)})],
    ids=["targets of a drawn number", "FLOPs of packed documents"],
)
def test_counts_that_depend_on_the_rows_are_summed_in_one_message(objective, fields):
    asked = []
    run = make_run(objective, asked)
    assert count_batch(run, make_batch(**fields)) == PROCESSES * ROWS * LENGTH
    assert asked == [(ROWS * LENGTH, 100, ROWS * LENGTH)]


def test_signals_are_exchanged_every_eighth_step(monkeypatch):
    asked, run = [], make_run(NextToken(), [])
    run.world.sum = lambda *values: asked.append(run.step) or [0, 0]
    for run.step in range(1, 33):
        loop.stop_if_asked(run, {})
    assert asked == [8, 16, 24, 32]
    run.world.sum, run.step, saved = (lambda *values: [0, 1]), 40, []  # another process has got SIGTERM
    run.show, run.folder = SimpleNamespace(say=lambda line: None), "run"
    monkeypatch.setattr(loop, "save_checkpoint", lambda *_: saved.append(run.step))
    monkeypatch.setattr(loop, "finish_saving", lambda _: None)
    assert loop.SIGNALS[1] is signal.SIGTERM
    with pytest.raises(Terminated):
        loop.stop_if_asked(run, {})
    assert saved == [40]
