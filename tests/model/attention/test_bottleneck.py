"""MobileBERT's parts: what a bottleneck computes, what a trigram reads, and a narrow token table under a wide head."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm

from support.tiny_models import check_texts_alone, model_of, spec_of
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.attention.bottleneck import BottleneckAttention
from zoo.model.norm import Affine
from zoo.model.position.none import NoPosition
from zoo.model.step import Step
from zoo.run.layer import Layer

CLOSE = {"atol": 2e-5, "rtol": 1e-5}
NARROW = ["attention=bottleneck", "block=bottleneck", "bottleneck_width=12"]
MLM = "head={kind: mlm, activation: {kind: relu}, norm: {kind: layernorm}, table_width: 12}"
TRIGRAM = ["kind=encoder", "+embedding={width: 12, project_first: true, trigram: true}", "head.tied=false"]


def randomise(layer: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)


@torch.no_grad()
def test_queries_and_keys_read_the_narrow_vector_and_values_the_stream():
    layer = Layer(
        BottleneckAttention(n_heads=2, head_dim=3, width=5, norm=Affine(shift_last=True), position=NoPosition()), 8
    )
    randomise(layer)
    m, x = layer, torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    narrow = (x[0] @ m.reduce.weight.T) * m.reduce_norm.weight + m.reduce_norm.bias
    q, k, v = (m.q(narrow), m.k(narrow), m.v(x[0]))
    q, k, v = (each.unflatten(-1, (2, 3)).transpose(0, 1) for each in (q, k, v))
    seen = torch.ones(4, 4).tril().log()
    expected = m.o((torch.softmax(q @ k.mT / 3**0.5 + seen, -1) @ v).transpose(0, 1).flatten(1))
    assert expected.shape == (4, 5)
    torch.testing.assert_close(layer(x, Step(KeyView(Mask(4, 4))))[0], expected, **CLOSE)


@torch.no_grad()
def test_a_layer_is_a_residual_sum_around_its_bottleneck_whose_feed_forwards_each_have_a_norm():
    block = model_of([*NARROW, "n_ffns=3"]).blocks[0]
    m, x = block, torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    step = model_step(4)

    def normed(norm, y):
        return y / (y.square().mean(-1, keepdim=True) + norm.spec.eps).sqrt() * norm.weight

    y = normed(m.reduce_norm, m.reduce(x))
    y = normed(m.attention_norm, y + m.attention(x, step))
    for ffn, norm in ((m.ffn_0, m.ffn_0_norm), (m.ffn_1, m.ffn_1_norm), (m.ffn, m.ffn_norm)):
        y = normed(norm, y + ffn(y, step))
    torch.testing.assert_close(block(x, step), normed(m.expand_norm, x + m.expand(y)), **CLOSE)


def model_step(tokens: int) -> Step:
    angles = torch.arange(tokens)[:, None] * torch.ones(4)
    return Step(KeyView(Mask(tokens, tokens)), tables=(angles.cos()[None], angles.sin()[None]))


@torch.no_grad()
def test_a_trigram_reads_no_padding_and_no_other_document():
    model = model_of(TRIGRAM)
    check_texts_alone(model)
    ids = torch.randint(0, 67, (1, 14), generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(model(ids).logits[:, :7], model(ids[:, :7]).logits, atol=1e-3)


@torch.no_grad()
def test_a_head_reads_a_narrow_table_beside_a_product_of_its_own():
    model = model_of(["kind=encoder", MLM, "+embedding.width=12"])
    ids = torch.randint(0, 67, (2, 9), generator=torch.Generator().manual_seed(2))
    out = model(ids)
    m = model.head
    y = layer_norm(m.transform(out.hidden).relu(), (32,), m.norm.weight, m.norm.bias, m.norm.spec.eps)
    whole = torch.cat((model.embedding.tokens.weight, m.rest.weight), 1)  # V D
    torch.testing.assert_close(out.logits, y @ whole.T + m.out.bias, **CLOSE)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["attention=bottleneck", "bottleneck_width=12"], "has no place in a 'pre' block"),
        ([*NARROW, "attention.width=16"], "attention.width=16"),
        (["block=bottleneck", "bottleneck_width=12", "n_ffns=2", "ffn=moe"], "chooses experts, once a layer"),
        ([*NARROW, "n_ffns=17"], "n_ffns"),
        (TRIGRAM[1:], "trigram lets a token see the next one"),
        (["kind=encoder", f"{MLM[:-1]}, tied: true}}", "+embedding.width=16"], "12"),
        (["kind=encoder", f"{MLM[:-3]}32}}"], "table_width: is 32"),
        (["kind=encoder", "+embedding={trigram: true}"], "give `width` and `project_first: true`"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(overrides, said):
    with pytest.raises(ConfigError) as found:
        spec_of(overrides)
    assert said in str(found.value)
