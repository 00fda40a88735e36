"""Steps that are launched before the tokens of the step before are known: tokens, ends and pages are those of an engine
that waits for each step. The device is a fake that runs late: what is launched is done when the host waits for it."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_engine import vocabulary

import zoo
from support.request_schedules import make_schedule, run_schedule
from support.tiny_generators import make
from zoo.cache.cached_row import CachedRow
from zoo.cache.pool_store import Store
from zoo.generation import engine as engine_module
from zoo.generation import overlap
from zoo.generation.engine import Engine
from zoo.generation.graphs import Graphs, send
from zoo.generation.overlap import OverlappedSteps
from zoo.generation.passes import EnginePasses
from zoo.generation.request import Request
from zoo.run.cache_layout import choose_layout
from zoo.sampling import truncate
from zoo.sampling.draws import DrawState
from zoo.sampling.options import Sampling
from zoo.sampling.sampler import Sampler, choose_recorded, find_way

KINDS = ["attention=gqa", "attention=sliding window=5", "mamba and gqa", "t5"]


class LateDevice:
    """A device whose work is done once the host waits for tokens or launches anything but a replay."""

    def __init__(self):
        self.queue, self.direct, self.ahead, self.replays = [], False, 0, 0

    def __call__(self, step, numbers):
        """Record a step, which reads `numbers` as they were when its replay was launched."""
        self.catch_up()
        result = step(numbers)

        def run(given):
            numbers.copy_(given)
            step(numbers)

        def replay():
            self.replays += 1
            self.ahead += any(isinstance(each, Late) for _, each in self.queue)
            self.queue.append((run, numbers.clone()))
            if self.direct:
                self.catch_up()

        return replay, result

    def catch_up(self):
        while self.queue:
            work, given = self.queue.pop(0)
            work(given)

    def wait_in(self, monkeypatch, owner, name):
        """Let a function of the host that uses the device's memory wait for it."""
        inner = getattr(owner, name)

        def waiting(*given, **options):
            self.catch_up()
            self.direct, before = True, self.direct
            found = inner(*given, **options)
            self.direct = before
            return found

        monkeypatch.setattr(owner, name, waiting)


class Late:
    """Tokens that are copied in the device's order, and are there after `read` alone."""

    def __init__(self, device, tokens):
        self.device, self.tokens, self.found = device, tokens, None
        device.queue.append((Late.copy, self))

    def copy(self):
        self.found = self.tokens.tolist()

    def read(self):
        while self.found is None:
            work, given = self.device.queue.pop(0)
            work(given)
        return self.found


@pytest.fixture
def device(monkeypatch):
    """A device for every engine that is made in a test."""
    found = LateDevice()

    def make_graphs(model, writer, store, rows, *, asked, note):
        return Graphs(model if writer is model.spec else model.get_submodule("decoder"), store, rows, found, note)

    monkeypatch.setattr("zoo.generation.engine.make_graphs", make_graphs)
    monkeypatch.setattr(overlap, "LateValues", lambda tokens: Late(found, tokens))
    monkeypatch.setattr(truncate, "_on_host", lambda values: False)
    for owner, name in ((EnginePasses, "run"), (CachedRow, "__init__"), (Store, "copy"), (Store, "copy_states")):
        found.wait_in(monkeypatch, owner, name)
    return found


def run_waiting(model, schedule, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(OverlappedSteps, "launch", lambda self, chunks: None)
        return run_schedule(model, schedule)


def compare(found, wanted):
    """Compare two outcomes; where a request was aborted the engines may have been one step apart."""
    assert not found.faults
    assert not wanted.faults
    assert found.ended.keys() == wanted.ended.keys()
    for sample, end in wanted.ended.items():
        one, other = found.tokens.get(sample, []), wanted.tokens.get(sample, [])
        if "aborted" in (end, found.ended[sample]):
            assert one == other[: len(one)] or other == one[: len(other)]
        else:
            assert (found.ended[sample], one) == (end, other)


def plan_schedule(model, seed):
    """A schedule for an engine that reads by page; in two of three no request needs the host for all of its tokens."""
    schedule = make_schedule(seed, vocabulary(model), 6)
    schedule.options |= {"paged": True, "page": 16, "speculate": 0}
    if seed % 3:
        for batch in schedule.joins.values():
            batch[:] = [replace(each, logprobs=None, n_beams=1, n=each.n) for each in batch]
    return schedule


def check_schedules(kind, seeds, device, monkeypatch):
    model, ahead = make(kind), 0
    for seed in seeds:
        schedule = plan_schedule(model, seed)
        wanted = run_waiting(model, schedule, monkeypatch)
        assert not device.ahead - ahead
        compare(run_schedule(model, schedule), wanted)
        ahead = device.ahead
    assert ahead > 20


@pytest.mark.parametrize(("kind", "seeds"), [(KINDS[0], (3, 35)), *((kind, (22,)) for kind in KINDS[1:3])])
def test_schedules_have_the_tokens_and_pages_of_an_engine_that_waits(kind, seeds, device, monkeypatch):
    """Arrivals, aborts, preemptions, stop ids, shared prefixes; pools are as at the start once prefixes are dropped."""
    check_schedules(kind, seeds, device, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_schedules_have_the_tokens_and_pages_of_an_engine_that_waits(kind, device, monkeypatch):
    check_schedules(kind, range(100, 112), device, monkeypatch)


# ---------------------------------------------------------------- one step late


def make_engine(kind="attention=gqa", **options):
    return Engine(make(kind), paged=True, page=16, rows=4, tokens=64, **options)


def test_the_next_step_is_launched_before_the_tokens_of_the_last_one_are_read(device):
    engine = make_engine()
    engine.add(Request(ids=[1, 2, 3], max_new_tokens=4))
    assert len(engine.step()) == 1  # the prompt is computed, and its token waited for
    assert engine.step() == []
    assert [len(engine.step()), len(engine.step())] == [1, 1]
    assert device.ahead == 2 * 2  # a pass and its sampling for each of two tokens, while the one before was not read
    (last,) = engine.step()
    assert last.finished == "length"
    assert device.replays == 2 * 3  # none was computed for nothing
    assert not engine.busy


def test_a_row_that_has_ended_drops_its_extra_token_and_gives_its_pages_back(device):
    engine = make_engine(reuse=False)
    plain = [event.token for event in engine.run([Request(ids=[1, 2, 3], max_new_tokens=20)])]
    before = device.replays
    stop = next(token for token in plain[3:] if plain.index(token) == plain[3:].index(token) + 3)
    end = plain.index(stop) + 1
    events = list(engine.run([Request(ids=[1, 2, 3], max_new_tokens=20, stop_ids=frozenset({stop}))]))
    assert [event.token for event in events] == plain[:end]
    assert events[-1].finished == "stop"
    assert device.replays - before == 2 * end  # one step more than the tokens after the first need
    assert all(pool.available == pool.count for pool in engine.store.pools)


def test_a_sequence_whose_logits_are_not_finite_fails_one_step_late(device):
    engine = make_engine()
    engine.add(Request(ids=[1, 2, 3], max_new_tokens=8, sampling=Sampling(temperature=1.0, seed=1)))
    engine.step()
    inner = engine.passes.graphs.decode
    engine.passes.graphs.decode = lambda numbers, shape: math.nan * inner(numbers, shape)
    assert engine.step() == []
    (event,) = engine.step()
    assert (event.token, event.finished) == (None, "failed")
    assert event.fault.startswith("has logits that are NaN or all -inf, in float32 ")
    assert not engine.busy
    with torch.inference_mode():
        device.catch_up()  # the step after it reads a token that there is none of


def test_generated_text_is_kept_for_reuse_once_its_tokens_are_known(device, monkeypatch):
    for _ in ("a step late", "waiting"):
        engine = make_engine()
        ids = [1, 2, 3] + [event.token for event in engine.run([Request(ids=[1, 2, 3], max_new_tokens=46)])]
        list(engine.run([Request(ids=ids, max_new_tokens=2)]))
        assert engine.prefixes.hits == 48
        monkeypatch.setattr(OverlappedSteps, "launch", lambda self, chunks: None)


HOST = {
    "logprobs": {"logprobs": 1},
    "beams": {"n_beams": 2},
    "penalties": {"sampling": Sampling(temperature=1.0, repetition_penalty=1.1, seed=1)},
    "bias": {"sampling": Sampling(logit_bias={3: 1.0})},
    "bad words": {"sampling": Sampling(bad_words=((3, 4),))},
    "a process": {"sampling": Sampling(process=lambda ids, scores: scores)},
    "typical_p": {"sampling": Sampling(temperature=1.0, typical_p=0.5, seed=1)},
}


@pytest.mark.parametrize("asked", HOST.values(), ids=HOST)
def test_a_request_that_needs_the_host_lets_the_whole_step_wait(asked, device):
    engine = make_engine()
    easy, hard = Request(ids=[1, 2, 3], max_new_tokens=9), Request(ids=[4, 5, 6], max_new_tokens=5, **asked)
    numbers = [engine.add(easy), engine.add(hard)]
    found = {}
    while engine.busy:
        for event in engine.step():
            found.setdefault(event.request, []).append(event.token)
        assert engine.overlap.late is None or len(engine.live) == 1
    assert device.ahead
    assert found[numbers[0]] == [event.token for event in make_engine().run([easy])]


def test_rows_that_take_other_passes_wait(device):
    """An adapter is chosen for a pass by the host, and some rows may not share a pass."""
    engine = make_engine()
    numbers = [engine.add(Request(ids=[each, 3], max_new_tokens=9)) for each in (1, 2)]
    engine.step()
    first = engine.live[numbers[0]][0]
    plain, first.asked = first.asked, replace(first.asked, adapter="one")
    chunks = engine.scheduler.plan()
    assert engine.overlap.launch(chunks) is None
    first.asked = plain
    engine.passes.batches = lambda chunks: ([chunk] for chunk in chunks)
    assert engine.overlap.launch(chunks) is None
    del engine.passes.batches
    with torch.inference_mode():
        assert engine.overlap.launch(chunks) is not None


def test_first_passes_of_one_token_wait(device):
    """An encoder's source is read by none but the first, and a prompt's log-probabilities are found in it."""
    engine = make_engine("t5")
    engine.add(Request(ids=[5, 6], max_new_tokens=3))
    assert len(engine.step()) == 1
    engine = make_engine()
    engine.add(Request(ids=[5], max_new_tokens=3, prompt_logprobs=1))
    assert [event.prompt for event in engine.step()] == [(None,)]
    assert engine.step() == []


def test_an_engine_that_speculates_waits_for_every_step(device):
    engine = make_engine(speculate=2)
    list(engine.run([Request(ids=[1, 2, 3, 1, 2], max_new_tokens=9)]))
    assert device.replays
    assert engine.overlap.late is None
    assert not device.ahead


def test_min_tokens_need_the_host_until_they_have_come(device):
    engine = make_engine()
    asked = {"stop_ids": frozenset({7}), "sampling": Sampling(min_tokens=3)}
    engine.add(Request(ids=[1, 2, 3], max_new_tokens=9, **asked))
    late = []
    while engine.busy:
        engine.step()
        late.append(engine.overlap.late is not None)
    assert late[:4] == [False, False, False, True]


def test_generate_gives_each_token_once(device, monkeypatch):
    """Also where a step cannot be launched while tokens are late: 20 positions are cached, then rows come whole."""

    def paged(*given, **asked):
        return choose_layout(*given, paged=True, page=16)

    monkeypatch.setattr(engine_module, "choose_layout", paged)
    model, ids = make("ntk"), torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = zoo.generate(model, ids, 25, temperature=0.8, top_k=20, seed=1)
    assert device.ahead
    monkeypatch.setattr(OverlappedSteps, "launch", lambda self, chunks: None)
    assert torch.equal(found, zoo.generate(model, ids, 25, temperature=0.8, top_k=20, seed=1))


# ---------------------------------------------------------------- the draw


def test_tokens_that_are_chosen_by_recorded_operations_are_those_of_the_sampler(monkeypatch):
    """Rows of every mixture of options, in one batch: the same draws from the same points, to the token."""
    monkeypatch.setattr(truncate, "_on_host", lambda values: False)
    options = [
        Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        for seed, temperature in enumerate((0, 0.6, 1.3))
        for top_k in (None, 1, 40)
        for top_p in (None, 0.8)
        for min_p in (None, 0.1)
    ]
    logits = 3 * torch.randn(len(options), 1000, generator=torch.Generator().manual_seed(0))
    logits[5], logits[20] = math.nan, -math.inf
    for some in (options, [each for each in options if not (each.top_k or each.top_p)], [Sampling()] * 3):
        states = [DrawState(each, [1, 2, row]) for row, each in enumerate(some)]
        way = max(find_way(each, 1000) for each in some)
        columns = torch.tensor([(state.point(), *truncate.list_cuts(state.sampling, 1000)) for state in states]).T
        found = choose_recorded(logits[: len(some)], columns.double(), way)
        assert found.tolist() == Sampler().choose(logits[: len(some)], states)


def test_the_point_of_a_later_position_is_known_before_the_tokens_are():
    state = DrawState(Sampling(temperature=1.0, seed=3), [1, 2])
    later = [state.point(later=each) for each in range(3)]
    for point in later:
        assert state.point() == point
        state.advance(5)


# ---------------------------------------------------------------- on CUDA, by fakes


def test_sampling_that_cannot_be_recorded_is_launched_by_itself_and_said(device, monkeypatch):
    wanted = [event.token for event in make_engine().run([Request(ids=[1, 2, 3], max_new_tokens=5)])]
    notes, engine = [], make_engine()
    graphs = engine.passes.graphs
    graphs.note, record = notes.append, graphs.record

    def refuse(step, numbers):
        if numbers.dtype == torch.float64:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return record(step, numbers)

    graphs.record = refuse
    with monkeypatch.context() as patch:
        patch.setattr(overlap, "partial", lambda step, columns: record(step, columns)[0])  # in the device's order
        assert [event.token for event in engine.run([Request(ids=[1, 2, 3], max_new_tokens=5)])] == wanted
    found = "operation not permitted when stream is capturing"
    assert notes == [f"graphs: tokens of 1 rows are chosen without a CUDA graph, found: {found}"]


def test_what_is_sent_to_cuda_comes_from_pinned_memory_and_is_not_waited_for():
    sent = []
    device = SimpleNamespace(is_cuda=True, copy_=lambda values, *, non_blocking: sent.append((values, non_blocking)))
    send(SimpleNamespace(pin_memory=lambda: "pinned"), device)
    assert sent == [("pinned", True)]
