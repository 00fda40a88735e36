"""Rows read by page table: what a request gets is what it gets alone, for every kind of layer; flash kernels read the
pages where they lie; the price is what is allocated."""

import random
from copy import deepcopy
from itertools import accumulate

import pytest
import standins
import torch
from test_engine import vocabulary

from support.logit_bounds import assert_close
from support.packaged_specs import one_in
from support.request_schedules import find_faults, full_logits, make_schedule
from support.tiny_generators import HYBRIDS, KINDS, MIXED, PREFIX_LM, SAME_CACHE, SEQ2SEQ, make
from support.tiny_models import model_of
from zoo.cache.cache import Cache
from zoo.cache.pool_store import Store
from zoo.costs import Setup
from zoo.costs.cache_sizes import kv_cache
from zoo.errors import ConfigError
from zoo.generation.engine import Engine, serving
from zoo.generation.request import Request
from zoo.kernels import KERNELS, Machine, attend
from zoo.kernels.base import AttentionQuery
from zoo.kernels.found import MACHINES
from zoo.kernels.mask import Mask
from zoo.kernels.view.page_tables import choose_page, reads_pages
from zoo.run.cache_layout import choose_layout, takes_varlen
from zoo.text.follow import describe_cache

HOPPER = (9, 0)
PACKAGE = {"flash2": "flash-attn", "flash3": "flash-attn-3", "flash4": "flash-attn-4"}


def machine(*packages):
    return Machine("cuda", HOPPER, frozenset(packages))


@pytest.fixture
def passes(monkeypatch):
    """For each pass with a cache, whether it read by page."""
    found, begin = [], Cache.begin

    def watched(self, counts, new):
        begin(self, counts, new)
        found.append(self.tensors is not None)

    monkeypatch.setattr(Cache, "begin", watched)
    return found


# ---------------------------------------------------------------- as alone


BY_ROUNDING = ("dsa pooled", "attention=dsa_pooled")
"""Kinds that choose among pools of tokens. Pools of the same tokens have the same key, and roundings choose one of them
where a text repeats itself, as those of some schedules do."""


def run_paged(kind, seed, requests, page):
    model = make(kind)
    schedule = make_schedule(seed, vocabulary(model), requests)
    schedule.options |= {"paged": True, "page": page}
    schedule.interval = max(schedule.interval, page)
    faults, _ = find_faults(model, schedule)
    assert not faults, f"schedule {seed}: {faults[0]}"


@pytest.mark.parametrize("kind", one_in(30, KINDS))
def test_a_request_read_by_page_gets_what_it_gets_alone(kind, passes):
    number = KINDS.index(kind)
    run_paged(kind, number, 8, (8, 16, 32)[number % 3])
    run_paged(kind, 700 + number, 4, (8, 16, 32)[number % 3])
    assert any(passes) or "rope_dynamic" in kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith((*SAME_CACHE, *BY_ROUNDING))])
def test_a_request_read_by_page_gets_in_many_schedules_what_it_gets_alone(kind):
    for seed in range(2000, 2040):
        run_paged(kind, seed, 16, (4, 8, 16, 32, 64)[seed % 5])


LONG = [*MIXED, *HYBRIDS, "attention=gqa", "attention=mla", "attention=sliding window=5"]


@pytest.mark.parametrize("kind", one_in(9, [kind for kind in LONG if kind != "ntk"]))
def test_rows_of_other_lengths_get_the_logits_of_a_full_forward(kind):
    """Three rows whose keys lie on pages of 4 tokens in mixed order grow by a token at a time. In float64, as a block
    that Mamba-2's layers share repeats float32's roundings until they are 500 units large."""
    model, numbers = deepcopy(make(kind)).double(), random.Random(5)
    engine = Engine(model, rows=3, tokens=80, budget=16, paged=True, page=4, reuse=False)
    for pool in engine.store.pools:
        pages = list(pool._free)
        numbers.shuffle(pages)
        pool._free = dict.fromkeys(pages)
        pool._find = lambda count, after, pool=pool: list(pool._free)[:count]
    kept, choose = {}, engine.sampler.choose

    def watched(logits, states):
        for row, state in zip(logits, states, strict=True):
            kept.setdefault(id(state), []).append(row.clone())
        return choose(logits, states)

    engine.sampler.choose = watched
    vocab = vocabulary(model)
    prompts = [[numbers.randrange(vocab) for _ in range(length)] for length in (1, 13, 33)]
    states = {engine.add(Request(ids=ids, max_new_tokens=30)): ids for ids in prompts}
    draws = {number: engine.live[number][0].draws for number in states}
    tokens: dict[int, list[int]] = {}
    for event in engine.run():
        tokens.setdefault(event.request, []).append(event.token)
    for number, ids in states.items():
        assert_close(torch.stack(kept[id(draws[number])]), full_logits(model, ids, tokens[number]))


def test_a_window_that_is_read_by_page_is_never_copied(monkeypatch):
    copies = []
    monkeypatch.setattr(Store, "copy", lambda self, group, sources, targets: copies.append(len(sources)))
    model = make("attention=sliding window=5")
    for paged in (True, False):
        engine = Engine(model, rows=1, tokens=92, reuse=False, paged=paged, page=4)
        assert len(list(engine.run([Request(ids=[3, 4, 5], max_new_tokens=60)]))) == 60
        assert bool(copies) is not paged


# ---------------------------------------------------------------- kernels that read pages


def ask(**changes):
    return AttentionQuery("bfloat16", 128, 128, n_heads=8, n_kv_heads=2, lengths=True, short_q=True, **changes)


@pytest.mark.parametrize(
    ("packages", "asks", "page"),
    [
        ((), [ask()], 16),
        (("flash-attn",), [ask()], 256),
        (("flash-attn-3",), [ask()], 16),
        (("flash-attn-4",), [ask(sinks=True)], 16),
        (("flash-attn", "flash-attn-3"), [ask()], 16),
        (("flash-attn",), [ask(sinks=True)], 16),  # nothing there reads pages
        (("flash-attn", "flash-attn-3"), [ask(bias="alibi")], 256),  # flash-attn 3 has no ALiBi
        (("flash-attn", "flash-attn-3"), [ask(bias="alibi"), ask(), ask()], 256),  # flash-attn 3 reads these too
        (("compiler",), [ask(sinks=True), ask(bias="alibi")], 16),  # by Zoo's own kernel
        (("compiler", "flash-attn"), [ask(), ask(sinks=True)], 256),  # flash-attn 2 comes before it
        (("compiler", "flash-attn"), [ask(sinks=True)], 16),
    ],
)
def test_pages_are_as_small_as_the_kernels_of_the_machine_read_them(packages, asks, page):
    assert choose_page(asks, machine(*packages)) == page


def test_a_named_kernel_decides_the_size_of_a_page():
    both = machine("flash-attn", "flash-attn-3")
    assert choose_page([ask()], both, "flash2") == 256
    assert choose_page([ask()], both, "sdpa") == 16
    assert choose_page([ask()], both, "nonesuch") == 16
    assert reads_pages(ask(page=16), both, "flash3")
    assert not reads_pages(ask(page=16), both, "flash2")


def test_a_layout_is_by_page_but_on_a_cpu():
    spec = make("attention=gqa").spec
    assert choose_layout(spec, torch.float32, torch.device("cpu"), "auto") == {"paged": False, "page": 16}
    assert choose_layout(spec, torch.float32, torch.device("cpu"), "auto", paged=True) == {"paged": True, "page": 16}
    assert choose_layout(spec, torch.float32, torch.device("cuda"), "auto")["paged"]


FLASH_KINDS = {
    "gqa": [],
    "window": ["attention=sliding"],
    "mixed": ["pattern=[near,layer]", "layers={near:{attention:{window:20}}}"],
    "alibi": ["position=alibi"],
    "softcap": ["+attention.softcap=20"],
    "sinks": ["+attention.sinks=true"],
    "chunk": ["+attention={window:16,window_kind:chunked}"],
    "t5": ["position=t5"],
    "mla": ["attention=mla"],
}
IN_PLACE = {
    "flash2": {"gqa", "window", "mixed", "alibi", "softcap"},
    "flash3": {"gqa", "window", "mixed", "softcap", "chunk"},
    "flash4": set(),  # heads in multiples of 16
}


@pytest.mark.parametrize("name", PACKAGE)
@pytest.mark.parametrize("kind", one_in(3, FLASH_KINDS))
def test_flash_kernels_read_the_pages_of_the_engine_where_they_lie(name, kind, monkeypatch):
    """Over stand-ins that have each version's signature and demands, and count what they are asked."""
    model = model_of(["max_seq_len=600", *FLASH_KINDS[kind]], dtype="bf16")
    prompts = [list(range(3, 40)), [5] * 9, list(range(60, 0, -1)) * 5]
    expected = read_logits(model, prompts, kernel="eager")
    monkeypatch.setitem(MACHINES, "cpu", machine(PACKAGE[name]))
    standins.install(monkeypatch, "flash_torch")
    calls = standins.install(monkeypatch, name)
    found = read_logits(model, prompts, kernel="auto")
    for got, wanted in zip(found, expected, strict=True):
        assert_close(got, wanted, rounded=torch.bfloat16)
    tables = [call for call in calls if {"block_table", "page_table"} & set(call.arguments)]
    assert bool(tables) == (kind in IN_PLACE[name])


def read_logits(model, prompts, kernel):
    """The logits after prompts of other lengths, and after four tokens more, of rows that decode together."""
    layout = choose_layout(model.spec, torch.bfloat16, torch.device("cpu"), kernel, paged=True)
    cache = Cache.allocate(model, len(prompts), 320, **layout)
    model.kernel, found = kernel, []
    with torch.inference_mode():
        for row, ids in zip(cache.rows, prompts, strict=True):
            found.append(model(torch.tensor([ids]), cache=Cache(cache.store, [row])).logits[:, -1].float())
        for token in (7, 11, 2, 30):
            found.append(model(torch.full((len(prompts), 1), token), cache=cache).logits[:, -1].float())
            assert cache.tensors is not None
    return found


# ---------------------------------------------------------------- prompts and decoding rows in one pass


@pytest.fixture
def varlen(monkeypatch):
    """The number of rows of each pass over pages whose rows have any number of new tokens."""
    found, begin = [], Cache.begin

    def watched(self, counts, new):
        begin(self, counts, new)
        if self.cu_seqlens_q is not None:
            found.append(len(self.rows))

    monkeypatch.setattr(Cache, "begin", watched)
    return found


SLOW_FLAT = ("mla and window", "attention=mamba2 position=none", "gla and sliding")
FLAT = ["attention=gqa", "position=alibi", "attention=mla", "attention=sliding window=5", "gated_delta and gqa"]
FLAT += [pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW_FLAT]


@pytest.mark.parametrize("kind", FLAT)
def test_a_request_gets_what_it_gets_alone_though_prompts_share_passes_by_page(kind, varlen, monkeypatch):
    """On a CPU no kernel reads pages in place, and rows are padded instead: the meaning that flash kernels are held
    against."""
    monkeypatch.setattr("zoo.run.cache_layout.reads_pages", lambda ask, *given: not ask.chosen)
    for seed in range(8000, 8012):
        run_paged(kind, seed, 6, (8, 16, 32)[seed % 3])
        if sum(rows > 1 for rows in varlen) > 8:
            return
    pytest.fail("no prompts shared a pass")


def test_long_chunks_of_latents_have_passes_of_their_own():
    """With latents of R channels, and N + V channels of a head's keys and values made of them, absorbed attention costs
    no more up to R·(N + V) / (2R − N − V) tokens; longer chunks are expanded."""
    model = make("attention=mla")
    attention = next(iter(model.spec.blocks.values())).attention
    made, wide = attention.qk_nope_head_dim + attention.v_head_dim, attention.kv_lora_rank
    limit = int(wide * made / (2 * wide - made))
    engine = Engine(model, rows=3, tokens=limit + 9, budget=3 * limit, reuse=False)
    for length in (3, limit, limit + 1):
        engine.add(Request(ids=[5] * length, max_new_tokens=1))
    chunks = engine.scheduler.plan()
    passes = [[chunk.count for chunk in batch] for batch in engine.passes.batches(chunks)]
    assert passes == [[3, limit], [limit + 1]]


class Steps:
    """The logits that an engine computes for tokens that are stated beforehand, by request and token."""

    def __init__(self, model, kernel, seed, page):
        rng = random.Random(seed)
        self.logits, rows = {}, rng.choice((2, 3, 6))
        engine = Engine(model, rows=rows, tokens=80, budget=rng.choice((40, 64, 300)), paged=True, page=page)
        engine.sampler.choose = self.choose
        self.states, waiting = {}, []
        for _ in range(6):
            ids = [rng.randrange(60) for _ in range(rng.choice((1, 2, 20, 37, 70)))]
            waiting.append(Request(ids=ids, max_new_tokens=rng.choice((1, 3, 6))))
        self.passes, compute = 0, engine.passes.run

        def run(batch):
            self.passes += 1
            return compute(batch)

        engine.passes.run = run
        with serving(model, kernel):
            while engine.busy or waiting:
                for _ in range(rng.choice((0, 1, 3))):
                    if waiting:
                        number = engine.add(waiting.pop())
                        self.states[id(engine.live[number][0].draws)] = number
                engine.step()

    def choose(self, logits, states):
        found = []
        for row, state in zip(logits, states, strict=True):
            number = self.states[id(state)]
            each = self.logits.setdefault(number, [])
            each.append(row.float())
            found.append((7 * number + 11 * len(each)) % 60)
        return found


@pytest.mark.parametrize("name", PACKAGE)
def test_flash_kernels_take_prompts_and_decoding_rows_in_one_pass(name, varlen, monkeypatch):
    """Over stand-ins with each version's signature and demands: the logits of eager, in fewer passes."""
    model = model_of(["max_seq_len=600", "head_dim=16"], dtype="bf16")
    for seed in (1, 3):
        wanted = Steps(model, "eager", seed, 256)
        assert not varlen
        with monkeypatch.context() as patch:
            patch.setitem(MACHINES, "cpu", machine(PACKAGE[name]))
            standins.install(patch, "flash_torch")
            calls = standins.install(patch, name)
            found = Steps(model, "auto", seed, 256)
        assert any(rows > 1 for rows in varlen) and found.passes < wanted.passes
        assert any(
            "cu_seqlens_q" in call.arguments and {"block_table", "page_table"} & set(call.arguments) for call in calls
        )
        assert found.logits.keys() == wanted.logits.keys()
        for number, each in wanted.logits.items():
            assert_close(torch.stack(found.logits[number]), torch.stack(each), rounded=torch.bfloat16)
        varlen.clear()


@pytest.mark.parametrize(
    ("overrides", "packages", "page", "taken"),
    [
        ([], ("flash-attn-3",), 16, True),
        ([], ("flash-attn",), 256, True),
        ([], ("flash-attn",), 16, False),  # pages of 256
        ([], (), 16, False),
        (["position=alibi"], ("flash-attn-3",), 16, False),
        (["position=alibi"], ("flash-attn",), 256, True),
        (["+attention.sinks=true"], ("flash-attn-3",), 16, False),
        (["pattern=[near,layer]", "layers={near:{attention:{sinks:true}}}"], ("flash-attn-3",), 16, False),
    ],
)
def test_a_pass_is_shared_where_the_kernels_of_all_layers_take_it(overrides, packages, page, taken, monkeypatch):
    monkeypatch.setitem(MACHINES, "cpu", machine(*packages))
    spec = model_of(overrides).spec
    assert takes_varlen(spec, torch.bfloat16, torch.device("cpu"), "auto", page) is taken
    assert not takes_varlen(spec, torch.float32, torch.device("cpu"), "auto", page)
    assert not takes_varlen(spec, torch.bfloat16, torch.device("cpu"), "sdpa", page)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_rows_end_to_end_see_the_keys_of_their_own_pages(kernel):
    torch.manual_seed(0)
    counts, totals, page, width = [3, 1, 7, 1], [10, 25, 7, 1], 4, 7
    q, pools = torch.randn(1, 12, 4, 8), torch.randn(2, 40, page, 2, 8)
    pages, ends = torch.randperm(40)[: 4 * width].view(4, width).int(), [0, *accumulate(counts)]
    given = {"lengths": torch.tensor(totals, dtype=torch.int32), "window": 6}
    mask = Mask(7, width * page, cu_seqlens_q=torch.tensor(ends, dtype=torch.int32), **given)
    found = attend(q, *pools, mask, scale=0.3, pages=pages, kernel=kernel)
    for row, (count, total) in enumerate(zip(counts, totals, strict=True)):
        own = [pool[pages[row].long()].flatten(0, 1)[None, :total] for pool in pools]
        alone = attend(q[:, ends[row] : ends[row + 1]], *own, Mask(count, total, window=6), scale=0.3, kernel="eager")
        torch.testing.assert_close(found[:, ends[row] : ends[row + 1]], alone)


def test_pools_of_another_dtype_are_cast_row_by_row():
    torch.manual_seed(0)
    q, pools = torch.randn(2, 1, 4, 8), torch.randn(2, 6, 4, 2, 8, dtype=torch.float64)
    pages, lengths = torch.tensor([[4, 1], [0, 5]], dtype=torch.int32), torch.tensor([7, 3], dtype=torch.int32)
    given = {"scale": 0.3, "pages": pages}
    wide = attend(q.double(), *pools, Mask(1, 8, lengths=lengths), **given)
    cast = attend(q, *pools, Mask(1, 8, lengths=lengths), **given)
    torch.testing.assert_close(cast, wide.float())


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("page", [16, 64])
@pytest.mark.parametrize("kind", one_in(20, [kind for kind in KINDS if not kind.startswith(SAME_CACHE)]))
def test_an_engine_that_reads_by_page_allocates_the_bytes_that_are_priced(kind, page):
    engine = Engine(make(kind), rows=3, tokens=92, source=92, reuse=False, paged=True, page=page)
    setup = Setup(dtype="fp32", context=engine.tokens, batch=3, engine="zoo", page=page)
    assert engine.store.nbytes == kv_cache(engine.model.spec, setup)["bytes"]


def test_an_engine_that_reads_by_page_stays_within_its_memory():
    model = make("mamba and sliding")
    row, two = (Engine(model, rows=rows, tokens=92, paged=True).store.nbytes for rows in (1, 2))
    assert Engine(model, rows=9, tokens=92, paged=True, memory=two).scheduler.rows == 2
    assert Engine(model, rows=9, tokens=92, paged=True, memory=two - 1).scheduler.rows == 1
    with pytest.raises(ConfigError, match="a row of 92 tokens needs"):
        Engine(model, rows=9, tokens=92, paged=True, memory=row - 1)


def test_results_that_are_equal_to_the_bit_are_not_read_by_page():
    model = make("attention=gqa")
    assert not Engine(model, rows=2, tokens=40, deterministic=True).store.paged
    with pytest.raises(ConfigError, match=r"^paged: "):
        Engine(model, rows=2, tokens=40, deterministic=True, paged=True)


def test_every_kernel_says_whether_it_reads_pages():
    assert {name for name, kernel in KERNELS.items() if kernel.pages_in_place} == {
        *(*PACKAGE, "flash2_hub", "flash3_hub", "triton")
    }
    assert {*PREFIX_LM, *SEQ2SEQ} <= set(KINDS)


def test_what_a_cache_takes_is_said():
    engine = Engine(make("attention=gqa"), rows=2, tokens=40, paged=True)
    size = "cache: 2 rows of up to 40 tokens, 0.00 GB in pages of 16 tokens"
    assert describe_cache(engine) == f"{size}, read by sdpa; a step computes up to 512 tokens"
