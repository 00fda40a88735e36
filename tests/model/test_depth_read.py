"""What Inkling 2 is made of: attention over depth, sinks and convolutions of each token, vectors of bounded length."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from support.expert_mixtures import TIGHT, layer, step, tokens
from support.packaged_specs import load
from support.tiny_models import DEEP, model_of, spec_of
from zoo.cache.cache import Cache
from zoo.cli import run
from zoo.costs.again import tell_reads_apart
from zoo.costs.rank_model import context_faults
from zoo.kernels.dispatch import attend
from zoo.kernels.mask import Mask
from zoo.model.activation import Activation
from zoo.model.depth_read import GroupSums
from zoo.model.ffn import FFN
from zoo.model.norm import Norm

IDS = torch.randint(67, (2, 11), generator=torch.Generator().manual_seed(2))
GROUPS = [
    *("block=attention_residual", "n_layers=5", "pattern=[first,layer,opens,layer,opens]", "block.opens=false"),
    "layers={first: {block: {opens: true, reads_earlier: false}}, opens: {block: {opens: true}}}",
]
PLAIN = ["attention.short_conv=null"]


def read(query, sums):
    """Attend over depth with vectors [..., D], as the paper's formula has it."""
    normed = torch.stack([each / (each.square().mean(-1, keepdim=True) + 1e-6).sqrt() for each in sums], -2)
    return ((normed @ query / math.sqrt(len(query))).softmax(-1)[..., None] * normed).sum(-2)


@torch.no_grad()
def test_sub_layers_read_sums_of_groups_and_the_model_reads_them_once_more():
    model, given = model_of(GROUPS), {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, args, output, index=index: given.update({index: args[1]}))
    hidden = model(IDS).hidden
    groups, x = [], model.embedding.tokens(IDS)
    for index, block in enumerate(model.blocks):
        query = block.attention_read.query if index else None
        y = block.attention(block.attention_norm(read(query, [*groups, x]) if index else x), given[index])
        groups, x = ([*groups, x], y) if index % 2 == 0 else (groups, x + y)
        x = x + block.ffn(block.ffn_norm(read(block.ffn_read.query, [*groups, x])), given[index])
    assert len(groups) == 3
    assert_close(hidden, model.norm(read(model.final_read.query, [*groups, x])), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_generating_in_parts_padding_and_packing_give_what_one_text_gives():
    model = model_of(DEEP)
    whole = model(IDS).logits
    for chunks in ([1] * 11, [4, 1, 6]):
        cache = Cache.allocate(model, 2, 11)
        got = torch.cat([model(part, cache=cache).logits for part in IDS.split(chunks, 1)], 1)
        assert_close(got, whole, rtol=1e-4, atol=1e-4)
    for pads in ((3, 0), (0, 3)):
        mask = F.pad(torch.ones_like(IDS), pads)
        padded = model(F.pad(IDS, pads, value=5), attention_mask=mask).logits[:, pads[0] : pads[0] + 11]
        assert_close(padded, whole, rtol=1e-4, atol=1e-4)
    documents = torch.tensor([[0] * 11 + [1] * 11])
    packed = model(IDS.view(1, -1), documents=documents).logits
    assert_close(packed.view(2, 11, -1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["eager", pytest.param("flex", marks=pytest.mark.slow)])
def test_a_sink_of_each_query_is_one_more_key_without_a_value(kernel):
    draw = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 7, heads, 16, generator=draw) for heads in (4, 2, 2))
    sinks = torch.randn(2, 7, 4, generator=draw)
    given = attend(q, k, v, Mask(7, 7), scale=0.3, sinks=sinks, kernel=kernel)
    for row, i, head in ((0, 0, 0), (1, 3, 2), (0, 6, 3)):
        scores = [0.3 * float(q[row, i, head] @ k[row, j, head // 2]) for j in range(i + 1)]
        chances = torch.tensor([*scores, float(sinks[row, i, head])]).softmax(0)[:-1]
        assert_close(given[row, i, head], chances @ v[row, : i + 1, head // 2], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_token_adds_its_own_weights_to_those_of_the_convolution():
    attention = model_of(
        ["attention=dynamic_gqa", "conv_width=3", "attention.short_conv.scale=0.7", "n_layers=1"]
    ).blocks[0]
    attention, x = attention.attention, torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(4))
    k, v = attention.spec._mix(attention, attention.spec.short_conv, attention.k(x), attention.v(x), (x, x), step(9))
    plain, made = torch.cat((attention.k(x), attention.v(x)), -1)[0], torch.cat((k, v), -1)[0]
    taps = torch.cat((attention.k_taps(x), attention.v_taps(x)), -1)[0].view(9, 4, 3)
    for t, channel in ((0, 0), (1, 17), (5, 9), (8, 31)):
        y = float(plain[t, channel])
        for lag in range(min(3, t + 1)):
            weight = attention.conv.weight[channel, 0, 2 - lag] + taps[t, channel // 8, lag]
            y += float(weight * plain[t - lag, channel])
        assert float(made[t, channel]) == pytest.approx(0.7 * y, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("weight", [True, False])
def test_only_vectors_longer_than_the_threshold_are_shortened(weight):
    ours, x = layer(Norm.parse({"kind": "l2_clip", "threshold": 1.9, "weight": weight})), tokens(0)
    scaled = x * ours.weight if weight else x
    sizes = scaled.norm(dim=-1, keepdim=True)
    assert 0 < int((sizes > 1.9).sum()) < sizes.numel() or not weight
    assert_close(ours(x), torch.where(sizes > 1.9, scaled * 1.9 / sizes, scaled), **TIGHT)


@torch.no_grad()
def test_softcaps_bound_the_linear_factor_of_the_gate_and_what_it_multiplies():
    act = {"kind": "silu_softcapped", "softcap": 0.6}
    ours = layer(FFN.parse({"kind": "gated", "d_ff": 7, "activation": act, "up_softcap": 0.8}))
    x = tokens(1)
    gate, up = 0.6 * torch.tanh(ours.gate(x) / 0.6) * torch.sigmoid(ours.gate(x)), 0.8 * torch.tanh(ours.up(x) / 0.8)
    assert_close(ours(x, step(x.shape[1])), ours.down(gate * up), **TIGHT)
    assert float(Activation.parse(act).apply(torch.tensor(50.0))) == pytest.approx(0.6)


def test_layers_that_read_other_numbers_of_groups_are_priced_apart():
    spec = spec_of(GROUPS)
    assert GroupSums.count_read(spec) == [0, 1, 1, 2, 2, 3]  # the last of them before the final norm
    apart = tell_reads_apart(spec).towers()[""]
    assert apart.pattern == ("first", "layer (part 1)", "opens (part 1)", "layer (part 2)", "opens (part 2)")
    assert tell_reads_apart(spec_of(DEEP)).towers()[""].pattern == ("first", "near", "opens")  # one number for each


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["attention=dynamic_gqa", "attention.sinks=true"], "sinks are one logit a head, and token_sinks one for each"),
        (["attention=dynamic_gqa", "attention.short_conv.over=qkv"], "must be 'kv', found 'qkv'"),
        (
            ["attention=dynamic_gqa", "attention.values={head_dim: 7}"],
            "short_conv.dynamic is of keys as wide as their values",
        ),
        (
            ["attention=dynamic_gqa", "attention.values={tied: true}"],
            "values.tied is of keys and values that gqa makes alone",
        ),
        (["attention=dynamic_gqa", "attention.separate_inputs=true"], "has no place in a 'pre' block"),
        (["block=attention_residual", "block.residual_scale=0.5"], "groups are weighed by attention over them"),
        (["block=attention_residual", "block.depth_read={n_reads: 2}"], "as many vectors are read as"),
        (["ffn.limit=1", "ffn.up_softcap=1"], "both bound what `up` gives"),
        (["block=attention_residual", "--pp", "2"], "layers read the sums of earlier ones, which another stage"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(overrides, fault, capsys):
    assert run(["stats", "llama-tiny", *overrides]) == 2
    said = capsys.readouterr().err
    assert fault in said and len(said.splitlines()) == 1


def test_layers_that_add_to_one_sum_have_no_place_beside_those_that_read_groups():
    blocks = {**spec_of(GROUPS).blocks, "plain": spec_of([]).blocks["layer"]}
    faults = lambda *pattern: list(GroupSums.find_faults(SimpleNamespace(blocks=blocks, pattern=pattern)))  # noqa: E731
    (((*_, kind), text),) = faults("first", "plain", "layer", "plain")
    assert kind == "plain" and "adds to the sum of all layers, and 'first' layers read groups" in text
    assert faults("first", "layer") == faults("plain") == []


def test_ranks_that_have_some_of_a_rows_tokens_are_refused_by_sinks_of_each_token():
    found = context_faults(load("llama-tiny", ["attention=dynamic_gqa", *PLAIN]), 2)
    assert len(found) == 1 and "'dynamic_gqa' layers" in found[0]
