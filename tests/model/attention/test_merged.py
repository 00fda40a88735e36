"""Merged attention (T5Gemma 2): one softmax over a decoder's own keys and an encoder's. And what else is its family's:
a window that is divided among both sides, and a token whose vector stands beside the table."""

import dataclasses
import itertools
import json
import math

import pytest
import torch

import zoo
from support.cases.towers import CASES
from support.packaged_specs import load
from support.reference_models import pair
from support.tiny_seq2seq import CLOSE, MERGED, ids_of, random
from zoo.checkpoint import hf
from zoo.costs import Setup, price
from zoo.costs.pairs import Look
from zoo.errors import ConfigError, KernelError
from zoo.families.described import describe_config
from zoo.kernels.base import AttentionQuery
from zoo.kernels.mask import Mask
from zoo.verify import verify

CPU = torch.device("cpu")


# ---------------------------------------------------------------- what is computed


@torch.no_grad()
def test_a_query_takes_its_own_keys_and_the_encoders_in_one_softmax():
    """Written out for one layer: the encoder's keys are not rotated, and only the decoder's own are in a window."""
    model = random(MERGED).decoder
    layer, spec = model.blocks[0].attention, model.spec.blocks["near"].attention
    x, memory = torch.randn(1, 7, 32), torch.randn(1, 5, 32)
    heads = {"q": spec.n_heads, "k": spec.n_kv_heads, "v": spec.n_kv_heads}

    def project(name, given):
        made = getattr(layer, name)(given)[0].unflatten(-1, (heads[name], spec.head_dim))
        return getattr(layer, f"{name}_norm")(made) if name != "v" else made

    tables = spec.position.tables(torch.arange(7)[None], spec.head_dim, torch.float32)
    q, k = (spec.position.rotate(project(name, x)[None], tables)[0] for name in "qk")
    keys, values = torch.cat((k, project("k", memory))), torch.cat((project("v", x), project("v", memory)))
    taken = torch.zeros(7, spec.n_heads, spec.head_dim)
    for token, head in itertools.product(range(7), range(spec.n_heads)):
        group = head // (spec.n_heads // spec.n_kv_heads)
        seen = [*range(max(0, token - 3), token + 1), *range(7, 12)]
        scores = keys[seen, group] @ q[token, head] / math.sqrt(spec.head_dim)
        chances = torch.cat((scores, layer.sinks[head][None])).softmax(0)[:-1]
        taken[token, head] = chances @ values[seen, group]
    expected = layer.o(taken.flatten(1))
    found = []
    layer.register_forward_hook(lambda _, given, out: found.append(out))
    handle = model.blocks[0].attention_norm.register_forward_hook(lambda *_: x)
    model(ids_of(random(MERGED), 1, 7), memory=memory)
    handle.remove()
    torch.testing.assert_close(found[0][0], expected, **CLOSE)


@torch.no_grad()
def test_packed_pairs_equal_each_pair_alone():
    model = random(MERGED)
    read, written = ids_of(model, 1, 12), ids_of(model, 1, 11, 1)
    sources, targets = torch.tensor([[0] * 5 + [1] * 7]), torch.tensor([[0] * 7 + [1] * 4])
    packed = model(read, decoder_input_ids=written, documents=sources, decoder_documents=targets).logits
    for number in (0, 1):
        alone = model(read[:, sources[0] == number], decoder_input_ids=written[:, targets[0] == number]).logits
        torch.testing.assert_close(packed[:, targets[0] == number], alone, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["eager", "sdpa", pytest.param("flex", marks=pytest.mark.slow)])
def test_every_kernel_that_does_not_refuse_gives_the_same(kernel):
    model = random({**MERGED, "attention": {"qk_norm": "${norm}"}})
    read, written, mask = ids_of(model, 2, 9), ids_of(model, 2, 8, 1), torch.ones(2, 9, dtype=torch.long)
    mask[0, 6:] = 0
    model.kernel = "eager"
    expected = model(read, mask, decoder_input_ids=written).logits
    model.kernel = kernel
    torch.testing.assert_close(model(read, mask, decoder_input_ids=written).logits, expected, **CLOSE)
    model.kernel = "flash2"
    with pytest.raises(KernelError, match="flash2 was asked for, but"):
        model(read, mask, decoder_input_ids=written)


@pytest.mark.slow
def test_it_compiles_whole_and_trains_as_it_does_uncompiled():
    model = random(MERGED).train()
    read, written = ids_of(model, 2, 9), ids_of(model, 2, 8, 1)
    found = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        run(read, decoder_input_ids=written).logits.square().mean().backward()
        found.append(model.decoder.blocks[1].attention.k.weight.grad.clone())
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------- masks


def draw_masks(seed):
    """A mask over a decoder's tokens, one over an encoder's, and what each query sees of both by the definition."""
    generator = torch.Generator().manual_seed(seed)
    pick = lambda *values: values[int(torch.randint(len(values), (), generator=generator))]  # noqa: E731
    queries, held, memory, rows = pick(1, 3, 6), pick(0, 2), pick(1, 4), pick(1, 2)
    n_keys = queries + held
    hides = {}, {}
    if pick(True, False):
        for sizes, each in zip((n_keys, memory), hides, strict=True):
            if pick(True, False):
                each["padding"] = torch.rand(rows, sizes, generator=generator) < 0.7
    elif not held and pick(True, False):
        numbers = [torch.randint(2, (rows, size), generator=generator).sort(1)[0] for size in (queries, memory)]
        hides[0]["documents"], hides[1]["documents"] = (numbers[0], numbers[0]), (numbers[0], numbers[1])
    own = Mask(queries, n_keys, window=pick(None, 2, 9), **hides[0])
    other = Mask(queries, memory, causal=False, **hides[1])
    drawn = [mask.dense(CPU)[:, 0].expand(rows, -1, -1) for mask in (other, own)]
    return own, other, torch.cat(drawn, -1)


@pytest.mark.parametrize("seed", range(40))
def test_joined_masks_show_what_each_shows_by_itself(seed):
    own, other, expected = draw_masks(seed)
    joined = own.join(other, CPU)
    assert torch.equal(joined.dense(CPU)[:, 0].expand(expected.shape), expected)
    assert not joined.sees_all or bool(expected.all())


# ---------------------------------------------------------------- what it costs


def test_it_adds_no_parameter_and_keeps_the_encoders_keys():
    spec = load(MERGED)
    plain = load({**MERGED, "defaults": [*MERGED["defaults"][:1], {"/cross": "mha"}, *MERGED["defaults"][2:]]})
    mine, other = (price(each, context=16) for each in (spec, plain))
    assert mine["params"]["total"] < other["params"]["total"]
    assert mine["params"]["by_component"].get("cross", 0) == 0
    width = spec.decoder.blocks["layer"].attention.n_kv_heads * 6
    assert mine["kv_cache"]["cross_bytes"] == 3 * 2 * width * 16 * 2  # layers, k and v, tokens, bytes


@pytest.mark.slow
def test_its_price_is_what_the_real_program_takes():
    assert [row for row in verify(load(MERGED), Setup(context=16)) if not row["equal"]] == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["attention={window:4,window_kind:chunked}"], "attention.window_kind is of tokens alone"),
        (["attention.short_conv=3"], "attention.short_conv is of tokens alone"),
        (["cross.n_kv_heads=4"], "cross.n_kv_heads is 4, and attention, which reads the encoder, has n_kv_heads=2"),
        (["position=alibi"], "position 'alibi' adds to the scores of tokens"),
        (["+encoder.d_model=40"], "is read by the decoder's attention, 32 wide, and the encoder gives 40"),
        (["decoder.embedding.apart_id=7"], "the encoder, whose vectors the decoder reads, has none apart"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(overrides, line):
    node = {**MERGED, "attention": {}, "decoder": {"n_layers": 2}}
    with pytest.raises(ConfigError, match=line):
        load(node, overrides)


def test_it_stands_beside_softmax_attention_and_never_for_it():
    block = load(MERGED).decoder.blocks["layer"]
    with pytest.raises(ValueError, match="attention 'merged' says how an encoder is read"):
        dataclasses.replace(block, attention=block.cross)
    with pytest.raises(ValueError, match="cross 'merged' is of softmax attention, found 'merged'"):
        block.cross.check_beside(block.cross)


# ---------------------------------------------------------------- its family's other parts


@pytest.mark.parametrize("window", range(3, 9))
def test_a_window_of_both_sides_counts_its_own_token_and_one_more_after_it(window):
    """By the reference's own function, and as many pairs as are priced."""
    from transformers.models.t5gemma2.modeling_t5gemma2 import sliding_window_mask_function

    spec = load(
        "llama-tiny", ["kind=encoder", "attention=sliding", f"window={window}", "attention.window_kind=centred"]
    )
    attention = spec.blocks["layer"].attention
    reach = {"window": attention.sight.window, "ahead": attention.sight.ahead}
    for tokens in (1, 5, 12):
        mask = Mask(tokens, tokens, causal=False, **reach)
        query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
        seen = sliding_window_mask_function(window, is_causal=False)(0, 0, query, key)
        assert torch.equal(mask.dense(CPU)[0, 0], seen)
        assert Look(False, False, **reach).pairs(tokens) == int(seen.sum())
    assert AttentionQuery("float16", 8, 8, **Mask(12, 12, causal=False, **reach).features).ahead == window // 2


def test_a_decoder_has_no_window_of_both_sides():
    with pytest.raises(ConfigError, match="lets a token see later ones, and this is of kind 'decoder'"):
        load("llama-tiny", ["attention=sliding", "window=6", "attention.window_kind=centred"])


@torch.no_grad()
def test_a_token_apart_has_a_vector_that_is_not_scaled_and_the_heads_row_stays():
    model = zoo.build("llama-tiny", ["+embedding.apart_id=7", "+embedding.scale=3.0", "head.tied=true"], device="cpu")
    embedding, ids = model.embedding, torch.tensor([[5, 7, 9]])
    x = model.spec.embedding.lookup(embedding, ids)
    table = embedding.tokens.weight
    torch.testing.assert_close(x[0], torch.stack((3 * table[5], embedding.apart.weight[0], 3 * table[9])))
    out = model(ids)
    torch.testing.assert_close(out.logits[..., 7], out.hidden @ table[7])


def test_what_is_not_read_of_a_folder_is_said_in_one_line_and_stays(tmp_path):
    case = next(case for case in CASES if case.name == "t5gemma2")
    two = pair(case)
    said = hf.describe_unread(two.ours)
    assert (
        "t5gemma2: its text towers alone; encoder.vision_tower (" in said and "encoder.multi_modal_projector (" in said
    )
    _, notes = describe_config(two.folder)
    assert [note.partition(": ")[2] for note in notes] == [
        "t5gemma2: its text towers alone, without encoder's vision_config"
    ]
    zoo.export(two.ours, tmp_path / "back")
    before, after = (json.loads((each / "config.json").read_text()) for each in (two.folder, tmp_path / "back"))
    assert before["encoder"]["vision_config"] == after["encoder"]["vision_config"]
