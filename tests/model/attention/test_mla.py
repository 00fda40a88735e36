"""Latent attention against the reference implementations' own modules, and its two ways against each other."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek_v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek_v3

from zoo.cache.cache import LayerCache
from zoo.cache.pool_store import LayerStore
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.kernels.view.slots import SlotMapping
from zoo.model.attention.base import Attention
from zoo.model.step import Step
from zoo.run.layer import Layer

D, H = 48, 4
ROOM = 64  # slots of a row
WIDTHS = {"kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
TIGHT = {"atol": 5e-5, "rtol": 1e-5}
YARN = {"factor": 8.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}
KERNELS = pytest.mark.parametrize("kernel", ["eager", "sdpa"])
QUERIES = pytest.mark.parametrize("q_lora_rank", [None, 14])


def spec(**fields):
    node = {"kind": "mla", "n_heads": H, **WIDTHS, "norm": {"kind": "rmsnorm", "eps": 1e-6}}
    return Attention.parse(node | {"position": {"kind": "rope", "interleaved": True}} | fields)


def filled(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module.eval()


def step(kind, batch, length, *, start=0, cache=None, **fields):
    """The moment of tokens `start` to `start + length` of a causal row."""
    columns = torch.arange(start, start + length)
    runs = [[(row * ROOM, row * ROOM + start + length)] for row in range(batch)]
    where = None if cache is None else SlotMapping(runs, in_place=True)
    index = columns, torch.arange(start + length)
    keys = KeyView(Mask(length, start + length), index, kind.position.bias(None, H, *index, True), where)
    made = Step(keys, first=start == 0, cache=cache, positions=columns[None], **fields)
    made.tables = kind.position.tables(
        columns[None], kind.rotary_width, torch.float32, torch.tensor([[start + length]])
    )
    return made


def room(kind, batch, capacity):
    tensors = {name: torch.zeros(batch * ROOM, *shape) for name, shape in kind.cache().items()}
    assert capacity <= ROOM
    return LayerCache(LayerStore(tensors), slice(0, batch))


def taken(reference):
    """The reference's weights under our names: kv_b_proj holds each head's key rows and then its value rows."""
    names = {"q": "q_proj", "q_a": "q_a_proj", "q_norm": "q_a_layernorm", "q_b": "q_b_proj"}
    names |= {"kv_a": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "o": "o_proj"}
    state = {}
    for ours, theirs in names.items():
        module = getattr(reference, theirs, None)
        if module is not None:
            state |= {f"{ours}.{name}": value for name, value in module.state_dict().items()}
    fused = reference.kv_b_proj.weight.unflatten(0, (H, -1))
    k, v = fused.split((WIDTHS["qk_nope_head_dim"], WIDTHS["v_head_dim"]), 1)
    return state | {"k_b.weight": k.flatten(0, 1), "v_b.weight": v.flatten(0, 1)}


def config_of(module, name, rope, **fields):
    sizes = {"hidden_size": D, "num_attention_heads": H, "num_key_value_heads": H, "max_position_embeddings": 128}
    config = getattr(module, name)(
        **sizes, **WIDTHS, rope_parameters={"rope_theta": 10000.0, **rope}, attn_implementation="eager", **fields
    )
    config._attn_implementation = "eager"
    return config


def causal(length):
    return torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]


@KERNELS
@QUERIES
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_latent_attention_equals_deepseek_v3(q_lora_rank, interleaved, bias, kernel):
    fields = {"q_lora_rank": q_lora_rank, "rope_interleave": interleaved, "attention_bias": bias}
    config = config_of(deepseek_v3, "DeepseekV3Config", {"rope_type": "default"}, **fields)
    reference = filled(deepseek_v3.DeepseekV3Attention(config, 0))
    kind = spec(q_lora_rank=q_lora_rank, bias=bias, position={"kind": "rope", "interleaved": interleaved})
    ours = Layer(kind, D)
    ours.load_state_dict(taken(reference), strict=True)
    x = torch.randn(3, 13, D)
    tables = deepseek_v3.DeepseekV3RotaryEmbedding(config)(x, torch.arange(13)[None])
    with torch.no_grad():
        expected = reference(x, tables, causal(13))[0]
        torch.testing.assert_close(ours(x, step(kind, 3, 13, kernel=kernel)), expected, **TIGHT)


def test_yarn_and_its_scale_equal_deepseek_v3():
    rope = {"rope_type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 0.7}
    config = config_of(deepseek_v3, "DeepseekV3Config", rope, q_lora_rank=14)
    reference = filled(deepseek_v3.DeepseekV3Attention(config, 0))
    scaling = {"kind": "yarn", "factor": 8.0, "original_max_seq_len": 16, "mscale": 1.0, "mscale_all_dim": 0.7}
    width = WIDTHS["qk_nope_head_dim"] + WIDTHS["qk_rope_head_dim"]
    kind = spec(
        q_lora_rank=14,
        position={"kind": "rope", "interleaved": True, "scaling": scaling},
        scale=width**-0.5 * (0.1 * 0.7 * math.log(8.0) + 1) ** 2,
    )
    ours = Layer(kind, D)
    ours.load_state_dict(taken(reference), strict=True)
    x = torch.randn(2, 40, D)
    tables = deepseek_v3.DeepseekV3RotaryEmbedding(config)(x, torch.arange(40)[None])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, step(kind, 2, 40)), reference(x, tables, causal(40))[0], **TIGHT)


@QUERIES
@pytest.mark.parametrize("bias", [True, False])
def test_latent_attention_equals_deepseek_v2(q_lora_rank, bias):
    fields = {"q_lora_rank": q_lora_rank, "attention_bias": bias}
    config = config_of(deepseek_v2, "DeepseekV2Config", {"rope_type": "default"}, **fields)
    reference = filled(deepseek_v2.DeepseekV2Attention(config, 0))
    kind = spec(q_lora_rank=q_lora_rank, bias=bias)
    ours = Layer(kind, D)
    ours.load_state_dict(taken(reference), strict=True)
    x = torch.randn(3, 13, D)
    tables = deepseek_v2.DeepseekV2RotaryEmbedding(config)(x, torch.arange(13)[None])
    with torch.no_grad():
        expected = reference(x, causal(13), position_embeddings=tables)[0]
        torch.testing.assert_close(ours(x, step(kind, 3, 13)), expected, **TIGHT)


SCHEMES = {
    "rope": {"kind": "rope"},
    "interleaved": {"kind": "rope", "interleaved": True},
    "partial": {"kind": "rope", "rotary_dim": 4},
    "alibi": {"kind": "alibi"},
    "none": {"kind": "none"},
}


@KERNELS
@pytest.mark.parametrize("position", SCHEMES.values(), ids=SCHEMES.keys())
def test_decoding_with_latents_equals_the_full_forward(position, kernel):
    kind = spec(q_lora_rank=14, bias=True, position=position)
    ours, x = filled(Layer(kind, D)), torch.randn(2, 17, D)
    cache, parts, start = room(kind, 2, 20), [], 0
    with torch.no_grad():
        whole = ours(x, step(kind, 2, 17, kernel=kernel))
        for part in x.split((6, 1, 1, 3, 1, 5), 1):
            moment = step(kind, 2, part.shape[1], start=start, cache=cache, kernel=kernel)
            parts.append(ours(part, moment))
            start += part.shape[1]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **TIGHT)


@KERNELS
def test_absorbed_queries_read_what_expanded_keys_and_values_say(kernel):
    kind = spec(q_lora_rank=14)
    ours, (q_nope, q_rope) = filled(Layer(kind, D)), (torch.randn(3, 5, H, width) for width in (12, 8))
    latent = torch.randn(3, 11, 28)
    moment = Step(KeyView(Mask(5, 11)), kernel=kernel)
    with torch.no_grad():
        expanded = kind._expanded(ours, q_nope, q_rope, latent, moment)
        absorbed = kind._absorbed(ours, q_nope, q_rope, latent, moment)
    assert expanded.shape == (3, 5, H, 10)
    torch.testing.assert_close(absorbed, expanded, **TIGHT)


@pytest.mark.parametrize(
    ("start", "length", "absorbs"), [(0, 2, False), (0, 9, False), (9, 1, True), (9, 24, True), (9, 25, False)]
)
def test_few_tokens_after_many_are_absorbed_and_others_expanded(start, length, absorbs):
    kind = spec()
    assert math.floor(kind.absorbs_until) == 24  # 20·22 / (2·20 − 22)
    ours, cache = filled(Layer(kind, D)), room(kind, 1, 40)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ours(torch.randn(1, length, D), step(kind, 1, length, start=start, cache=cache, kernel="eager"))
    parts = {name: part for name, part in kind.parts(D).items() if hasattr(part, "flops")}
    pairs = length * (start + length)
    if absorbs:
        expected = length * sum(part.flops for part in parts.values()) + kind.decode_flops(pairs)
    else:
        made = (start + length) * (parts.pop("k_b").flops + parts.pop("v_b").flops)
        expected = made + length * sum(part.flops for part in parts.values()) + kind.core_flops(pairs)
    assert counter.get_total_flops() == expected


def test_the_cache_holds_one_latent_and_one_rotated_key_a_token():
    deepseek = spec(n_heads=128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    assert deepseek.cache() == {"latent": (576,)}
    assert 170 < deepseek.absorbs_until < 171


def test_latents_no_wider_than_what_they_replace_are_always_absorbed():
    assert spec(kv_lora_rank=10).absorbs_until == math.inf


@KERNELS
def test_a_decoding_step_does_not_expand_the_cache(kernel):
    kind = spec()
    ours, cache = filled(Layer(kind, D)), room(kind, 1, 64)
    with torch.no_grad():
        ours(torch.randn(1, 60, D), step(kind, 1, 60, cache=cache))
        with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
            ours(torch.randn(1, 1, D), step(kind, 1, 1, start=60, cache=cache, kernel=kernel))
    latents = 61 * (WIDTHS["kv_lora_rank"] + WIDTHS["qk_rope_head_dim"]) * 4
    allowed = latents if kernel == "sdpa" else latents / 2  # torch's own scales a copy of what it is given as K
    assert max(event.self_cpu_memory_usage for event in profile.events()) <= allowed


def test_it_compiles_whole_in_both_ways_and_every_weight_learns():
    torch.compiler.reset()
    kind = spec(q_lora_rank=14, bias=True)
    ours, x = filled(Layer(kind, D)), torch.randn(2, 9, D)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    caches = room(kind, 2, 12), room(kind, 2, 12)
    with torch.no_grad():
        for start, part in ((0, x), (9, x[:, :1])):
            now, then = (step(kind, 2, part.shape[1], start=start, cache=cache) for cache in caches)
            torch.testing.assert_close(compiled(part, now), ours(part, then), **TIGHT)
    ours.train()(x, step(kind, 2, 9)).square().sum().backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_odd_rotated_widths_are_refused():
    with pytest.raises(ValueError, match="turns pairs of channels"):
        spec(qk_rope_head_dim=7)
