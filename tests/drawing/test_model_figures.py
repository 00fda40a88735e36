"""Figures of models: of all that are packaged and of every family nothing overlaps, is cut or is too small to read."""

import copy
from dataclasses import astuple

import pytest
import torch
import transformers

from support.family_cases import ONE_EACH
from support.packaged_specs import load, one_in
from support.scene_checks import find_faults, smallest_text
from zoo.costs.setup import Setup
from zoo.drawing.boxes import PLAIN
from zoo.drawing.card_figure import draw_card
from zoo.drawing.contents import plan_model
from zoo.drawing.cost_look import draw_areas, make_cost_look
from zoo.drawing.model_figure import draw_model
from zoo.drawing.scene import Box, Label, Stroke
from zoo.drawing.stack import BRACKET, draw_stack
from zoo.drawing.strip import draw_strip, list_colors
from zoo.drawing.text_figure import draw_text, write_text
from zoo.drawing.two_models import say_change
from zoo.errors import ConfigError
from zoo.paths import conf_dir
from zoo.run.builder import build

PACKAGED = sorted(each.stem for each in (conf_dir() / "model").glob("*.yaml"))
READABLE = 8.99
"""The least size of a text, in pixels, when a figure is shown 600 pixels wide."""


def draw_looks(spec, title):
    plan = plan_model(spec, title)
    look = make_cost_look(plan, "params")
    yield draw_model(plan)
    yield draw_model(plan, look, lambda width: draw_areas(plan, "params", width, look))
    yield draw_strip(plan)


@pytest.mark.parametrize("name", one_in(8, PACKAGED))
def test_a_packaged_models_figures_have_no_fault(name):
    spec = load(name)
    for scene in draw_looks(spec, name):
        assert find_faults(scene) == []
        assert smallest_text(scene) >= READABLE
    assert find_faults(draw_card(plan_model(spec, name), spec)) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", one_in(24, ONE_EACH), ids=lambda case: case.name)
def test_a_familys_figures_have_no_fault(case, tmp_path):
    config = getattr(transformers, case.config)(**copy.deepcopy(dict(case.sizes)))
    config.architectures = [case.model]
    config.save_pretrained(tmp_path)
    for scene in draw_looks(load(tmp_path), case.name):
        assert find_faults(scene) == []
        assert smallest_text(scene) >= READABLE


def test_a_figure_names_each_kind_of_layer_with_its_count():
    said = texts(draw_model(plan_model(load("deepseek-v3"), "deepseek-v3")))
    assert {"dense", "× 3", "sparse", "× 58", "MLA", "MoE", "GatedFFN", "671 B", "37.6 B"} <= set(said)


def test_a_figure_draws_a_cell_for_each_expert_and_fills_those_that_a_token_passes():
    plan = plan_model(load("gpt-oss-20b"), "gpt-oss-20b")
    cells = [shape for shape in draw_model(plan).items if isinstance(shape, Box) and shape.width == 9]
    assert len(cells) == 32
    assert sum(bool(cell.fill) for cell in cells) == 4


def test_shared_experts_are_counted_beside_chosen_ones_with_their_weights():
    stated = {"deepseek-v3": (256, 8, 1, 1.0), "deepseek-v2-lite": (64, 6, 1, 2.0), "gpt-oss-20b": (32, 4, 0, 0.0)}
    for name, counts in stated.items():
        plan = plan_model(load(name), name)
        (own,) = {each.experts for layer in plan.towers[0].layers for each in layer.elements.values() if each.experts}
        assert astuple(own) == counts


@pytest.mark.parametrize(("name", "experts"), [("deepseek-v2-lite", 1), ("granite-4.0-h-small", 2), ("deepseek-v3", 4)])
def test_a_shared_experts_square_is_to_its_weights_as_a_cell_is_to_those_of_its_experts(name, experts):
    plan = plan_model(load(name), "")
    times = next(each.experts.times for each in plan.towers[0].layers[-1].elements.values() if each.experts)
    scene = draw_model(plan)
    words = [each for each in scene.items if isinstance(each, Label) and "shared, always on" in each.text]
    for word in words:  # its square ends at the baseline, at its left
        (square,) = (each for each in scene.items if isinstance(each, Box) and _ends_at(each, word))
        assert square.width**2 == pytest.approx(9**2 * times / experts) and square.fill == "experts-line"
    begin = "1 shared, always on, 2 × as" if times == 2 else "1 shared, always on"
    assert words and all(each.text.startswith(begin) for each in words)


def _ends_at(box, word):
    return box.y + box.height == pytest.approx(word.y) and 0 < word.x - box.x - box.width < 9


def test_a_bias_on_scores_stands_beside_the_stream():
    for tower in plan_model(load("t5-tiny"), "").towers:
        assert [each.name for each in tower.before] == ["embedding"]
        assert [each.name for each in tower.beside] == ["position"]


@pytest.mark.parametrize("name", ["bert-tiny", "opt-350m"])
def test_the_ends_of_a_tower_stand_in_the_order_in_which_the_built_model_goes_through_them(name):
    spec = load(name, ["n_layers=1", "vocab_size=64", "max_seq_len=16"])
    (tower,) = plan_model(spec, "").towers
    model, ran = build(spec), []
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: ran.append(path))
    model(torch.zeros(1, 4, dtype=torch.long))
    table = {"embedding": "embedding.tokens", "position": "position.table", "head": "head.out"}
    drawn = [table.get(each.name, each.name) for each in tower.ends]
    assert drawn == [path for path in ran if path in drawn]
    assert len(drawn) >= 5


def test_several_streams_are_merged_after_the_layers_and_per_layer_inputs_stand_beside():
    (tower,) = plan_model(load("gemma-3n-e2b"), "").towers
    assert [each.name for each in tower.before] == ["embedding", "streams"]
    assert [(each.name, *each.rows[:1]) for each in tower.beside] == [
        ("embedding.per_layer", ("", "width 256 · norm RMSNorm"))
    ]
    assert [each.name for each in tower.after] == ["merge", "norm", "head"]
    widened, merged = tower.before[1], tower.after[0]
    assert (widened.rows, merged.rows) == ((("", "1 → 4 streams"),), (("", "4 streams → 1"),))
    assert widened.share.params == merged.share.params == 3 * 2048**2


def test_what_all_layers_read_ends_on_a_bracket_over_them_and_reads_the_embedding():
    plan = plan_model(load("gemma-3n-e2b"), "")
    (tower,) = plan.towers
    assert tower.fed == {"embedding.per_layer": "embedding"}
    assert {("tokens", "262,144 × 7,680"), ("project", "2,048 → 7,680")} <= set(tower.beside[0].rows)
    drawn = draw_stack(tower, 176).shapes
    named = {each.name: each for each in drawn if isinstance(each, Box)}
    first, last = named["local_sparse"], named["global_reads"]
    wires = [each.extent for each in drawn if isinstance(each, Stroke)]
    (bracket,) = (each for each in wires if each.right == 0 and each.left == -BRACKET)
    assert bracket.top <= last.y and bracket.bottom >= first.y + first.height
    (read,) = (each for each in wires if each.right > 176)  # from above the embedding
    assert first.y + first.height < read.top < named["embedding"].y < named["embedding.per_layer"].y < read.bottom
    assert plan_model(load("t5-tiny"), "").towers[0].fed == {}


def test_an_attention_is_titled_by_its_groups_and_an_encoders_looks_both_ways():
    groups = {"n_kv_heads=32": "MHA", "n_kv_heads=8": "GQA", "n_kv_heads=1": "MQA"}
    for override, title in groups.items():
        (layer,) = plan_model(load("llama3-8b", [override]), "").towers[0].layers
        assert layer.elements["attention"].title == title
    (layer,) = plan_model(load("bert-tiny"), "").towers[0].layers
    attention = layer.elements["attention"]
    assert attention.about == "Multi-head attention" and attention.rows[0][1].startswith("bidirectional · ")


def test_a_shared_block_is_an_attention_of_one_set_of_weights():
    hybrid = plan_model(load("zamba-7b"), "").towers[0].layer("hybrid")
    shared = hybrid.elements["shared"]
    assert (shared.title, shared.color) == ("shared attention + FFN", "attention")
    assert (shared.rows[0][1], shared.kept) == ("one set of weights for 13 layers", "caches 14,848 values per token")
    assert list_colors(hybrid) == ["recurrent-line", "attention-line"]


def test_the_areas_of_the_look_by_cost_are_the_shares():
    plan = plan_model(load("llama3-8b"), "llama3-8b")
    look = make_cost_look(plan, "params")
    boxes = [shape for shape in draw_areas(plan, "params", 1000, look) if isinstance(shape, Box)]
    assert sum(box.width for box in boxes) == pytest.approx(1000, abs=1)
    ffn = 3 * 4096 * 14336 * 32
    assert max(box.width for box in boxes) == pytest.approx(1000 * ffn / 8_030_261_248)


def test_an_encoder_has_no_cache_to_be_coloured_by():
    with pytest.raises(ConfigError, match="by: bert has no cache"):
        make_cost_look(plan_model(load("bert-tiny"), "bert"), "cache")


def test_the_context_changes_the_cache_that_a_figure_states():
    tiles = [plan_model(load("llama3-8b"), "", Setup(context=context)).list_tiles() for context in (1024, 2048)]
    assert [each[-1] for each in tiles] == [
        ("134 MB", "cache at 1,024 tokens"),
        ("268 MB", "cache at 2,048 tokens"),
    ]


def test_a_strip_has_a_cell_for_each_layer_and_lighter_ones_for_windows():
    strip = draw_strip(plan_model(load("gemma3-1b"), "gemma3-1b"))
    cells = [shape for shape in strip.items if isinstance(shape, Box) and shape.tip]
    assert len(cells) == 2 * 26
    assert sum(cell.fill == "attention" for cell in cells) == 22
    assert sum(cell.fill == "attention-line" for cell in cells) == 4


def test_a_card_is_as_large_as_a_links_picture_and_states_the_exact_numbers():
    spec = load("llama3-8b")
    card = draw_card(plan_model(spec, "llama3-8b"), spec)
    assert (card.width, card.height) == (1200, 630)
    assert "8,030,261,248 parameters · 131,072 bytes of cache per token" in texts(card)
    assert smallest_text(card) >= 6


def test_a_card_says_of_windows_that_a_tokens_cache_is_not_the_mean():
    spec = load("gpt-oss-20b")
    said = texts(draw_card(plan_model(spec, "gpt-oss-20b"), spec))
    assert "paler: with a window" in said
    assert any(text.endswith("49,152 bytes of cache per token until windows are full") for text in said)


def test_a_terminals_drawing_has_the_residual_ways_beside_the_layers():
    drawn = write_text(draw_text(plan_model(load("falcon-7b"), "falcon-7b")))
    assert "│ ╭─⊕\n│ │ MQA\n" in drawn and "│ │ ∥ MLP\n" in drawn and "│ │ LayerNorm\n│ ╰─┤\n" in drawn


def test_kinds_of_one_panel_open_one_box_in_a_terminals_drawing():
    drawn = write_text(draw_text(plan_model(load("gemma-3n-e2b"), "")))
    assert (drawn.count("┌"), drawn.count("├"), drawn.count("└")) == (1, 7, 1)
    assert "├ global × 1  layer 14\n" in drawn


def test_weights_that_are_a_fields_default_are_said_and_positions_of_the_embedding_once():
    drawn = write_text(draw_text(plan_model(load("deepseek-v3"), "")))
    assert "selection bias" in drawn and "norm RMSNorm" in drawn
    assert write_text(draw_text(plan_model(load("bert-tiny"), ""))).count("Learned") == 1


def test_the_bar_of_costs_says_which_tower_and_which_attention():
    plan = plan_model(load("t5-base"), "")
    said = [each.text for each in draw_areas(plan, "params", 720, PLAIN) if isinstance(each, Label)][1:]
    assert said[:5] == ["Embedding", "encoder MHA", "encoder layer MLP", "decoder MHA", "cross MHA"]


def test_nothing_is_cut_in_thin_boxes_beside_their_cost():
    plan = plan_model(load("gemma-3n-e2b"), "")
    said = texts(draw_model(plan, make_cost_look(plan, "params")))
    assert {"4 streams → 1", "laurel up Linear 64 × 2,048"} <= set(said) and not any("…" in each for each in said)
    assert "concatenated" in texts(draw_model(plan))


def test_a_change_is_said_in_short():
    assert [say_change(100, each) for each in (100, 87.5, 2500)] == ["=", "\N{MINUS SIGN}12.5 %", "×25.0"]


def texts(scene):
    return [shape.text for shape in scene.items if isinstance(shape, Label)]
