"""What Inkling is made of: logits of distances, convolutions after sub-layers, shared experts that a router weighs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from support.expert_mixtures import TIGHT, D, layer, moe, step, tokens
from support.packaged_specs import load
from support.tiny_models import CONVOLVED, model_of, spec_of
from zoo.cache.cache import Cache
from zoo.cli import run
from zoo.costs.rank_model import context_faults, expert_faults, shard_model
from zoo.errors import ConfigError
from zoo.kernels.score_bias import ByDistance
from zoo.model.attention.tempering import Tempering
from zoo.model.ffn import FFN
from zoo.spec import tensors

LOGITS = ["position=relative_logits", "relative_extent=4", "relative_width=3", "n_layers=2"]
GROWN = [*LOGITS, "attention.tempering={kind: log_ratio, floor: 4, scale: 0.6}"]
IDS = torch.randint(67, (2, 11), generator=torch.Generator().manual_seed(2))
SHARED = {"kind": "gated", "d_ff": 5, "activation": {"kind": "silu"}}


def seen(model):
    """The first attention of a model, and what it was given and gave."""
    attention, found = model.blocks[0].attention, {}
    attention.register_forward_hook(lambda _, args, output: found.update(x=args[0], y=output))
    model(IDS)
    return attention, found["x"], found["y"]


@torch.no_grad()
def test_a_score_gets_the_logit_that_its_query_has_for_the_distance_and_both_grow_with_the_position():
    attention, x, given = seen(model_of(GROWN))
    heads, groups, width = 4, 2, 8
    q, k, v = (getattr(attention, name)(x).unflatten(-1, (-1, width)) for name in "qkv")
    r = attention.position.query(x).unflatten(-1, (heads, 3))
    vectors = attention.position.distances.weight  # of 4 distances
    y = torch.zeros(2, 11, heads, width)
    for row in range(2):
        for head in range(heads):
            for i in range(11):
                grown = 1 + 0.6 * math.log(max(1, (i + 1) / 4))
                scores = []
                for j in range(i + 1):
                    score = grown * float(q[row, i, head] @ k[row, j, head // groups]) / math.sqrt(width)
                    near = grown * float(r[row, i, head] @ vectors[i - j]) if i - j < 4 else 0.0
                    scores.append(score + near)
                chances = torch.tensor(scores).softmax(0)
                y[row, i, head] = chances @ v[row, : i + 1, head // groups]
    assert_close(given, attention.o(y.flatten(2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("of_rows", [False, True], ids=["places", "places of each row"])
def test_the_bias_is_one_function_of_single_indices(of_rows):
    draw = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 5, 3, 4, generator=draw)
    queries, keys = torch.arange(6, 11), torch.arange(11)
    if of_rows:
        queries, keys = torch.stack((queries, queries - 3)), torch.stack((keys, keys + 1))
    bias = ByDistance(logits, queries, keys)
    places = torch.meshgrid(*map(torch.arange, (2, 3, 5, 11)), indexing="ij")
    assert torch.equal(bias.at(*places), bias.draw().expand(2, 3, 5, 11))
    assert 0 < float((bias.draw() != 0).float().mean()) < 0.5  # most keys are later or farther


def test_generating_in_parts_gives_the_logits_of_one_pass_for_layers_of_other_heads():
    """Windows with other heads and fewer distances beside layers that see all, as Inkling has them."""
    near = "{attention: {window: 5, tempering: null}, n_heads: 2, n_kv_heads: 1, position: {n_heads: 2, extent: 5}}"
    model = model_of([*GROWN, "pattern=[near,layer]", f"layers={{near: {near}}}"])
    for chunks in ([1] * 11, [4, 1, 6]):
        cache = Cache.allocate(model, 2, 11)
        with torch.inference_mode():
            got = torch.cat([model(part, cache=cache).logits for part in IDS.split(chunks, 1)], 1)
            assert_close(got, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_layer_of_distances_costs_a_query_and_a_product_for_each_head():
    (block,) = set(spec_of(LOGITS).blocks.values())
    query, distances = block.attention.position.parts(32).values()
    assert query.params == 32 * 4 * 3 and query.flops == 2 * query.params
    assert distances.params == 3 * 4 and distances.flops == 2 * 3 * 4 * 4  # of each of four heads


MIXTURE = ["ffn=moe", "n_experts=4", "top_k=2"]


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["attention=mla", "position=relative_logits"], "position 'relative_logits' reads a layer's input"),
        (["attention=differential", "position=relative_logits"], "position 'relative_logits' reads a layer's input"),
        ([*LOGITS, "position.n_heads=2"], "position.n_heads: is 2, the attention has 6 heads"),
        (["+head.spare_rows=4"], "spare_rows is of a matrix of the head's own"),
        (
            [*MIXTURE, "router=sigmoid_topk", "router.n_shared=1"],
            "router.n_shared weighs shared experts, and there is",
        ),
        ([*MIXTURE, "+ffn.expert.global_scale=true"], "expert.global_scale: is of one feed-forward"),
        (["block.out_conv={width: 3, d_model: 8}"], "d_model=8, where the stream is 192 wide"),
        (["kind=encoder", "~head.tied", "head.kind=none", "block.out_conv={d_model: 192}"], "reads only what came"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(overrides, fault, capsys):
    assert run(["stats", "llama-tiny", *overrides]) == 2
    said = capsys.readouterr().err
    assert fault in said and len(said.splitlines()) == 1


def test_ranks_that_have_some_of_a_rows_tokens_are_refused_by_each_part_that_needs_all():
    found = context_faults(load("llama-tiny", [*LOGITS, "block.out_conv={d_model: 192}"]), 2)
    assert found == [
        "cp: 2 ranks would each have some tokens, and 'gqa' layers with position relative_logits need a row's (cp=1)",
        "cp: 2 ranks would each have some tokens, and out_conv needs a row's (cp=1)",
    ]


def test_a_sub_layers_output_is_added_to_its_convolution_before_it_joins_the_stream():
    model = model_of(["block.out_conv={d_model: 32, width: 3}", "n_layers=1"])
    block = model.blocks[0]
    with torch.no_grad():
        x = model.embedding.tokens(IDS)
        found = {}
        block.register_forward_hook(lambda _, args, output: found.update(step=args[1], y=output))
        model(IDS)

        def joined(y, part):
            weight = part.conv.weight
            return y + F.conv1d(F.pad(y.mT, (2, 0)), weight, groups=32).mT

        a = x + joined(block.attention(block.attention_norm(x), found["step"]), block.attention_conv)
        b = a + joined(block.ffn(block.ffn_norm(a), found["step"]), block.ffn_conv)
    assert_close(found["y"], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
def test_shared_experts_get_what_the_chosen_leave_of_one_sum(normalize):
    router = {"kind": "sigmoid_topk", "n_experts": 6, "top_k": 2, "n_shared": 3, "scale": 1.7, "normalize": normalize}
    ours, x = layer(moe({**router, "global_scale": True}, shared=SHARED)), tokens(0)
    gates = ours.router.gate.weight
    with torch.no_grad():
        given = ours(x, step(x.shape[1]))
        for at in ((0, 0), (1, 4), (2, 10)):
            scores = torch.sigmoid(gates @ x[at])
            chosen = (scores[:6] + ours.router.selection_bias).topk(2).indices.tolist()
            weights = scores[[*chosen, 6, 7, 8]]
            weights = (weights / weights.sum() if normalize else weights) * 1.7 * ours.router.global_scale
            stacks = [(ours.experts, expert) for expert in chosen] + [(ours.shared, expert) for expert in range(3)]
            y = torch.zeros(D)
            for weight, (stack, expert) in zip(weights, stacks, strict=True):
                gate, up, down = (stack[name].weight[expert] for name in ("gate", "up", "down"))
                y = y + weight * (down @ (F.silu(gate @ x[at]) * (up @ x[at])))
            assert_close(given[at], y, **TIGHT)


def test_ranks_of_experts_all_have_the_shared_ones_and_divide_the_others():
    spec = load("llama-tiny", ["n_experts=6", *CONVOLVED, "block.out_conv.d_model=192"])
    assert not list(expert_faults(spec, 3))  # which does not divide the two shared experts
    (block,) = set(spec.blocks.values())
    held = {name: part.shapes()[leaf] for name, part, leaf in tensors(block.ffn.spread(3), 192)}
    assert held["experts.up.weight"][0] == 2 and held["shared.up.weight"][0] == 2
    assert held["router.gate.weight"] == (8, 192)


def test_spare_rows_of_a_head_give_no_logit_and_get_no_gradient():
    plain, ours = (spec_of(["head.tied=false", *more]) for more in ([], ["+head.spare_rows=5"]))
    assert plain.output_vocab_size == ours.output_vocab_size == 67
    model = model_of(["head.tied=false", "+head.spare_rows=5"]).train()
    assert model.head.out.weight.shape == (72, 32) and model(IDS).logits.shape == (2, 11, 67)
    logits, loss = model(IDS).logits, model(IDS, targets=IDS).loss
    assert_close(loss, F.cross_entropy(logits.flatten(0, 1), IDS.flatten(), reduction="sum"))
    loss.backward()
    gradient = model.head.out.weight.grad
    assert gradient[67:].abs().max() == 0 < gradient[:67].abs().min()
    with pytest.raises(ConfigError, match="tp: spare_rows stand behind the vocabulary"):
        shard_model(ours, 2)


def test_a_learned_number_multiplies_what_a_feed_forward_gives():
    fields = {"kind": "gated", "d_ff": 7, "activation": {"kind": "silu"}}
    ours, x = layer(FFN.parse({**fields, "global_scale": True})), tokens(1)
    with torch.no_grad():
        plain = ours.down(F.silu(ours.gate(x)) * ours.up(x))
        assert_close(ours(x, step(x.shape[1])), plain * ours.global_scale, **TIGHT)


def test_queries_grow_by_the_logarithm_of_their_position_from_the_floor_on():
    tempering = Tempering.parse({"kind": "log_ratio", "floor": 8, "scale": 0.5})
    found = tempering.factor(None, torch.arange(20)[None]).flatten().tolist()
    assert found == pytest.approx([1 + 0.5 * max(0.0, math.log((place + 1) / 8)) for place in range(20)])
