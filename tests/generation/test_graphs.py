"""Decoding steps that are recorded and replayed with other rows: proven on a CPU by torch's tracer in place of a CUDA
graph, as both run the same operations again on the same memory, whatever the host knew when they were recorded."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_engine import vocabulary
from torch.fx.experimental.proxy_tensor import make_fx

import zoo
from support.packaged_specs import one_in
from support.request_schedules import find_faults, make_schedule
from support.tiny_generators import HYBRIDS, KINDS, MIXED, SAME_CACHE, make, make_draft
from support.tiny_models import model_of
from zoo.distributed.seam import Seam
from zoo.errors import ConfigError
from zoo.generation import proposals
from zoo.generation.engine import Engine
from zoo.generation.graphs import Graphs, make_graphs
from zoo.generation.request import Request
from zoo.kernels.view.page_tables import PagedShape
from zoo.model.position import constants
from zoo.run.cache_layout import choose_layout
from zoo.run.capture import WARM, CudaRecorder, find_blocker
from zoo.run.tensor_parallel import TensorSeam
from zoo.sampling import truncate

WAITS = ("_local_scalar_dense", "lift", "nonzero", "unique", "masked_select", "repeat_interleave.Tensor", "equal")
"""Operations in whose place a CUDA graph cannot stand: the host waits for them, or sends numbers of its own."""

WHOLE = ("ntk", "position=rope_dynamic original_max_seq_len=8")
"""Kinds whose longer rows are computed without a cache."""


class Tracer:
    """Records a step as a graph of aten operations, and replays these alone."""

    def __init__(self):
        self.recorded, self.replayed, self.waits = 0, 0, set()

    def __call__(self, step, numbers):
        with torch.inference_mode(False), torch.no_grad():
            step(numbers.clone())  # as on CUDA: what is kept for all passes is made here
            graph = make_fx(step)(numbers.clone())
        called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
        self.waits |= {name for name in called for each in WAITS if f"aten.{each}" in name}
        self.recorded += 1
        logits = graph(numbers)

        def replay():
            self.replayed += 1
            logits.copy_(graph(numbers))

        return replay, logits


@pytest.fixture
def tracer(monkeypatch):
    """What records the steps of every engine that is made in a test."""
    found = Tracer()
    monkeypatch.setattr(constants, "_under_a_mode", lambda: False)  # a CUDA graph is recorded under none
    monkeypatch.setattr(truncate, "_on_host", lambda values: False)  # as on CUDA

    def make(model, writer, store, rows, *, asked, note):
        if not store.paged:
            return None
        return Graphs(model if writer is model.spec else model.get_submodule("decoder"), store, rows, found, note)

    for module in ("engine", "proposals"):
        monkeypatch.setattr(f"zoo.generation.{module}.make_graphs", make)
    return found


def run_recorded(kind, seed, requests, tracer, page, **options):
    model = make(kind)
    schedule = make_schedule(seed, vocabulary(model), requests)
    schedule.options |= {"paged": True, "page": page} | options
    schedule.interval = max(schedule.interval, page)
    faults, _ = find_faults(model, schedule)
    assert not faults, f"schedule {seed}: {faults[0]}"
    assert not tracer.waits


@pytest.mark.parametrize("kind", one_in(80, KINDS))
def test_a_step_that_was_recorded_gives_other_rows_what_they_get_alone(kind, tracer):
    number = KINDS.index(kind)
    for seed in (500 + number, 600 + number, 700 + number):
        run_recorded(kind, seed, 6, tracer, (8, 16, 32)[number % 3], speculate=0)
        if tracer.replayed:
            return
    assert kind in WHOLE


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith(SAME_CACHE)])
def test_a_step_that_was_recorded_gives_in_many_schedules_what_rows_get_alone(kind, tracer):
    for seed in range(3000, 3020):
        run_recorded(kind, seed, 16, tracer, (4, 8, 16, 32, 64)[seed % 5])


@pytest.fixture
def paged_drafts(monkeypatch):
    """The cache of a model that guesses is read by page too, as on a GPU."""
    monkeypatch.setattr(proposals, "choose_layout", lambda *given: choose_layout(*given, paged=True, page=16))


def test_drafts_and_the_steps_of_the_model_that_draws_them_are_recorded(tracer, paged_drafts):
    """In shapes of one token, of two and of a whole draft with the token before it; rows of fewer tokens are padded.
    All recordings write their logits to one memory: of 256 rows and a vocabulary of 128,256 each keeps up to 67 MB."""
    model, prompts = make("attention=gqa"), [[1, 2, 3]]
    alone = Engine(model, rows=1, tokens=40).run([Request(ids=prompts[0], max_new_tokens=9)])
    tokens, engine = serve(model, prompts, 9, rows=1, tokens=40, speculate=3, draft=model)
    assert tokens == [[event.token for event in alone]]
    assert {shape.new for shape in engine.passes.graphs.steps} >= {4}
    assert {shape.new for shape in engine.proposer.graphs.steps} == {1, 2}
    for graphs, new in ((engine.passes.graphs, 4), (engine.proposer.graphs, 2)):
        assert graphs.logits.shape == (new, 61)
        memory = {step.logits.untyped_storage().data_ptr() for step in graphs.steps.values()}
        assert memory == {graphs.logits.untyped_storage().data_ptr()}
    assert not tracer.waits


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith(SAME_CACHE)])
def test_drafts_that_are_recorded_keep_the_text_of_every_kind(kind, tracer, paged_drafts):
    for seed in range(6000, 6006):
        schedule = make_schedule(seed, vocabulary(make(kind)), 6)
        schedule.options |= {"paged": True, "page": 16, "speculate": 3}
        schedule.drafted = seed % 2 == 0
        faults, _ = find_faults(make(kind), schedule, make_draft(kind))
        assert not faults, f"schedule {seed}: {faults[0]}"
    assert not tracer.waits


# ---------------------------------------------------------------- what is recorded


def serve(model, prompts, new, **options):
    engine, found = Engine(model, paged=True, page=16, reuse=False, **options), {}
    numbers = [engine.add(Request(ids=ids, max_new_tokens=new)) for ids in prompts]
    for event in engine.run():
        found.setdefault(event.request, []).append(event.token)
    return [found[number] for number in numbers], engine


@pytest.mark.slow
def test_steps_are_recorded_by_powers_of_two_of_rows_and_of_pages(tracer):
    model = model_of(["max_seq_len=1100"])
    prompts = [[1] * 250, [2] * 3, [3] * 3]
    tokens, engine = serve(model, prompts, 10, rows=5, tokens=600)
    shapes = {(4, 16), (4, 32)}  # 3 rows; 256 tokens, then up to 512
    assert set(engine.passes.graphs.steps) == {PagedShape(rows, 1, (pages,)) for rows, pages in shapes}
    assert (tracer.recorded, tracer.replayed) == (2, 9)
    assert tokens == [serve(model, [each], 10, rows=1, tokens=600)[0][0] for each in prompts]


def test_a_table_is_no_wider_than_its_pool(tracer):
    _, engine = serve(model_of(["attention=sliding"]), [[1, 2]] * 3, 4, rows=3, tokens=20)
    assert [shape.pages for shape in engine.passes.graphs.steps] == [(2,)]
    _, engine = serve(model_of(), [[1, 2]] * 3, 4, rows=3, tokens=20)
    assert [shape.pages for shape in engine.passes.graphs.steps] == [(6,)]


def test_rows_of_padding_touch_nothing_that_a_row_has(tracer):
    """Three rows in a step of four: pools and states are those of a step that was not recorded."""
    model = make("mamba and gqa")
    prompts = [[1, 2, 3], [4] * 20, [5]]
    tokens, engine = serve(model, prompts, 12, rows=3, tokens=40)
    assert tracer.replayed
    plain = Engine(model, paged=True, page=16, reuse=False, rows=3, tokens=40)
    plain.passes.graphs = None
    numbers = [plain.add(Request(ids=ids, max_new_tokens=12)) for ids in prompts]
    found = {}
    for event in plain.run():
        found.setdefault(event.request, []).append(event.token)
    assert tokens == [found[number] for number in numbers]
    for layer, other in zip(engine.store.layers, plain.store.layers, strict=True):
        for name, pool in layer.tensors.items():
            torch.testing.assert_close(pool[:-1], other.tensors[name][:-1], atol=1e-3, rtol=1e-4)
        for name, state in layer.states.items():
            torch.testing.assert_close(state[:-1], other.states[name][:-1], atol=1e-3, rtol=1e-4)


def test_logits_outlive_the_next_replay(tracer):
    model = make("attention=gqa")
    engine = Engine(model, paged=True, page=16, rows=2, tokens=40, reuse=False)
    row = engine.scheduler._start(_continuation(engine))
    with torch.inference_mode():
        (first,) = engine.passes.graphs.run([row], [[3]])
        copy = first.clone()
        engine.passes.graphs.run([row], [[4]])
    assert row.length == 2
    assert torch.equal(first, copy)


def _continuation(engine):
    number = engine.add(Request(ids=[3], max_new_tokens=8))
    return engine.live[number][0]


# ---------------------------------------------------------------- what cannot be recorded


def test_a_step_that_cannot_be_recorded_is_computed_and_said_once():
    def refusing(step, numbers):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model, notes = make("gemma-like"), []
    wanted, _ = serve(model, [[1, 2], [3]], 6, rows=2, tokens=40)
    engine = Engine(model, paged=True, page=16, reuse=False, rows=2, tokens=40)
    engine.passes.graphs = Graphs(model, engine.store, 2, refusing, notes.append)
    numbers = [engine.add(Request(ids=ids, max_new_tokens=6)) for ids in ([1, 2], [3])]
    found = {}
    for event in engine.run():
        found.setdefault(event.request, []).append(event.token)
    assert [found[number] for number in numbers] == wanted
    line = "graphs: decoding runs without CUDA graphs: a step with rows=1 could not be recorded, found: "
    assert notes == [f"{line}operation not permitted when stream is capturing"]


def test_a_fault_of_the_step_itself_is_no_reason_to_go_on_without_graphs(tracer, monkeypatch):
    monkeypatch.setattr(Graphs, "decode", lambda self, numbers, shape: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        serve(make("attention=gqa"), [[1, 2]], 6, rows=2, tokens=40)


@pytest.mark.parametrize("options", [{}, {"paged": True}, {"deterministic": True}])
def test_graphs_that_are_asked_for_where_there_is_no_cuda_are_refused(options):
    with pytest.raises(ConfigError, match=r"^graphs: CUDA records steps that read rows by page, found cpu, "):
        Engine(make("attention=gqa"), rows=1, tokens=40, graphs=True, **options)


def test_experts_that_are_counted_on_the_host_are_named():
    spec = make("ffn=moe").spec
    assert find_blocker(spec, "bfloat16") is None
    assert "reads on the host how many rows each expert has" in find_blocker(spec, "float32")
    assert find_blocker(make("attention=gqa").spec, "float32") is None


@pytest.mark.parametrize(
    ("backends", "line"),
    [
        ("cpu:gloo,cuda:nccl", None),
        ("cpu:gloo,cuda:gloo", "a graph contains collectives of NCCL, found gloo"),
        ("cpu:gloo", "a graph contains collectives of NCCL, found None"),
    ],
)
def test_ranks_record_where_nccl_computes_their_collectives(backends, line, monkeypatch):
    model, notes = make("attention=gqa"), []
    store = Engine(model, rows=2, tokens=40, paged=True).store
    monkeypatch.setattr(store, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda group: backends)
    monkeypatch.setattr(model, "seam", TensorSeam(None))
    graphs = make_graphs(model, model.spec, store, 2, asked=None, note=notes.append)
    assert graphs.refusal == line
    assert notes == ([] if line is None else [f"graphs: decoding runs without CUDA graphs: {line}"])


def test_ranks_with_other_free_memory_plan_the_same_rows(monkeypatch):
    """Each rank's cache has the rows of the rank with the least memory: else they would run other steps."""
    model = make("attention=gqa")
    whole = Engine(model, rows=8, tokens=40).store.nbytes
    monkeypatch.setattr(model, "seam", Seam())
    monkeypatch.setattr(model.seam, "take_least", lambda memory: memory // 2)
    assert Engine(model, rows=8, tokens=40, memory=whole).scheduler.rows == 4


def test_a_step_is_warmed_up_on_a_side_stream_before_it_is_recorded(monkeypatch):
    """By fakes of torch.cuda, in order: NCCL makes its communicator at the first collective, outside of a recording."""
    order, streams = [], []

    class Scope(SimpleNamespace):
        def __enter__(self):
            order.append(f"enter {self.name}")

        def __exit__(self, *_):
            order.append(f"leave {self.name}")

    fakes = {
        "device": nullcontext,
        "Stream": lambda: (
            streams.append(SimpleNamespace(wait_stream=lambda other: order.append("side waits"))) or streams[-1]
        ),
        "current_stream": lambda: SimpleNamespace(wait_stream=lambda other: order.append("current waits")),
        "stream": lambda stream: Scope(name="side"),
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": lambda: SimpleNamespace(replay="replay"),
        "empty_cache": lambda: None,
        "memory_reserved": lambda: len(order),
        "graph": lambda graph, **how: Scope(name=f"graph {how}"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    recorder = CudaRecorder("cuda")
    for _ in range(2):
        assert recorder(lambda numbers: order.append("pass") or 5, 1) == ("replay", 5)
    assert len(streams) == 1  # for each stream cuBLAS keeps a workspace
    graph = "graph {'pool': 'pool', 'capture_error_mode': 'thread_local'}"
    warm = ["side waits", "enter side", "pass", "pass", "leave side", "current waits"]
    assert order == 2 * [*warm, f"enter {graph}", "pass", f"leave {graph}"]


@pytest.mark.slow
def test_layers_that_are_compiled_are_compiled_in_the_warm_up_of_a_recording_alone(monkeypatch):
    """Not inside the recording, where a compiler may not work, and not for each length of a prompt."""
    model, at, compiled = copy.deepcopy(make("attention=gqa")), [], []
    for block in model.blocks:
        block.compile(backend=lambda graph, inputs: compiled.append(at[-1:]) or graph.forward, dynamic=False)

    def record(step, numbers):
        for place in (*["warm-up"] * WARM, "recording"):
            at.append(place)
            logits = step(numbers)
        at.clear()
        return lambda: logits.copy_(step(numbers)), logits

    engine = Engine(model, rows=1, tokens=40, paged=True, page=16)
    engine.passes.graphs = Graphs(model, engine.store, 1, record, pytest.fail)
    alone = Engine(make("attention=gqa"), rows=1, tokens=40)
    tokens = [
        [event.token for event in each.run([Request(ids=[4, 2, 7], max_new_tokens=3)])] for each in (engine, alone)
    ]
    assert tokens[0] == tokens[1] and engine.passes.graphs.steps
    assert compiled and set(map(tuple, compiled)) == {("warm-up",)}


# ---------------------------------------------------------------- on a card

ON_A_CARD = ["attention=gqa", "attention=mla", "attention=sliding window=5", *MIXED, *HYBRIDS]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [kind for kind in ON_A_CARD if kind not in WHOLE])
def test_graphs_on_a_card_give_the_tokens_of_a_cpu(kind):
    model, notes = make(kind), []
    prompts = [[1, 2, 3], [4] * 20, [5], [6] * 33, [7, 8]]
    wanted = run_on(model, prompts, "cpu")
    found = run_on(copy.deepcopy(model).to("cuda"), prompts, "cuda", notes.append)
    assert found == wanted
    blocked = find_blocker(model.spec, "float32") is not None
    assert bool(notes) == blocked


def run_on(model, prompts, device, note=None):
    options = {} if note is None else {"note": note}
    engine = Engine(model, rows=5, tokens=80, reuse=False, **options)
    numbers = [engine.add(Request(ids=ids, max_new_tokens=20)) for ids in prompts]
    found = {}
    for event in engine.run():
        found.setdefault(event.request, []).append(event.token)
    if device == "cuda" and engine.passes.graphs.refusal is None:
        assert engine.passes.graphs.steps
    return [found[number] for number in numbers]


@pytest.mark.gpu
def test_bfloat16_on_a_card_is_the_same_with_graphs_and_without():
    model = zoo.build("llama-tiny", device="cuda", dtype="bf16").eval()
    tokens = {}
    for graphs in (False, True):
        engine = Engine(model, rows=3, tokens=200, reuse=False, graphs=graphs)
        numbers = [engine.add(Request(ids=[each] * 30, max_new_tokens=64, logprobs=1)) for each in (1, 2, 3)]
        found = {}
        for event in engine.run():
            found.setdefault(event.request, []).append((event.token, event.logprob))
        tokens[graphs] = [found[number] for number in numbers]
    assert tokens[True] == tokens[False]
