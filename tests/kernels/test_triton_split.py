# B rows, T queries, S keys, H heads, K kv heads, G = H/K, C head width
"""The split-KV kernel without Triton: what it refuses, and its launches, over a stand-in of its code that reads the
arguments as the code does (strides, page table, lengths, parts) and computes by plain arithmetic. The code itself is
run by `make kernels-oracle`."""

import math
import sys
import types
from dataclasses import replace

import pytest
import torch

from support.tiny_models import model_of
from zoo import kernels
from zoo.bench.kernels.accuracy import check_case, list_refusals
from zoo.bench.kernels.cases import list_cases
from zoo.bench.kernels.decoding import run_prompts
from zoo.bench.kernels.processes import Settings
from zoo.cache.cache import Cache
from zoo.generation.engine import Engine
from zoo.kernels import KERNELS, AttentionQuery, Machine, attend, pick, triton_split
from zoo.kernels.base import Scores
from zoo.kernels.found import MACHINES
from zoo.kernels.mask import Mask

CASES = {each.name: each for each in list_cases()}
GPU = Machine("cuda", (9, 0), frozenset({"compiler"}))


class Launched:
    """A Triton function: `self[grid](…)` calls a plain one, and is counted."""

    def __init__(self, function, calls):
        self.function, self.calls = function, calls

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.calls.append((self.function.__name__, grid, options))
            return self.function(grid, *args, **options)

        return launch


class Fails:
    """A Triton function whose launch fails."""

    def __init__(self, launch):
        self.launch = launch

    def __getitem__(self, grid):
        return self.launch


def read(x, offset, count):
    """The channels at an offset into the memory that a tensor views."""
    return torch.as_strided(x, (count,), (1,), x.storage_offset() + offset).float()


def attend_part(grid, *, q, k, v, y, lse, **a):
    """The attention of each query to each part of the keys that it sees, from offsets and strides."""
    (programs, splits), group = grid, a["GROUP"]
    rows = programs // a["tiles"] // a["n_kv_heads"]
    heads, lines = a["n_kv_heads"] * group, a["lines"]
    assert a["tiles"] * a["TILE"] >= a["n_queries"] * group > (a["tiles"] - 1) * a["TILE"]
    for line in range(lines):
        place, query, head = line // heads // a["n_queries"], line // heads % a["n_queries"], line % heads
        row, count, at = place, a["n_queries"], query
        if a["ends"] is not None:
            ends, place, at = a["ends"].tolist(), 0, line // heads
            row = max(number for number, end in enumerate(ends[:-1]) if end <= at)
            count, query = ends[row + 1] - ends[row], at - ends[row]
            assert rows == len(ends) - 1 and count <= a["n_queries"]
        mine = read(q, place * a["q_row"] + at * a["q_token"] + head * a["q_head"], a["WIDTH"])
        held = a["n_keys"] if a["lengths"] is None else int(a["lengths"][row])
        token = query + held - count
        first = max(0, token - a["left"]) if a["LEFT"] else 0
        stop = min(held, token + a["right"] + 1) if a["RIGHT"] else held
        seen = list(range(first, max(stop, first)))
        each = max(1, -(-len(seen) // splits))
        for part in range(splits):
            scores, values = [], []
            for key in seen[part * each : (part + 1) * each]:
                paged = a["table"] is not None
                page = int(a["table"][row, key // a["PAGE"]]) if paged else row
                slot = key % a["PAGE"] if paged else key
                held_at = page * a["k_page"] + slot * a["k_slot"] + head // group * a["k_head"]
                score = float(mine @ read(k, held_at, a["WIDTH"])) * a["scale"]
                score = score if a["softcap"] is None else a["softcap"] * math.tanh(score / a["softcap"])
                if a["slopes"] is not None:
                    score -= float(read(a["slopes"], row * a["slope_row"] + head, 1)) * abs(token - key)
                scores.append(score)
                held_at = page * a["v_page"] + slot * a["v_slot"] + head // group * a["v_head"]
                shared = a["SHARED"] and k.data_ptr() == v.data_ptr()
                values.append(read(k if shared else v, held_at, a["V_WIDTH"]))
            if a["sinks"] is not None and splits == 1:
                scores.append(read_sink(a, place, at, head))
                values.append(torch.zeros(a["V_WIDTH"]))
            total = torch.tensor(scores).logsumexp(0) if scores else torch.tensor(-math.inf)
            shares = (torch.tensor(scores) - total).exp() if scores else []
            made = sum((s * v for s, v in zip(shares, values, strict=True)), torch.zeros(a["V_WIDTH"]))
            y.view(splits, lines, -1)[part, line] = made.to(y.dtype)
            if splits > 1:
                lse[part, line] = total


def read_sink(a, row, query, head):
    return float(read(a["sinks"], row * a["sink_row"] + query * a["sink_token"] + head, 1))


def join_parts(grid, parts, lse, y, **a):
    """The sum of the parts by the softmax of their logsumexps, beside a sink."""
    for line in range(*grid):
        row, query, head = line // a["n_heads"] // a["n_queries"], line // a["n_heads"], line % a["n_heads"]
        sums = lse[:, line]
        if a["sinks"] is not None:
            sums = torch.cat((sums, torch.tensor([read_sink(a, row, query % a["n_queries"], head)])))
        shares = sums.softmax(0).nan_to_num(0)[: a["splits"], None]
        y.view(len(range(*grid)), -1)[line] = (shares * parts[:, line]).sum(0).to(y.dtype)


@pytest.fixture
def launches(monkeypatch):
    """The launches of the stand-in, on what says that it is a GPU with Triton."""
    calls = []
    code = types.ModuleType("zoo.kernels.triton_code")
    code.attend_part, code.join_parts = Launched(attend_part, calls), Launched(join_parts, calls)
    monkeypatch.setitem(sys.modules, code.__name__, code)
    monkeypatch.setattr(kernels, "triton_code", code, raising=False)
    monkeypatch.setitem(MACHINES, "cpu", GPU)
    for field, value in (("broken", False), ("proven", set())):
        monkeypatch.setattr(KERNELS["triton"], field, value)
    return calls


SMALL = [name for name, case in CASES.items() if case.queries * case.keys * case.batch < 2000]


@pytest.mark.parametrize("name", SMALL)
def test_every_case_of_few_queries_equals_eager_or_is_refused(name, launches, monkeypatch):
    for dtype, least in (("float32", 7), ("bfloat16", 256)):
        monkeypatch.setattr(triton_split, "LEAST", least)
        monkeypatch.setattr(triton_split, "EMULATED", 50)
        row = check_case("triton", CASES[name], dtype, Settings("cpu", seed=7))
        assert row.get("passed", "refused" in row), row
        assert bool(launches) != ("refused" in row)


@pytest.mark.parametrize("fails", ["cannot be loaded", "the first call of attend_part failed"])
def test_a_kernel_that_fails_here_costs_auto_a_warning_and_not_the_run(fails, launches, monkeypatch):
    """As where there is no C compiler, which Triton needs for its launcher: keys are copied out of the pages then."""

    def fail(*args, **given):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    code = KERNELS["triton"] if "load" in fails else kernels.triton_code
    monkeypatch.setattr(code, "module" if "load" in fails else "attend_part", fail if "load" in fails else Fails(fail))
    model, prompts = model_of([]), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    with pytest.warns(UserWarning, match=f"triton.*{fails}, found RuntimeError: Failed to find C compiler.*another"):
        written = run_prompts(Engine(model, rows=3, tokens=24, paged=True), prompts, 8)
    monkeypatch.setitem(MACHINES, "cpu", Machine("cpu", None, frozenset()))
    assert written == run_prompts(Engine(model, rows=3, tokens=24, paged=False), prompts, 8)
    assert launches == []


@pytest.mark.parametrize("least", [1, 256])  # in several parts, and in one
def test_rows_of_any_number_of_queries_lie_end_to_end(least, launches, monkeypatch):
    monkeypatch.setattr(triton_split, "LEAST", least)
    monkeypatch.setattr(triton_split, "EMULATED", 50)
    torch.manual_seed(0)
    q, pool, values = torch.randn(1, 12, 16, 32), torch.randn(8, 4, 2, 32), torch.randn(8, 4, 2, 32)
    rows = {"lengths": torch.tensor([7, 3, 8]), "cu_seqlens_q": torch.tensor([0, 1, 4, 12], dtype=torch.int32)}
    given = {"scale": 0.3, "pages": torch.tensor([[4, 1], [0, 5], [2, 3]]), "sinks": torch.randn(16)}
    for window in (None, 2):
        mask = Mask(8, 8, window=window, **rows)
        found, wanted = (attend(q, pool, values, mask, kernel=kernel, **given) for kernel in ("triton", "eager"))
        torch.testing.assert_close(found, wanted)
    assert {grid[1] > 1 for name, grid, _ in launches if name == "attend_part"} == {least == 1}
    (tiles,) = {options["tiles"] for name, _, options in launches if name == "attend_part"}
    assert tiles == 64 // 16  # of the longest row


def test_what_it_refuses_is_what_it_lacks(launches):
    refused = {name for name, case in CASES.items() if list_refusals("triton", case, "bfloat16", "cpu")["forward"]}
    assert refused == {
        *("learned bias", "learned bias, causal", "documents", "documents and window", "prefix"),
        *("padding on the left", "padding on the right, all keys", "padding and window", "one query, padded cache"),
        *("another sequence's keys", "tokens that all see"),
    }


@pytest.mark.parametrize("latent", [False, True])
def test_values_that_are_the_keys_first_channels_are_not_read_again(latent, launches):
    torch.manual_seed(0)
    pool, values = torch.randn(6, 4, 1, 48), torch.randn(6, 4, 1, 32)
    q, pages = torch.randn(2, 3, 4, 48), torch.tensor([[4, 1], [0, 5]])
    given = {"scale": 0.3, "pages": pages}
    v = pool[..., :32] if latent else values
    mask = Mask(3, 8, lengths=torch.tensor([7, 3]))
    torch.testing.assert_close(
        attend(q, pool, v, mask, kernel="triton", **given), attend(q, pool, v, mask, kernel="eager", **given)
    )
    ((_, _, arguments),) = launches
    assert arguments["SHARED"] is latent
    assert (arguments["MAIN"], arguments["REST"]) == (32, 16)


def test_a_layer_in_pages_is_read_by_it_unless_flash_attn_is_there():
    ask = AttentionQuery("bfloat16", 128, 128, 32, 8, lengths=True, short_q=True, page=16)
    assert pick(ask, GPU).kernel.name == "triton"
    assert (
        pick(replace(ask, page=256), replace(GPU, packages=frozenset({"compiler", "flash-attn"}))).kernel.name
        == "flash2"
    )
    assert pick(replace(ask, bias="learned"), GPU).kernel.name == "sdpa"
    assert pick(ask, Machine("cuda", (9, 0))).kernel.name == "sdpa"
    assert pick(ask, replace(GPU, capability=(7, 5))).refusals["triton"].endswith("this is 7.5")
    assert str(pick(replace(ask, window=128), GPU).call) == "attend_part(sides=(127, 0))"


@pytest.mark.parametrize(
    ("rows", "new", "heads", "kv_heads", "width", "grid", "tile"),
    [
        (1, 1, 32, 8, 128, (8, 16), 16),  # Llama 3 8B: 4,096 keys in 16 parts of 256
        (32, 1, 32, 8, 128, (256, 1), 16),
        (64, 1, 32, 8, 128, (512, 1), 16),
        (1, 16, 32, 8, 128, (8, 16), 64),  # 64 queries of a kv head
        (1, 40, 32, 8, 128, (24, 11), 64),
        (1, 1, 128, 1, 576, (4, 16), 32),
    ],
)
def test_a_launch_occupies_the_device_whatever_the_rows_lengths_are(rows, new, heads, kv_heads, width, grid, tile):
    q, pool = (
        torch.empty(*shape, dtype=torch.bfloat16) for shape in ((rows, new, heads, width), (8, 16, kv_heads, width))
    )
    v, pages = pool[..., : 512 if width > 512 else width], torch.zeros(rows, 256, dtype=torch.long)
    how = Scores(Mask(new, 4096, lengths=torch.full((rows,), 70)), 0.1, pages=pages)
    launch = triton_split.lay_launch(q, pool, v, how, 132)
    assert (launch.grid, launch.arguments["TILE"]) == (grid, tile)
    for window, parts in ((128, 1), (1024, 4)):
        mask = Mask(1, 4096, lengths=how.mask.lengths, window=window)
        assert triton_split.lay_launch(q[:1, :1], pool, v, replace(how, mask=mask), 132).grid[1] == parts


def test_a_width_is_cut_into_a_power_of_two_and_a_rest():
    widths = {8: (16, 0), 16: (16, 0), 20: (16, 16), 80: (64, 16), 96: (64, 32), 128: (128, 0), 576: (512, 64)}
    assert {width: triton_split.split_width(width) for width in widths} == widths


@pytest.mark.parametrize(
    "overrides", [[], ["attention=mla"], ["position=alibi"], ["+attention.sinks=true", "attention=sliding", "window=9"]]
)
def test_a_model_decodes_from_pages_as_with_eager(overrides, launches):
    """Rows of other lengths, by one token and by three, as a draft's verification has them, and by one and three end to
    end."""
    model, found = model_of(["max_seq_len=64", *overrides]), {}
    for kernel in ("eager", "triton"):
        cache, model.kernel = Cache.allocate(model, 2, 40, paged=True, page=8), "eager"
        cache.store.new = 3
        with torch.inference_mode():
            for row, ids in zip(cache.rows, ([3, 5, 9] * 5, [5, 4]), strict=True):
                model(torch.tensor([ids]), cache=Cache(cache.store, [row]))
            model.kernel = kernel
            found[kernel] = [model(torch.full((2, new), 7), cache=cache).logits for new in (1, 3)]
            flat = Cache(cache.store, cache.rows, varlen=True)
            found[kernel].append(model(torch.full((1, 4), 7), cache=flat, counts=[1, 3]).hidden)
    for got, wanted in zip(found["triton"], found["eager"], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert len(launches) >= 2 * model.spec.n_layers
