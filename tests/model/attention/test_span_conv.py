"""Span-based dynamic convolution: what it computes, and what it reads."""

from __future__ import annotations

import torch

from support.tiny_models import check_texts_alone, model_of
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.attention.span_conv import SpanConv
from zoo.model.step import Step
from zoo.run.layer import Layer

CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@torch.no_grad()
def test_heads_of_a_convolution_stand_behind_those_of_softmax_attention():
    layer = Layer(SpanConv(n_heads=2, head_dim=3, conv_width=3), 8)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    m, x = layer, torch.randn(1, 5, 8, generator=generator)
    padded = torch.nn.functional.pad(x[0], (0, 0, 1, 1))
    span = torch.stack([sum(padded[i + w] * m.span.weight[:, 0, w] for w in range(3)) for i in range(5)])
    weights = m.conv_weights(m.span_k(span) * m.q(x[0])).unflatten(-1, (2, 3)).softmax(-1)  # T H W
    values = torch.nn.functional.pad(m.conv_v(x[0]), (0, 0, 1, 1)).unflatten(-1, (2, 3))  # T+2 H C
    convolved = torch.stack([sum(weights[i, :, w, None] * values[i + w] for w in range(3)) for i in range(5)])
    q, k, v = (part(x[0]).unflatten(-1, (2, 3)).transpose(0, 1) for part in (m.q, m.k, m.v))
    attended = (torch.softmax(q @ k.mT / 3**0.5, -1) @ v).transpose(0, 1)
    expected = m.o(torch.cat((attended, convolved), 1).flatten(1))
    step = Step(KeyView(Mask(5, 5, causal=False)))
    torch.testing.assert_close(layer(x, step)[0], expected, **CLOSE)


@torch.no_grad()
def test_packed_documents_and_padded_rows_equal_texts_alone():
    model = model_of(["kind=encoder", "attention=span_conv", "position=none", "attention.conv_width=5"])
    check_texts_alone(model)
