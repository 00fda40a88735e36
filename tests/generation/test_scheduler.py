"""The scheduler alone, on a store without a model: who starts when, who is starved, what a refused start leaves."""

import random

import pytest
import torch

from support.tiny_generators import make
from zoo.cache.pool_store import Store, list_groups
from zoo.cache.prefix import Prefixes
from zoo.generation.request import Request
from zoo.generation.scheduler import RunningSequence, Scheduler

PAGE = 16


class Simulation:
    """A scheduler whose sequences get a random token when a model would have computed one."""

    def __init__(
        self, kind="attention=gqa", *, pages=64, slots=8, rows=4, budget=8, beside=None, overcommit=1.0, reuse=False
    ):
        tower = make(kind).spec
        self.store = Store(tower, [pages] * len(list_groups(tower)), slots, dtype=torch.float32, device="cpu")
        self.prefixes = Prefixes(self.store) if reuse else None
        limits = {"budget": budget, "max_prefill_tokens": beside, "rows": rows, "overcommit": overcommit}
        self.scheduler = Scheduler(self.store, self.prefixes, **limits)
        self.read = 0
        self.rng, self.made, self.started, self.ended, self.steps = random.Random(0), 0, {}, {}, 0

    def add(self, prompt: int, new: int) -> int:
        ids = [self.rng.randrange(60) for _ in range(prompt)]
        request = Request(ids=ids, max_new_tokens=new)
        self.scheduler.waiting.append(RunningSequence(self.made, 0, request, ids, prompt, None))
        self.made += 1
        return self.made - 1

    def step(self) -> None:
        chunks = self.scheduler.plan()
        for each in self.scheduler.running:
            self.started.setdefault(each.request, self.steps)
        before = [chunk.sequence.row.length for chunk in chunks]
        for chunk in chunks:
            chunk.sequence.row.length += chunk.count
            self.read += chunk.count
        self.scheduler.keep(chunks, before)
        for each in [chunk.sequence for chunk in chunks if chunk.sequence.left == 0]:
            each.ids.append(self.rng.randrange(60))
            if len(each.ids) == each.total:
                self.ended[each.request] = self.steps
                self.scheduler.leave(each)
        self.steps += 1

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)


@pytest.mark.parametrize("overcommit", [1.0, 3.0])
@pytest.mark.parametrize("budget", [1, 7, 64])
def test_a_request_starts_before_those_ahead_of_it_could_have_had_a_token_a_step(budget, overcommit):
    """Every step computes a token at least of the sequence that came first, so that it ends within its own length."""
    run, rng, ahead = Simulation(pages=12, budget=budget, overcommit=overcommit), random.Random(1), 0
    bounds = {}
    for _ in range(60):
        prompt, new = rng.randint(1, 80), rng.randint(1, 40)
        bounds[run.add(prompt, new)] = ahead
        ahead += prompt + new
    while run.busy:
        run.step()
    assert len(run.ended) == 60
    assert all(run.started[number] <= bound for number, bound in bounds.items())


@pytest.mark.parametrize("budget", [1, 3])
def test_a_prompt_is_read_though_newcomers_take_the_whole_budget(budget):
    """Prompts of one token are next tokens at once, and go first: a long prompt must not wait for a gap in them."""
    run = Simulation(rows=4, budget=budget)
    long = run.add(40, 2)
    for _ in range(60):
        while len(run.scheduler.waiting) < 3:
            run.add(1, 3)
        run.step()
    assert run.ended[long] <= 42


# ---------------------------------------------------------------- starts for which there is no room


def hybrid() -> Simulation:
    """Full attention and recurrent layers: 8 pages, 8 slots; a prompt of two pages and a bit was read and kept."""
    run = Simulation("mamba and gqa", pages=8, reuse=True)
    run.add(33, 1)
    while run.busy:
        run.step()
    return run


def test_a_long_prompt_comes_in_parts_beside_those_who_wait_and_whole_without_them():
    run = Simulation(budget=64, beside=5)
    run.add(3, 9)
    run.step()
    run.add(40, 4)
    lengths = []
    while run.busy:
        run.step()
        lengths += [each.row.length for each in run.scheduler.running if each.prompt == 40]
    assert lengths[:8] == [5, 10, 15, 20, 25, 30, 35, 40]
    alone = Simulation(budget=64, beside=5)
    alone.add(40, 4)
    alone.step()
    assert alone.scheduler.running[0].row.length == 40


@pytest.mark.parametrize("kind", ["attention=gqa", "attention=mla", "attention=sliding window=5", "mamba and gqa"])
def test_prompts_that_begin_alike_and_come_together_are_read_once_up_to_where_they_part(kind):
    run = Simulation(kind, pages=400, slots=16, rows=8, budget=512, reuse=True)
    run.prefixes.interval = 32
    shared = [run.rng.randrange(60) for _ in range(70)]
    other = run.add(20, 3)
    for number in range(6):
        ids = [*shared, number, *shared[:5]]
        run.scheduler.waiting.append(RunningSequence(10 + number, 0, Request(ids=ids, max_new_tokens=3), ids, 76, None))
    while run.busy:
        run.step()
    assert run.read == 22 + 78 + 5 * (78 - 64)  # of each but the last token
    assert set(run.ended) == {other, *range(10, 16)}


def test_a_checkpoint_is_not_given_up_for_pages_that_it_does_not_hold():
    run = hybrid()
    kept = list(run.prefixes.kept)
    run.add(60, 60)  # all 8 pages, for as long as 60 steps
    run.step()
    run.add(60, 60)
    run.step()
    assert len(run.scheduler.waiting) == 1
    assert kept and set(kept) <= set(run.prefixes.kept)


def test_a_start_for_which_there_is_no_room_counts_no_hit():
    run = hybrid()
    asked = run.prefixes.asked
    run.add(60, 60)
    run.step()
    run.add(60, 60)
    for _ in range(20):
        run.step()
    assert run.prefixes.asked - asked == 59
