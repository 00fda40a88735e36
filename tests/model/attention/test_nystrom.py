"""Nyström attention: its pseudo-inverse, its landmarks in packed and padded rows, and its convolution of the values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.tiny_models import check_texts_alone, model_of
from zoo.compose import load
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.attention.nystrom import Nystrom, invert, place_landmarks
from zoo.model.step import Step
from zoo.run.layer import Layer

CLOSE = {"atol": 2e-5, "rtol": 1e-5}
NYSTROM = ["kind=encoder", "attention=nystrom", "position=none"]


def step_of(tokens, *, documents=None, real=None):
    """A hand-made moment in which texts of a row are documents, or a row is padded."""
    places = torch.arange(tokens)[None]
    if documents is not None:
        places = torch.cat([torch.arange(count) for count in documents.unique(return_counts=True)[1]])[None]
    if real is not None:
        places = (real.long().cumsum(1) - 1).clamp(min=0)
    both = None if documents is None else (documents[None], documents[None])
    mask = Mask(tokens, tokens, causal=False, padding=real, documents=both)
    return Step(KeyView(mask), positions=places, real=real, documents=None if documents is None else documents[None])


def test_six_iterations_come_near_the_pseudo_inverse():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.softmax(torch.randn(2, 3, 5, 5, generator=generator) + 4 * torch.eye(5), -1)
    torch.testing.assert_close(invert(matrices, None), torch.linalg.pinv(matrices), atol=1e-3, rtol=1e-3)


def test_blocks_along_a_diagonal_are_inverted_each_by_itself():
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.softmax(torch.randn(1, 2, n, n, generator=generator), -1) for n in (3, 2))
    both, together = torch.zeros(1, 2, 6, 6), torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    both[..., :3, :3], both[..., 3:5, 3:5] = first, second  # the last landmark is of no text
    together[..., :3, :3] = together[..., 3:5, 3:5] = True
    found = invert(both, together)
    torch.testing.assert_close(found[..., :3, :3], invert(first, None), **CLOSE)
    torch.testing.assert_close(found[..., 3:5, 3:5], invert(second, None), **CLOSE)
    assert not found.masked_fill(together, 0).any()


@pytest.mark.parametrize(("tokens", "sizes"), [(12, [4, 4, 4]), (7, [3, 2, 2]), (2, [1, 1])])
def test_landmarks_are_means_of_segments_that_are_as_equal_as_can_be(tokens, sizes):
    means = place_landmarks(step_of(tokens), 3).means[0, 0]
    assert [int((row > 0).sum()) for row in means] == sizes
    torch.testing.assert_close(means.sum(-1), torch.ones(len(sizes)))
    assert torch.equal((means > 0).long().argmax(0), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)))


@torch.no_grad()
@pytest.mark.parametrize("landmarks", ["3", "null"])
def test_packed_documents_and_padded_rows_equal_texts_alone(landmarks):
    model = model_of([*NYSTROM, f"attention.n_landmarks={landmarks}", "attention.conv_width=5"])
    check_texts_alone(model)


@torch.no_grad()
def test_without_landmarks_it_is_softmax_attention_and_a_convolution_of_each_heads_values():
    attention = Nystrom(n_heads=3, head_dim=4, n_landmarks=None, conv_width=3)
    layer: Any = Layer(attention, 12)
    generator = torch.Generator().manual_seed(3)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    x = torch.randn(1, 6, 12, generator=generator)
    q, k, v = (part(x)[0].unflatten(-1, (3, 4)).transpose(0, 1) for part in (layer.q, layer.k, layer.v))  # H T C
    expected = torch.softmax(q @ k.mT / 2, -1) @ v
    for head in range(3):
        for token in range(6):
            for place, near in enumerate((token - 1, token, token + 1)):
                if 0 <= near < 6:
                    expected[head, token] += layer.conv[head, 0, place] * v[head, near]
    step = step_of(6)
    attention.prepare(None, step)
    torch.testing.assert_close(layer(x, step)[0], layer.o(expected.transpose(0, 1).flatten(1)), **CLOSE)


def test_what_it_cannot_do_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="conv_width=4 has no middle token"):
        load("llama-tiny", [*NYSTROM, "attention.conv_width=4"])
    attention = load("llama-tiny", NYSTROM).blocks["layer"].attention
    with pytest.raises(ConfigError, match="tp: Nyström attention compares the matrices of all heads"):
        attention.shard(2)
