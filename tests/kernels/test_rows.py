"""Ragged rows over a pool, against each row by itself over keys of its own, in float64."""

import random
from itertools import accumulate

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from support.tiny_models import model_of
from zoo.bench.kernels.accuracy import FACTOR, SLACK
from zoo.cache.cache import Cache
from zoo.cache.cached_row import CachedRow
from zoo.cache.pool_store import Store, list_groups
from zoo.kernels import attend
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeySegment, PooledView, pooled, split_kv
from zoo.model.position.bias import ALiBi, T5Buckets

SCALE = 0.3
PAGE = 8


class Table:
    """What a T5 scheme reads its weights from."""

    def __init__(self, buckets, heads):
        self.table = torch.nn.Embedding(buckets, heads)


def lay(lengths, shared, numbers):
    """Runs of slots of rows of these lengths, which have the first `shared` tokens in common, and how many slots there
    are. Blocks of any size are given out in any order."""
    sizes = [numbers.choice((PAGE, numbers.randint(1, 200))) for _ in range(sum(lengths) + shared)]
    ends = list(accumulate(size + 1 for size in sizes))
    blocks = [(end - size - 1, end - 1) for end, size in zip(ends, sizes, strict=True)]
    numbers.shuffle(blocks)
    common, at = take(blocks, 0, shared)
    runs = []
    for length in lengths:
        own, at = take(blocks, at, length - min(length, shared))
        kept, left = [], min(length, shared)
        for first, stop in common:
            size = min(stop - first, left)
            kept += [(first, first + size)] if size else []
            left -= size
        runs.append(kept + own)
    return runs, ends[-1]


def take(blocks, at, tokens):
    """Runs for so many tokens from block `at` on, and the next block."""
    found = []
    while tokens:
        first, stop = blocks[at]
        size = min(stop - first, tokens)
        found.append((first, first + size))
        tokens, at = tokens - size, at + 1
    return found, at


def bias_of(kind, heads, causal, table, queries, keys):
    if kind == "alibi":
        return ALiBi().bias(None, heads, queries, keys, causal)
    return T5Buckets(n_heads=heads, n_buckets=8, max_distance=20).bias(table, heads, queries, keys, causal)


def make(seed, lengths, counts, shared, *, causal=True, window=None, chunk=None, bias=None, heads=(4, 2), width=8):
    """Queries, pools, and the rows. A bias is also drawn as a tensor, for the reference."""
    torch.manual_seed(seed)
    runs, slots = lay(lengths, shared, random.Random(seed))
    q = torch.randn(len(lengths), max(counts), heads[0], width)
    k, v = (torch.randn(heads[1], slots, width).transpose(0, 1) for _ in range(2))
    table, found = Table(8, heads[0]), []
    for length, count, own in zip(lengths, counts, runs, strict=True):
        keys = torch.arange(length)
        documents = (keys[None, length - count :] // chunk, keys[None] // chunk) if chunk else None
        row = KeySegment(Mask(count, length, causal=causal, window=window, documents=documents), own)
        if bias:
            with torch.no_grad():
                row.bias = bias_of(bias, heads[0], causal, table, keys[length - count :], keys)
        found.append(row)
    return q, k, v, found


def alone(q, k, v, row, number, **scores):
    """A row by itself, by the reference in float64: its keys looked up slot by slot."""
    slots = [slot for first, stop in row.runs for slot in range(first, stop)]
    mask = Mask(row.count, len(slots), causal=row.mask.causal, window=row.mask.window, documents=row.mask.documents)
    scores = {name: None if each is None else each.double() for name, each in scores.items() if name != "softcap"} | {
        "softcap": scores.get("softcap")
    }
    bias = None if row.bias is None else row.bias.dense().double()
    mine = q[number : number + 1, : row.count].double()
    return attend(
        mine, *(x[slots][None].double() for x in (k, v)), mask, scale=SCALE, bias=bias, kernel="eager", **scores
    )


ROWS = given(data=st.data())
SOON = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SOON
@ROWS
def test_a_ragged_row_gets_what_it_gets_alone(data):
    check(data)


@pytest.mark.slow
@settings(SOON, max_examples=1500)
@ROWS
def test_a_ragged_row_gets_what_it_gets_alone_in_many_more_shapes(data):
    check(data)


def check(data):
    """Rows of any lengths, in any runs, under any mask, bias and kernel."""
    draw = data.draw
    lengths = draw(st.lists(st.integers(1, 260), min_size=1, max_size=5))
    single = draw(st.booleans())
    counts = [1 if single else draw(st.integers(1, min(length, 40))) for length in lengths]
    shared = draw(st.sampled_from([0, 0, 1, 63, 64, 65, 130, 200]))
    window, chunk = draw(st.sampled_from([(None, None), (None, None), (7, None), (100, None), (None, 50)]))
    plain = draw(st.booleans())
    bias = None if plain else draw(st.sampled_from([None, "alibi", "t5"]))
    q, k, v, of_rows = make(
        draw(st.integers(0, 2**20)),
        lengths,
        counts,
        shared,
        causal=draw(st.integers(0, 3)) > 0,
        window=window,
        chunk=chunk,
        bias=bias,
        heads=draw(st.sampled_from([(4, 4), (6, 2), (4, 1)])),
    )
    scores = {"softcap": None, "sinks": None}
    if not plain:
        scores["softcap"] = draw(st.sampled_from([None, 2.0]))
        scores["sinks"] = torch.randn(q.shape[2]) if draw(st.booleans()) else None
    kernel = draw(st.sampled_from(["auto", "eager"]))
    made = PooledView(of_rows, splits=draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for limit in ("SHORT", "LONG"):
            patch.setattr(split_kv, limit, draw(st.sampled_from([1, 64])))
        for _ in range(2):  # layers
            y = made.attend(q, k, v, scale=SCALE, kernel=kernel, **scores)
            for number, row in enumerate(of_rows):
                expected = alone(q, k, v, row, number, **scores)
                torch.testing.assert_close(y[number : number + 1, : row.count].double(), expected, atol=5e-6, rtol=1e-4)
                assert not y[number, row.count :].any()
        flat = torch.cat([q[number, : row.count] for number, row in enumerate(of_rows)])[None]
        laid = PooledView(of_rows, splits=made.splits, varlen=True)
        ends = laid.attend(flat, k, v, scale=SCALE, kernel=kernel, **scores)
        for number, each in enumerate(ends.split(counts, 1)):
            expected = alone(q, k, v, of_rows[number], number, **scores)
            torch.testing.assert_close(each.double(), expected, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("counts", [[1] * 6, [1, 1, 30, 1, 5, 2]], ids=["one query", "several"])
def test_without_splits_a_row_gets_the_bits_it_gets_in_any_company(dtype, counts):
    """Beside other rows, alone, and alone over keys laid in one run."""
    q, k, v, of_rows = make(3, [300, 170, 90, 240, 64, 33], counts, 130)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    with torch.no_grad():
        together = PooledView(of_rows, splits=False).attend(q, k, v, scale=SCALE)
        for number, row in enumerate(of_rows):
            mine = q[number : number + 1, : row.count]
            alone = PooledView([row], splits=False).attend(mine, k, v, scale=SCALE)
            dense = attend(
                mine, *(pooled.read_runs(x, row)[None] for x in (k, v)), Mask(row.count, row.mask.n_keys), scale=SCALE
            )
            got = together[number : number + 1, : row.count]
            assert torch.equal(got, alone)
            assert torch.equal(got, dense)


class KeysRead(TorchDispatchMode):
    """The keys of each call of attention."""

    def __init__(self):
        super().__init__()
        self.keys = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "attention" in func.__name__:
            self.keys.append(args[1].shape[2])
        return func(*args, **(kwargs or {}))


def row_of(*runs, count=1):
    return KeySegment(Mask(count, sum(stop - first for first, stop in runs)), list(runs))


@pytest.mark.parametrize(
    ("of_rows", "keys"),
    [
        ([row_of((0, 1000), (1000 + 50 * n, 1020 + 50 * n)) for n in range(16)], [1000] + [20] * 16),
        # the row that wrote a prefix has its own tokens right behind it, and a prefix may have a prefix
        (
            [row_of((0, 1016)), row_of((0, 1000), (1100, 1103)), row_of((0, 200), (1200, 1300))],
            [200, 800, 16, 3, 100],
        ),
        ([row_of((0, 500)), row_of((0, 500))], [500]),  # copies of one prompt
        ([row_of((0, 40), (100, 400)), row_of((0, 40), (500, 700))], [40, 300, 200]),  # whole runs, however short
        ([row_of((0, 30), (100, 400)), row_of((0, 35), (500, 700))], [30, 300, 35, 200]),  # too short to be cut
        # a chunk of four sees all of the prefix, and its last run in part
        ([row_of((0, 1100), (1200, 1210), count=4), row_of((0, 1100), (1300, 1305))], [1100, 10, 5]),
        # pages that the same rows read, one after the other, are copied together, once for all
        ([row_of((0, 16), (32, 48), (64, 80), (200 + n, 400)) for n in range(3)], [48, 200, 199, 198]),
        ([row_of((0, 16), (100 * n, 100 * n + 9)) for n in (1, 2)], [16, 9, 9]),  # but not those of one row
        # nine queries on the last eight keys and one before: that one would see none of the last run
        ([row_of((0, 1500), (1600, 1608), count=9)], [1508]),
        ([row_of((0, 8), (16, 24), (32, 40))], [24]),  # short ones of a row are copied together
    ],
)
def test_what_rows_share_is_read_once(of_rows, keys):
    torch.manual_seed(0)
    width = max(row.count for row in of_rows)
    q, k, v = torch.randn(len(of_rows), width, 4, 8), torch.randn(2000, 2, 8), torch.randn(2000, 2, 8)
    with torch.no_grad(), KeysRead() as read:
        y = PooledView(of_rows).attend(q, k, v, scale=SCALE)
    assert sorted(read.keys) == sorted(keys)
    for number, row in enumerate(of_rows):
        expected = alone(q, k, v, row, number)
        torch.testing.assert_close(y[number : number + 1, : row.count].double(), expected, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("seed", range(3))
def test_joined_parts_err_no_more_than_twice_what_eager_does(dtype, seed):
    lengths = [1100 + 37 * n for n in range(6)]
    q, k, v, of_rows = make(seed, lengths, [1] * 5 + [20], 1100, heads=(6, 2), width=16)
    q, k, v = (3 * x.to(getattr(torch, dtype)) for x in (q, k, v))
    with torch.no_grad():
        got, eager = (PooledView(of_rows).attend(q, k, v, scale=SCALE, kernel=name) for name in ("auto", "eager"))
    for number, row in enumerate(of_rows):
        exact = alone(q, k, v, row, number)
        errors = [
            (y[number : number + 1, : row.count].double() - exact).abs().max() / exact.abs().max() for y in (got, eager)
        ]
        assert errors[0] <= FACTOR * errors[1] + 2 * SLACK[dtype]  # scores are nine times as large as usual


def test_a_plan_is_made_once_for_all_layers(monkeypatch):
    made = []

    def plan(*arguments, **options):
        made.append(1)
        return split_kv.plan_split(*arguments, **options)

    monkeypatch.setattr(pooled, "plan_split", plan)
    q, k, v, of_rows = make(1, [200, 90, 140], [1, 1, 1], 64)
    of_layers = PooledView(of_rows)
    for _ in range(4):
        of_layers.attend(q, k, v, scale=SCALE)
    assert len(made) == 1


def test_a_gradient_of_the_queries_is_that_of_each_row():
    q, k, v, of_rows = make(2, [120, 90], [1, 3], 64)
    q.requires_grad_()
    y = PooledView(of_rows).attend(q, k, v, scale=SCALE)
    (gradient,) = torch.autograd.grad(y.square().sum(), q)
    total = sum(alone(q, k, v, row, number).square().sum() for number, row in enumerate(of_rows))
    torch.testing.assert_close(gradient, torch.autograd.grad(total, q)[0])


PAGES = {
    "full": [],
    "window": ["attention=sliding", "window=9"],
    "ALiBi": ["position=alibi"],
    "latent": ["attention=mla"],
}


@pytest.mark.parametrize("name", PAGES)
def test_rows_alike_on_scattered_pages_are_read_where_they_lie(name):
    """Three rows grow in turns, a page at a time: their pages have no common stride."""
    model = model_of(PAGES[name])
    store = Store(model.spec, [40] * len(list_groups(model.spec)), 3, dtype=torch.float32, device="cpu")
    cached = [CachedRow(store) for _ in range(3)]
    ids = torch.randint(0, 67, (3, 45))
    with torch.no_grad():
        whole = model(ids).logits
        for first, stop in ((0, 16), (16, 21), (21, 40)):
            for number in random.sample(range(3), 3):
                model(ids[number : number + 1, first:stop], cache=Cache(store, [cached[number]]))
        for first in range(40, 45):
            cache = Cache(store, cached)
            got = model(ids[:, first : first + 1], cache=cache).logits
            where = cache._laid[0]
            assert where.index is None
            assert where.ragged or name == "window"
            torch.testing.assert_close(got[:, 0], whole[:, first], atol=1e-4, rtol=1e-4)
