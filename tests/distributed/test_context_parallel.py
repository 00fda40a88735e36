"""Context parallelism: ranks that have some of a row's tokens each give together the loss and gradients of whole rows,
whether keys and values are gathered or travel round a ring; and a ring computes nothing that the mask hides."""

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from support.forked_processes import read_found, run_ranks
from zoo.compose import load
from zoo.costs.memory import training
from zoo.costs.rank_tensors import stages
from zoo.costs.setup import Setup
from zoo.costs.traffic import traffic
from zoo.distributed.context_parallel import SpreadContext
from zoo.distributed.seam import WHOLE_ROWS
from zoo.kernels.mask import Mask
from zoo.kernels.partial import EAGER, FLASH, FUSED, PartScores, choose_part
from zoo.kernels.ring import Ring
from zoo.kernels.score_bias import Given
from zoo.run.builder import build

TINY = ["n_layers=2", "d_model=48", "d_ff=64"]
FEATURES = {
    "plain": ["attention=mha"],
    "grouped": ["attention=gqa", "n_heads=6", "n_kv_heads=2"],
    "window": ["attention=sliding", "attention.window=7"],
    "softcap": ["attention.softcap=2.0", "attention.scale=0.7"],
    "sinks": ["attention.sinks=true", "attention.window=9"],
    "alibi": ["position=alibi", "attention=mqa"],
    "latents": ["attention=mla"],
    "chunk": ["attention={window:5,window_kind:chunked}"],
    "rounded_alibi": ["position=alibi", "position.rounded=true"],
    "buckets": ["position=t5"],
    "buckets_of_each_layer": ["position=t5_layerwise"],
    "normed": ["attention.qk_norm={kind: rmsnorm}", "attention.gate=true"],
    "narrow_values": ["attention.values={head_dim: 6, scale: 0.6}", "attention.out_norm={kind: rmsnorm}"],
    "bottleneck": ["attention=bottleneck", "block=bottleneck", "bottleneck_width=12", "n_ffns=2"],
    "latents_with_buckets": ["attention=mla", "position=t5"],
    "near_latents": ["attention=mla", "attention.window=7", "attention.rope_norm=true"],
    "lent_latents": [
        *("attention=mla", "pattern=[layer,reader]", "layers={reader: {attention: {kv_from: layer}}}"),
        *("attention.tempering={kind: scalable_softmax}", "position={rotary_dim: 8, learned: true}"),
        "attention.qk_rope_head_dim=8",
    ],
}
FEW = ("grouped", "window", "softcap", "sinks", "alibi", "latents")


def compare(processes, folder, cases, timeout=300):
    """Compare cases in so many processes; returns what each found, by case."""
    (folder / "cases.json").write_text(json.dumps(cases))
    run_ranks(processes, "support.context_parallel_ranks", folder / "cases.json", folder, timeout=timeout)
    return read_found(processes, folder)


def check(found, near=1e-6):
    for rank in found:
        for name, each in rank.items():
            angles = each["at"] == "position.alpha"  # which are float32 in any dtype, as is their sum over tokens
            assert each["loss"] < near and each["gradient"] < (10 * near if angles else near), (name, each)


def make_case(name, processes, seed, **changes):
    """A case of a feature: rows of a random length, every other of several documents."""
    drawn = random.Random(f"{name} {seed}")
    case = {"overrides": FEATURES[name], "tokens": 2 * processes * drawn.randint(1, 9), "documents": seed % 2 == 0}
    return {**case, "rings": True, **changes}


def test_two_ranks_give_what_one_gives_for_all_that_attention_does_with_scores(tmp_path):
    check(compare(2, tmp_path, {name: make_case(name, 2, number) for number, name in enumerate(FEATURES)}))


@pytest.mark.slow
def test_two_ranks_give_the_same_by_eager_and_where_layers_run_again(tmp_path):
    cases = {f"{name}, eager": make_case(name, 2, 0, kernel="eager") for name in ("grouped", "window")}
    cases |= {
        f"{each}, {name}": make_case(name, 2, 1, recompute=each) for each in ("full", "selective") for name in FEW
    }
    check(compare(2, tmp_path, cases))


@pytest.mark.slow
def test_four_ranks_give_what_one_gives(tmp_path):
    check(compare(4, tmp_path, {name: make_case(name, 4, number) for number, name in enumerate(FEW)}))


@pytest.mark.slow
def test_two_ranks_give_what_one_gives_under_autocast_to_its_rounding(tmp_path):
    autocast = {"dtype": "float32", "autocast": True, "tokens": 32}
    found = compare(2, tmp_path, {name: make_case(name, 2, 0, **autocast) for name in FEATURES})
    check(found, near=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("rings", [True, False])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_any_ranks_give_what_one_gives_whatever_the_length_and_documents(processes, rings, tmp_path):
    cases = {f"{name} {seed}": make_case(name, processes, seed, rings=rings) for name in FEATURES for seed in range(6)}
    check(compare(processes, tmp_path, cases, timeout=1500))


@pytest.mark.slow
def test_a_ring_sends_what_is_predicted_and_keeps_no_keys_of_others(tmp_path):
    cases, tokens, ranks = {}, 48, 3
    widths = [f"attention.{name}={size}" for name, size in {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8}.items()]
    models = {"grouped": FEATURES["grouped"], "latents": ["attention=mla", *widths, "attention.v_head_dim=24"]}
    for name, overrides in models.items():
        for rings in (True, False):
            how = {"overrides": overrides, "tokens": tokens, "dtype": "float32", "rings": rings}
            cases[f"{name} {'ring' if rings else 'all_gather'}"] = how
    found = compare(ranks, tmp_path, cases)[0]
    for name, overrides in models.items():
        spec = load("llama-tiny", [*TINY, *overrides])
        for way in ("ring", "all_gather"):
            setup = Setup(context=tokens, batch=2, precision="fp32", dtype="fp32", cp=ranks, cp_comm=way)
            assert found[f"{name} {way}"]["sent"] == traffic(spec, setup, stages(spec, setup)[0])["cp"]["bytes"]
        more = found[f"{name} all_gather"]["kept"] - found[f"{name} ring"]["kept"]
        priced = price_kept(spec, tokens, ranks, "all_gather") - price_kept(spec, tokens, ranks, "ring")
        assert more == pytest.approx(priced, rel=0.03)


def price_kept(spec, tokens, ranks, way):
    setup = Setup(context=tokens, batch=2, precision="fp32", dtype="fp32", cp=ranks, cp_comm=way)
    return training(spec, setup, fused=False)["activations"]


class Alone(SpreadContext):
    """The first of some ranks, without the others: it has its own tokens' keys in place of theirs."""

    def __init__(self, size):
        self.group, self.rank, self.size, self.rings = self, 0, size, False

    def gather_tokens(self, x):
        return torch.cat([x] * self.size, 1)


def sum_saved(spec, context):
    """Bytes of the tensors that autograd saves in a pass over two rows of 48 tokens, weights left out."""
    model, saved = build(spec, seed=0).train(), {}
    model.context = context
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}

    def keep(each):
        saved[each.untyped_storage().data_ptr()] = each.untyped_storage()
        return each

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        out = model(torch.zeros(2, 48, dtype=torch.long))
    assert out.logits.requires_grad
    return sum(each.nbytes() for place, each in saved.items() if place not in weights)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", ["plain", "grouped", "window", "alibi", "latents"])
def test_a_rank_saves_the_keys_that_its_runs_read(name, ranks):
    spec = load("llama-tiny", [*TINY, *FEATURES[name]])
    saved = sum_saved(spec, WHOLE_ROWS if ranks == 1 else Alone(ranks))
    assert price_kept(spec, 48, ranks, "all_gather") == pytest.approx(saved, rel=0.01)


# ---------------------------------------------------------------- the blocks of a ring


class Place(SpreadContext):
    """A rank's place in a ring, without processes."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def list_rings(size, tokens, window=None, documents=None):
    """The rings of all ranks, each with the token indices of its queries."""
    for rank in range(size):
        place, masks = Place(rank, size), []
        for start, stop in place.spans(tokens):
            apart = None if documents is None else (documents[:, start:stop], documents[:, :stop])
            masks.append(Mask(stop - start, stop, window=window, documents=apart))
        own = torch.cat([torch.arange(*span) for span in place.spans(tokens)])
        yield Ring.plan(place, tokens, masks, torch.device("cpu")), own


@pytest.mark.parametrize("seed", range(20))
def test_the_blocks_of_all_ranks_show_what_the_mask_shows_once_and_none_is_empty(seed):
    drawn = random.Random(seed)
    size, length = drawn.randint(1, 5), drawn.randint(1, 6)
    tokens, window = 2 * size * length, drawn.choice([None, drawn.randint(1, 12)])
    documents = (torch.rand(2, tokens) < 0.2).long().cumsum(1) if drawn.random() < 0.5 else None
    apart = None if documents is None else (documents, documents)
    expected = Mask(tokens, tokens, window=window, documents=apart).dense(torch.device("cpu"))
    found = torch.zeros(expected.shape, dtype=torch.int)
    for ring, own in list_rings(size, tokens, window, documents):
        for blocks in ring.turns:
            for block in blocks:
                seen = PartScores(1.0, mask=block.mask, seen=block.seen).draw_seen(torch.device("cpu"))
                assert seen is None or seen.any()
                keys = slice(block.first, block.first + length)
                found[:, :, own[block.queries], keys] += 1 if seen is None else seen.int()
    assert torch.equal(found, expected.int())


def test_every_rank_computes_as_many_blocks_of_a_causal_row():
    rings = [ring for ring, _ in list_rings(4, 64)]
    assert [[len(blocks) for blocks in ring.turns] for ring in rings] == [[3, 2, 2, 2]] * 4


def test_a_window_leaves_out_what_lies_before_it():
    assert sum(len(blocks) for ring, _ in list_rings(4, 64, window=8) for blocks in ring.turns) == 8 + 7


# ---------------------------------------------------------------- the kernels of a part


def attend_in_parts(kernel, q, k, v, dy, parts):
    """Attend over parts of the keys, merge them, and go back through each."""
    done = [kernel.forward(q, k[:, keys], v[:, keys], how) for keys, how in parts]
    lse = torch.stack([each for _, each in done]).logsumexp(0)
    y = sum(part * (each - lse).exp().transpose(1, 2)[..., None] for part, each in done).to(q.dtype)
    found = [kernel.backward(dy, q, k[:, keys], v[:, keys], y, lse, how) for keys, how in parts]
    dk, dv = (torch.cat([getattr(each, name) for each in found], 1) for name in ("k", "v"))
    return y, sum(each.q for each in found), dk, dv


def make_tensors(dtype=torch.float64, width=8, v_width=8):
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 4, width), (2, 12, 2, width), (2, 12, 2, v_width), (2, 6, 4, v_width))
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def reference(q, k, v, dy, seen, bias):
    """The same by torch's own attention, in one part."""
    q, k, v = (each.clone().requires_grad_() for each in (q, k, v))
    wide = [each.repeat_interleave(2, 2).transpose(1, 2) for each in (k, v)]
    added = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, -math.inf)
    added = added if bias is None else added + bias
    y = F.scaled_dot_product_attention(q.transpose(1, 2), *wide, attn_mask=added, scale=0.5).transpose(1, 2)
    return [y, *torch.autograd.grad(y, (q, k, v), dy)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kernel", [EAGER, FUSED], ids=["eager", "fused"])
def test_parts_give_together_what_whole_attention_gives_though_some_queries_see_nothing_of_one(kernel, biased):
    q, k, v, dy = make_tensors(v_width=4)
    seen = torch.ones(1, 1, 6, 12, dtype=torch.bool).tril(6)
    seen[..., 2:4, :6] = False
    bias = torch.randn(1, 4, 6, 12, dtype=q.dtype) if biased else None
    first, second = slice(0, 6), slice(6, 12)
    biases = [None if bias is None else bias[..., keys] for keys in (first, second)]
    own = PartScores(0.5, mask=Mask(6, 6), bias=biases[1])  # the queries' own tokens
    parts = [(first, PartScores(0.5, seen=seen[..., :6], bias=biases[0])), (second, own)]
    for mine, theirs in zip(
        attend_in_parts(kernel, q, k, v, dy, parts), reference(q, k, v, dy, seen, bias), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


class Declared:
    """A stand-in for an operator of torch's: its signature, and eager's arithmetic."""

    def __init__(self, name, compute):
        self.compute, self.declared = compute, getattr(torch.ops.aten, name).default._schema.arguments

    def __call__(self, *given, **named):
        told = {**dict(zip([each.name for each in self.declared], given, strict=False)), **named}
        assert set(told) <= {each.name for each in self.declared}
        assert {each.name for each in self.declared if not each.has_default_value()} <= set(told)
        left = told.get("window_size_left")
        assert told["dropout_p"] == 0 and told.get("window_size_right") == (None if left is None else 0)
        window = None if left is None else left + 1
        mask = Mask(told["max_q"], told["max_k"], window=window) if told["is_causal"] else None
        return self.compute(told, PartScores(told["scale"], mask=mask))


def test_flash_parts_call_torchs_operators_as_they_are_declared(monkeypatch):
    def forward(told, how):
        return (*EAGER.forward(told["query"], told["key"], told["value"], how), None, None, None)

    def backward(told, how):
        names = ("grad_out", "query", "key", "value", "out", "logsumexp")
        return EAGER.backward(*(told[name] for name in names), how)[:3]

    q, k, v, dy = make_tensors(v_width=4)
    parts = [(slice(0, 6), PartScores(0.5)), (slice(6, 12), PartScores(0.5, mask=Mask(6, 6, window=3)))]
    for name, compute in (("_flash_attention_forward", forward), ("_flash_attention_backward", backward)):
        monkeypatch.setattr(torch.ops.aten, name, Declared(name, compute))
    found, expected = (attend_in_parts(kernel, q, k, v, dy, parts) for kernel in (FLASH, EAGER))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_part_has_the_first_kernel_that_can():
    q, _, v, _ = make_tensors(torch.bfloat16)
    assert choose_part(q, v, PartScores(1.0), "auto") is FUSED
    assert choose_part(q, v, PartScores(1.0), "eager") is EAGER
    assert choose_part(q, v, PartScores(1.0, softcap=2.0), "auto") is EAGER
    on_gpu = SimpleNamespace(shape=q.shape, dtype=q.dtype, device=torch.device("cuda"), is_cuda=True)
    assert choose_part(on_gpu, v, PartScores(1.0, mask=Mask(6, 6)), "auto") is FLASH
    assert choose_part(on_gpu, v, PartScores(1.0, seen=torch.ones(1, 1, 6, 6).bool()), "auto") is EAGER
    assert choose_part(on_gpu, v, PartScores(1.0, bias=torch.zeros(1, 4, 6, 6)), "auto") is EAGER


def test_a_learned_bias_has_the_gradient_of_whole_attention():
    q, k, v, dy = make_tensors()
    given = torch.randn(1, 4, 6, 12, dtype=q.dtype, requires_grad=True)
    y, lse = EAGER.forward(q, k, v, PartScores(0.5, bias=Given(given).dense().detach()))
    mine = EAGER.backward(dy, q, k, v, y, lse, PartScores(0.5, bias=given.detach(), learned=True)).bias
    wide = [each.repeat_interleave(2, 2).transpose(1, 2) for each in (k, v)]
    expected = F.scaled_dot_product_attention(q.transpose(1, 2), *wide, attn_mask=given, scale=0.5).transpose(1, 2)
    (theirs,) = torch.autograd.grad(expected, given, dy)
    torch.testing.assert_close(mine.sum(0, keepdim=True), theirs)
