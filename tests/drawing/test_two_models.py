"""Two models beside each other: exactly what an override changed is lit."""

from support.packaged_specs import load
from support.scene_checks import find_faults, smallest_text
from zoo.drawing.contents import plan_model
from zoo.drawing.scene import Box, Label
from zoo.drawing.two_models import draw_beside, find_differences, list_costs


def plan(name, *overrides):
    return plan_model(load(name, overrides), " ".join([name, *overrides]))


def lit(one, two):
    return [shape.text for shape in draw_beside(one, two).items if isinstance(shape, Label) and shape.color == "lit"]


def test_equal_models_have_nothing_lit():
    for one in (plan("llama3-8b"), plan("gemma-3n-e2b")):
        assert find_differences(one, one) == [] and lit(one, one) == []


def test_a_changed_field_is_lit_alone_on_both_sides():
    one, two = plan("llama3-8b"), plan("llama3-8b", "n_kv_heads=2")
    assert [each.what for each in find_differences(one, two)] == ["8 KV heads", "caches 2,048 values per token"]
    assert [each.what for each in find_differences(two, one)] == ["2 KV heads", "caches 512 values per token"]
    shown = lit(one, two)
    cached = {f"caches {count} values per token" for count in ("2,048", "512")}
    assert {"8 KV heads ·", "2 KV heads ·"} | cached <= set(shown)
    assert not any("head dim" in text or "RoPE" in text or "d_ff" in text for text in shown)


def test_another_component_has_a_lit_border():
    scene = draw_beside(plan("llama3-8b"), plan("llama3-8b", "attention=mla"))
    assert [shape.name for shape in scene.items if isinstance(shape, Box) and shape.line == "lit"] == ["attention"] * 2


def test_another_depth_is_lit():
    assert {"32 layers", "4 layers"} <= set(lit(plan("llama3-8b"), plan("llama3-8b", "n_layers=4")))


def test_costs_are_told_with_their_change():
    rows = list_costs(plan("llama3-8b"), plan("llama3-8b", "n_kv_heads=2"))
    assert rows[-1] == ("cache of 8,192 tokens", "1.07 GB", "268 MB", "\N{MINUS SIGN}75.0 %")


def test_the_columns_of_costs_are_named():
    one, two = plan("llama3-8b"), plan("llama3-8b", "n_kv_heads=2")
    shown = [shape.text for shape in draw_beside(one, two).items if isinstance(shape, Label) and shape.anchor == "end"]
    assert one.title in shown and " ".join(shown[shown.index(one.title) + 1 :]).startswith(two.title)


def test_models_of_other_kinds_can_be_compared():
    for one, two in (("t5-tiny", "bert-tiny"), ("qwen3-next-80b-a3b", "nemotron-h-8b")):
        scene = draw_beside(plan(one), plan(two))
        assert find_faults(scene) == [] and smallest_text(scene) >= 6
