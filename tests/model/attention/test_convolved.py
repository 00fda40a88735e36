"""The short convolution of queries, keys and values (`short_conv`)."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from support.packaged_specs import load
from support.tiny_models import model_of, spec_of
from zoo.cli import run
from zoo.costs.rank_model import context_faults
from zoo.model.position.rotary import RoPE

OURS = ["attention.short_conv=3", "n_layers=2"]
LATENTS = ["attention=mla", *OURS]
IDS = torch.randint(67, (2, 11), generator=torch.Generator().manual_seed(2))


def test_it_is_a_depthwise_causal_convolution_before_the_rotation():
    model = model_of(OURS)
    attention, found = model.blocks[0].attention, {}
    attention.register_forward_hook(lambda _, args, output: found.update(x=args[0], step=args[1], y=output))
    with torch.no_grad():
        model(IDS)
    spec, x = attention.spec, found["x"]
    heads = {"q": spec.n_heads, "k": spec.n_kv_heads, "v": spec.n_kv_heads}
    weights = attention.conv.weight.split([count * spec.head_dim for count in heads.values()])
    made = {}
    for (name, count), weight in zip(heads.items(), weights, strict=True):
        plain = getattr(attention, name)(x).mT
        mixed = F.conv1d(F.pad(plain, (2, 0)), weight, groups=plain.shape[1]).mT.unflatten(-1, (count, -1))
        made[name] = mixed if name == "v" else spec.position.rotate(mixed, found["step"].tables)
    assert isinstance(spec.position, RoPE)
    q, k, v = (each.transpose(1, 2) for each in made.values())
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert_close(found["y"], attention.o(y.transpose(1, 2).flatten(2)), rtol=1e-4, atol=1e-4)


def test_latents_are_made_of_what_is_convolved():
    model = model_of(LATENTS)
    attention, found = model.blocks[0].attention, {}
    attention.register_forward_hook(lambda _, args, output: found.update(x=args[0], step=args[1], y=output))
    with torch.no_grad():
        model(IDS)
    spec, x = attention.spec, found["x"]
    q = attention.q(x) if spec.q_lora_rank is None else attention.q_b(attention.q_norm(attention.q_a(x)))

    def convolved(conv, plain):
        return F.conv1d(F.pad(plain.mT, (2, 0)), conv.weight, groups=plain.shape[-1]).mT

    q = convolved(attention.q_conv, q).unflatten(-1, (spec.n_heads, -1))
    latent, k_rope = convolved(attention.kv_conv, attention.kv_a(x)).split(
        [spec.kv_lora_rank, spec.qk_rope_head_dim], -1
    )
    latent, turn = attention.kv_norm(latent), lambda each: spec.position.rotate(each, found["step"].tables)
    q_nope, q_rope = q.split([spec.qk_nope_head_dim, spec.qk_rope_head_dim], -1)
    k, v = (made(latent).unflatten(-1, (spec.n_heads, -1)) for made in (attention.k_b, attention.v_b))
    k = torch.cat((k, turn(k_rope[:, :, None]).expand(-1, -1, spec.n_heads, -1)), -1)
    q, k, v = (each.transpose(1, 2) for each in (torch.cat((q_nope, turn(q_rope)), -1), k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    assert_close(found["y"], attention.o(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ours", [OURS, LATENTS], ids=["keys", "latents"])
def test_padded_rows_and_packed_documents_equal_the_texts_alone(ours):
    model = model_of(ours)
    with torch.no_grad():
        whole, short = model(IDS[:1]).logits, model(IDS[1:, :7]).logits
        mask = torch.ones(2, 11, dtype=torch.long)
        for sides in ((4, 0), (0, 4)):
            padded = torch.cat((IDS[:1], F.pad(IDS[1:, :7], sides)))
            mask[1] = F.pad(torch.ones(7, dtype=torch.long), sides)
            logits = model(padded, attention_mask=mask).logits
            assert_close(logits[0], whole[0], rtol=1e-4, atol=1e-4)
            assert_close(logits[1, mask[1] > 0], short[0], rtol=1e-4, atol=1e-4)
        packed = torch.cat((IDS[0], IDS[1, :7]))[None]
        documents = torch.tensor([[0] * 11 + [1] * 7])
        logits = model(packed, documents=documents).logits
        assert_close(logits[:, :11], whole, rtol=1e-4, atol=1e-4)
        assert_close(logits[:, 11:], short, rtol=1e-4, atol=1e-4)


def test_it_costs_its_taps_and_a_state_of_a_few_tokens():
    plain, ours = spec_of(["n_layers=2"]), spec_of(OURS)
    (name,) = ours.blocks
    attention = ours.blocks[name].attention
    channels = (attention.n_heads + 2 * attention.n_kv_heads) * attention.head_dim
    weights = {name: part for name, part in attention.parts(ours.d_model).items() if name == "conv"}
    assert weights["conv"].shapes() == {"weight": (channels, 1, 3)} and weights["conv"].flops == 2 * 3 * channels
    assert attention.state() == {"conv": (2, channels)} and plain.blocks[name].attention.state() == {}


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (
            ["llama-tiny", "kind=encoder", "attention=mha", "~head.tied", "head.kind=none", "attention.short_conv=3"],
            "attention 'gqa' reads only what came before",
        ),
        (["t5-small", "cross.short_conv=3"], "short_conv reads tokens in order"),
    ],
)
def test_it_is_refused_where_tokens_see_later_ones_or_another_text(args, fault, capsys):
    assert run(["stats", *args]) == 2
    assert fault in capsys.readouterr().err


def test_context_parallelism_needs_whole_rows():
    (fault,) = context_faults(load("llama-tiny", ["attention.short_conv=3"]), 2)
    assert fault == "cp: 2 ranks would each have some tokens, and 'gqa' layers with short_conv need a row's (cp=1)"


def test_ranks_of_tensor_parallelism_hold_the_channels_of_their_heads():
    spec = load("llama-tiny", ["attention.short_conv=3"])
    (block,) = set(spec.blocks.values())
    own = block.attention.shard(2)
    assert own.short_conv.width == 3 and own.parts(192)["conv"].shapes()["weight"][0] * 2 == sum(block.attention._mixed)
