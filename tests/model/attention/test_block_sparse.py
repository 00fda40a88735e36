"""Block-sparse attention: what each token sees, how often the first block counts, and the random blocks of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoo.costs.pairs import block_pairs
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.attention.block_sparse import BlockSparse
from zoo.model.position.none import NoPosition
from zoo.model.step import Step
from zoo.run.layer import Layer

WIDTH = 12


def spec_of(size, random):
    return BlockSparse(n_heads=3, head_dim=4, block_size=size, random_blocks=random, position=NoPosition())


def step_of(attention, tokens, *, training=False, documents=None, real=None):
    """A hand-made moment in which texts of a row are documents, or a row is padded."""
    places = torch.arange(tokens)[None]
    if documents is not None:
        places = torch.cat([torch.arange(count) for count in documents.unique(return_counts=True)[1]])[None]
    if real is not None:
        places = (real.long().cumsum(1) - 1).clamp(min=0)
    both = None if documents is None else (documents[None], documents[None])
    mask = Mask(tokens, tokens, causal=False, padding=real, documents=both)
    step = Step(KeyView(mask), positions=places, training=training)
    attention.prepare(None, step)
    return step


def seen_by(step):
    return step.mask.dense(torch.device("cpu"))[0, 0]


def loud(attention) -> Any:
    layer = Layer(attention, WIDTH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return layer


@pytest.mark.parametrize(("size", "random"), [(1, 0), (2, 0), (3, 1), (2, 2)])
def test_pairs_are_those_that_the_mask_shows(size, random):
    attention = spec_of(size, random)
    for tokens in range(1, 40):
        assert block_pairs(tokens, attention.sight.blocks) == seen_by(step_of(attention, tokens)).sum(), tokens


def test_a_token_sees_near_blocks_the_first_and_the_last():
    blocks = torch.arange(23) // 3
    query, key = blocks[:, None], blocks
    expected = ((query - key).abs() <= 1) | (key == 0) | (key == 7) | (query == 0) | (query == 7)
    assert torch.equal(seen_by(step_of(spec_of(3, 1), 23)), expected)
    assert seen_by(step_of(spec_of(3, 1), 21)).all()  # (5 + 2·1)·3 tokens see themselves whole


@torch.no_grad()
def test_the_keys_of_the_first_block_count_once_more_for_each_random_block():
    attention, tokens, query = spec_of(2, 2), 24, 11
    layer, x = loud(attention), torch.randn(1, 24, WIDTH, generator=torch.Generator().manual_seed(1))
    ours = layer(x, step_of(attention, tokens))[0, query]
    keys = [*range(8, 14), 22, 23, *(0, 1) * 3]  # of block 5: blocks 4 to 6, the last, and the first three times
    q, k, v = (part(x)[0].unflatten(-1, (3, 4)) for part in (layer.q, layer.k, layer.v))
    scores = torch.einsum("hc,shc->hs", q[query], k[keys]) / 2
    theirs = layer.o(torch.einsum("hs,shc->hc", scores.softmax(-1), v[keys]).flatten())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_training_shows_random_blocks_that_are_not_seen_otherwise():
    attention, tokens = spec_of(2, 3), 60
    step = step_of(attention, tokens, training=True)
    more = (seen_by(step) & ~seen_by(step_of(attention, tokens)))[::2, ::2]  # a block each
    assert step.keys.bias is None
    assert more.sum(-1).tolist() == [0, *[3] * 28, 0]
    assert len({tuple(row.tolist()) for row in more}) > 20  # each block has others
    assert torch.equal(seen_by(step), seen_by(step_of(attention, tokens, training=True)))


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_packed_documents_and_padded_rows_equal_texts_alone(training):
    attention = spec_of(1, 1)
    layer, x = loud(attention), torch.randn(1, 27, WIDTH, generator=torch.Generator().manual_seed(2))
    parts = [layer(x[:, a:b], step_of(attention, b - a, training=training)) for a, b in ((0, 12), (12, 17), (17, 27))]
    alone = torch.cat(parts, 1)
    documents = torch.tensor([0] * 12 + [1] * 5 + [2] * 10)
    packed = layer(x, step_of(attention, 27, training=training, documents=documents))
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    for real in (torch.arange(27)[None] < 12, torch.arange(27)[None] >= 17):
        padded = layer(x, step_of(attention, 27, training=training, real=real))
        torch.testing.assert_close(padded[real], alone[real], atol=1e-5, rtol=1e-5)


def test_a_model_in_training_is_shown_random_blocks():
    from support.tiny_models import model_of

    model = model_of(["attention=block_sparse", "kind=encoder", "block_size=1", "random_blocks=1"])
    ids = torch.randint(0, 67, (1, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        still, trained = model(ids).logits, model.train()(ids).logits
    assert (still - trained).abs().max() > 1e-3
