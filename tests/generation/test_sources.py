"""Reuse of sources: an encoder reads each once while its keys are there, and the text is what it is alone."""

from contextlib import contextmanager

import pytest

from support.request_schedules import check_alone, search_alone
from support.tiny_generators import SEQ2SEQ, make
from zoo.cache.page_pool import PagePool
from zoo.generation import invariants
from zoo.generation.engine import Engine, serving
from zoo.generation.request import Request
from zoo.sampling.options import Sampling

EVERY = pytest.mark.parametrize("kind", SEQ2SEQ)
SOURCE = [*range(5, 25)]  # a page and a quarter
OTHER = [*range(25, 45)]


@contextmanager
def counting(model):
    """The sources that the encoder reads in the block, a list a run."""
    runs = []

    def note(module, args):
        runs.extend(args[0].tolist())

    hook = model.get_submodule("encoder").register_forward_pre_hook(note)
    try:
        yield runs
    finally:
        hook.remove()


def serve(engine, *requests):
    """The tokens of each request's samples, all queued at once; invariants are checked after every step."""
    found = {}
    with serving(engine.model):
        numbers = [engine.add(request) for request in requests]
        while engine.busy:
            for event in engine.step():
                found.setdefault((event.request, event.sample), []).append(event.token)
            assert invariants.check(engine) == []
    return [[found[number, sample] for sample in range(r.n)] for number, r in zip(numbers, requests, strict=True)]


def check(model, request, samples):
    """Each sample is what the request gets alone by full forwards."""
    if request.n_beams > 1:
        assert dict(enumerate(samples)) == search_alone(model, request)
        return
    for sample, tokens in enumerate(samples):
        assert check_alone(model, request, sample, tokens) is None


def finish(engine):
    """The engine holds nothing but what it keeps, and nothing once it forgets that."""
    assert not invariants.check_drained(engine)
    engine.sources.forget()
    assert not invariants.check_initial(engine)


def owned(engine):
    """The pages of sources that rows own."""
    return sum(map(bool, engine.sources.pool.owners))


REQUESTS = [
    Request(ids=SOURCE, max_new_tokens=9),
    Request(ids=SOURCE, max_new_tokens=12, sampling=Sampling(temperature=1.0, seed=2), n=3),
    Request(ids=OTHER, max_new_tokens=5),
    Request(ids=SOURCE, max_new_tokens=7, n_beams=3, n=2),
]


@EVERY
def test_an_encoder_reads_a_source_once_for_requests_one_after_another(kind):
    model = make(kind)
    engine = Engine(model, rows=4, tokens=24, source=32)
    with counting(model) as runs:
        written = [serve(engine, request)[0] for request in REQUESTS]
    assert runs == [SOURCE, OTHER]
    assert engine.sources.hits == 4 * len(SOURCE)  # two further samples, and twice another request
    for request, samples in zip(REQUESTS, written, strict=True):
        check(model, request, samples)
    finish(engine)


@EVERY
def test_an_encoder_reads_a_source_once_for_requests_at_the_same_time(kind):
    model = make(kind)
    engine = Engine(model, rows=8, tokens=24, source=32)
    with counting(model) as runs:
        written = serve(engine, *REQUESTS)
    assert sorted(runs) == [SOURCE, OTHER]
    for request, samples in zip(REQUESTS, written, strict=True):
        check(model, request, samples)
    finish(engine)


@pytest.mark.parametrize("kind", ["t5", "modern"])
def test_rows_of_one_source_hold_its_keys_once(kind):
    model = make(kind)
    engine = Engine(model, rows=8, tokens=24, source=32)
    for _ in range(5):
        engine.add(Request(ids=SOURCE, max_new_tokens=9))
    with serving(model):
        for _ in range(3):
            engine.step()
        assert len(engine.scheduler.running) == 5
        assert owned(engine) == 2
        assert all(event.token is not None for event in engine.run())
    finish(engine)


def test_a_sequence_that_gives_up_its_row_does_not_have_its_source_read_again():
    model = make("t5")
    engine = Engine(model, rows=2, tokens=24, source=32)
    request = Request(ids=SOURCE, max_new_tokens=9)
    engine.add(request)
    with counting(model) as runs, serving(model):
        tokens = [event.token for _ in range(4) for event in engine.step()]
        engine.scheduler.preempt(engine.scheduler.running[0])
        tokens += [event.token for event in engine.run()]
    assert runs == [SOURCE]
    check(model, request, [tokens])
    finish(engine)


def test_a_source_goes_when_others_need_its_pages():
    """Two pages each, and room for four: the third source takes a page of the first, and the second is still there."""
    model = make("t5")
    engine = Engine(model, rows=2, tokens=24, source=32)
    third = [*range(45, 55)]  # one page
    sources = [SOURCE, OTHER, third, OTHER, SOURCE, third]
    with counting(model) as runs:
        written = [serve(engine, Request(ids=ids, max_new_tokens=6))[0] for ids in sources]
    assert runs == [SOURCE, OTHER, third, SOURCE, third]  # the least recently read one went
    for ids, samples in zip(sources, written, strict=True):
        check(model, Request(ids=ids, max_new_tokens=6), samples)
    finish(engine)


def serve_after_a_loss():
    """Read a source again of which one page is gone, while there are free pages: what the encoder reads, and the
    engine."""
    model = make("t5")
    engine = Engine(model, rows=3, tokens=24, source=32)
    with counting(model) as runs:
        serve(engine, Request(ids=SOURCE, max_new_tokens=6))
        serve(engine, Request(ids=OTHER, max_new_tokens=6))
        pool = engine.sources.pool
        pool.release(pool.take(3))  # two are free, the third is the first that was kept
        serve(engine, Request(ids=SOURCE, max_new_tokens=6), Request(ids=OTHER, max_new_tokens=6))
    return runs, engine


def test_what_is_left_of_a_source_goes_when_it_is_read_again():
    runs, engine = serve_after_a_loss()
    assert runs == [SOURCE, OTHER, SOURCE]
    finish(engine)


def test_what_is_left_of_a_source_would_otherwise_have_its_name(monkeypatch):
    monkeypatch.setattr(PagePool, "drop", lambda self, page: None)
    with pytest.raises(AssertionError, match="the pages of its source have other names"):
        serve_after_a_loss()


def test_sources_that_begin_alike_are_not_the_same():
    """An encoder sees all of its source, so that a page in common holds other keys."""
    model = make("bart")
    engine = Engine(model, rows=2, tokens=24, source=48)
    asked = [Request(ids=[*SOURCE[:16], *more], max_new_tokens=8) for more in ([], [7], [7, 8], [30] * 20)]
    with counting(model) as runs:
        written = [serve(engine, request)[0] for request in asked]
    assert runs == [list(request.ids) for request in asked]
    for request, samples in zip(asked, written, strict=True):
        check(model, request, samples)


def test_without_reuse_the_samples_of_a_request_still_share_its_source_and_others_do_not():
    model = make("t5")
    engine = Engine(model, rows=4, tokens=24, source=32, reuse=False)
    with counting(model) as runs:
        serve(engine, Request(ids=SOURCE, max_new_tokens=4, n=2))
        serve(engine, Request(ids=SOURCE, max_new_tokens=4))
    assert engine.sources is None
    assert runs == [SOURCE, SOURCE]
