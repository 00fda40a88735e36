"""The flex kernel against eager: the same masks and biases, traced into compiled code instead of drawn."""

import random
import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask

from support.packaged_specs import one_in
from support.tiny_models import model_of
from zoo import generate
from zoo.errors import KernelError
from zoo.kernels import attend, flex, prepare
from zoo.kernels.base import AttentionQuery, Machine
from zoo.kernels.found import MACHINES
from zoo.kernels.mask import Mask
from zoo.kernels.score_bias import Given
from zoo.kernels.view import KeySegment, PooledView
from zoo.lazy import load
from zoo.model.position.bias import ALiBi, T5Buckets

pytestmark = pytest.mark.xdist_group("flex")  # which share compiled code

CPU = torch.device("cpu")
HERE = Machine("cpu", None, frozenset({"compiler", "avx2"}))
CUDA = Machine("cuda", (9, 0), frozenset({"compiler"}))
DESK = Machine("cuda", (8, 9), frozenset({"compiler"}))
SCALE = 0.4


@pytest.fixture
def traced(monkeypatch):
    """flex as Dynamo traces it, its kernel in plain torch: what it compiles is counted, and costs no compiler."""
    torch._dynamo.reset()
    load()
    counter = CompileCounterWithBackend("eager")
    run = torch.compile(flex._attend, fullgraph=True, backend=counter)
    monkeypatch.setattr(flex, "_compiled", lambda: run)
    yield counter
    torch._dynamo.reset()


def documents(batch, queries, keys, **kind):
    numbers = torch.randint(0, 4, (batch, keys)).sort(-1).values
    return Mask(queries, keys, documents=(numbers[:, keys - queries :], numbers), **kind)


def padded(batch, queries, keys, **kind):
    real = torch.rand(batch, keys) < 0.7
    real[0] = False  # a row that sees nothing
    return Mask(queries, keys, padding=real, **kind)


MASKS = {
    "causal": lambda batch, queries, keys: Mask(queries, keys),
    "all": lambda batch, queries, keys: Mask(queries, keys, causal=False),
    "window": lambda batch, queries, keys: Mask(queries, keys, window=5),
    "both ways": lambda batch, queries, keys: Mask(queries, keys, causal=False, window=4),
    "padded": padded,
    "padded window": lambda *shape: padded(*shape, window=6),
    "documents": documents,
    "documents both ways": lambda *shape: documents(*shape, causal=False),
    "prefix": lambda batch, queries, keys: Mask(queries, keys, prefix=torch.randint(0, keys, (batch,))),
    "also": lambda batch, queries, keys: Mask(queries, keys, window=3, also=torch.rand(batch, queries, keys) < 0.1),
    "lengths": lambda batch, queries, keys: Mask(
        queries, keys, window=7, lengths=torch.randint(queries, keys + 1, (batch,))
    ),
}


class Table:
    """What a T5 scheme reads its weights from."""

    def __init__(self, buckets, heads):
        self.table = torch.nn.Embedding(buckets, heads)


def bias_of(kind, mask, batch, heads):
    queries, keys = mask.n_queries, mask.n_keys
    columns = torch.arange(keys - queries, keys), torch.arange(keys)
    if kind in ("alibi", "rounded alibi"):
        return ALiBi(rounded=kind != "alibi").bias(None, heads, *columns, mask.causal)
    if kind == "t5":
        scheme = T5Buckets(n_heads=heads, n_buckets=8, max_distance=20)
        return scheme.bias(Table(8, heads), heads, *columns, mask.causal)
    shapes = {"given": (batch, heads, queries, keys), "given for all rows": (heads, 1, keys)}
    return Given(torch.randn(shapes[kind])) if kind in shapes else None


BIASES = ("none", "alibi", "rounded alibi", "t5", "given", "given for all rows")


def case(
    name,
    shape,
    bias="none",
    *,
    dtype=torch.float32,
    heads=(6, 2),
    widths=(8, 8),
    softcap=None,
    sinks=False,
):
    """Flex's answer, eager's from the same numbers, and eager's from them in float32."""
    batch, queries, keys = shape
    mask = MASKS[name](*shape)
    q = torch.randn(batch, queries, heads[0], widths[0]).to(dtype)
    k, v = (torch.randn(batch, keys, heads[1], width).to(dtype) for width in widths)
    features = {
        "softcap": softcap,
        "sinks": torch.randn(heads[0]) if sinks else None,
        "bias": bias_of(bias, mask, batch, heads[0]),
    }
    with torch.no_grad():
        exact = attend(q.float(), k.float(), v.float(), mask, scale=SCALE, kernel="eager", **features)
        return *(attend(q, k, v, mask, scale=SCALE, kernel=name, **features) for name in ("flex", "eager")), exact


def check(*arguments, **features):
    got, expected, exact = case(*arguments, **features)
    assert got.dtype == expected.dtype
    if got.dtype == torch.float32:
        torch.testing.assert_close(got, exact, atol=5e-6, rtol=1e-4)
    else:
        errors = [(y.float() - exact).norm() / exact.norm() for y in (got, expected)]
        assert errors[0] <= 2 * errors[1] + 1e-3


PAIRS = [(name, BIASES[(first + more) % len(BIASES)]) for first, name in enumerate(MASKS) for more in range(3)]


@pytest.mark.parametrize(
    ("name", "bias"),
    [pytest.param(*each, marks=() if at % 6 == 0 else pytest.mark.slow) for at, each in enumerate(PAIRS)],
)
def test_what_is_traced_equals_eager(name, bias, traced):
    random.seed(f"{name} {bias}")
    queries, keys = random.choice(((1, 33), (7, 40), (13, 13), (140, 300)))
    heads, softcap = random.choice(((4, 4), (6, 2), (4, 1))), random.choice((None, 3.0))
    check(name, (2, queries, keys), bias, heads=heads, softcap=softcap, sinks=random.random() < 0.5)


COMPILED = [
    ("window", "none", [(2, 1, 33), (3, 1, 400)], {}),
    ("window", "none", [(2, 150, 150), (2, 131, 700)], {}),
    ("padded window", "alibi", [(2, 150, 150), (2, 129, 301)], {"softcap": 3.0, "sinks": True}),
    ("documents", "t5", [(2, 300, 300)], {}),
    ("also", "none", [(2, 140, 140)], {"sinks": True}),
    ("causal", "none", [(2, 257, 257), (2, 131, 131)], {"dtype": torch.bfloat16, "heads": (4, 1), "widths": (24, 5)}),
]
MORE = [
    ("window", "none", [(2, 7, 33), (3, 100, 100)], {}),
    ("padded", "alibi", [(2, 9, 40), (2, 13, 13)], {"softcap": 3.0, "sinks": True}),
    ("prefix", "given", [(2, 30, 30), (2, 17, 101)], {"softcap": 3.0}),
    ("window", "alibi", [(2, 1, 65)], {}),
    ("causal", "rounded alibi", [(2, 9, 700)], {}),
    ("lengths", "none", [(3, 5, 70)], {"sinks": True}),
    ("both ways", "none", [(2, 129, 129), (2, 257, 257)], {"dtype": torch.float16}),
]
EACH = [
    *(pytest.param(*each, marks=pytest.mark.slow) for each in COMPILED),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE),
]


@pytest.mark.parametrize(("name", "bias", "shapes", "features"), EACH)
def test_compiled_code_equals_eager(name, bias, shapes, features):
    for shape in shapes:
        check(name, shape, bias, **features)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("column", [False, True])
def test_blocks_are_those_that_torch_makes(name, column):
    for queries, keys in ((130, 130), (257, 300), (300, 700)):
        mask = MASKS[name](2, queries, keys)
        mine = flex._drawn(mask, column, CPU).blocks
        # torch's own wants tensors that vmap can index, so it reads the drawn mask
        shown = torch.nn.functional.pad(mask.dense(CPU), (int(column), 0), value=True)
        theirs = create_block_mask(
            lambda b, h, i, j, shown=shown: shown[b, 0, i, j], shown.shape[0], None, *shown.shape[2:], "cpu"
        )
        for part, other in (("kv", 0), ("full_kv", 2), ("q", 4), ("full_q", 6)):
            counts, indices = getattr(theirs, f"{part}_num_blocks"), getattr(theirs, f"{part}_indices")
            assert torch.equal(mine[other], counts)
            assert torch.equal(mine[other + 1], indices)


def test_blocks_drawn_in_pieces_are_those_drawn_at_once(monkeypatch):
    mask = padded(3, 700, 700)
    whole = flex._blocks(mask, False, CPU)
    monkeypatch.setattr(flex, "AT_ONCE", 1)
    for one, other in zip(whole, flex._blocks(mask, False, CPU), strict=True):
        assert torch.equal(one, other)


def test_layers_and_passes_share_what_is_drawn():
    ask = AttentionQuery("float32", 8, 8)
    one, other = Mask(200, 300, window=7), Mask(200, 300, window=7)
    for mask in (one, other):
        prepare(mask, ask, CPU, torch.float32, kernel="flex")
    drawn = flex._drawn(one, False, CPU)
    assert drawn is flex._drawn(one, False, CPU)
    assert drawn.blocks is flex._drawn(other, False, CPU).blocks
    assert drawn.blocks is not flex._drawn(Mask(200, 300, window=8), False, CPU).blocks


def test_what_is_kept_from_inference_can_be_trained_with():
    flex._blocks_of_numbers.cache_clear()
    flex._whole.cache_clear()
    with torch.inference_mode():
        kept = [flex._drawn(Mask(n, n), False, CPU).blocks for n in (5, 201)]
    assert not any(each.is_inference() for blocks in kept for each in blocks if each is not None)


MODELS = {
    "rotary": [],
    "softcap and two kinds of layer": [
        *("pattern=[near,layer]", "layers={near:{attention:{window:4}}}", "attention.softcap=5.0"),
    ],
    "sinks": ["attention.sinks=true"],
    "alibi": ["position=alibi"],
    "latent": ["attention=mla"],
    "relative logits": ["position=relative_logits", "relative_extent=6"],
}


@pytest.mark.parametrize("name", one_in(6, MODELS))
def test_generation_gives_eagers_tokens_and_compiles_for_no_length(name, traced):
    model, ids = model_of(MODELS[name]), torch.randint(0, 67, (2, 9))
    expected = generate(model, ids, 24, kernel="eager")
    assert torch.equal(generate(model, ids, 24, kernel="flex"), expected)
    count = traced.frame_count
    assert count == 2 * len(set(model.spec.blocks))  # a prompt, and a token
    generate(model, torch.randint(0, 67, (3, 17)), 30, kernel="flex")
    assert traced.frame_count == count


def test_a_padded_row_generates_what_it_does_alone(traced):
    model, ids = model_of(MODELS["softcap and two kinds of layer"]), torch.randint(0, 67, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    together = generate(model, ids, 12, attention_mask=mask, kernel="flex")
    assert torch.equal(together[:1, 9:], generate(model, ids[:1, 4:], 12, kernel="flex")[:, 5:])


def test_pages_are_read_in_order(traced):
    pool_k, pool_v = torch.randn(9, 4, 2, 8), torch.randn(9, 4, 2, 8)
    pages = torch.stack([torch.randperm(9)[:5], torch.randperm(9)[:5]]).int()
    q = torch.randn(2, 3, 4, 8)
    mask = Mask(3, 20, lengths=torch.tensor([17, 6]))
    answers = [attend(q, pool_k, pool_v, mask, scale=SCALE, pages=pages, kernel=name) for name in ("flex", "eager")]
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize("bias", ["none", "t5", "given"])
@pytest.mark.parametrize("sinks", [False, True])
def test_gradients_on_cuda_are_eagers(bias, sinks, traced, monkeypatch):
    """As far as a CPU can tell: torch's plain version of the kernel has the gradient that it keeps from CPUs."""
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex, "_gives_sums", lambda device: True)
    monkeypatch.setitem(MACHINES, "cpu", CUDA)
    mask = padded(2, 20, 20)
    q, k, v = (torch.randn(2, 20, heads, 16, requires_grad=True) for heads in (4, 2, 2))
    added = bias_of(bias, mask, 2, 4)
    weights = [q, k, v]
    sink = torch.randn(4, requires_grad=True) if sinks else None
    weights += [sink] if sinks else []
    if bias == "t5":
        weights.append(added.table.weight)
    if bias == "given":
        added = Given(added.tensor.requires_grad_())
        weights.append(added.tensor)
    results = []
    for name in ("flex", "eager"):
        y = attend(q, k, v, mask, scale=SCALE, softcap=2.0, bias=added, sinks=sink, kernel=name)
        results.append([y, *torch.autograd.grad(y, weights, torch.cos(y.detach()))])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-4)


def test_code_compiled_around_it_takes_it_in():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=False)
    def layer(q, k, v, mask, sinks):
        return attend(q, k, v, mask, scale=SCALE, softcap=2.0, sinks=sinks, kernel="flex")

    q, k, v = torch.randn(2, 140, 4, 8), torch.randn(2, 140, 2, 8), torch.randn(2, 140, 2, 8)
    sinks = torch.randn(4)
    for _ in range(2):  # passes
        mask = documents(2, 140, 140)
        prepare(mask, AttentionQuery("float32", 8, 8, sinks=True, documents=True), CPU, torch.float32, kernel="flex")
        expected = attend(q, k, v, mask, scale=SCALE, softcap=2.0, sinks=sinks, kernel="eager")
        for _ in range(2):  # layers
            torch.testing.assert_close(layer(q, k, v, mask, sinks), expected, atol=2e-6, rtol=1e-4)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.slow
def test_what_is_compiled_around_it_may_make_the_mask():
    load()

    @torch.compile(fullgraph=True, backend="eager")
    def layer(q, k, v, numbers):
        seen = attend(q, k, v, Mask(140, 140, documents=(numbers, numbers)), scale=SCALE, kernel="flex")
        return seen + attend(q, k, v, Mask(140, 140, window=5), scale=SCALE, kernel="flex")

    q, k, v = torch.randn(2, 140, 4, 8), torch.randn(2, 140, 2, 8), torch.randn(2, 140, 2, 8)
    numbers = torch.randint(0, 4, (2, 140)).sort(-1).values
    masks = Mask(140, 140, documents=(numbers, numbers)), Mask(140, 140, window=5)
    expected = sum(attend(q, k, v, mask, scale=SCALE, kernel="eager") for mask in masks)
    torch.testing.assert_close(layer(q, k, v, numbers), expected, atol=2e-6, rtol=1e-4)


def test_it_is_compiled_where_nothing_else_shall_be(traced):
    """While a compiled model in training writes a sample, say."""
    with torch.compiler.set_stance("force_eager"):
        check("window", (2, 7, 33))
    assert traced.frame_count == 1


@pytest.mark.parametrize(
    ("machine", "features", "reason"),
    [
        (HERE, {}, None),
        (HERE, {"needs_grad": True}, "no gradient on a CPU"),
        (HERE, {"bias": "learned"}, None),  # whose gradient is wanted where any is
        (Machine("cpu", None, frozenset({"compiler"})), {}, "x86-64 with AVX2"),
        (HERE, {"dtype": "float64"}, "float16, not float64"),
        (HERE, {"head_dim": 4, "v_head_dim": 600}, None),
        (Machine("cpu"), {}, "finds no C\\+\\+ compiler"),
        (Machine("cuda", (9, 0)), {}, "finds no triton"),
        (Machine("mps", None, frozenset({"compiler"})), {}, "not for mps"),
        (CUDA, {"needs_grad": True, "bias": "learned", "sinks": True, "softcap": 2.0, "page": 16}, None),
        (CUDA, {"head_dim": 8}, "16 channels or more, not 8"),
        (CUDA, {"head_dim": 576, "v_head_dim": 512}, None),
        (
            DESK,
            {"head_dim": 576, "v_head_dim": 512, "needs_grad": True},
            "heads of 576 and 512 .* than the GPU's 99 KiB",
        ),
        (Machine("cuda", (7, 5), CUDA.packages), {}, "bfloat16 from compute capability 8.0 on, found 7.5"),
        (Machine("cuda", (7, 5), CUDA.packages), {"dtype": "float16"}, None),
        (Machine("cuda", (6, 1), CUDA.packages), {"dtype": "float32"}, "float32 from compute capability 7.0 on"),
    ],
)
def test_it_refuses_what_its_compiled_code_cannot(machine, features, reason):
    ask = AttentionQuery(**{"dtype": "bfloat16", "head_dim": 64, "v_head_dim": 64, **features})
    said = flex.Flex().refuses(ask, machine)
    assert (said is None) == (reason is None)
    assert re.search(reason or "", said or "")


def test_asked_for_a_gradient_on_a_cpu_it_says_so():
    q = torch.randn(1, 3, 2, 8, requires_grad=True)
    with pytest.raises(KernelError, match="flex was asked for, but flex_attention has no gradient on a CPU"):
        attend(q, q, q, Mask(3, 3), scale=SCALE, kernel="flex")


def test_its_call_names_what_the_code_is_made_of():
    ask = AttentionQuery("bfloat16", 64, 64, 8, 2, window=5, softcap=2.0, bias="alibi", documents=True)
    call = flex.Flex().call(ask)
    assert str(call) == ("flex_attention(score_mod=softcap+alibi, block_mask=causal+window+documents, enable_gqa=True)")


@pytest.mark.parametrize("sinks", one_in(2, [True, False]))
def test_ragged_rows_get_what_each_gets_alone(sinks, traced):
    """Rows of other lengths in one pool, one of them in two runs; the compiled code serves all."""
    runs = [[(0, 40)], [(48, 60), (80, 99)], [(100, 107)]]
    counts, q = (1, 5, 1), torch.randn(3, 5, 4, 8)
    k, v = torch.randn(120, 2, 8), torch.randn(120, 2, 8)
    features = {"softcap": 2.0, "sinks": torch.randn(4) if sinks else None}
    rows = [
        KeySegment(Mask(count, sum(b - a for a, b in own), window=9), own)
        for count, own in zip(counts, runs, strict=True)
    ]
    with torch.no_grad():
        y = PooledView(rows).attend(q, k, v, scale=SCALE, kernel="flex", **features)
        for number, row in enumerate(rows):
            keys = torch.cat([torch.arange(*run) for run in row.runs])
            mask = Mask(row.count, len(keys), window=9)
            mine = q[number : number + 1, : row.count]
            alone = attend(mine, k[None, keys], v[None, keys], mask, scale=SCALE, kernel="eager", **features)
            torch.testing.assert_close(y[number : number + 1, : row.count], alone, atol=5e-6, rtol=1e-4)
