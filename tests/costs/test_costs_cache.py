"""The cache: as many bytes as the real one holds, ours and transformers', and as an engine with pages reserves."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from transformers import cache_utils

import zoo
from support.cases import experts, gpt, llama, recurrent, seq2seq, streams
from support.flop_counts import tokens_for
from support.packaged_specs import load, one_in
from support.random_architectures import architectures, made
from support.reference_models import Case, pair
from support.shrunk_models import shrunk
from support.tiny_models import MIXED, every_choice, model_of, name, spec_of
from zoo.cache.cache import Cache
from zoo.compose.targets import list_packaged
from zoo.costs import Setup
from zoo.costs.cache_sizes import BLOCK, MAX_BATCHED_TOKENS, held_tokens, kv_cache
from zoo.model.attention.gqa import GQA

CONTEXT = 23  # beyond the windows of the tiny models


def priced(spec, **setup):
    return kv_cache(spec, Setup(**{"dtype": "fp32", "context": CONTEXT, **setup}))


# ---------------------------------------------------------------- our own


def agree(model, context=CONTEXT, batch=2, dtype="fp32"):
    """What a model's cache holds once `context` tokens are in it, token by token and all at once."""
    spec, ids = model.spec, tokens_for(model.spec, batch, context)
    writer = model.decoder if len(spec.towers()) > 1 else model
    figures = priced(spec, batch=batch, context=context, dtype=dtype, engine="zoo")
    with torch.no_grad():
        rest = {"memory": model.encoder(ids).hidden} if writer is not model else {}
        cache = Cache.allocate(model, batch, context, source=context)
        for new in (ids[:, : context - 2], ids[:, -2:-1], ids[:, -1:]):
            writer(new, cache=cache, **({} if cache.past else rest))
    states = [state for layer in cache.store.layers for state in layer.states.values()]
    crossed = [tensor for layer in cache.store.layers for tensor in layer.cross.values()]
    assert figures["bytes"] == cache.nbytes
    assert figures["state_bytes"] == sum(tensor.nbytes for tensor in states)
    assert figures["cross_bytes"] == sum(tensor.nbytes for tensor in crossed)
    assert cache.past == context


SEEN: set[str] = set()
"""Tiny models that were looked at: the sizes of a family have one shape."""


@pytest.mark.parametrize("model", one_in(9, list_packaged()))
def test_a_packaged_model_keeps_what_is_counted(model):
    spec = shrunk(model)
    if spec.kind == "encoder":
        assert priced(spec)["bytes"] == priced(spec)["bytes_per_token"] == 0
    elif repr(spec) not in SEEN:
        agree(zoo.build(spec, device="cpu").eval())
        SEEN.add(repr(spec))


@pytest.mark.parametrize("choice", one_in(2, [each for each in every_choice() if "kind=encoder" not in each]), ids=name)
def test_every_choice_of_every_axis_keeps_what_is_counted(choice):
    agree(model_of(choice))


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(architectures())
def test_any_legal_combination_keeps_what_is_counted(body):
    model = made(body) if body["kind"] != "encoder" else None
    assume(model is not None)
    agree(model)


@pytest.mark.parametrize("choice", [["attention=mamba", "position=none"], MIXED, ["attention=mla"]], ids=name)
def test_a_state_stays_in_float32_where_keys_and_values_do_not(choice):
    agree(model_of(choice, dtype="bf16"), dtype="bf16")


def test_the_cache_may_have_a_dtype_of_its_own():
    spec = load("llama3-8b")
    small = priced(spec, dtype="bf16", cache_dtype="fp8")
    assert 2 * small["bytes"] == priced(spec, dtype="bf16")["bytes"] and small["dtype"] == "fp8"


# ---------------------------------------------------------------- published, or worked out by hand


@pytest.mark.parametrize(
    ("model", "bytes_per_token"),
    [
        ("deepseek-v3", 70_272),  # a latent of 512 and a key of 64, once for all heads, in 61 layers
        ("qwen3-4b", 147_456),  # its heads are 128 wide, not d_model / n_heads = 80
        ("llama2-7b", 524_288),
        ("llama3-8b", 131_072),
        ("gpt-oss-20b", 49_152),
        ("mamba-130m", 0),
        ("bert-base", 0),
    ],
)
def test_a_token_takes_this_many_bytes_in_bf16(model, bytes_per_token):
    assert priced(load(model), dtype="bf16")["bytes_per_token"] == bytes_per_token


def test_a_window_layer_keeps_its_window():
    token = 2 * 8 * 256 * 2  # keys and values of 8 heads 256 wide
    kept = priced(load("gemma2-9b"), dtype="bf16", context=8192)["bytes"]
    assert kept == 21 * token * 4096 + 21 * token * 8192  # every other layer of 42 sees 4096
    assert priced(load("gemma2-9b"), dtype="bf16", context=4096)["bytes"] == 42 * token * 4096


def test_an_encoder_decoder_keeps_what_it_made_of_the_encoders_output():
    figures = priced(load("t5-small"), dtype="bf16", context=512)
    assert figures["cross_bytes"] == 6 * 2 * 8 * 64 * 2 * 512
    assert figures["bytes"] == 2 * figures["cross_bytes"] and figures["bytes_per_token"] == 6 * 2 * 8 * 64 * 2


def test_a_recurrent_model_keeps_the_same_however_long_the_sequence():
    near, far = (priced(load("mamba-130m"), context=context) for context in (16, 1 << 20))
    assert near["bytes"] == far["bytes"] == near["state_bytes"] == 24 * 1536 * (3 + 16) * 4


# ---------------------------------------------------------------- transformers'


def cases():
    """One reference model of each family that writes, and those with windows of their own."""
    modules = (llama, gpt, experts, recurrent, seq2seq)
    lists = (value if isinstance(value, list | tuple) else [value] for each in modules for value in vars(each).values())
    found = dict.fromkeys(case for case in itertools.chain(*lists) if isinstance(case, Case))
    whole = [case for case in found if not any(part in case.name for part in ("-base", "-encoder"))]
    firsts = {case.config: case for case in reversed(whole)}.values()
    windowed = [case for case in whole if any(part in case.name for part in ("-window", "-types", "-two", "-layers"))]
    return [case for case in dict.fromkeys([*firsts, *windowed]) if case.writes and case.config not in APART]


APART = {
    "GPTNeoConfig": "its config.json says which layers have a window where the cache does not look: all is kept",
    "OpenAIGPTConfig": "it has no cache",
    "RecurrentGemmaConfig": "its layers keep their states themselves",
    "RwkvConfig": "its state is a list of its own, a tensor of all layers each",
    "xLSTMConfig": "its cache is one of its own",
}


def held(found):
    """The tensors of a transformers cache."""
    if isinstance(found, cache_utils.EncoderDecoderCache):
        return held(found.self_attention_cache) + held(found.cross_attention_cache)
    tensors = []
    for layer in found.layers:
        tensors += [getattr(layer, name, None) for name in ("keys", "values")]
        for states in ("conv_states", "recurrent_states"):
            tensors += getattr(layer, states, {}).values()
    return [tensor for tensor in tensors if tensor is not None]


@pytest.mark.parametrize("case", one_in(3, cases()), ids=lambda case: case.name)
def test_the_hf_engine_keeps_what_transformers_does(case):
    both = pair(case)
    spec, ids = both.ours.spec, both.ids(rows=2, length=CONTEXT)
    more = {"decoder_input_ids": ids} if len(spec.towers()) > 1 else {"use_cache": True}
    with torch.no_grad():
        tensors = held(both.reference(input_ids=ids, **more).past_key_values)
    assert priced(spec, engine="hf", batch=2)["bytes"] == sum(tensor.nbytes for tensor in tensors)


def test_the_hf_engine_keeps_compressed_entries_and_what_has_none_yet_as_transformers_does():
    both = pair(next(each for each in streams.CASES if each.name == "deepseek_v4-values"))  # without windows alone
    for tokens in (2, 7, 23, 24):
        with torch.no_grad():
            layers = both.reference(input_ids=both.ids(rows=2, length=tokens), use_cache=True).cache.layers
        stored = [value for layer in layers for value in vars(layer).values() if isinstance(value, dict)]
        kept = [each for value in stored for each in value.values() if torch.is_tensor(each)]
        found = priced(both.ours.spec, engine="hf", batch=2, context=tokens)["bytes"]
        assert found == sum(each.nbytes for each in [*kept, *(layer.keys for layer in layers)])


@pytest.mark.parametrize("case", ["llama", "mamba", "mamba2", "jamba"])
def test_the_hf_engine_keeps_convolutions_in_the_models_dtype_and_recurrences_in_float32(case):
    both = pair(next(each for each in cases() if each.name == case))
    reference = copy.deepcopy(both.reference).to(torch.bfloat16)
    with torch.no_grad():
        tensors = held(reference(input_ids=both.ids(rows=2, length=CONTEXT), use_cache=True).past_key_values)
    found = priced(both.ours.spec, engine="hf", batch=2, dtype="bf16")
    assert found["bytes"] == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("window", [1, 2, 5, CONTEXT, 64])
def test_the_hf_engine_keeps_one_token_less_than_a_window(window):
    layer = cache_utils.DynamicSlidingWindowLayer(window)
    layer.update(*torch.zeros(2, 1, 1, CONTEXT, 8))
    assert held_tokens(gqa(window=window), CONTEXT, "hf") == layer.keys.shape[2]


def test_deepseeks_latent_is_kept_once_by_every_engine():
    for engine in ("ideal", "hf", "paged"):
        figures = priced(load("deepseek-v3"), dtype="bf16", engine=engine, context=4096)
        assert figures["bytes"] == 4096 * 70_272 and figures["engine"] == engine


# ---------------------------------------------------------------- pages


def gqa(**fields):
    return GQA(n_heads=2, n_kv_heads=1, head_dim=4, position={"kind": "none"}, **fields)


def pages(tokens):
    return math.ceil(tokens / BLOCK)


def test_pages_are_whole():
    token = priced(load("llama3-8b"), dtype="bf16")["bytes_per_token"]
    for context, held in ((1, 16), (16, 16), (17, 32), (1000, 1008)):
        found = priced(load("llama3-8b"), dtype="bf16", engine="paged", context=context, batch=3)
        assert found["bytes"] == 3 * held * token
        assert (found["block_size"], found["max_batched_tokens"]) == (BLOCK, MAX_BATCHED_TOKENS)


def test_a_paged_window_has_room_for_a_step_and_one_page_more():
    assert held_tokens(gqa(window=128), 131072, "paged") == (pages(127 + 2048) + 1) * BLOCK
    assert held_tokens(gqa(window=128), 1000, "paged") == (pages(1000) + 1) * BLOCK
    assert held_tokens(gqa(window=8192, window_kind="chunked"), 131072, "paged") == pages(8192 + 2048) * BLOCK
    assert held_tokens(gqa(), 131072, "paged") == 131072


def test_gpt_oss_reserves_its_windows_beside_its_full_layers():
    layer, context = 2 * 8 * 64 * 2, 131072
    found = priced(load("gpt-oss-20b"), dtype="bf16", engine="paged", context=context)
    assert found["bytes"] == 12 * layer * (context + 137 * 16)
    assert found["bytes_per_token"] == 24 * layer


@pytest.mark.parametrize(
    ("near", "far", "padded"),
    [(22, 4, (24, 4)), (12, 13, (13, 13)), (20, 10, (20, 10)), (5, 3, (6, 3)), (4, 3, (4, 4)), (6, 0, (6, 0))],
)
def test_layers_of_two_reaches_have_pages_in_groups_of_one_size(near, far, padded):
    pattern = ",".join([f"near*{near}", *([f"layer*{far}"] if far else [])])
    spec = spec_of([f"pattern=[{pattern}]", f"n_layers={near + far}", "layers={near:{attention:{window:4}}}"])
    token, context = 2 * 2 * 8 * 4, 4096
    window = (pages(3 + 2048) + 1) * BLOCK
    assert priced(spec, engine="paged", context=context)["bytes"] == token * (padded[0] * window + padded[1] * context)


def test_pages_of_cross_attention_are_whole_too():
    found = priced(load("t5-small"), dtype="bf16", engine="paged", context=100)
    assert found["cross_bytes"] == 6 * 2 * 8 * 64 * 2 * 112 and found["bytes"] == 2 * found["cross_bytes"]


def test_a_paged_engine_keeps_states_in_the_models_dtype():
    found = priced(load("mamba-130m"), dtype="bf16", engine="paged")
    assert found["state_bytes"] == found["bytes"] == 24 * 1536 * (3 + 16) * 2
