"""Memory at the peak of reading prompts and of decoding, told without torch, against the tensors of a real run."""

import pytest
import torch

import zoo
from support.memory_tracker import StorageTracker
from support.packaged_specs import one_in
from support.saved_activations import saved_by
from support.saved_activations import told as told_of_sections
from support.tiny_models import AVERAGED, LENT, MIXED, spec_of
from zoo.analysis.solve import Room, find_largest_batch
from zoo.cache.cache import Cache
from zoo.compose import load
from zoo.costs import Setup, price
from zoo.costs.activations import PassShape, list_sections
from zoo.costs.generating import generating
from zoo.costs.shadow.shadow_layer import FEW_ROWS
from zoo.costs.transient import GenerationShape, _traced, measure_peaks
from zoo.kernels.mask import Mask
from zoo.model.position.bias import Sloped
from zoo.run import layer
from zoo.run.builder import build
from zoo.verify import _fake as fake_model

BATCH, CONTEXT = 2, 48

KINDS = {
    "mha": ["attention=mha"],
    "gqa": [],
    "mqa": ["attention=mqa"],
    "mla": ["attention=mla"],
    "sliding": ["attention=sliding"],
    "mixed": MIXED,
    "lent keys": LENT,
    "softcap": ["attention.softcap=20"],
    "sinks": ["attention.sinks=true"],
    "alibi": ["position=alibi"],
    "t5": ["position=t5"],
    "learned": ["position=learned"],
    "qk norm": ["attention.qk_norm={kind: rmsnorm}"],
    "gate": ["attention.gate=true"],
    "layernorm": ["norm=layernorm"],
    "sandwich": ["block=sandwich"],
    "parallel": ["block=parallel"],
    "mlp": ["ffn=mlp", "activation=gelu"],
    "moe": ["ffn=moe"],
    "large vocabulary": ["vocab_size=5000"],
    "mamba": ["attention=mamba", "position=none"],
    "mamba2": ["attention=mamba2", "position=none"],
    "delta": ["attention=gated_delta", "position=none"],
    "side by side": ["attention=side_by_side"],
    "two attentions": ["block=shortcut", "ffn=moe", "zero_experts=1"],
    "convolved": ["attention.short_conv=4"],
    "convolved latents": ["attention=mla", "attention.short_conv=3"],
    "convolved heads": ["attention=cca", *AVERAGED],
}


def measured(model, spec, batch, context):
    """Bytes of tensors at once, beside weights and cache, in a prefill and in a decode step."""
    cache = Cache.allocate(model, batch, context)
    found = []
    with torch.no_grad():
        for new in (context - 1, 1):
            tracker = StorageTracker()
            tracker.know((*model.parameters(), *model.buffers(), *held_by(cache)))
            with tracker:
                ids = torch.zeros(batch, new, dtype=torch.long)
                model(ids, cache=cache, logits_to_keep=1)
            found.append(tracker.most)
    return found


def held_by(cache):
    yield from (tensor for layer in cache.store.layers for tensor in layer)


def told(spec, batch, context, dtype):
    run = GenerationShape(context, batch, dtype, fused=False)
    return [measure_peaks(spec, run._replace(context=context - 1)).prefill, measure_peaks(spec, run).decode]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_decode_take_what_a_real_run_takes(kind, dtype):
    spec = spec_of(KINDS[kind])
    model = build(spec, device="cpu", dtype=dtype).eval()
    found = measured(model, spec, BATCH, CONTEXT)
    assert told(spec, BATCH, CONTEXT, dtype) == pytest.approx(found, rel=0.03)


# ---------------------------------------------------------------- encoder-decoders


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["t5-small", "bart-base"])
def test_an_encoder_decoder_takes_what_a_real_run_takes(model, dtype):
    spec = load(model, ["d_model=64", "n_layers=2", "n_heads=4", "vocab_size=2000", "d_ff=96"])
    built = build(spec, device="cpu", dtype=dtype).eval()
    cache, tracker, found = Cache.allocate(built, BATCH, CONTEXT, source=CONTEXT), StorageTracker(), []
    tracker.know((*built.parameters(), *built.buffers(), *held_by(cache)))
    with torch.no_grad(), tracker:
        memory = built.encoder(torch.zeros(BATCH, CONTEXT, dtype=torch.long)).hidden
        found.append(tracker.most)
        tracker.most = tracker.live
        for _ in range(2):
            ids = torch.zeros(BATCH, 1, dtype=torch.long)
            built.decoder(ids, memory=None if cache.has_source else memory, cache=cache, logits_to_keep=1)
            found.append(tracker.most)
            tracker.most = tracker.live
            for row in cache.rows:
                row.length = CONTEXT - 1
    peaks = measure_peaks(spec, GenerationShape(CONTEXT, BATCH, dtype, fused=False))
    assert list(peaks) == pytest.approx(found, rel=0.03)


# ---------------------------------------------------------------- published shapes, without their memory


@pytest.mark.parametrize(
    "model",
    one_in(
        9,
        [
            "llama3-8b",
            "gemma2-2b",
            "mixtral-8x7b",
            "deepseek-v2-lite",
            "gpt2",
            "qwen3-0.6b",
            "gpt-oss-20b",
            "bloom-560m",
        ],
    ),
)
def test_a_published_model_takes_what_a_run_on_fake_tensors_takes(model):
    """bfloat16 on a CPU: shapes and lifetimes are those of a real run, values there are none."""
    spec = load(model, [])
    context = min(512, spec.max_seq_len)
    with fake_model(spec, "bf16") as built:
        found = measured(built, spec, 1, context)
    assert told(spec, 1, context, "bf16") == pytest.approx(found, rel=0.03)


# ---------------------------------------------------------------- what is reported


def test_the_figure_of_stats_is_weights_cache_and_what_a_run_takes():
    spec = spec_of(["vocab_size=5000"])
    model = build(spec, device="cpu").eval()
    cache, tracker = Cache.allocate(model, BATCH, CONTEXT), StorageTracker()
    tracker.know((*model.parameters(), *held_by(cache)))
    with torch.no_grad(), tracker:
        model(torch.zeros(BATCH, CONTEXT, dtype=torch.long), cache=cache, logits_to_keep=1)
    weights = sum(each.nbytes for each in model.parameters())
    found = generating(spec, Setup(context=CONTEXT, batch=BATCH, dtype="fp32"), fused=False)
    assert found["weights"] == weights and found["kv_cache"] == cache.nbytes
    assert found["prefill"] == pytest.approx(tracker.most, rel=0.03)
    assert found["total"] == sum(found[name] for name in ("weights", "kv_cache", "prefill"))


def test_the_largest_batch_that_is_said_to_fit_does_when_it_runs():
    """By plain causal attention in float32, for which a CPU and a GPU hold the same tensors but for norms' inside."""
    spec, room = spec_of(["vocab_size=5000"]), 3_000_000
    setup = Setup(context=CONTEXT, dtype="fp32")
    found = find_largest_batch(spec, setup, Room(memory=room, usable=1.0, runtime=0))
    model = build(spec, device="cpu").eval()
    cache, tracker = Cache.allocate(model, found["batch"], CONTEXT), StorageTracker()
    tracker.know((*model.parameters(), *held_by(cache)))
    with torch.no_grad(), tracker:
        model(torch.zeros(found["batch"], CONTEXT, dtype=torch.long), cache=cache, logits_to_keep=1)
    taken = sum(each.nbytes for each in model.parameters()) + cache.nbytes + tracker.most
    assert found["needed"]["total"] <= room < found["one_more"]["total"]
    assert taken <= 1.01 * room and taken == pytest.approx(found["needed"]["total"], rel=0.03)


def test_products_of_few_rows_are_laid_out_as_the_built_layer_lays_them_out():
    assert layer.FEW_ROWS == FEW_ROWS


@pytest.mark.parametrize("fields", [{"tp": 2}, {"pp": 3}, {"cp": 2}])
def test_a_rank_has_less_alive_than_one_gpu_alone(fields):
    spec = spec_of(["vocab_size=5000"])
    alone, shared = (generating(spec, Setup(context=CONTEXT, **each)) for each in ({}, fields))
    assert shared["total"] < alone["total"] and shared["prefill"] <= alone["prefill"]


def test_a_long_pass_through_a_loop_is_told_from_short_ones():
    spec = spec_of(["attention=mamba2", "position=none"])
    run = GenerationShape(64 * 11 + 5, 1, "fp32", fused=False)
    whole = _traced({"": spec}, run)
    assert measure_peaks(spec, run) == pytest.approx(whole, rel=0.001)


# ---------------------------------------------------------------- a decoder that reads a memory from outside


def test_a_decoder_with_cross_attention_alone_keeps_what_autograd_saves():
    spec = spec_of(["cross=mha"])
    model = build(spec, device="cpu").train()
    found = told_of_sections(spec, list_sections(spec, PassShape(batch=2, context=9, dtype="fp32", fused=False)))
    ids, memory = torch.zeros(2, 9, dtype=torch.long), torch.randn(2, 9, spec.d_model)
    assert saved_by(model, lambda: model(ids, memory=memory)) == found


def test_a_decoder_with_cross_attention_alone_pays_for_the_pairs_of_its_memory():
    plain, crossed = (price(spec_of(each), context=16)["flops"] for each in ([], ["cross=mha"]))
    heads, width, d_model, layers = 4, 8, 32, 3
    products = 2 * d_model * heads * width  # of q, k, v or o, a token
    pairs = 4 * heads * width
    assert crossed["prefill"] - plain["prefill"] == layers * 16 * (4 * products + pairs * 16)
    assert crossed["decode"] - plain["decode"] == layers * (2 * products + pairs * 16)  # k and v are in the cache


@pytest.mark.parametrize(("name", "said"), [("mpt-7b", "flash-attn 2"), ("llama3-8b", "")])
def test_a_bias_that_takes_much_of_the_peak_is_named_with_its_bytes(name: str, said: str) -> None:
    memory = zoo.stats(name, context=8192)["memory"]
    assert ("generate_note" in memory) == bool(said)
    if said:
        size = 32 * 8192**2 * 2  # heads, pairs, bytes of bfloat16
        assert f"{size / 1e9:.3g} GB" in memory["generate_note"] and said in memory["generate_note"]


def test_a_bias_on_scores_is_not_kept_beside_the_mask_made_of_it() -> None:
    slopes = torch.tensor([0.5, 0.25])
    bias = Sloped(torch.arange(5), torch.arange(5), slopes)
    added = Mask(5, 5).additive(torch.device("cpu"), torch.float32, bias)
    assert bias._dense is None
    expected = [[-0.25 * (i - j) if j <= i else -torch.inf for j in range(5)] for i in range(5)]
    assert torch.equal(added[0, 1], torch.tensor(expected))


@pytest.mark.parametrize("model", ["t5-tiny", "llama-tiny", "gpt-tiny", "deepseek-tiny"])
def test_a_peak_is_the_same_under_torch_compiles_hook_on_frames(model):
    # Under the hook Python inlines no call, and a caller keeps its arguments until the call returns.
    alone = zoo.stats(model)["memory"]
    assert torch._dynamo.run(zoo.stats)(model)["memory"] == alone
