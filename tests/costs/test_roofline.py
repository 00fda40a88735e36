"""The roofline against figures worked out by hand, against the FLOPs and caches counted elsewhere, and as a bound."""

import math
import random

import pytest

from support.packaged_specs import load, one_in
from support.tiny_models import every_choice, name, spec_of
from zoo.costs import Setup, flops, params
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.hardware import hardware, list_gpus
from zoo.costs.operators import Chosen, operators
from zoo.costs.roofline import MOST, roofline, turnover
from zoo.costs.rows import tabulate
from zoo.errors import ConfigError
from zoo.spec import Embedding, walk

EVERY = pytest.mark.parametrize("choice", list(every_choice()), ids=name)
SEQ2SEQ = ["kind=encoder_decoder", "encoder={n_layers: 2}", "cross=mha"]
MIXTURE = ["ffn=moe", "n_experts=8"]


def decode(spec, **setup):
    return roofline(spec, Setup(**setup))["decode"]


# ---------------------------------------------------------------- by hand


LLAMA = {  # Llama-3-8B in bf16 after 4096 tokens: (2·(N − table) + B·131,072·4096) / bandwidth, B = 1 and 32
    "a100-80g": (131, 2027),
    "h100": (215, 3330),
    "h200": (309, 4772),
    "b200": (515, 7953),
    "l40s": (56, 859),
    "mi300x": (341, 5269),
}


@pytest.mark.parametrize("gpu", LLAMA)
def test_llama_3_8b_decodes_as_fast_as_its_bytes_can_be_read(gpu):
    spec = load("llama3-8b")
    alone, many = (decode(spec, gpu=gpu, context=4096, batch=batch) for batch in (1, 32))
    assert (round(alone["tokens_per_second"]), round(many["tokens_per_second"])) == LLAMA[gpu]
    assert alone["side"] == many["side"] == "bandwidth"
    read = 2 * (8_030_261_248 - 128_256 * 4096) + 2 * 4096  # all but the table of tokens, and one row of that
    assert alone["weight_bytes"] == read
    assert alone["cache_bytes"] == 131_072 * 4096
    assert many["tokens_per_second_each"] == pytest.approx(many["tokens_per_second"] / 32)


def test_experts_read_grow_with_the_batch_until_all_are():
    spec = load("qwen3-30b-a3b")
    read = [decode(spec, gpu="h200", batch=batch)["experts"]["layer.ffn"]["read"] for batch in (1, 8, 32)]
    assert read == pytest.approx([8.0, 51.6, 111.8], abs=0.05)
    alone, all_of_them = (decode(spec, gpu="h200", batch=batch)["weight_bytes"] for batch in (1, 4096))
    table = 2 * 151_936 * 2048
    assert alone == pytest.approx(2 * 3_353_032_704 - table, rel=1e-5)  # the active parameters
    assert all_of_them == pytest.approx(2 * 30_532_122_624 - table, rel=1e-3)


def test_a_drawn_batch_meets_as_many_experts_as_expected():
    draw, count, k, tokens = random.Random(0), 64, 6, 12
    met = [len({e for _ in range(tokens) for e in draw.sample(range(count), k)}) for _ in range(3000)]
    assert Chosen(1.0, count, k).distinct(tokens) == pytest.approx(sum(met) / len(met), rel=0.005)


def test_latents_absorbed_take_more_flops_and_fewer_bytes_than_expanded():
    spec, layers, context = load("deepseek-v3"), 61, 4096
    found = decode(spec, gpu="h200", context=context)
    assert found["core_flops"] == 278_528 * context * layers
    assert found["expanded"]["core_flops"] == 81_920 * context * layers
    assert found["cache_bytes"] == 1_152 * context * layers
    assert found["expanded"]["cache_bytes"] == 81_920 * context * layers
    assert found["weight_bytes"] == found["expanded"]["weight_bytes"]
    assert found["tokens_per_second"] > found["expanded"]["tokens_per_second"]


def test_a_prompt_is_bound_by_compute_and_a_step_by_bandwidth():
    spec = load("llama3-8b")
    found = roofline(spec, Setup(gpu="h100", context=8192))
    assert (found["prefill"]["side"], found["decode"]["side"]) == ("compute", "bandwidth")
    assert found["prefill"]["seconds"] == pytest.approx(flops.count_flops(spec, 8192)["prefill"] / 989e12)
    assert found["ridge"] == pytest.approx(989e12 / 3.35e12)
    assert found["decode"]["intensity"] < found["ridge"] < found["prefill"]["intensity"]


def test_training_time_is_flops_over_the_share_of_the_peak():
    spec = load("llama3-8b")
    found = roofline(spec, Setup(gpu="h100", context=8192, batch=2, dp=512, tp=2, mfu=0.4, train_tokens=15e12))["train"]
    rate = 1024 * 989e12 * 0.4 / flops.count_flops(spec, 8192)["train"]
    assert found["tokens_per_second"] == pytest.approx(rate)
    assert found["tokens_per_second_at_peak"] == pytest.approx(rate / 0.4)
    assert found["days"] == pytest.approx(15e12 / rate / 86400)
    assert found["gpu_hours"] == pytest.approx(15e12 / rate / 3600 * 1024)
    assert found["seconds"] == pytest.approx(2 * 8192 * 512 / rate)
    assert 0.4e6 < found["gpu_hours"] < 1.3e6  # Meta needed 1.3 million (model card, 2024)


def test_a_ring_sends_nearly_twice_each_sum():
    spec, ranks, batch = load("llama3-8b"), 4, 8
    found = roofline(spec, Setup(gpu="h100", context=1024, batch=batch, tp=ranks))
    sent = 2 * 32 * 2 * (ranks - 1) / ranks * batch * 4096 * 2
    assert found["decode"]["all_reduce"]["bytes"] == sent
    assert found["decode"]["all_reduce"]["seconds"] == pytest.approx(sent / 450e9)
    assert found["prefill"]["all_reduce"]["bytes"] == sent * 1024
    assert "seconds" not in decode(spec, gpu="mi250x", tp=2)["all_reduce"]  # its link is not known
    assert "all_reduce" not in decode(spec, gpu="h100")


def test_tensor_parallelism_shares_out_weights_and_heads_and_copies_what_cannot_be():
    spec, asked = load("llama3-8b"), {"gpu": "h100", "context": 4096, "batch": 4}
    one, eight, sixteen = (decode(spec, **asked, tp=ranks) for ranks in (1, 8, 16))
    assert eight["flops"] == pytest.approx(one["flops"] / 8)
    assert eight["weight_bytes"] == pytest.approx(one["weight_bytes"] / 8)
    assert eight["cache_bytes"] == one["cache_bytes"] / 8  # a head of keys and values each
    assert sixteen["cache_bytes"] == eight["cache_bytes"]  # each head on two ranks
    latent = [decode(load("deepseek-v3"), **asked, tp=ranks)["cache_bytes"] for ranks in (1, 8)]
    assert latent[0] == latent[1]


@pytest.mark.parametrize(("gpu", "batch"), [("h100", 55), ("h200", 110), ("l40s", 24), ("rtx-5090", 12)])
def test_as_many_caches_of_8k_fit_beside_llama_3_8b_as_worked_out(gpu, batch):
    weights, cache = 2 * 8_030_261_248, 131_072 * 8192
    device = hardware(gpu)
    assert int((device.usable - weights) // cache) == batch
    for count in (batch, batch + 1):
        fits = roofline(load("llama3-8b"), Setup(gpu=gpu), {"memory": {"generate_peak": weights + count * cache}})[
            "fits"
        ]
        assert fits["generate_peak"]["fits"] is (count == batch)


def test_the_cache_may_have_a_dtype_of_its_own():
    spec = load("llama3-8b")
    whole, half = (decode(spec, gpu="h100", context=4096, cache_dtype=dtype) for dtype in (None, "fp8"))
    assert half["cache_bytes"] * 2 == whole["cache_bytes"]
    assert half["weight_bytes"] == whole["weight_bytes"]


# ---------------------------------------------------------------- against what is counted elsewhere


def of_seq2seq(choice):
    """Whether a choice is one of an encoder-decoder too."""
    if "ffn=channel_mix" in choice:  # which no encoder takes
        return False
    return choice[0].split("=")[0] in ("norm", "ffn", "activation", "router") and "kind=encoder" not in choice


PASSES = [*every_choice(), *([*choice, *SEQ2SEQ] for choice in every_choice() if of_seq2seq(choice))]


@pytest.mark.parametrize(
    "choice", one_in(3, PASSES), ids=lambda choice: ",".join(each.split("={")[0] for each in choice)
)
def test_operators_add_up_to_the_flops_of_a_prompt_and_of_a_step(choice):
    spec = spec_of(choice)
    for context in (1, 3, 17, 64):
        counted = flops.count_flops(spec, context)
        for key, step in (("prefill", False), ("decode", True)):
            parts = operators(spec, Setup(context=context), decode=step)
            assert sum(part.flops for part in parts.values()) == counted.get(key, 0)


@pytest.mark.parametrize("model", ["deepseek-v3", "gemma2-27b", "gpt-oss-20b", "t5-small", "bart-large", "falcon-7b"])
def test_operators_of_a_published_model_add_up_to_its_flops(model):
    spec = load(model)
    context = min(4096, spec.max_seq_len)
    counted = flops.count_flops(spec, context)
    for key, step in (("prefill", False), ("decode", True)):
        assert sum(part.flops for part in operators(spec, Setup(context=context), decode=step).values()) == counted[key]
    assert roofline(spec, Setup(gpu="h200", context=context))["decode"]["tokens_per_second"] > 0


@EVERY
def test_a_step_reads_the_cache_that_is_kept_and_every_weight_but_the_tables(choice):
    spec, batch, context = spec_of(choice), 10**6, 40
    parts = operators(spec, Setup(context=context), decode=True)
    if not spec.causal:
        assert parts == {}
        return
    kept = kv_cache(spec, Setup(context=context))
    states = any(block.state() for block in spec.blocks.values())
    own = sum(part.own for part in parts.values())
    own += sum(_unchosen(spec, context)) - sum(_lent(spec, context))
    assert own == kept["bytes"] if not states else kept["bytes"] < own <= 2 * kept["bytes"]  # states are written too
    looked_up = sum(p.params for _, p in walk(spec, spec.d_model) if isinstance(p, Embedding))
    counted = params.count_parameters(spec)
    products = counted["total"] - looked_up + 67 * 32  # the head is tied to the table of tokens
    products += sum(row.part.params * (row.used - row.stored) for row in tabulate(spec).parts)  # read for each use
    every_row = sum(part.weight_bytes(batch) for part in parts.values())  # so large a batch meets all there is
    saved = 4 * counted.get("buffers", 0)  # a router's bias, or its table of experts
    assert 2 * (products + looked_up) <= every_row + 1e-6 <= 2 * (products + looked_up) + saved + 1e-3
    alone = sum(part.weight_bytes(1) for part in parts.values())
    assert alone < 2 * (products + looked_up)


def _unchosen(spec, context):
    """Bytes of what is kept for attention and not read, as an indexer chooses other tokens."""
    for attention in (spec.blocks[kind].attention for kind in spec.pattern):
        chooser = attention.chooser
        if chooser and chooser.adds_tail:
            yield (
                2
                * (context - chooser.most_keys - context % chooser.granule)
                * sum(math.prod(shape) for shape in attention.attended().values())
            )
            continue
        newest = chooser and (context - 1) % chooser.granule + 1  # of the newest block as many as there are
        left = context - (chooser.most_keys - chooser.granule + newest) if chooser else 0
        yield 2 * left * sum(math.prod(shape) for shape in attention.attended().values())


def _lent(spec, context):
    """Bytes that layers read of what others keep."""
    for attention in (spec.blocks[kind].attention for kind in spec.pattern):
        seen = min(context, attention.sight.window or context)
        yield 2 * seen * sum(map(math.prod, attention.attended().values())) if attention.loan else 0


def test_tying_the_head_does_not_change_what_is_read():
    tied, apart = (decode(spec_of([f"head.tied={tied}"]), gpu="h100") for tied in ("true", "false"))
    assert tied == apart


def test_a_window_bounds_what_a_step_reads():
    read = [
        decode(spec_of(["attention=sliding", "window=5", f"max_seq_len={length}"]), gpu="h100", context=length)
        for length in (5, 64)
    ]
    assert (
        read[0]["cache_bytes"] == read[1]["cache_bytes"] == 3 * 5 * 2 * 2 * 8 * 2
    )  # layers, W, K and V, heads, C, bytes


def test_a_decoder_reads_an_encoders_keys_and_never_makes_them_again():
    spec = spec_of(SEQ2SEQ)
    parts = operators(spec, Setup(context=16), decode=True)
    assert {part.split(".")[0] for part in parts} == {"decoder"}
    cross = spec.decoder.blocks["layer"].cross
    d_model, width, kv = 32, cross.n_heads * cross.head_dim, cross.n_kv_heads * cross.head_dim
    assert parts["decoder.layer.cross"].weights == 3 * 2 * (d_model * width + width * d_model)  # q and o
    assert parts["decoder.layer.cross.core"].own == 3 * 16 * 2 * kv * 2


def test_an_encoder_reads_and_trains_but_does_not_decode():
    found = roofline(spec_of(["kind=encoder"]), Setup(gpu="h100"))
    assert "decode" not in found
    assert found["prefill"]["tokens_per_second"] > 0 < found["train"]["tokens_per_second"]
    assert found["prefill"]["cache_bytes"] == 0


# ---------------------------------------------------------------- what a bound must keep


def random_setups(count):
    draw = random.Random(20)
    models = [spec_of(each) for each in ([], MIXTURE, ["attention=mla"], ["attention=sliding"], SEQ2SEQ)]
    models.append(spec_of(["attention=mamba", "position=none"]))
    bf16 = [gpu for gpu in list_gpus() if "bf16" in hardware(gpu).tflops]
    for _ in range(count):
        setup = {"gpu": draw.choice(bf16), "context": draw.randint(1, 64), "batch": 2 ** draw.randint(0, 12)}
        yield draw.choice(models), setup


def test_a_larger_batch_never_lowers_the_total_nor_raises_the_share_of_each():
    for spec, setup in random_setups(60):
        one, more = decode(spec, **setup), decode(spec, **(setup | {"batch": setup["batch"] * 2}))
        assert more["tokens_per_second"] >= one["tokens_per_second"] * (1 - 1e-9)
        assert more["tokens_per_second_each"] <= one["tokens_per_second_each"] * (1 + 1e-9)


def test_a_longer_context_is_never_faster():
    for spec, setup in random_setups(60):
        one, more = decode(spec, **setup), decode(spec, **(setup | {"context": setup["context"] * 2}))
        assert more["tokens_per_second"] <= one["tokens_per_second"] * (1 + 1e-9)


def test_operators_one_by_one_are_never_faster_than_the_whole_at_once():
    for spec, setup in random_setups(60):
        for found in (decode(spec, **setup), roofline(spec, Setup(**setup))["prefill"]):
            closer = found["sum_of_operators"]
            assert closer["seconds"] >= found["seconds"] * (1 - 1e-9)
            assert closer["seconds"] == pytest.approx(sum(row["seconds"] for row in found["operators"].values()))
            assert sum(row["flops"] for row in found["operators"].values()) == pytest.approx(found["flops"], abs=20)
            assert sum(row["bytes"] for row in found["operators"].values()) == pytest.approx(found["bytes"], abs=20)


def test_time_is_no_less_than_flops_or_bytes_take():
    for spec, setup in random_setups(60):
        found, device = decode(spec, **setup), hardware(setup["gpu"])
        compute, memory = found["flops"] / device.flops("bf16"), found["bytes"] / device.bandwidth
        assert found["seconds"] == pytest.approx(max(compute, memory), rel=1e-3)
        assert found["side"] == ("compute" if compute >= memory else "bandwidth")


def test_the_side_turns_over_at_the_batch_that_is_said():
    turned = 0
    for spec, setup in random_setups(80):
        setup["context"] = setup["context"] % 3 + 1  # of a long one the cache alone takes longer
        at = decode(spec, **setup)["turnover_batch"]
        if at is None:
            assert decode(spec, **(setup | {"batch": MOST}))["side"] == "bandwidth"
            continue
        turned += 1
        assert decode(spec, **(setup | {"batch": at}))["side"] == "compute"
        assert at == 1 or decode(spec, **(setup | {"batch": at - 1}))["side"] == "bandwidth"
    assert turned > 10


def test_without_a_cache_the_side_turns_over_at_the_ridge():
    spec, device = load("llama3-8b"), hardware("h100")
    parts = operators(spec, Setup(context=1), decode=True)
    for part in parts.values():
        part.own = 0
    assert turnover(parts, device.flops("bf16"), device.bandwidth) == pytest.approx(device.ridge("bf16"), rel=0.02)


def test_replicas_multiply_the_total_alone():
    one, four = (decode(spec_of(), gpu="h100", dp=replicas) for replicas in (1, 4))
    assert four["tokens_per_second"] == pytest.approx(4 * one["tokens_per_second"])
    assert four["tokens_per_second_each"] == one["tokens_per_second_each"]


def test_no_figure_grows_dearer_with_depth():
    shallow, deep = (operators(spec_of([f"n_layers={layers}"]), Setup(context=8), decode=True) for layers in (2, 2000))
    assert shallow.keys() == deep.keys()
    assert deep["layer.ffn"].flops == 1000 * shallow["layer.ffn"].flops


# ---------------------------------------------------------------- what is refused, and said


def test_a_gpu_that_cannot_multiply_the_dtype_is_refused():
    with pytest.raises(ConfigError, match=r"dtype: NVIDIA V100 .* does not multiply bf16"):
        roofline(spec_of(), Setup(gpu="v100"))
    assert roofline(spec_of(), Setup(gpu="v100", dtype="fp16"))["decode"]["tokens_per_second"] > 0


def test_a_roofline_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="gpu: is missing"):
        roofline(spec_of(), Setup())


def test_it_says_that_it_is_a_bound_what_was_not_checked_and_what_is_left_out():
    found = roofline(spec_of(), Setup(gpu="h100-nvl", dtype="fp8", pp=2))
    assert "upper bound" in found["bound"]
    assert found["unchecked"] == ["link", "tflops.fp8"]
    assert found["left_out"].startswith("pp: ")
    assert {"unchecked", "left_out"} & roofline(spec_of(), Setup(gpu="h200")).keys() == set()
