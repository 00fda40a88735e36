"""Disentangled attention: equal to the reference's, version by version, and what it costs."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode
from transformers import DebertaConfig, DebertaV2Config
from transformers.models.deberta.modeling_deberta import DebertaEncoder
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, build_relative_position

from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.activation import GELU
from zoo.model.attention.disentangled import Disentangled
from zoo.model.block.post_conv import PostConv
from zoo.model.block.sublayers import Post
from zoo.model.ffn import MLP
from zoo.model.norm import LayerNorm
from zoo.model.position.absolute import Learned
from zoo.model.position.none import NoPosition
from zoo.model.position.relative import RelativePosition
from zoo.model.position.rotary import RoPE
from zoo.model.step import Step
from zoo.run.layer import Layer

TYPES = [(), ("c2p",), ("p2c",), ("c2p", "p2c")]
NORM = LayerNorm(eps=1e-7)


def scrambled(module, seed=0) -> Any:
    """The module in eval mode with every parameter random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def step_of(attention, position, tokens, real=None, *, causal=False, documents=None, held=0, cache: Any = None) -> Any:
    """A hand-made moment for `tokens` new tokens after `held` ones."""
    columns = torch.arange(held + tokens)
    both = None if documents is None else (documents, documents)
    mask = Mask(tokens, held + tokens, causal=causal, padding=real, documents=both)
    step = Step(KeyView(mask, (columns[held:], columns)), real=real, documents=documents, cache=cache)
    attention.prepare(position, step)
    return step


def config_of(version, types, **changes):
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 20}
    common = {**sizes, "relative_attention": bool(types), "pos_att_type": list(types), "max_position_embeddings": 64}
    return {1: DebertaConfig, 2: DebertaV2Config}[version](**{**common, **changes})


def specs_of(config, **fields):
    """The attention and the position scheme that this config of the reference describes."""
    types = tuple(config.pos_att_type)
    reach, buckets = config.max_relative_positions, getattr(config, "position_buckets", -1)
    relative = RelativePosition(
        max_relative_positions=reach if reach > 0 else config.max_position_embeddings,
        position_buckets=buckets if buckets > 0 else None,
        norm=NORM if getattr(config, "norm_rel_ebd", "none") == "layer_norm" else None,
    )
    attention = Disentangled(
        n_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        position=relative if types else NoPosition(),
        types=types,
        share_att_key=getattr(config, "share_att_key", False),
        **fields,
    )
    return attention, relative


def copy(target, source, names):
    """Weights and biases of modules of the reference, by our names for them."""
    for ours, theirs in names.items():
        target.get_submodule(ours).load_state_dict(source.get_submodule(theirs).state_dict())


def fill_v1(layer, hf, config):
    """v1's in_proj holds q, k and v of each head in turn, and the biases of q and v apart."""
    parts = hf.self.in_proj.weight.unflatten(0, (config.num_attention_heads, 3, -1)).transpose(0, 1)
    with torch.no_grad():
        for name, weight in zip("qkv", parts, strict=True):
            layer.get_submodule(name).weight.copy_(weight.flatten(0, 1))
        layer.q.bias.copy_(hf.self.q_bias)
        layer.v.bias.copy_(hf.self.v_bias)
    own = {"pos_k": "self.pos_proj", "pos_q": "self.pos_q_proj"}
    copy(layer, hf, {"o": "output.dense", **{name: path for name, path in own.items() if hasattr(layer, name)}})


def fill_v2(layer, hf):
    names = {"q": "self.query_proj", "k": "self.key_proj", "v": "self.value_proj", "o": "output.dense"}
    own = {"pos_k": "self.pos_key_proj", "pos_q": "self.pos_query_proj"}
    copy(layer, hf, {**names, **{name: path for name, path in own.items() if hasattr(layer, name)}})


def position_of(relative, encoder, d_model):
    layer = Layer(relative, d_model)
    if hasattr(encoder, "rel_embeddings"):
        copy(layer, encoder, {"table": "rel_embeddings", **({"norm": "LayerNorm"} if relative.norm else {})})
    return layer


def theirs(encoder, index, x, real):
    """The reference's attention of one layer, its output projection included and the norm after it left out."""
    hf = encoder.layer[index].attention
    y, _ = hf.self(
        x,
        encoder.get_attention_mask(real.long()),
        relative_pos=encoder.get_rel_pos(x),
        rel_embeddings=encoder.get_rel_embedding(),
    )
    return hf.output.dense(y)


@torch.no_grad()
def check(encoder, attention, relative, fill, tokens, seed):
    d_model = encoder.layer[0].attention.output.dense.out_features
    torch.manual_seed(seed)
    x, real = torch.randn(3, tokens, d_model), torch.ones(3, tokens, dtype=torch.bool)
    real[0, : tokens // 3], real[1, tokens - tokens // 4 :] = False, False
    position = position_of(relative, encoder, d_model)
    for index in range(2):
        layer = Layer(attention, d_model)
        fill(layer, encoder.layer[index].attention)
        for kernel in ("eager", "sdpa"):
            step = step_of(attention, position, tokens, real)
            step.kernel = kernel
            torch.testing.assert_close(
                layer(x, step)[real], theirs(encoder, index, x, real)[real], atol=5e-5, rtol=1e-5
            )


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("reach", [-1, 5])
@pytest.mark.parametrize("tokens", [4, 13])
def test_v1_equals_the_reference_with_every_subset_of_position_types(types, reach, tokens):
    config = config_of(1, types, max_relative_positions=reach)
    encoder = scrambled(DebertaEncoder(config), tokens)
    attention, relative = specs_of(config, key_bias=False)
    check(encoder, attention, relative, lambda layer, hf: fill_v1(layer, hf, config), tokens, tokens)


@pytest.mark.parametrize(
    ("types", "shared"), [((), False), *((types, shared) for types in TYPES[1:] for shared in (False, True))], ids=str
)
@pytest.mark.parametrize("tokens", [3, 30])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_relative_positions": 7, "norm_rel_ebd": "layer_norm"},
        {"position_buckets": 8, "max_relative_positions": 16, "norm_rel_ebd": "layer_norm"},
        {"position_buckets": 6},
    ],
    ids=["plain", "short-normed", "buckets-normed", "buckets"],
)
def test_v2_equals_the_reference_with_every_subset_of_position_types(types, shared, tokens, changes):
    config = config_of(2, types, share_att_key=shared, **changes)
    encoder = scrambled(DebertaV2Encoder(config), tokens)
    attention, relative = specs_of(config)
    check(encoder, attention, relative, fill_v2, tokens, tokens)


@pytest.mark.parametrize(("buckets", "reach"), [(2, 8), (7, 40), (256, 512), (64, 1000), (32, 18)])
def test_every_distance_falls_in_the_references_bucket(buckets, reach):
    tokens = torch.zeros(1, 700, 1)
    expected = build_relative_position(tokens, tokens, buckets, reach)[0]
    columns = torch.arange(700)
    found = RelativePosition(max_relative_positions=reach, position_buckets=buckets).bucket(columns[:, None] - columns)
    assert torch.equal(found.clamp(-buckets, buckets - 1), expected.clamp(-buckets, buckets - 1))


@torch.no_grad()
@pytest.mark.parametrize(("width", "groups"), [(3, 1), (5, 4)])
def test_a_convolution_beside_the_first_layer_equals_the_references_encoder(width, groups):
    conv = {"conv_kernel_size": width, "conv_groups": groups, "conv_act": "gelu"}
    config = config_of(2, ("p2c", "c2p"), share_att_key=True, norm_rel_ebd="layer_norm", position_buckets=6, **conv)
    encoder = scrambled(DebertaV2Encoder(config))
    attention, relative = specs_of(config)
    shared = {"attention": attention, "norm": NORM, "ffn": MLP(d_ff=20, activation=GELU(), bias=True)}
    first = PostConv(**shared, conv_width=width, conv_groups=groups, conv_activation=GELU())
    layers: list[Any] = [Layer(first, 24), Layer(Post(**shared), 24)]
    for layer, hf in zip(layers, encoder.layer, strict=True):
        fill_v2(layer.attention, hf.attention)
        norms = {"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}
        copy(layer, hf, {**norms, "ffn.up": "intermediate.dense", "ffn.down": "output.dense"})
    copy(layers[0], encoder, {"conv": "conv.conv", "conv_norm": "conv.LayerNorm"})
    real = torch.ones(3, 11, dtype=torch.bool)
    real[0, :4], real[1, 7:] = False, False
    x = torch.randn(3, 11, 24)
    x = ours = x * real[..., None]  # as the reference's embedding leaves it
    step = step_of(attention, position_of(relative, encoder, 24), 11, real)
    for layer in layers:
        ours = layer(ours, step)
    theirs = encoder(x, real.long()).last_hidden_state
    torch.testing.assert_close(ours[real], theirs[real], atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_a_convolution_reads_neither_padding_nor_another_document():
    attention = Disentangled(n_heads=2, head_dim=4, position=NoPosition(), types=())
    ffn = MLP(d_ff=8, activation=GELU())
    layer = scrambled(Layer(PostConv(attention=attention, norm=NORM, ffn=ffn, conv_width=5, conv_activation=GELU()), 8))
    x = torch.randn(1, 12, 8)
    alone = torch.cat([layer(part, step_of(attention, None, part.shape[1])) for part in (x[:, :5], x[:, 5:])], 1)
    packed = step_of(attention, None, 12, documents=torch.tensor([[0] * 5 + [1] * 7]))
    torch.testing.assert_close(layer(x, packed), alone, atol=1e-5, rtol=1e-5)
    padded = step_of(attention, None, 12, torch.arange(12)[None] >= 5)
    torch.testing.assert_close(layer(x, padded)[:, 5:], alone[:, 5:], atol=1e-5, rtol=1e-5)


class Kept:
    """A cache that grows by joining."""

    def __init__(self):
        self.tensors = {}

    def append(self, plan, new):
        held = self.tensors
        self.tensors = {name: torch.cat((held[name], each), 1) if held else each for name, each in new.items()}
        return tuple(self.tensors.values())


def made(types=("c2p", "p2c"), *, shared=False, reach=6, buckets=None):
    relative = RelativePosition(max_relative_positions=reach, position_buckets=buckets, norm=NORM)
    attention = Disentangled(n_heads=3, head_dim=5, position=relative, types=types, share_att_key=shared)
    return attention, scrambled(Layer(attention, 16)), scrambled(Layer(relative, 16), 1)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_token_by_token_equals_the_whole_row_where_the_mask_is_causal(shared):
    attention, layer, position = made(shared=shared, reach=40, buckets=6)
    x, cache = torch.randn(2, 14, 16), Kept()
    whole = layer(x, step_of(attention, position, 14, causal=True))
    parts = []
    for start, end in [(0, 4), *((t, t + 1) for t in range(4, 14))]:
        step = step_of(attention, position, end - start, causal=True, held=start, cache=cache)
        step.keys.slots = ()
        parts.append(layer(x[:, start:end], step))
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_packed_documents_equal_separate_ones():
    attention, layer, position = made()
    x = torch.randn(1, 13, 16)
    packed = layer(x, step_of(attention, position, 13, documents=torch.tensor([[0] * 9 + [1] * 4])))
    parts = [layer(part, step_of(attention, position, part.shape[1])) for part in (x[:, :9], x[:, 9:])]
    torch.testing.assert_close(packed, torch.cat(parts, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("types", TYPES[1:], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(("new", "held"), [(5, 0), (16, 0), (1, 9), (3, 4)])
def test_counted_flops_equal_torchs_counter(types, shared, new, held):
    attention, layer, position = made(types, shared=shared)
    cache = Kept()
    with torch.no_grad():
        if held:
            step = step_of(attention, position, held, causal=True, cache=cache)
            step.keys.slots = ()
            layer(torch.randn(1, held, 16), step)
        step = step_of(attention, position, new, causal=True, held=held, cache=cache if held else None)
        step.keys.slots, step.kernel = (), "eager"
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(1, new, 16), step)
    token = sum(part.flops for part in attention.parts(16).values())
    counted = token * new + attention.core_flops(new * (held + new)) + attention.pass_flops(16, new, held)
    assert counter.get_total_flops() == counted


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_gradient_reaches_every_weight_and_the_table(shared):
    attention, layer, position = made(shared=shared, reach=30)
    layer(torch.randn(2, 30, 16), step_of(attention, position, 30)).logsumexp(-1).mean().backward()
    parameters = [*layer.named_parameters(), *position.named_parameters()]
    assert [name for name, p in parameters if p.grad is None or not p.grad.abs().max() > 0] == []


def test_it_compiles_whole_without_a_graph_break():
    torch.compiler.reset()
    attention, layer, position = made(reach=40, buckets=6)

    def run(x):
        return layer(x, step_of(attention, position, x.shape[1]))

    x = torch.randn(2, 12, 16)
    with torch.no_grad():
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), run(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_scheme_at_the_embedding_may_stand_besides():
    relative = RelativePosition(max_relative_positions=6, absolute=Learned(max_seq_len=9))
    layer = scrambled(Layer(relative, 8))
    x, positions = torch.randn(2, 5, 8), torch.arange(5)[None]
    assert relative.limit == 9
    torch.testing.assert_close(relative.embed(layer, x, positions), x + layer.absolute.table.weight[:5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Disentangled(n_heads=2, head_dim=4, position=RoPE()), "position=relative, or types"),
        (lambda: Disentangled(n_heads=2, head_dim=4, position=RELATIVE, types=()), "no attention but disentangled"),
        (lambda: Disentangled(n_heads=2, head_dim=4, position=RELATIVE, types=("c2p", "c2p")), "names one twice"),
        (
            lambda: Disentangled(n_heads=2, head_dim=4, position=NoPosition(), types=(), share_att_key=True),
            "types is empty",
        ),
        (lambda: Disentangled(n_heads=2, head_dim=4, position=RELATIVE, types=P2P), "c2p"),
        (lambda: RelativePosition(max_relative_positions=8, position_buckets=16), "at least 2"),
        (lambda: RelativePosition(max_relative_positions=8, absolute=RoPE()), "adds nothing to the embedding"),
        (lambda: conv_block(4), "no middle token"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValidationError, match=message):
        make()


RELATIVE = RelativePosition(max_relative_positions=8)
P2P: Any = ("p2p",)


def conv_block(width, groups=1):
    attention = Disentangled(n_heads=2, head_dim=4, position=RELATIVE)
    shared = {"attention": attention, "norm": NORM, "ffn": MLP(d_ff=8, activation=GELU())}
    return PostConv(**shared, conv_width=width, conv_groups=groups, conv_activation=GELU())


def test_groups_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="do not divide d_model=8"):
        conv_block(3, 3).parts(8)
