"""The processes of a run wait for one another on the host no more often than they must: each time costs the slowest's
time, during which no GPU gets new work."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from support.tiny_runs import compose_run
from zoo.data.read_ahead import ReadAhead
from zoo.data.tokens import Batch, Batches, TokenFile
from zoo.distributed.world import World
from zoo.errors import Terminated
from zoo.jobs.train import start_run
from zoo.training import loop
from zoo.training.objective.causal import NextToken, PrefixLM
from zoo.training.update import count_ahead, count_batch

ROWS, LENGTH, PROCESSES = 2, 8, 4


def make_run(objective, asked):
    """One of four processes, whose sums over all of them are noted."""

    def begin_sum(*values):
        asked.append(values)
        return lambda: asked.append("wait") or [PROCESSES * each for each in values]

    world = SimpleNamespace(size=PROCESSES, begin_sum=begin_sum)
    counter = SimpleNamespace(count=lambda batch: 100)
    settings = SimpleNamespace(objective=objective, seq_len=LENGTH, steps=1000)
    tokens = TokenFile(ids=np.arange(1, 4001, dtype=np.uint16), eos_id=0, n_documents=1, n_bytes=4000)
    return SimpleNamespace(
        settings=settings,
        layout=SimpleNamespace(rows=world),
        world=world,
        counter=counter,
        batches=Batches(tokens, ROWS, LENGTH, documents=True),
        counted_ahead=None,
        tokens=0,
        flops=0,
        step=0,
        asked=None,
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
    assert asked == [(ROWS * LENGTH, 100, ROWS * LENGTH), "wait"]


def test_counts_of_the_next_batch_are_exchanged_while_the_device_computes():
    """So a step begins with a sum that is long there. A run that goes back counts anew."""
    asked, counts = [], (ROWS * LENGTH, 100, ROWS * LENGTH)
    run = make_run(NextToken(), asked)
    run.batches.ahead = ReadAhead(run.batches.read, pins=False)
    expected = [[counts, "wait", counts], ["wait", counts], [counts, "wait", counts], ["wait"]]
    for step, noted in enumerate(expected, 1):
        asked.clear()
        if step == 3:
            run.batches.consumed = 0  # the run went back
        assert count_batch(run, next(run.batches)) == PROCESSES * ROWS * LENGTH
        run.step = 1000 if step == len(expected) else step  # after the last step nothing is read ahead
        count_ahead(run)
        assert asked == noted
    assert (run.tokens, run.flops) == (4 * PROCESSES * ROWS * LENGTH, 4 * PROCESSES * 100)


def test_the_only_collectives_of_a_step_on_the_host_are_the_counts(tmp_path, corpus, monkeypatch):
    """Each step begins one sum, of the next step's counts, and waits only for the one that the step before began."""
    noted, begin, update = [], World.begin_sum, loop.update

    def note(self, *values):
        noted.append(f"begin {len(values)}")
        wait = begin(self, *values)
        return lambda: noted.append("wait") or wait()

    def step(run):
        if run.batches.ahead is None:
            run.batches.ahead = ReadAhead(run.batches.read, pins=False)
        noted.append(f"step {run.step + 1}")
        terms = update(run)
        noted.append("end")
        return terms

    monkeypatch.setattr(World, "begin_sum", note)
    monkeypatch.setattr(loop, "update", step)
    options = ["data.documents=true", "steps=3", "eval_every=null", "save_every=null", "log_every=3"]
    start_run(compose_run(corpus, *options), tmp_path / "run")
    steps = " ".join(noted).split("step ")[1:]
    found = [each.partition(" end")[0] for each in steps]
    assert found == ["1 begin 3 wait begin 3", "2 wait begin 3", "3 wait"]


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
