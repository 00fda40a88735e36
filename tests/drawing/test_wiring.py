"""How a layer is wired is found from its forward pass: the sums that its docstring states, and those of a new block."""

from collections import Counter
from dataclasses import replace

import pytest

from support.packaged_specs import load
from support.scene_checks import find_faults
from zoo.analysis.axes import load_small
from zoo.drawing.contents import plan_model
from zoo.drawing.model_figure import draw_model
from zoo.drawing.placement import assign_lanes
from zoo.drawing.text_figure import draw_text, write_text
from zoo.drawing.wiring import STREAM, say_factor, wire_model
from zoo.model.block.sublayers import Full

STATED = {
    "pre": "x + attention(attention_norm(x)) + ffn(ffn_norm(x + attention(attention_norm(x))))",
    "post": "ffn_norm(attention_norm(x + attention(x)) + ffn(attention_norm(x + attention(x))))",
    "post_inside": "x + attention_norm(attention(x)) + ffn_norm(ffn(x + attention_norm(attention(x))))",
    "parallel": "x + attention(attention_norm(x)) + ffn(attention_norm(x))",
}
"""What a layer computes, with parts by name."""


@pytest.mark.parametrize("kind", STATED)
def test_a_layer_is_wired_as_it_computes(kind):
    nodes = wire_model(load("llama-tiny", [f"block={kind}"])).layers["", "layer"]
    assert set(write_sums(nodes)) == set(evaluate(STATED[kind]))


def test_a_mixture_on_a_shortcut_joins_at_the_layers_end():
    nodes = wire_model(load("longcat-flash")).layers["", "layer"]
    parts = {node.part: node.number for node in nodes}
    assert parts["ffn"] in nodes[-1].sources and nodes[parts["ffn"]].sources == (parts["ffn_norm"],)


def test_a_decoder_reads_its_encoder_and_borrowed_keys_are_read_from_their_layer():
    crossed = {node.part: node.sources for node in wire_model(load("t5-tiny")).layers["decoder", "layer"]}
    assert "memory" in crossed["cross"] and "memory" not in crossed["attention"]
    wired = wire_model(load("gemma-3n-e2b")).layers
    assert "lent" in next(node.sources for node in wired["", "local_reads"] if node.part == "attention")
    assert "lent" not in next(node.sources for node in wired["", "local"] if node.part == "attention")


def test_a_constant_factor_stands_where_it_multiplies():
    granite = wire_model(load("granite-4.0-h-small")).layers["", "full"]
    assert [nodes_between(granite, name) for name in ("attention", "ffn")] == [["× 0.22", "+"]] * 2
    laurel = wire_model(load("gemma-3n-e2b")).layers["", "global"]
    assert nodes_between(laurel, "laurel_norm") == ["+", "÷ √2"]
    said = write_text(draw_text(plan_model(load("granite-4.0-h-small"), "")))
    assert said.count("⊕\n│ │ × 0.22\n") == 4


def test_two_mixers_side_by_side_are_two_boxes_with_their_factors():
    (layer,) = plan_model(load("falcon-h1-0.5b"), "").towers[0].layers
    parts = {name: (each.title, each.color) for name, each in layer.elements.items() if "." in name}
    assert parts == {"attention.softmax": ("GQA", "attention"), "attention.recurrent": ("Mamba2", "recurrent")}
    assert nodes_between(layer.junctions, "attention.softmax") == ["× 0.9375", "+"]
    assert nodes_between(layer.junctions, "attention.recurrent") == ["× 0.2357", "+"]
    assert "chunk" not in write_text(draw_text(plan_model(load("falcon-h1-0.5b"), "")))


@pytest.mark.parametrize("block", ["hyper", "hyper_ngrams"])
def test_factors_of_a_connection_are_inside_its_box(block):
    *_, tower = load_small("block", block)
    nodes = wire_model(tower).layers["", "layer"]
    assert {node.sign for node in nodes} <= {"", "+", "×"}
    assert max(Counter(node.part for node in nodes if node.part).values()) == 1


def nodes_between(nodes, part):
    """The signs after a part, up to the next part."""
    at = next(node.number for node in nodes if node.part == part)
    found = []
    for node in nodes[at + 1 :]:
        if at in node.sources:
            if node.part:
                break
            found.append(node.sign)
            at = node.number
    return found


@pytest.mark.parametrize(
    ("factor", "said"), [(0.22, "× 0.22"), (2**-0.5, "÷ √2"), (1 / 2048, "÷ 2,048"), (0.5, "× 0.5")]
)
def test_a_factor_is_written_as_short_as_it_is_exact(factor, said):
    assert say_factor(factor) == said


class Doubled(Full, kind="doubled_for_a_test"):
    """x + attention(x) + 2·ffn(x), which no figure knows of."""

    def forward(self, m, x, step):
        return x + m.attention(x, step) + m.ffn(x, step) * 2.0


def test_a_new_block_draws_itself():
    spec = load("llama-tiny")
    own = spec.blocks["layer"]
    block = Doubled(attention=own.attention, ffn=own.ffn, norm=own.norm)
    changed = replace(spec, blocks={"layer": block})
    nodes = wire_model(changed).layers["", "layer"]
    assert [(node.part, node.sources) for node in nodes] == [
        ("attention", (STREAM,)),
        ("ffn", (STREAM,)),
        ("", (1,)),
        ("", (STREAM, 0, 2)),
    ]
    assert nodes[2].sign == "× 2"
    assert find_faults(draw_model(plan_model(changed, "new"))) == []


def test_spans_that_overlap_have_lanes_of_their_own():
    assert assign_lanes([(0, 4), (0, 2), (2, 4), (5, 6)]) == [1, 0, 0, 0]


def write_sums(nodes):
    """The terms of the layer's result, each as the parts that it goes through."""
    return expand(nodes, nodes[-1].number)


def expand(nodes, at):
    if at == STREAM:
        return ["x"]
    node = nodes[at]
    terms = [term for source in node.sources for term in expand(nodes, source)]
    return terms if not node.part else [f"{node.part}({' + '.join(sorted(terms))})"]


def evaluate(text):
    """The terms of a formula."""

    class Terms(list):
        def __add__(self, other):
            return Terms([*self, *other])

    def part(name):
        return lambda terms: Terms([f"{name}({' + '.join(sorted(terms))})"])

    names = ("attention", "ffn", "attention_norm", "ffn_norm")
    return eval(text, {name: part(name) for name in names} | {"x": Terms(["x"])})
