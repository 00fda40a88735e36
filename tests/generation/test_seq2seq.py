"""Encoder-decoders and prefix-LMs: cached decoding against full forwards, padded rows against rows alone."""

import pytest
import torch

import zoo
from support.packaged_specs import load
from support.tiny_seq2seq import (
    ALIBI,
    BART,
    BIASED,
    CLOSE,
    MERGED,
    MODERN,
    NEAR,
    PREFIX,
    SINES,
    T5,
    UMT5,
    ids_of,
    random,
)
from zoo.cache.cache import Cache
from zoo.errors import ConfigError
from zoo.generation.generate import generate

MODELS = {"t5": T5, "umt5": UMT5, "bart": BART, "sines": SINES, "modern": MODERN, "merged": MERGED}
EVERY = pytest.mark.parametrize("node", MODELS.values(), ids=MODELS)


def padded(rows=3, length=11):
    """A mask with padding on the right, on the left, and none."""
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, length - 4 :], mask[1, :3] = 0, 0
    return mask


@EVERY
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward_step_by_step(node):
    model, mask = random(node), padded()
    read, written = ids_of(model, 3, 11), ids_of(model, 3, 9, 1)
    whole = model(read, mask, decoder_input_ids=written).logits
    cache = Cache.allocate(model, 3, 9, source=read.shape[1])
    for step in range(9):
        out = model(read, mask, decoder_input_ids=written[:, step : step + 1], cache=cache)
        torch.testing.assert_close(out.logits[:, 0], whole[:, step], **CLOSE)
    assert cache.past == 9


@EVERY
@pytest.mark.parametrize("chunks", [[9], [4, 5], [1, 6, 2]], ids=str)
@torch.no_grad()
def test_a_decoder_reads_its_prompt_in_chunks(node, chunks):
    model = random(node)
    read, written = ids_of(model, 2, 7), ids_of(model, 2, 9, 1)
    whole = model(read, decoder_input_ids=written).logits
    cache = Cache.allocate(model, 2, 9, source=read.shape[1])
    parts = [model(read, decoder_input_ids=part, cache=cache).logits for part in written.split(chunks, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)


@EVERY
@torch.no_grad()
def test_rows_padded_on_either_side_equal_the_rows_alone(node):
    model, mask = random(node), padded()
    read, written = ids_of(model, 3, 11), ids_of(model, 3, 5, 1)
    whole = model(read, mask, decoder_input_ids=written)
    other = model(torch.where(mask.bool(), read, 9), mask, decoder_input_ids=written)
    torch.testing.assert_close(whole.logits, other.logits, **CLOSE)
    for row in range(3):
        alone = model(read[row : row + 1, mask[row].bool()], decoder_input_ids=written[row : row + 1])
        torch.testing.assert_close(whole.logits[row], alone.logits[0], **CLOSE)


@EVERY
@torch.no_grad()
def test_the_decoders_own_padding_is_left_out(node):
    model, read = random(node), ids_of(random(node), 2, 7)
    written, mask = ids_of(model, 2, 6, 1), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    whole = model(read, decoder_input_ids=written, decoder_attention_mask=mask).logits
    alone = model(read[:1], decoder_input_ids=written[:1, 2:]).logits
    torch.testing.assert_close(whole[0, 2:], alone[0], **CLOSE)


@EVERY
@torch.no_grad()
def test_generation_is_the_full_forwards_choice_for_each_row_of_a_padded_batch(node):
    model, mask = random(node), padded()
    read = ids_of(model, 3, 11)
    got = generate(model, read, 8, attention_mask=mask)
    assert got[:, 0].tolist() == [3] * 3
    for row in range(3):
        expected, alone = [3], read[row : row + 1, mask[row].bool()]
        for _ in range(8):
            written = torch.tensor([expected])
            expected.append(int(model(alone, decoder_input_ids=written).logits[0, -1].argmax()))
        assert got[row].tolist() == expected


@torch.no_grad()
def test_the_memory_is_projected_once_for_all_steps():
    model = random(T5)
    calls = []
    model.decoder.blocks[0].cross.k.register_forward_hook(lambda *_: calls.append(1))
    generate(model, ids_of(model, 2, 6), 5)
    assert len(calls) == 1


def test_prompts_that_an_encoder_cannot_read_are_refused():
    model = random(BART)
    with pytest.raises(ConfigError, match=r"ids: 49 tokens, the encoder's positions end at 48"):
        generate(model, ids_of(model, 1, 49), 2)
    with pytest.raises(ConfigError, match="a row has no token"):
        generate(model, ids_of(model, 2, 4), 2, attention_mask=torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]))
    with pytest.raises(ConfigError, match=r"the model's vocabulary is 0 to 60"):
        generate(random(MODERN), torch.tensor([[61]]), 2)
    generate(random(MODERN), torch.tensor([[60]]), 2)  # which the decoder's smaller table does not have


# ---------------------------------------------------------------- prefix-LM

PREFIXES = pytest.mark.parametrize("node", [PREFIX, ALIBI, BIASED], ids=["rope", "alibi", "t5"])
WRITING = pytest.mark.parametrize("node", [PREFIX, ALIBI, BIASED, NEAR], ids=["rope", "alibi", "t5", "window"])


@PREFIXES
@torch.no_grad()
def test_a_prefix_sees_itself_both_ways_and_nothing_later(node):
    model, ids = random(node), ids_of(random(node), 2, 9)
    prefix = torch.tensor([4, 6])
    base = model(ids, prefix=prefix).logits
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1 - 5) % 50 + 5
    moved = (model(changed, prefix=prefix).logits - base).abs().amax(-1) > 1e-6
    assert moved.all()  # inside the prefix: every token sees column 3, the first ones too
    changed = ids.clone()
    changed[:, 6] = (changed[:, 6] + 1 - 5) % 50 + 5
    moved = (model(changed, prefix=prefix).logits - base).abs().amax(-1) > 1e-6
    assert not moved[:, :6].any() and moved[:, 6:].all()  # beyond it: as in any decoder
    plain = model(ids, prefix=torch.zeros(2, dtype=torch.long)).logits
    torch.testing.assert_close(plain, model(ids).logits, **CLOSE)


@WRITING
@torch.no_grad()
def test_what_follows_a_prefix_is_decoded_with_a_cache_as_by_the_full_forward(node):
    model, ids = random(node), ids_of(random(node), 2, 12)
    prefix = torch.tensor([5, 5])
    whole = model(ids, prefix=prefix).logits
    cache = Cache.allocate(model, 2, 12)
    parts = [model(ids[:, :5], prefix=prefix, cache=cache).logits]
    parts += [model(part, prefix=prefix, cache=cache).logits for part in ids[:, 5:].split([3, 1, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)


@WRITING
@torch.no_grad()
def test_generation_takes_the_prompt_as_the_prefix_padding_or_not(node):
    model, ids = random(node), ids_of(random(node), 2, 7)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    got = generate(model, ids, 6, attention_mask=mask)
    for row in range(2):
        held = ids[row : row + 1, mask[row].bool()]
        prefix = torch.tensor([held.shape[1]])
        for _ in range(6):
            chosen = model(held, prefix=prefix).logits[:, -1].argmax(-1)
            held = torch.cat([held, chosen[:, None]], 1)
        assert got[row, -6:].tolist() == held[0, -6:].tolist()


@torch.no_grad()
def test_past_the_prefix_a_window_hides_it():
    model, ids = random(NEAR), ids_of(random(NEAR), 1, 12)
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1 - 5) % 50 + 5
    moved = model(changed, prefix=torch.tensor([6])).logits - model(ids, prefix=torch.tensor([6])).logits
    assert (moved.abs().amax(-1) > 1e-6).tolist() == [[True] * 6 + [False] * 6]


def test_a_prefix_is_refused_where_it_means_nothing():
    model = random({**PREFIX, "prefix_lm": False})
    with pytest.raises(ConfigError, match="prefix_lm: true would do"):
        model(ids_of(model, 1, 4), prefix=torch.tensor([2]))


def test_a_prefix_that_does_not_come_whole_with_a_cache_is_refused():
    model, ids = random(PREFIX), ids_of(random(PREFIX), 2, 9)
    with pytest.raises(ConfigError, match="prefix: reaches token 7, 4 tokens came"):
        model(ids[:, :4], prefix=torch.tensor([3, 7]), cache=Cache.allocate(model, 2, 9))


@pytest.mark.parametrize(("model", "kind"), [("bert-base", "an encoder"), ("t5-small", "an encoder-decoder")])
def test_the_next_token_is_learned_by_decoders_alone(model, kind):
    with pytest.raises(ConfigError, match=f"objective: next_token is learned by a decoder, the model is {kind} "):
        zoo.train(model, ["steps=1", "objective=next_token"])


def test_a_tower_is_patched_like_a_kind_of_layer(tmp_path):
    deeper = load("t5-small", ["encoder.n_layers=9", "+attention@encoder.attention=mqa"])
    assert (deeper.encoder.n_layers, deeper.decoder.n_layers) == (9, 6)
    assert deeper.encoder.blocks["layer"].attention.n_kv_heads == 1
    assert deeper.decoder.blocks["layer"].attention.n_kv_heads == 8
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [/model/t5-small@_here_]\nencoder: {ffn: gated, n_layers: 2}\n")
    mine = load(file)
    assert mine.encoder.blocks["layer"].ffn.kind == "gated" and mine.decoder.blocks["layer"].ffn.kind == "mlp"


@pytest.mark.parametrize(
    ("model", "override", "fault"),
    [
        ("t5-small", "encoder.nlayers=3", r"encoder\.nlayers: no such key \(did you mean 'n_layers'"),
        ("t5-small", "encoder.n_heads=x", r"encoder\.n_heads: .*x"),
        ("t5-small", "~cross", r"cross: has no 'kind'"),
        ("t5-small", "encoder.kind=decoder", "its encoder is of kind 'decoder'"),
        ("llama3-8b", "encoder.n_layers=3", "encoder: no such key"),
        ("llama3-8b", "start_id=3", "start_id: no such key"),
    ],
)
def test_what_a_tower_cannot_be_is_told_at_its_key(model, override, fault):
    with pytest.raises(ConfigError, match=fault):
        load(model, [override])
