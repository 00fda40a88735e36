"""The engine: what a request gets beside others, cut into chunks, preempted or with its prompt reused is what it gets
alone, for every kind of layer. Its pools stay sound after every step.

Which mistake turns which test red is said in engine_mutants.py.
"""

from contextlib import nullcontext

import pytest

import zoo
from support.packaged_specs import load, make_loud, one_in
from support.request_schedules import check_alone, find_bit_faults, find_faults, make_schedule
from support.tiny_decoders import TINY
from support.tiny_generators import (
    HYBRIDS,
    KINDS,
    MIXED,
    PREFIX_LM,
    SAME_CACHE,
    SEQ2SEQ,
    choose,
    make,
    make_draft,
    make_guides,
)
from zoo.cache.cached_row import CachedRow
from zoo.errors import ConfigError, ZooError
from zoo.generation import invariants
from zoo.generation.engine import Engine, serving
from zoo.generation.passes import EnginePasses
from zoo.generation.request import Request
from zoo.run.builder import build


def vocabulary(model) -> int:
    """The tokens that every tower of a model has."""
    return min(tower.vocab_size for tower in model.spec.towers().values())


def run_many(kind: str, seeds, requests: int) -> tuple[int, int]:
    """Run schedules of a kind, none of which may go wrong; how many preemptions and reused tokens there were."""
    model, preemptions, hits = make(kind), 0, 0
    guides = make_guides(vocabulary(model))
    for seed in seeds:
        schedule = make_schedule(seed, vocabulary(model), requests, guides)
        faults, outcome = find_faults(model, schedule, make_draft(kind))
        assert not faults, f"schedule {seed}: {faults[0]}"
        preemptions, hits = preemptions + outcome.preemptions, hits + outcome.hits
    return preemptions, hits


@pytest.mark.parametrize("kind", choose(KINDS, 12))
def test_a_request_gets_in_any_schedule_what_it_gets_alone(kind):
    run_many(kind, [KINDS.index(kind)], 8)


@pytest.mark.parametrize(
    "kind", choose([*MIXED, *HYBRIDS, *PREFIX_LM, *SEQ2SEQ, "attention=mla", "attention=mamba position=none"], 9)
)
def test_a_request_gets_in_a_crowded_schedule_what_it_gets_alone(kind):
    run_many(kind, [100 + KINDS.index(kind)], 12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_gets_in_two_hundred_schedules_what_it_gets_alone(kind):
    few = kind.startswith(SAME_CACHE)
    preemptions, hits = run_many(kind, range(1000, 1020 if few else 1200), 16)
    assert preemptions >= 3
    assert hits or kind in PREFIX_LM or kind == "ntk" or "rope_dynamic" in kind


def run_deterministic(kind: str, seeds, requests: int) -> int:
    """Run schedules of a kind in deterministic mode, none of which may differ in a bit; how many preemptions."""
    model, preemptions = make(kind), 0
    for seed in seeds:
        with zoo.prepare(model, stable=True) if seed % 2 else nullcontext():
            faults, outcome = find_bit_faults(model, make_schedule(seed, vocabulary(model), requests))
        assert not faults, f"schedule {seed}: {faults[0]}"
        preemptions += outcome.preemptions
    return preemptions


STABLE = [kind for kind in KINDS if "moe" not in kind and "capacity" not in kind]
"""Kinds that have a deterministic mode: experts have none."""


@pytest.mark.parametrize("kind", one_in(16, [kind for kind in STABLE if not kind.startswith(SAME_CACHE)]))
def test_a_request_gets_in_deterministic_mode_the_bits_that_it_gets_alone(kind):
    run_deterministic(kind, [KINDS.index(kind)], 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STABLE)
def test_a_request_gets_in_many_deterministic_schedules_the_bits_that_it_gets_alone(kind):
    assert run_deterministic(kind, range(2000, 2010 if kind.startswith(SAME_CACHE) else 2050), 16) >= 3


# ---------------------------------------------------------------- single rules


ONE_PASS = ["attention=gqa", "position=alibi", "position=t5_layerwise", "position=learned", "ffn=moe", "block=parallel"]
ONE_PASS += ["attention=sliding window=5", "attention=mamba2 position=none", "gated_delta and gqa"]


@pytest.mark.parametrize("kind", [*ONE_PASS, "attention=mla", "chunk"])
def test_what_a_step_computes_goes_through_the_model_in_one_pass_where_that_costs_no_more(kind, monkeypatch):
    passes, run = [], EnginePasses.run
    monkeypatch.setattr(EnginePasses, "run", lambda self, batch: passes.append(len(batch)) or run(self, batch))
    engine, steps = Engine(make(kind), rows=4, budget=24), 0
    for length, new in ((3, 9), (17, 4), (30, 6), (11, 5)):
        engine.add(Request(ids=list(range(1, length + 1)), max_new_tokens=new))
    with serving(engine.model):
        while engine.busy:
            engine.step()
            steps += 1
    assert max(passes) == 4
    assert (len(passes) == steps) == (kind in ONE_PASS)


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


@pytest.mark.parametrize(
    ("kind", "options", "asked", "line"),
    [
        # keys and values of 2 heads 8 wide in 2 layers of float32: 256 bytes a token, 4,096 a page
        ("attention=gqa", {}, {}, "a request of 49 tokens needs 16,384 bytes of cache, there are 12,288 "),
        (
            "attention=gqa",
            {"tokens": 64},
            {"n_beams": 2},
            "of 49 tokens needs 32,768 bytes of cache, there are 16,384 ",
        ),
        ("gemma-like", {}, {}, "needs 8,192 bytes of cache in layers 'layer', there are 6,144 "),
    ],
)
def test_a_request_that_can_never_fit_is_refused_with_the_bytes_of_the_pool_that_is_too_small(
    kind, options, asked, line
):
    engine = Engine(make(kind), **{"rows": 2, "tokens": 48, "overcommit": 2.0} | options)
    with pytest.raises(ConfigError) as refused:
        engine.add(Request(ids=[1] * 33, max_new_tokens=16, **asked))
    assert line in str(refused.value)
    assert not engine.busy


@pytest.mark.parametrize("samples", [0, -1])
def test_a_request_of_no_samples_is_refused(samples):
    engine = Engine(make("attention=gqa"), rows=2, tokens=48)
    with pytest.raises(ConfigError, match=rf"^n: is {samples}, not 1 or more$"):
        engine.add(Request(ids=[1], max_new_tokens=1, n=samples))
    assert not engine.busy


def test_beams_that_branch_stay_in_front_of_requests_that_came_later():
    """The sequence at the end of the queue is the first to give up its row."""
    model = make("attention=gqa")
    engine = Engine(model, rows=4, tokens=40)
    engine.add(Request(ids=[3, 4], max_new_tokens=9, n_beams=3))
    engine.add(Request(ids=[5], max_new_tokens=9))
    with serving(model):
        for _ in range(3):
            engine.step()
    assert [each.request for each in engine.scheduler.running] == [0, 0, 0, 1]


def test_an_engine_that_is_done_and_still_holds_a_page_says_so(monkeypatch):
    monkeypatch.setattr(CachedRow, "release", lambda self: self.store.free_slots.append(self.slot))
    engine = Engine(make("attention=gqa"), rows=2, tokens=40)
    told = r"^engine: pool 0: .* \(a fault of the engine: please report it\)$"
    with pytest.raises(ZooError, match=told):
        list(engine.run([Request(ids=[1, 2], max_new_tokens=2)]))


@pytest.mark.parametrize("kind", ["position=learned", "ntk"])
def test_a_row_at_the_end_of_its_positions_is_served_beside_one_with_a_longer_draft(kind):
    """A pass is as wide as its longest draft, and the other row's padding has no position of its own."""
    model = make(kind)
    end = 20 if kind == "ntk" else 92
    draft = make("attention=gqa") if kind == "ntk" else model
    engine = Engine(model, rows=2, tokens=end, draft=draft, speculate=3)
    widths, run = [], engine.passes.run
    engine.passes.run = lambda batch: (widths.append([chunk.count for chunk in batch]), run(batch))[1]
    requests = [
        Request(ids=[n % 60 for n in range(end - 10)], max_new_tokens=10),
        Request(ids=[1, 2], max_new_tokens=end - 2),
    ]
    found = {0: [], 1: []}
    for event in engine.run(requests):
        found[event.request].append(event.token)
    for number, request in enumerate(requests):
        assert check_alone(model, request, 0, found[number]) is None
    assert any(min(each) < max(each) for each in widths if len(each) > 1)


def serve_long(window: int, budget: int) -> None:
    """Serve prompts of 200 tokens beside each other; invariants after every step, and texts as they are alone."""
    model = make_loud(build(load(TINY, ["attention=sliding", f"window={window}"]), device="cpu").eval(), (61,))
    engine = Engine(model, rows=3, tokens=240, budget=budget)
    requests = [Request(ids=[(7 * n + k) % 61 for n in range(200 + k)], max_new_tokens=6) for k in range(3)]
    found = {}
    with serving(model):
        for request in requests:
            engine.add(request)
        while engine.busy:
            for event in engine.step():
                found.setdefault(event.request, []).append(event.token)
            assert invariants.check(engine) == []
    for number, request in enumerate(requests):
        assert check_alone(model, request, 0, found[number]) is None


@pytest.mark.parametrize("window", [24, 40, 100])
@pytest.mark.parametrize("budget", [17, 40, 64, 640])
def test_a_prompt_longer_than_its_window_may_come_in_parts_shorter_than_that(window, budget):
    """A part that is joined to the window leaves those of its tokens that the next part sees."""
    serve_long(window, budget)


def test_a_window_that_gives_back_what_the_next_part_sees_is_caught(monkeypatch):
    """The inverse of the test before."""
    turn = CachedRow.turn
    monkeypatch.setattr(CachedRow, "turn", lambda row, group, token: turn(row, group, max(token, row.length)))
    with pytest.raises(AssertionError, match="pages before it are gone, and its next token sees token"):
        serve_long(40, 17)
