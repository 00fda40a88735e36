"""The grids of an axis are what the model's own masks say, made as tensors by torch."""

import pytest
import torch

from support.scene_checks import find_faults, smallest_text
from zoo.analysis.axes import list_axes, load_small
from zoo.costs.pairs import Look
from zoo.drawing.axis_figure import draw_axis, list_choices, write_formula
from zoo.drawing.masks import CELLS, find_grid, make_mask, sees
from zoo.drawing.scene import Box, Label
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.model.attention.base import Sight
from zoo.model.context import ForwardContext
from zoo.model.step import Inputs

PLAIN = ["gqa", "longformer", "mamba2"]


@pytest.mark.parametrize("choice", PLAIN)
def test_a_grid_is_the_mask_of_the_models_own_pass(choice):
    *_, tower = load_small("attention", choice)
    attention = next(iter(tower.blocks.values())).attention
    grid = find_grid(attention, tower.causal)
    tokens = CELLS * grid.step
    context = ForwardContext(tower, Inputs(torch.zeros(1, tokens, dtype=torch.long)))
    dense = context.see(attention, None, None).mask.dense(torch.device("cpu"))[0, 0]
    at = torch.arange(CELLS) * grid.step + grid.step - 1
    assert torch.equal(torch.tensor(grid.seen), dense[at][:, at])


@pytest.mark.parametrize("sight", [Sight(window=3), Sight(chunk=4), Sight(window=2, ahead=5), Sight()])
@pytest.mark.parametrize("causal", [True, False])
def test_whole_numbers_are_seen_as_tensors_are(sight, causal):
    if sight.ahead is not None and causal:
        return
    chunks = None if sight.chunk is None else (torch.arange(12)[None] // sight.chunk,) * 2
    dense = Mask(12, 12, causal=causal, window=sight.window, ahead=sight.ahead, documents=chunks)
    wanted = dense.dense(torch.device("cpu"))[0, 0]
    mask = make_mask(sight, causal, 12)
    assert [[sees(mask, sight, i, j, 12) for j in range(12)] for i in range(12)] == wanted.tolist()


def test_blocks_are_seen_as_many_as_are_priced():
    *_, tower = load_small("attention", "block_sparse")
    attention = next(iter(tower.blocks.values())).attention
    sight, tokens = attention.sight, CELLS * attention.sight.blocks.size
    grid = find_grid(attention, False)
    pairs = sum(map(sum, grid.seen)) * sight.blocks.size**2
    assert pairs == Look(False, False, **sight._asdict()).pairs(tokens)


def test_a_short_convolution_sees_as_many_tokens_as_it_is_wide():
    *_, tower = load_small("attention", "short_conv")
    attention = next(iter(tower.blocks.values())).attention
    seen = find_grid(attention, True).seen
    assert [sum(keys) for keys in seen] == [1, 2] + [attention.d_conv] * (CELLS - 2)


def test_a_choice_that_encoders_alone_have_is_drawn_both_ways():
    choices = {each.name: each for each in list_choices("attention")}
    for name in ("bottleneck", "grouped_linear", "fourier", "nystrom"):
        assert all(map(all, find_grid(choices[name].component, choices[name].causal).seen)), name
    assert choices["gqa"].causal and choices["gqa"].lines[-1] == "time T², cache T"
    assert choices["bottleneck"].lines[-1] == "time T²"


def test_as_many_pools_are_drawn_as_the_tokens_fill():
    *_, tower = load_small("attention", "hca")
    attention = next(iter(tower.blocks.values())).attention
    grid = find_grid(attention, True)
    assert attention.sight.rate == 128 and CELLS * grid.step == 512
    assert [sum(row) for row in grid.pooled] == [(at + 1) * grid.step // 128 for at in range(CELLS)]
    assert {len(row) for row in grid.pooled} == {4}


def test_a_choice_is_named_and_captioned_as_what_it_is():
    choices = {each.name: each for each in list_choices("attention")}
    assert choices["delta_net"].element.title == "DeltaNet"
    said = {
        "longformer": ("keys, bidirectional", "global tokens not drawn"),
        "fourier": ("tokens, mixed without keys, bidirectional, as in fnet",),
        "nystrom": ("through 64 landmarks", "bidirectional, as in nystromformer"),
        "transformer_xl": ("keys, bidirectional, as in xlnet",),
        "side_by_side": ("keys", "through a state"),
        "gqa": ("keys",),
        "mamba2": ("through a state",),
    }
    for name, texts in said.items():
        items = draw_axis("attention", [choices[name]]).items
        drawn = " ".join(shape.text for shape in items if isinstance(shape, Label))
        assert all(text in drawn for text in texts), (name, drawn)
        assert ("keys" in drawn) is ("keys" in " ".join(texts)), name


def test_a_recurrent_mixer_beside_the_softmax_has_a_mask_of_its_own():
    (choice,) = (each for each in list_choices("attention") if each.name == "side_by_side")
    cells = [shape for shape in draw_axis("attention", [choice]).items if isinstance(shape, Box) and shape.width == 5]
    filled = {color: sum(cell.fill == color for cell in cells) for color in ("attention-line", "recurrent-line")}
    assert filled == dict.fromkeys(filled, CELLS * (CELLS + 1) // 2)


def test_a_norm_is_its_formula_with_what_this_choice_has():
    said = {each.name: write_formula(each.component) for each in list_choices("norm")}
    assert said["rmsnorm"] == "x / √(mean(x²) + eps) · weight"
    assert said["rmsnorm_offset"] == "x / √(mean(x²) + eps) · (1 + weight)"
    assert said["layernorm"] == "(x − mean) / √(var + eps) · weight + bias"
    assert said["layernorm_plain"] == "(x − mean) / √(var + eps)"
    assert said["affine"] == "(x + bias) · weight" and said["dyt"] == "tanh(alpha · x) · weight + bias"


def test_an_axis_is_drawn_without_a_fault():
    scene = draw_axis("cross", list_choices("cross"))
    assert find_faults(scene) == [] and smallest_text(scene) >= 8.99


@pytest.mark.slow
@pytest.mark.parametrize("axis", list_axes())
def test_every_axis_is_drawn_without_a_fault(axis):
    scene = draw_axis(axis, list_choices(axis))
    assert find_faults(scene) == [] and smallest_text(scene) >= 8.99


def test_an_unknown_axis_is_refused():
    with pytest.raises(ConfigError, match="axis: there is no 'atention'"):
        list_choices("atention")
