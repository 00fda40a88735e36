"""Memory of n-grams and its hyper-connections against transformers' own modules, and what the hashes are made of."""

import pytest
import torch
from torch import nn
from transformers import Qwen4ExpTextConfig
from transformers.models.qwen4_exp import modeling_qwen4_exp as qwen

from support.logit_bounds import assert_close
from support.tiny_models import model_of, needs, spec_of
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.ngrams import HashedNGrams, list_primes
from zoo.model.step import Step
from zoo.run.layer import Layer

D, STREAMS, EOS = 12, 3, 5
SIZES = {"vocab_size": 31, "hidden_size": D, "num_hidden_layers": 3, "hc_count": STREAMS, "hc_lowrank": 4}
SIZES |= {"layer_types": 3 * ["linear_attention"], "ple_layer_ids": [1, 3], "ple_embed_dim": 24, "eos_token_id": EOS}
SIZES |= {"ngram_vocab_size_base": 40, "rms_norm_eps": 1e-3, "seed": 9, "heads_per_ngram": 4}
ENGRAM = ["block=hyper_ngrams", *needs("block=hyper_ngrams")]


def fill(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module.eval()


def ours_of(config, number):
    """The component that a config describes, of the layer with n-grams of this number."""
    return HashedNGrams(
        n_streams=STREAMS,
        d_model=D,
        vocab_size=31,
        eos_id=EOS,
        longest=config.ngram_size,
        hashes=config.heads_per_ngram,
        width=config.ple_embed_dim,
        table_size=config.ngram_vocab_size_base,
        multiple_of=config.make_ngram_vocab_size_divisible_by,
        seed=config.seed,
        number=number,
        d_conv=config.ple_conv_kernel_size,
        norm={"kind": "rmsnorm", "unit_offset": True, "eps": config.rms_norm_eps},
    )


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("ngram_size", "heads"), [(2, 4), (3, 2), (5, 3)])
def test_what_joins_the_streams_is_the_references(number, ngram_size, heads):
    config = Qwen4ExpTextConfig(**{**SIZES, "ngram_size": ngram_size, "heads_per_ngram": heads})
    layer = qwen.Qwen4ExpTextPLELayer(config, 2 * number, number)
    theirs = fill(layer)
    ours = Layer(ours_of(config, number), D)
    for name in ("multipliers", "sizes", "starts"):  # drawn, not copied
        ours.spec.parts(D)[name].init(getattr(ours, name))
    hashed = theirs.ple_embedding
    assert ours.multipliers.equal(hashed.layer_multipliers) and ours.sizes.equal(hashed.ngram_heads_vocab_sizes)
    assert ours.starts.equal(hashed.ngram_heads_offsets)
    pairs = {"key": theirs.key_proj, "value": theirs.value_proj, "conv": theirs.conv1d, "table": hashed.ngram_embedding}
    with torch.no_grad():
        for name, module in pairs.items():
            getattr(ours, name).weight.copy_(module.weight)
        for name in ("key", "query", "conv"):
            weight = getattr(theirs, f"norm_{name}").weight
            getattr(ours, f"{name}_norm").weight.copy_(weight.view(STREAMS, D))
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 31, (3, 23), generator=draw)
    ids[0, 4] = ids[0, 5] = ids[1, 0] = ids[2, 22] = ids[2, 9] = EOS
    x = torch.randn(3, 23, STREAMS, D, generator=draw)
    with torch.no_grad():
        expected = theirs(x.flatten(2), ids, None)
        assert_close(ours(x, Step(KeyView(Mask(23, 23)), ids=ids)).flatten(2), expected)


def test_streams_are_read_written_and_ended_as_the_references():
    theirs = fill(qwen.Qwen4ExpTextGatedResidual(Qwen4ExpTextConfig(**SIZES)))
    connection = f"block.connection={{kind: gated, rank: 4, n_streams: {STREAMS}}}"
    norm = "{kind: rmsnorm, unit_offset: true, eps: 0.001}"
    streams = f"+streams={{kind: gated, count: {STREAMS}, rank: 4, norm: {norm}}}"
    overrides = ["block=hyper", f"d_model={D}", connection, streams, "norm=rmsnorm_offset", "norm_eps=0.001"]
    model = model_of(overrides)
    block, x = model.blocks[0], torch.randn(2, 7, STREAMS, D)
    with torch.no_grad():
        for m, norm in ((block.attention_connection, block.attention_norm), (model.streams, model.streams.norm)):
            m.down.weight.copy_(theirs.input_mix_weight_down.weight)
            m.up.weight.copy_(theirs.input_mix_weight_up.weight)
            norm.weight.copy_(theirs.hc_norm.weight.view(STREAMS, D))
        block.attention_connection.write.weight.copy_(theirs.block_inject_weight.weight)
        read, _, write = theirs(x.flatten(2))
        found, factors = block.spec._read(block.attention_connection, block.attention_norm, x)
        assert_close(found, read)
        assert_close(factors.write, write)
        assert factors.mix is None
        assert_close(model.spec.streams.collapse(model.streams, x), read)


def test_a_token_changes_the_n_grams_that_it_is_in_and_no_others():
    model = model_of([*ENGRAM, "n_layers=1"])
    seen = []
    model.blocks[0].ngrams.table.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    ids = torch.randint(10, 67, (1, 12), generator=torch.Generator().manual_seed(0))
    other, ended = ids.clone(), ids.clone()
    other[0, 4] = 20 if ids[0, 4] != 20 else 21
    ended[0, 4] = model.spec.blocks["layer"].ngrams.eos_id
    with torch.no_grad():
        for each in (ids, other, ended):
            model(each)
    pairs, triples = (seen[0] != seen[1])[0].split(2, -1)
    assert pairs.any(-1).nonzero().flatten().tolist() == [4, 5]
    assert triples.any(-1).nonzero().flatten().tolist() == [4, 5, 6]
    short = ended[:, 5:]  # what follows an end of text is a text's beginning
    with torch.no_grad():
        model(short)
    assert seen[2][0, 5:].equal(seen[3][0])


def test_sizes_of_tables_are_primes_that_differ_from_layer_to_layer():
    assert list_primes(90, 5) == (97, 101, 103, 107, 109)
    two = [ours_of(Qwen4ExpTextConfig(**SIZES), number).sizes for number in (0, 1)]
    assert len({*two[0], *two[1]}) == 2 * 8 and min(two[0]) == 41 and two[0] < two[1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["block.ngrams.width=30"], "width=30 is not a multiple of the 4 tables"),
        (["block.ngrams.eos_id=67"], "eos_id=67 is no token of vocab_size=67"),
        (["block.ngrams.n_streams=3"], "ngrams.n_streams=3, connection.n_streams=4"),
        (["block.ngrams.d_model=16"], "ngrams.d_model: is 16, the residual stream is 32 wide"),
        (["block.ngrams.vocab_size=60"], "is 60, the model's vocabulary has 67"),
        (["norm=dyt", "block.ngrams.norm={kind: rmsnorm}"], "norm 'dyt' has no weight for each of several vectors"),
        (["kind=encoder"], "reads only what came before"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(overrides, said):
    with pytest.raises(ConfigError, match=said):
        spec_of([*ENGRAM, *overrides])


def test_a_prefix_that_sees_itself_is_refused():
    model = model_of([*ENGRAM, "prefix_lm=true", "n_layers=1"])
    with pytest.raises(ConfigError, match="ngrams: a recurrent mixer reads earlier tokens only"):
        model(torch.zeros(1, 9, dtype=torch.long), prefix=torch.tensor([3]))


def test_every_weight_learns():
    model = model_of([*ENGRAM, "n_layers=1"]).train()
    ids = torch.randint(0, 67, (2, 12), generator=torch.Generator().manual_seed(0))
    model(ids).logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert isinstance(model.blocks[0].ngrams.table, nn.Embedding)
