"""Transformer-XL's attention: distances, segments, and what learns of them."""

from __future__ import annotations

import pytest
import torch

from support.tiny_models import model_of
from zoo.compose import load
from zoo.costs import price
from zoo.errors import ConfigError

XL = ["kind=encoder", "attention=transformer_xl", "position=none", "+attention.segments=true"]


def draw(rows=2, length=14):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 67, (rows, length), generator=generator)
    return ids, torch.randint(0, 3, (rows, length), generator=generator)


def test_a_gradient_reaches_every_weight_where_tokens_have_types():
    model, (ids, types) = model_of(XL).train(), draw()
    model(ids, token_type_ids=types).logits.logsumexp(-1).mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@torch.no_grad()
def test_tokens_of_one_segment_are_read_as_tokens_without_types():
    model, (ids, types) = model_of(XL), draw()
    without = model(ids).logits
    torch.testing.assert_close(model(ids, token_type_ids=torch.full_like(ids, 2)).logits, without)
    assert (model(ids, token_type_ids=types).logits - without).abs().max() > 1e-3
    torch.testing.assert_close(model(ids, token_type_ids=9 - types).logits, model(ids, token_type_ids=types).logits)


@torch.no_grad()
def test_packed_documents_and_padded_rows_with_types_equal_texts_alone():
    model, (ids, types) = model_of([*XL, "attention.max_distance=4"]), draw(1)
    alone = [model(ids[:, part], token_type_ids=types[:, part]).logits for part in (slice(0, 5), slice(5, 14))]
    documents = torch.tensor([[0] * 5 + [1] * 9])
    packed = model(ids, documents=documents, token_type_ids=types).logits
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=2e-5, rtol=1e-5)
    padded = model(ids, documents.eq(1), token_type_ids=types).logits
    torch.testing.assert_close(padded[:, 5:], alone[1], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_distances_beyond_the_farthest_count_as_it():
    near, far, whole = (
        model_of([*XL[:3], *limit]) for limit in (["attention.max_distance=4"], ["attention.max_distance=13"], [])
    )
    ids, _ = draw()
    torch.testing.assert_close(far(ids).logits, whole(ids).logits)
    assert (near(ids).logits - whole(ids).logits).abs().max() > 1e-3
    figures = [price(model.spec, context=14)["flops"]["prefill"] for model in (near, far, whole)]
    assert figures[0] < figures[1] == figures[2]


def test_types_are_refused_where_nothing_reads_them_and_a_decoder_too():
    ids, types = draw()
    with pytest.raises(ConfigError, match="token_type_ids: the model has no token types"):
        model_of(XL[:3])(ids, token_type_ids=types)
    with pytest.raises(ConfigError, match="'transformer_xl' lets a token see later ones"):
        load("llama-tiny", XL[1:])
