"""The stand-ins of flash-attn against loops over single numbers, and what each must refuse."""

import inspect
import math
import random
import sys

import pytest
import torch
from standins import Made, caches, flash_attn_2, flash_attn_3, flash_attn_4, install, torch_flash
from standins.misuses import HALF, REFUSED, VERSIONS, aten, crossed, ints, tensors, varlen, wide

from zoo.kernels import KERNELS

SCALE = 0.4


def sums_of(q, k, *, left, right, softcap=0.0, slopes=None, sinks=None):
    """The softmax's weights of one row, one pair at a time in Python's floats: [H][T] of {key: weight}."""
    group, shift = q.shape[1] // k.shape[1], k.shape[0] - q.shape[0]
    weights = [[{} for _ in range(q.shape[0])] for _ in range(q.shape[1])]
    for h in range(q.shape[1]):
        for t in range(q.shape[0]):
            for s in range(k.shape[0]):
                behind = t + shift - s  # how far the key lies before the query
                if (left is not None and behind > left) or (right is not None and -behind > right):
                    continue
                pairs = zip(q[t, h].tolist(), k[s, h // group].tolist(), strict=True)
                score = SCALE * math.fsum(x * y for x, y in pairs)
                score = softcap * math.tanh(score / softcap) if softcap else score
                weights[h][t][s] = math.exp(score - (slopes[h].item() * abs(behind) if slopes is not None else 0))
            total = sum(weights[h][t].values()) + (math.exp(sinks[h].item()) if sinks is not None else 0)
            weights[h][t] = {s: weight / total for s, weight in weights[h][t].items()}
    return weights


def naive(q, k, v, **how):
    """One row: q [T, H, C], k [S, K, C], v [S, K, Cv] → [T, H, Cv] in double."""
    group, out = q.shape[1] // k.shape[1], torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=torch.float64)
    for h, of_head in enumerate(sums_of(q, k, **how)):
        for t, weights in enumerate(of_head):
            for s, weight in weights.items():
                out[t, h] += weight * v[s, h // group].double()
    return out


def close(found, wanted):
    torch.testing.assert_close(found.double(), wanted.double(), atol=0.02, rtol=0.02)  # bfloat16 keeps 8 bits


def limits(window, causal, none):
    left, right = window
    return None if left == none else left, 0 if causal else None if right == none else right


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("_", range(6))
@pytest.mark.parametrize("version", [flash_attn_2, flash_attn_3, flash_attn_4], ids=["2", "3", "4"])
def test_whole_rows_are_what_single_numbers_give(version, _):
    none = None if version is flash_attn_4 else -1
    queries, keys, causal = random.randint(1, 6), random.randint(1, 9), random.random() < 0.5
    window = random.choice([(none, none), (2, 0), (3, 1), (none, 2), (1, none)])
    how = {"left": limits(window, causal, none)[0], "right": limits(window, causal, none)[1]}
    given, softcap = {}, random.choice([0.0, 2.0])
    if version is flash_attn_2 and random.random() < 0.7:
        given["alibi_slopes"] = how["slopes"] = torch.rand(4)
    if version is flash_attn_4 and random.random() < 0.7:
        given["learnable_sink"] = how["sinks"] = torch.randn(4)
    q, k, v = tensors(2, queries, keys, v_width=None if version is flash_attn_2 else 16)
    y = version.flash_attn_func(
        q, k, v, softmax_scale=SCALE, causal=causal, window_size=window, softcap=softcap, **given
    )
    y = y[0] if version is flash_attn_4 else y
    assert y.dtype == HALF
    for b in range(2):
        close(y[b], naive(q[b], k[b], v[b], softcap=softcap, **how))


@pytest.mark.parametrize("version", [flash_attn_2, flash_attn_3, flash_attn_4], ids=["2", "3", "4"])
def test_rows_end_to_end_are_the_rows_alone(version):
    q, k, v = (x[0] for x in tensors(1, 9, 12))
    of_q, of_k = [0, 4, 4, 9], [0, 3, 5, 12]
    ends = {
        "cu_seqlens_q": torch.tensor(of_q, dtype=torch.int32),
        "cu_seqlens_k": torch.tensor(of_k, dtype=torch.int32),
    }
    given = {"softmax_scale": SCALE, "causal": True, "window_size": (2, 0)}
    y = version.flash_attn_varlen_func(q, k, v, **ends, max_seqlen_q=5, max_seqlen_k=7, **given)
    y = y[0] if version is flash_attn_4 else y
    for b in (0, 2):
        (q0, q1), (k0, k1) = of_q[b : b + 2], of_k[b : b + 2]
        close(y[q0:q1], naive(q[q0:q1], k[k0:k1], v[k0:k1], left=2, right=0))


def test_torchs_operator_is_what_single_numbers_give():
    q, k, v = tensors(2, 3, 5)
    y, sums, *_ = torch_flash._flash_attention_forward(
        q, k, v, None, None, 3, 5, 0.0, True, False, scale=SCALE, window_size_left=2, window_size_right=0
    )
    close(y[1], naive(q[1], k[1], v[1], left=2, right=0))
    assert sums.shape == (2, 4, 3)
    ends = torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([0, 1, 5], dtype=torch.int32)
    y = torch_flash._flash_attention_forward(q[0], k[0], v[0], *ends, 2, 4, 0.0, True, False, scale=SCALE)[0]
    close(y[:2], naive(q[0, :2], k[0, :1], v[0, :1], left=None, right=0))


def test_a_causal_mask_is_aligned_at_the_bottom_right():
    """The two examples in flash-attn's docstrings, drawn out of values that are unit vectors."""
    for queries, keys, drawn in ((2, 5, ["11110", "11111"]), (5, 2, ["00", "00", "00", "10", "11"])):
        q, k = torch.zeros(1, queries, 1, 8, dtype=HALF), torch.zeros(1, keys, 1, 8, dtype=HALF)
        v = torch.eye(keys, 8, dtype=HALF)[None, :, None]
        for y in (
            flash_attn_2.flash_attn_func(q, k, v, causal=True),
            flash_attn_3.flash_attn_func(q, k, v, causal=True),
            flash_attn_4.flash_attn_func(q, k, v, causal=True)[0],
        ):
            assert ["".join(str(int(x > 0)) for x in row) for row in y[0, :, 0, :keys]] == drawn


def test_a_query_that_sees_nothing_gives_zero_and_no_gradient():
    q, k, v = tensors(1, 5, 2, grad=True)
    y = flash_attn_2.flash_attn_func(q, k, v, causal=True)
    y.sum().backward()
    assert not y[0, :3].any()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))
    assert not q.grad[0, :3].any()


def test_gradients_are_those_of_the_formula():
    q, k, v = tensors(1, 4, 6, grad=True, dtype=torch.float16)
    slopes, sinks = torch.rand(4), torch.randn(4, requires_grad=True)
    seen = torch.ones(4, 6).tril(2).triu(0).bool()
    behind = torch.arange(4)[:, None] + 2 - torch.arange(6)
    scores = torch.einsum("bthc,bshc->bhts", q, k.repeat_interleave(2, 2)).double() * SCALE
    scores = 3 * torch.tanh(scores / 3)
    for given, bias, more in (
        ({"alibi_slopes": slopes}, -slopes[:, None, None] * behind.abs(), None),
        ({"learnable_sink": sinks}, 0, sinks.double()[None, :, None, None].expand(1, 4, 4, 1)),
    ):
        version = flash_attn_2 if more is None else flash_attn_4
        y = version.flash_attn_func(q, k, v, softmax_scale=SCALE, causal=True, window_size=(2, 0), softcap=3.0, **given)
        y = y if more is None else y[0]
        full = (scores + bias).masked_fill(~seen, -math.inf)
        weights = (full if more is None else torch.cat([full, more], 3)).softmax(3)[..., :6]
        wanted = torch.einsum("bhts,bshc->bthc", weights, v.repeat_interleave(2, 2).double())
        aim, inputs = torch.randn_like(wanted), (q, k, v) if more is None else (q, k, v, sinks)
        found = torch.autograd.grad((y.double() * aim).sum(), inputs)
        for a, b in zip(found, torch.autograd.grad((wanted * aim).sum(), inputs, retain_graph=True), strict=True):
            torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)


def test_sums_are_the_logarithms_of_what_the_softmax_divides_by():
    q, k, v = tensors(1, 2, 3, heads=1, kv_heads=1)
    scores = SCALE * q[0, :, 0].double() @ k[0, :, 0].double().T
    _, sums, _ = flash_attn_2.flash_attn_func(q, k, v, softmax_scale=SCALE, return_attn_probs=True)
    torch.testing.assert_close(sums[0, 0].double(), scores.logsumexp(1))
    blind = flash_attn_2.flash_attn_func(*tensors(1, 2, 1), causal=True, return_attn_probs=True)[1]
    assert blind[0, 0, 0] == math.inf
    assert flash_attn_4.flash_attn_func(*tensors(1, 2, 1), causal=True, return_lse=True)[1][0, 0, 0] == -math.inf
    assert flash_attn_4.flash_attn_func(q, k, v)[1] is None


# ---------------------------------------------------------------- caches


@pytest.mark.parametrize("version", [flash_attn_2, flash_attn_3], ids=["2", "3"])
def test_new_keys_are_added_to_the_cache_in_place_and_read(version):
    q, k, v = tensors(2, 2, 10)
    new = [torch.randn(2, 2, 2, 16).to(HALF) for _ in range(2)]
    held, lengths = (k.clone(), v.clone()), torch.tensor([3, 7], dtype=torch.int32)
    y = version.flash_attn_with_kvcache(q, *held, *new, cache_seqlens=lengths, softmax_scale=SCALE, causal=True)
    for b, length in enumerate(lengths.tolist()):
        of_k, of_v = (torch.cat([x[b, :length], n[b]]) for x, n in zip((k, v), new, strict=True))
        close(y[b], naive(q[b], of_k, of_v, left=None, right=0))
        assert torch.equal(held[0][b], torch.cat([of_k, k[b, length + 2 :]]))
        assert torch.equal(held[1][b], torch.cat([of_v, v[b, length + 2 :]]))


@pytest.mark.parametrize(("version", "page"), [(flash_attn_2, 256), (flash_attn_3, 3)], ids=["2", "3"])
def test_pages_are_read_in_the_tables_order(version, page):
    q, _, _ = tensors(2, 1, 1)
    pool = [torch.randn(5, page, 2, 16).to(HALF) for _ in range(2)]
    table = torch.tensor([[4, 0], [2, 99]], dtype=torch.int32)  # what lies behind a row's length is not looked at
    lengths = torch.tensor([page + 1, 2], dtype=torch.int32)
    named = {"block_table" if version is flash_attn_2 else "page_table": table}
    before = [x.clone() for x in pool]
    new = [torch.randn(2, 1, 2, 16).to(HALF) for _ in range(2)]
    y = version.flash_attn_with_kvcache(q, *pool, *new, cache_seqlens=lengths, softmax_scale=SCALE, **named)
    rows = [torch.cat([x[4], x[0, :1], n[0]]) for x, n in zip(before, new, strict=True)]
    close(y[0], naive(q[0], *rows, left=None, right=None))
    rows = [torch.cat([x[2, :2], n[1]]) for x, n in zip(before, new, strict=True)]
    close(y[1], naive(q[1], *rows, left=None, right=None))
    assert torch.equal(pool[0][0, 1], new[0][0, 0])
    assert torch.equal(pool[0][2, 2], new[0][1, 0])


def test_version_4_reads_a_cache_by_its_function_for_unequal_lengths():
    q, k, v = tensors(2, 2, 6)
    lengths = torch.tensor([2, 5], dtype=torch.int32)
    given = {"seqused_k": lengths, "softmax_scale": SCALE, "causal": True, "window_size": (1, 0)}
    y, _ = flash_attn_4.flash_attn_varlen_func(q, k, v, **given)
    table = torch.tensor([[1], [0]], dtype=torch.int32)
    paged, _ = flash_attn_4.flash_attn_varlen_func(q, k, v, page_table=table, **given)
    for b, length in enumerate(lengths.tolist()):
        close(y[b], naive(q[b], k[b, :length], v[b, :length], left=1, right=0))
        close(paged[b], naive(q[b], k[1 - b, :length], v[1 - b, :length], left=1, right=0))


def test_rows_of_a_larger_cache_and_left_padding_are_found():
    q, k, v = tensors(1, 1, 6)
    k, v = (torch.cat([x, x.flip(1)]) for x in (k, v))
    given = {"cache_batch_idx": torch.tensor([1], dtype=torch.int32), "softmax_scale": SCALE}
    given |= {"cache_leftpad": torch.tensor([2], dtype=torch.int32)}
    for version in (flash_attn_2, flash_attn_3):
        y = version.flash_attn_with_kvcache(q, k, v, cache_seqlens=torch.tensor([5], dtype=torch.int32), **given)
        close(y[0], naive(q[0], k[1, 2:5], v[1, 2:5], left=None, right=None))


# ---------------------------------------------------------------- what is refused


TABLE = [
    pytest.param(VERSIONS[version], call, given, words, id=f"{version}-{call.__name__}-{number}")
    for version, rows in REFUSED.items()
    for number, (call, given, words) in enumerate(rows)
]


@pytest.mark.parametrize(("version", "call", "given", "words"), TABLE)
def test_a_misuse_is_refused_in_words(version, call, given, words):
    with pytest.raises((RuntimeError, AssertionError, TypeError, NotImplementedError), match=words):
        call(version, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"change": crossed}, "Input tensor must have contiguous last dimension"),
        ({"change": wide(20)}, "must be a multiple of 8"),
        ({"change": wide(264)}, "at most 256"),
        ({"change": wide(16, 8)}, "v must have shape"),
        ({"alibi_slopes": torch.ones(4)}, "does not support alibi"),
        ({"seqused_k": ints(1, 2)}, "does not play seqused_k"),
        ({"ends": (ints(0, 3), None)}, "must be both set or both not set"),
        ({"window_size_left": 1.0}, "must be an int"),
    ],
)
def test_torchs_operator_refuses_in_words(given, words):
    with pytest.raises((RuntimeError, TypeError, NotImplementedError), match=words):
        aten(**given)


@pytest.mark.parametrize(
    ("widths", "given", "words"),
    [
        ((136, 136), {}, r"\(136, 136\) is not supported on SM100/SM110"),
        ((256, 256), {"learnable_sink": torch.zeros(4)}, "does not support learnable_sink"),
        ((256, 256), {"softcap": 2.0}, "does not support softcap"),
    ],
)
def test_version_4_refuses_on_blackwell_what_its_kernels_lack(monkeypatch, widths, given, words):
    monkeypatch.setattr(flash_attn_4, "ARCH", 100)
    with pytest.raises(AssertionError, match=words):
        flash_attn_4.flash_attn_func(*tensors(1, 1, 1, width=widths[0], v_width=widths[1], grad=True), **given)
    flash_attn_4.flash_attn_func(*tensors(1, 1, 1, width=192, v_width=128))


def test_version_4_wants_pages_of_regular_heads():
    q, k, v = tensors(1, 1, 4, width=24)
    with pytest.raises(AssertionError, match="Paged KV does not support irregular head dim"):
        flash_attn_4.flash_attn_varlen_func(q, k, v, page_table=ints(0)[:, None], seqused_k=ints(2))


@pytest.mark.parametrize("version", [flash_attn_2, flash_attn_3], ids=["2", "3"])
def test_a_cache_passes_no_gradient(version):
    q, k, v = tensors(1, 1, 4, grad=True)
    with pytest.raises(RuntimeError, match="has no backward"):
        version.flash_attn_with_kvcache(q, k, v)
    with torch.no_grad():
        version.flash_attn_with_kvcache(q, k, v)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (flash_attn_3.flash_attn_func, "alibi_slopes"),
        (flash_attn_3.flash_attn_func, "dropout_p"),
        (flash_attn_3.flash_attn_varlen_func, "block_table"),
        (flash_attn_4.flash_attn_func, "alibi_slopes"),
        (flash_attn_4.flash_attn_func, "dropout_p"),
        (flash_attn_2.flash_attn_func, "learnable_sink"),
        (flash_attn_2.flash_attn_varlen_func, "seqused_k"),
    ],
)
def test_what_a_version_has_no_argument_for_is_a_type_error(function, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        inspect.signature(function).bind_partial(**{name: None})
    with pytest.raises(TypeError):
        function(*tensors(1, 1, 1), **{name: None})


def test_version_4_has_no_function_for_a_cache():
    assert not hasattr(flash_attn_4, "flash_attn_with_kvcache")


def test_version_2_takes_any_width_as_it_pads_and_3_copies_what_is_not_contiguous():
    q, k, v = tensors(1, 2, 3, width=20)
    close(flash_attn_2.flash_attn_func(q, k, v, softmax_scale=SCALE)[0], naive(q[0], k[0], v[0], left=None, right=None))
    varlen(flash_attn_3, cu_seqlens_q=ints(0, 9, 1, 9, 4, 9)[::2])


# ---------------------------------------------------------------- in place of the real ones


def test_a_stand_in_is_imported_for_one_test_and_writes_down_its_calls(monkeypatch):
    with monkeypatch.context() as patch:
        calls = install(patch, "flash2")
        import flash_attn

        flash_attn.flash_attn_func(*tensors(1, 2, 3), causal=True)
        name, given = calls[0]
        assert (name, given["causal"], given["k"]) == ("flash_attn_func", True, ("bfloat16", (1, 3, 2, 16)))
        assert install(patch, "flash4") == []
        from flash_attn.cute import flash_attn_func

        flash_attn_func(*tensors(1, 1, 1))
        assert isinstance(calls[0], Made)
        assert KERNELS["flash4"].loaded is None
    assert sys.modules.get("flash_attn") is not flash_attn_2


def test_torchs_operator_is_replaced_for_one_test(monkeypatch):
    real = torch.ops.aten._flash_attention_forward
    with monkeypatch.context() as patch:
        calls = install(patch, "flash_torch")
        torch.ops.aten._flash_attention_forward(*tensors(1, 1, 1), None, None, 1, 1, 0.0, False, False)
        assert [call.function for call in calls] == ["_flash_attention_forward"]
    assert torch.ops.aten._flash_attention_forward is real


def test_a_name_that_stands_for_nothing_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="there is no stand-in of 'flash5'"):
        install(monkeypatch, "flash5")


def test_a_table_may_be_longer_than_the_row_but_not_shorter():
    with pytest.raises(RuntimeError, match="cache_seqlens must lie in 0…4"):
        caches.lengths_of(ints(5), ints(0), 1, torch.zeros(3, 2, 1, 8), ints(0, 1)[None])
